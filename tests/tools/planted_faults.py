"""Programs for emulated cards, each with one fault or with none: to be run in a process of its own.

Prints a JSON object: for each program ``ok``, or the error that it ended with.
"""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable, Sequence

from tools.emulated_cuda.install import install

install(cards=2)

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from tools.emulated_cuda import cards, failures, streams  # noqa: E402
from tools.emulated_cuda.device import TF32_OPERANDS, round_to_tf32  # noqa: E402
from tools.emulated_cuda.traffic import TRAFFIC, counting  # noqa: E402

PROGRAMS: dict[str, Callable[[], None]] = {}
MIB = 2**20


def program(run: Callable[[], None]) -> Callable[[], None]:
    PROGRAMS[run.__name__] = run
    return run


def capture(
    step: Callable[[], object],
    generators: Sequence[torch.Generator] = (),
    mode: str = "thread_local",
    stream: torch.cuda.Stream | None = None,
) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph, stream=stream, capture_error_mode=mode):
        step()
    return graph


def host(tensor: Tensor) -> list[float]:
    numbers: list[float] = tensor.tolist()
    return numbers


def equal(found: object, wanted: object) -> None:
    if found != wanted:
        raise ValueError(f"{found} in place of {wanted}")


def raises(error: type[Exception], text: str, run: Callable[[], object]) -> None:
    try:
        run()
    except error as raised:
        if text not in str(raised):
            raise ValueError(f"another text: {raised}") from raised
    else:
        raise ValueError(f"no {error.__name__}")


# Without a fault.


@program
def a_training_step_is_that_of_the_cpu() -> None:
    random = torch.Generator().manual_seed(1)
    x, y = (torch.rand(8, n, generator=random, dtype=torch.float64) for n in (3, 2))
    start = torch.rand(3, 2, generator=random, dtype=torch.float64)

    def step(x: Tensor, y: Tensor, w: Tensor, number: Tensor) -> None:
        error = x @ w - y
        w.sub_(x.T @ error, alpha=0.01)
        number.add_(1)

    on_cpu, count = start.clone(), torch.zeros((), dtype=torch.int64)
    for _ in range(5):
        step(x, y, on_cpu, count)
    there = [t.pin_memory().to("cuda", non_blocking=True) for t in (x, y, start)]
    number = torch.zeros((), dtype=torch.int64, device="cuda")
    step(*there, number)
    graph = capture(lambda: step(*there, number))
    equal(number.item(), 1)  # a capture does nothing
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(4):
        graph.replay()
    torch.cuda.set_sync_debug_mode("default")
    equal(number.item(), 5)
    equal(host(there[2]), on_cpu.tolist())


@program
def random_numbers_of_a_graph_go_on() -> None:
    generator = torch.Generator(device="cuda").manual_seed(5)
    equal(generator.device, torch.device("cuda", 0))
    x = torch.zeros(4, device="cuda")

    def draw() -> None:
        x.uniform_(generator=generator)

    eager = []
    for _ in range(3):
        draw()
        eager.append(host(x))
    generator.manual_seed(5)
    draw()
    graph = capture(draw, [generator])  # which draws nothing
    for wanted in eager[1:]:
        graph.replay()
        equal(host(x), wanted)


@program
def a_second_card_opens_nothing_on_the_first() -> None:
    for card in cards.CARDS:
        card.context = False
    with torch.cuda.device(1):
        equal(cards.used_cards(), [1])
        x = torch.ones(3, device="cuda")
        stream = torch.cuda.Stream()
        torch.cuda.Event().record(stream)
        torch.cuda.synchronize()
        equal(str(x.device), "cuda:1")
        equal(str(stream.device), "cuda:1")
        capture(lambda: x.add_(1), stream=stream)
    equal(x.to("cuda:1").sum().item(), 3)
    equal(cards.used_cards(), [1])
    torch.cuda.synchronize()  # of the current device
    equal(cards.used_cards(), [0, 1])


@program
def memory_is_counted_and_runs_out() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    cards.set_memory(total=100 * MIB, free=40 * MIB)
    before = torch.cuda.memory_allocated("cuda:0")
    equal(torch.cuda.mem_get_info(0), (40 * MIB, 100 * MIB))
    torch.cuda.reset_peak_memory_stats(0)
    x = torch.empty(30 * MIB, dtype=torch.uint8, device="cuda:0")
    equal(torch.cuda.mem_get_info(0)[0], 10 * MIB)
    raises(torch.OutOfMemoryError, "CUDA out of memory", lambda: torch.empty(11 * MIB, device="cuda:0"))
    view = x[1:]
    del x
    equal(torch.cuda.memory_allocated(0) - before, 30 * MIB)
    del view
    equal(torch.cuda.memory_allocated(0), before)
    equal(torch.cuda.max_memory_allocated(0) - before, 30 * MIB)
    equal(torch.cuda.mem_get_info(0)[0], 10 * MIB)  # kept by the allocator
    equal(torch.cuda.memory_reserved(0) - before >= 30 * MIB, True)
    torch.cuda.empty_cache()
    equal(torch.cuda.mem_get_info(0)[0], 40 * MIB)
    torch.cuda.set_per_process_memory_fraction(0.01, 0)
    raises(torch.OutOfMemoryError, "", lambda: torch.empty(2 * MIB, dtype=torch.uint8, device="cuda"))
    torch.cuda.set_per_process_memory_fraction(1.0, 0)
    # What a graph works with is its own as long as it is there.
    tensors = [torch.zeros(MIB, dtype=torch.uint8, device="cuda")]
    graph = capture(lambda: tensors[0] + 1)
    equal(torch.cuda.mem_get_info(0)[0], 38 * MIB)
    tensors.clear()
    del graph
    gc.collect()
    torch.cuda.empty_cache()
    equal(torch.cuda.mem_get_info(0)[0], 40 * MIB)
    cards.set_memory(total=140 << 30, free=140 << 30)


@program
def failures_are_those_of_torch() -> None:
    x, w = torch.ones(2, 2, device="cuda"), torch.ones(2, 2, device="cuda")
    with failures.injected("out_of_memory", at=2):
        torch.ones(1, device="cuda")
        raises(torch.OutOfMemoryError, "CUDA out of memory", lambda: torch.ones(1, device="cuda"))
        torch.ones(1, device="cuda")
    with failures.injected("pinned_memory"):
        raises(torch.AcceleratorError, "CUDA error: out of memory", lambda: torch.ones(1).pin_memory())
    with failures.injected("pinned_memory"):
        raises(torch.AcceleratorError, "out of memory", lambda: torch.empty(1, pin_memory=True))
    with failures.injected("graph_instantiation"):
        raises(torch.AcceleratorError, "CUDA error: out of memory", lambda: capture(lambda: x.add_(1)))
    with failures.injected("cublas"):
        raises(RuntimeError, "CUBLAS_STATUS_ALLOC_FAILED when calling", lambda: x @ w)
    graph = capture(lambda: x.add_(1))
    with failures.injected("ecc", event="replay", at=2):
        graph.replay()
        raises(torch.AcceleratorError, "uncorrectable ECC error", graph.replay)
        raises(torch.AcceleratorError, "uncorrectable ECC error", torch.cuda.synchronize)
    equal(x.sum().item(), 8)


@program
def tf32_rounds_what_a_product_reads() -> None:
    x = torch.full((1, 1), 1 + 2.0**-12, device="cuda")
    products: list[Tensor] = []

    def multiply() -> None:
        products.append(x @ x)

    exact = (x @ x).item()
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    equal((x @ x).item(), 1.0)
    equal((x.double() @ x.double()).item() > 1.0, True)
    graph = capture(multiply)
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    graph.replay()  # as it was captured
    equal(products[0].item(), 1.0)
    equal((x @ x).item(), exact)
    equal(TF32_OPERANDS["aten::addmm"], (1, 2))
    equal(round_to_tf32(torch.tensor([float("inf"), -3.0])).tolist(), [float("inf"), -3.0])


@program
def operations_and_bytes_are_counted() -> None:
    table = torch.zeros(1000, 16, device="cuda")  # 64,000 bytes
    index = torch.arange(10, device="cuda")  # 80 bytes
    out = torch.zeros(10, 16, device="cuda")  # 640 bytes
    for run, wanted in (
        (lambda: table.index_select(0, index), {"aten::index_select": 2 * 640 + 80}),
        (lambda: table[index], {"aten::index": 2 * 640 + 80}),
        (lambda: torch.index_select(table, 0, index, out=out), {"aten::index_select": 2 * 640 + 80}),
        (lambda: out.add_(1), {"aten::add_": 2 * 640}),
        (lambda: out.zero_(), {"aten::zero_": 640}),
        (lambda: out * out, {"aten::mul": 2 * 640}),
        (lambda: out + out[0], {"aten::add": 2 * 640 + 64}),
        (lambda: out.copy_(table[:10]), {"aten::copy_": 2 * 640}),
        (lambda: table.index_add_(0, index, out), {"aten::index_add_": 3 * 640 + 80}),
        (lambda: table[:10].view(-1).unsqueeze(0), {}),
        (lambda: torch.empty(10, device="cuda"), {}),
        (lambda: torch.mm(out, out.T), {"aten::mm": 640 + 400}),
        (lambda: torch.zeros(10, 16, device="cuda"), {"aten::zero_": 640}),
    ):
        with counting() as counts:
            run()
        equal(dict(counts.bytes), wanted)
        equal(counts.launches, len(wanted))

    def step() -> None:
        out.add_(1).mul_(out)

    with counting() as counts:
        graph = capture(step)
    equal(counts.launches, 0)
    wanted = {"aten::add_": 2 * 640, "aten::mul_": 2 * 640}
    equal(dict(graph.counts.bytes), wanted)  # type: ignore[attr-defined]
    with counting() as counts:
        graph.replay()
    equal((dict(counts.bytes), sum(counts.operations.values()), counts.launches), (wanted, 2, 1))


@torch.library.custom_op("planted::step", mutates_args=("weights",))
def custom_step(weights: Sequence[Tensor], gradients: Sequence[Tensor], rate: float) -> Tensor:
    """Changes all of a list; gives its sum."""
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.sub_(gradient, alpha=rate)
    return torch.stack([weight.sum() for weight in weights]).sum()


@program
def a_custom_operator_is_one_operation() -> None:
    weights = [torch.full((n,), 5.0, device="cuda") for n in (2, 3)]
    gradients = [torch.ones(n, device="cuda") for n in (2, 3)]
    sums: list[Tensor] = []
    graph = capture(lambda: sums.append(custom_step(weights, gradients, 1.0)))
    equal([host(weight) for weight in weights], [[5, 5], [5, 5, 5]])
    graph.replay()
    graph.replay()
    equal([host(weight) for weight in weights], [[3, 3], [3, 3, 3]])
    equal(sums[0].item(), 15)
    equal(dict(graph.counts.bytes), {"planted::step": 20 + 20 + 20 + 4})  # type: ignore[attr-defined]
    TRAFFIC["planted::step"] = lambda weights, gradients, rate: 7 * len(weights)
    with counting() as counts:
        custom_step(weights, gradients, 1.0)
    equal(dict(counts.bytes), {"planted::step": 14})
    del gradients[1]
    raises(failures.CudaCheckError, "freed", graph.replay)


@program
def streams_that_wait_for_each_other() -> None:
    x, copies = torch.zeros(4, device="cuda"), torch.cuda.Stream()
    source = torch.ones(4).pin_memory()
    for _ in range(2):
        copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(copies):
            x.copy_(source, non_blocking=True)
        torch.cuda.current_stream().wait_stream(copies)
        x.add_(1)
    equal(x.sum().item(), 8)

    def branches() -> None:
        copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(copies):
            x.mul_(2)
        torch.cuda.current_stream().wait_stream(copies)

    capture(branches).replay()
    equal(x.sum().item(), 16)


# With a fault.


@program
def item_in_a_capture() -> None:
    x = torch.zeros(1, device="cuda")
    capture(lambda: x.add_(1).item())


@program
def a_capture_that_failed_cannot_end() -> None:
    x = torch.zeros(1, device="cuda")

    def step() -> None:
        raises(torch.AcceleratorError, "operation not permitted when stream is capturing", x.item)

    capture(step)


@program
def item_where_waits_are_errors() -> None:
    x = torch.zeros(1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    x.item()


@program
def pageable_memory_where_waits_are_errors() -> None:
    torch.cuda.set_sync_debug_mode("error")
    torch.ones(3).to("cuda", non_blocking=True)


@program
def a_mask_in_a_capture() -> None:
    x = torch.ones(3, device="cuda")
    capture(lambda: x[x > 0])


@program
def a_static_tensor_is_replaced() -> None:
    static = {"x": torch.ones(3, device="cuda")}
    graph = capture(lambda: static["x"].add_(1))
    graph.replay()
    static["x"] = torch.zeros(3, device="cuda")
    graph.replay()


@program
def an_input_is_freed() -> None:
    tensors = [torch.ones(3, device="cuda"), torch.ones(3, device="cuda")]
    graph = capture(lambda: tensors[0].add_(tensors[1]))
    del tensors[1]
    graph.replay()


@program
def outputs_are_read_before_a_replay() -> None:
    x = torch.ones(3, device="cuda")
    made: list[Tensor] = []
    graph = capture(lambda: made.append(x + 1))
    raises(ValueError, "in place of", lambda: equal(host(made[0]), [2, 2, 2]))
    graph.replay()
    equal(host(made[0]), [2, 2, 2])
    capture(lambda: made.append(x + 1))
    equal(host(made[1]), [2, 2, 2])


@program
def a_generator_is_not_registered() -> None:
    x, generator = torch.ones(3, device="cuda"), torch.Generator(device="cuda")
    capture(lambda: x.uniform_(generator=generator))


@program
def the_default_generator() -> None:
    torch.rand(3, device="cuda")


@program
def a_generator_of_the_cpu() -> None:
    torch.rand(3, device="cuda", generator=torch.Generator())


@program
def a_scalar_of_the_host_in_a_graph() -> None:
    x, rate = torch.ones(3, device="cuda"), torch.tensor(0.1)
    x.mul_(rate)
    capture(lambda: x.mul_(rate))


@program
def a_copy_from_the_host_in_a_graph() -> None:
    x, batch = torch.ones(3, device="cuda"), torch.ones(3).pin_memory()
    capture(lambda: x.copy_(batch, non_blocking=True))


@program
def a_tensor_of_the_host_among_others() -> None:
    torch.ones(3, device="cuda") + torch.ones(3)


@program
def tensors_of_two_cards() -> None:
    torch.ones(3, device="cuda:0") + torch.ones(3, device="cuda:1")


@program
def a_card_that_is_not_there() -> None:
    torch.ones(3, device="cuda:2")


@program
def a_device_without_an_index() -> None:
    equal(torch.cuda.mem_get_info(torch.device("cuda"))[1], 140 << 30)
    torch.cuda.get_per_process_memory_fraction(torch.device("cuda"))


@program
def after_a_fault_of_the_device() -> None:
    x = torch.ones(3, device="cuda")
    failures.inject("illegal_memory_access", at=2)
    x.add_(1)
    raises(torch.AcceleratorError, "an illegal memory access was encountered", lambda: x.add_(1))
    torch.cuda.mem_get_info()


@program
def another_thread_waits_during_a_global_capture() -> None:
    x, errors = torch.ones(3, device="cuda"), []

    def wait() -> None:
        try:
            x.sum().item()
        except Exception as error:
            errors.append(error)

    def step() -> None:
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(60)

    capture(step, mode="global")
    raise errors[0]


@program
def a_stream_that_does_not_wait() -> None:
    x, other = torch.ones(3, device="cuda"), torch.cuda.Stream()
    with torch.cuda.stream(other):
        x.add_(1)


@program
def a_branch_that_is_not_joined() -> None:
    x, other = torch.ones(3, device="cuda"), torch.cuda.Stream()

    def step() -> None:
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            x.add_(1)

    capture(step)


@program
def a_shape_that_changes_in_place() -> None:
    torch.ones(2, 3, device="cuda").t_()


def outcome(run: Callable[[], None]) -> str:
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        failures.clear()
        torch.cuda.set_sync_debug_mode("default")
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        equal(streams.CAPTURES, [])
    return "ok"


if __name__ == "__main__":
    print(json.dumps({name: outcome(run) for name, run in PROGRAMS.items()}))
