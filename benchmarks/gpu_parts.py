"""The parts of the GPU proof: each measures one thing and yields figures as it gets them."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch.profiler import ProfilerActivity, profile, supported_activities

from benchmarks.figures import RATIO, Figure, Goal, plain
from benchmarks.gpu_sets import BackgroundSets
from benchmarks.gpu_training import (
    Epochs,
    capped_memory,
    is_emulated,
    matrix_products,
    open_task,
)
from benchmarks.made_sets import made_set
from benchmarks.make_big import FULL_SIZE
from benchmarks.training import CONFIG, EPOCH_STRUCTURES, time_reference
from benchmarks.trial_networks import trial_network
from trainer.config import AEVConfig, Precision, TrainConfig
from trainer.features.aev import aev_length
from trainer.fitting.devices import find_device, release_memory
from trainer.fitting.loop import fit
from trainer.fitting.scheduler import PackScheduler
from trainer.networks.widths import widest
from trainer.reporting import EpochRecord, SilentReporter
from trainer.task import Task

TOPIC: Final = "gpu"

#: Goals of this project on a card like the H200.
EPOCH_AIM: Final = Goal("below", 15)  # ms, of all 691,918 structures
REFERENCE_AIM: Final = Goal("at least", 100)
STEP_AIM: Final = Goal("below", 100)  # us, at batch 24
PACK_AIM: Final = Goal("at least", 5)  # trials an hour in packs of 16, relative to one at a time
REPEATED_AIM: Final = Goal("below", 1e-6)

#: The precisions to train in on a GPU, the most important first.
SMOKE_PRECISIONS: Final[tuple[Precision, ...]] = ("tf32", "bfloat16", "float32", "float64")
EPOCH_PRECISIONS: Final[tuple[Precision, ...]] = ("tf32", "bfloat16", "float32")

#: Networks of a pack. Size 1 means one at a time, for as many trials as the second size has.
PACK_SIZES: Final = (1, 8, 16)

#: The batch size for measurements of small steps.
SMALL_BATCH: Final = 24

#: Rows of the measured products: the hydrogens of a batch of 8192 structures, and of one of 24.
PRODUCT_ROWS: Final = (40_960, 120)

#: Calls captured in one graph, so that the host's part of a call does not count.
GRAPHED_CALLS: Final = 20

TESTS_OUTPUT: Final = "tests.txt"


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements.

    Attributes
    ----------
    full : structures of the set whose epoch is measured
    medium : structures of the set for small batches and the reference; replaces a full set that is not ready
    sample : structures of the set for short trainings; None: the shipped sample
    batch_size : batch size of epochs with large batches
    epochs, small_epochs, pack_epochs : repeats of epochs with large and small batches, and epochs of a trial
    pack_batches : two batch sizes
    copied : bytes of the copy
    rows : rows of the products
    capped_gib : GPU memory left for streaming; None: act as if there were none
    tests : run only tests in tests/gpu whose names contain this; empty: all
    """

    full: int = FULL_SIZE
    medium: int = 100_000
    sample: int | None = None
    batch_size: int = 8192
    epochs: int = 10
    small_epochs: int = 5
    pack_epochs: int = 60
    pack_batches: tuple[int, int] = (64, 32)
    copied: int = 2**30
    rows: tuple[int, ...] = PRODUCT_ROWS
    capped_gib: float | None = 4.0
    tests: str = ""


#: For the emulated device, where an operation takes a thousand times as long.
SMALL: Final = Sizes(
    full=160,
    medium=80,
    sample=80,
    batch_size=64,
    epochs=2,
    small_epochs=2,
    pack_epochs=2,
    copied=2**12,
    rows=(48,),
    capped_gib=None,
    tests="subsets_are_on_the_device",
)


@dataclass
class Bench:
    """State that the parts share.

    Attributes
    ----------
    out : folder for output besides the report
    data : folder of sets and stores
    ends : ``time.monotonic()`` after which the current part begins no further repeat
    epoch_rates : structures/s of our epochs by precision, for the ratio to the reference loop
    trial_rate : trials an hour, trained one at a time
    """

    sizes: Sizes
    out: Path
    data: Path
    sets: BackgroundSets
    ends: float = 0.0
    epoch_rates: dict[Precision, float] = field(default_factory=dict)
    trial_rate: float | None = None
    pack_rate: float | None = None
    _tasks: dict[int | None, Task] = field(default_factory=dict)

    def seconds_left(self) -> float:
        """Time that the current part has left for repeats."""
        return max(0.0, self.ends - time.monotonic())

    def seconds_of(self, call: Callable[[], object], count: int) -> list[float]:
        """Time each call: ``count`` calls, or fewer (at least one) if the time of the part ends."""
        seconds: list[float] = []
        while len(seconds) < count and (not seconds or self.seconds_left()):
            seconds.append(_seconds(call))
        return seconds

    def sample_task(self) -> Task:
        """The task for short trainings."""
        return self._task(self.sizes.sample)

    def medium_task(self) -> Task:
        """The task for small batches."""
        return self._task(self.sizes.medium)

    def full_task(self) -> tuple[Task, str]:
        """The task of the full set, or the medium one with a note that says so."""
        ready, why = None, "its store was not ready in time"
        try:
            ready = self.sets.wait(self.sizes.full, 0.0)
        except RuntimeError as error:
            why = str(error)
        if ready is not None:
            return self._task(self.sizes.full), ""
        return self.medium_task(), f"a smaller set than the {self.sizes.full:,} structures: {why}"

    def _task(self, structures: int | None) -> Task:
        if structures not in self._tasks:
            file = None
            if structures is not None:
                if self.sets.wait(structures, self.seconds_left()) is None:
                    raise RuntimeError(f"the set of {structures:,} structures is not ready yet")
                file = made_set(self.data, structures)
            self._tasks[structures] = open_task(self.data, file)
        return self._tasks[structures]

    def forget_tasks(self) -> None:
        """Release the tasks and their memory on the device."""
        self._tasks.clear()
        release_memory(find_device("auto"))


def describe_card(bench: Bench) -> Iterator[Figure]:
    """Report which card it is, and what its driver says about it."""
    major, minor = torch.cuda.get_device_capability()
    yield _fact("card", f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}")
    yield _fact("CUDA of torch", f"{torch.version.cuda}, {torch.__version__}")
    free, total = torch.cuda.mem_get_info(find_device("cuda"))
    yield _figure("memory of the card", "GiB", [total / 2**30], note=f"{free / 2**30:.1f} GiB free")
    fields = "driver_version,clocks.max.sm,clocks.max.mem,power.limit,ecc.mode.current,mig.mode.current"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        yield _fact(fields.replace(",", ", "), found.stdout.strip())
    except (OSError, subprocess.SubprocessError) as error:
        yield _fact("nvidia-smi", f"not available: {error}")


def train_shortly(precision: Precision, bench: Bench) -> Iterator[Figure]:
    """Run a whole training with checkpoints, like that of a trial."""
    config = TrainConfig(
        hidden=(64, 32), batch_size=256, epochs=4, dropout=0.1, precision=precision, device="cuda"
    )
    (history,) = _fit_together(bench, bench.sample_task(), [config]).histories
    # With a small set an epoch is a single step, which need not improve the error.
    aim = Goal("below", history[0].val_mae) if bench.sizes.sample is None else None
    yield _figure("the first epoch, in which the CUDA graph is captured", "ms", [1000 * history[0].seconds])
    yield _figure("a later epoch", "ms", [1000 * record.seconds for record in history[1:]])
    yield _figure(
        f"validation MAE after {len(history)} epochs",
        "kcal/mol",
        [history[-1].val_mae],
        aim,
        f"{history[0].val_mae:.3g} after the first",
    )


def await_sets(bench: Bench) -> Iterator[Figure]:
    """Report the time to make the sets, which another process has made meanwhile."""
    for structures in (bench.sizes.medium, bench.sizes.full):
        times = bench.sets.wait(structures, bench.seconds_left())
        if times is None:
            yield _fact(f"the set of {structures:,} structures", "not ready in time: parts use a smaller set")
            return
        yield _figure(f"making {structures:,} structures", "s", [times.make_seconds], note="on the CPU")
        yield _figure(
            "reading them and building their store",
            "s",
            [times.build_seconds],
            note=f"on the CPU, {times.store_gib:.3g} GiB, beside the parts before",
        )


def run_tests(bench: Bench) -> Iterator[Figure]:
    """Run tests/gpu in a process of its own, because the tests change classes."""
    command = [
        *(sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-v", "-rfE", "--tb=short"),
        # The machine may have other versions, with deprecation warnings.
        *("-W", "default", "-p", "no:cacheprovider", "--color=no", "-k", bench.sizes.tests),
    ]
    output = bench.out / TESTS_OUTPUT
    with output.open("w") as file:
        try:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "COLUMNS": "300"},
                timeout=max(1.0, bench.seconds_left()),
                check=False,
            )
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
    outcomes, failures = read_outcomes(output.read_text(errors="replace"))
    passed = outcomes.count("PASSED")
    yield _figure(
        "tests of tests/gpu that passed",
        "tests",
        [passed],
        Goal("at least", max(1, len(outcomes))),
        f"of {len(outcomes)} that ended; all of their output is in {TESTS_OUTPUT}",
    )
    for name, message in failures.items():
        yield _fact(name, message)
    if not ended:
        raise RuntimeError("the tests did not end in time")
    if failures or not passed:
        raise RuntimeError(f"{len(failures)} tests failed, {passed} passed")


def read_outcomes(text: str) -> tuple[list[str], dict[str, str]]:
    """Outcomes of the tests in pytest's output, and the message of each failed one by its name."""
    outcomes = re.findall(r"^\S+::.* (PASSED|FAILED|ERROR|SKIPPED)\b", text, re.MULTILINE)
    lines = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", text, re.MULTILINE)
    return outcomes, {name: message or "failed" for name, message in lines}


def measure_ceilings(bench: Bench) -> Iterator[Figure]:
    """Measure copies and the first layer's products, with data at a 16-byte boundary and 4 bytes past it."""
    numbers = bench.sizes.copied // 4
    source, target = (torch.zeros(numbers + 1, device="cuda") for _ in range(2))
    for place, begin in (("aligned", 0), ("4 bytes off", 1)):
        some, there = (tensor[begin : begin + numbers] for tensor in (source, target))
        seconds = _graphed_seconds(bench, partial(there.copy_, some))
        rates = [2 * 4 * numbers / s / 1e9 for s in seconds]
        yield _figure(f"copy of {4 * numbers:,} bytes, {place}", "GB/s", rates, note="read and written")
    del source, target
    inputs, width = aev_length(AEVConfig()), widest(CONFIG.hidden)[0]
    for rows in bench.sizes.rows:
        for precision in EPOCH_PRECISIONS:
            dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
            x = torch.randn(rows, inputs).to("cuda", dtype)
            grad_output = torch.randn(rows, width).to("cuda", dtype)
            y = torch.empty_like(grad_output)
            for place, behind in (("aligned", 0), ("4 bytes off", 4 // dtype.itemsize)):
                weights = torch.randn(width * inputs + behind).to("cuda", dtype)[behind:].view(width, inputs)
                calls = {
                    f"{rows}x{inputs} by {inputs}x{width}": partial(torch.mm, x, weights.T, out=y),
                    f"{width}x{rows} by {rows}x{inputs}": partial(torch.mm, grad_output.T, x, out=weights),
                }
                for shapes, call in calls.items():
                    with matrix_products(precision):
                        seconds = _graphed_seconds(bench, call)
                    rates = [2 * rows * inputs * width / s / 1e12 for s in seconds]
                    note = f"{statistics.median(seconds) * 1e6:.3g} us"
                    name = f"product {shapes}, {precision}, weights {place}"
                    yield _figure(name, "Tflop/s", rates, note=note)


def measure_epoch(precision: Precision, bench: Bench) -> Iterator[Figure]:
    """Measure an epoch of the full set with large batches, and where its time goes."""
    task, note = bench.full_task()
    config = replace(
        CONFIG, batch_size=bench.sizes.batch_size, epochs=10_000, precision=precision, device="cuda"
    )
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    epochs = Epochs(task, [config])
    torch.cuda.synchronize(find_device("cuda"))
    yield _figure(
        "setting up", "s", [time.perf_counter() - started], note="features copied, unless they were"
    )
    yield _figure(
        "the first epoch, in which the CUDA graph is captured", "ms", [1000 * _seconds(epochs.train)]
    )
    seconds = bench.seconds_of(epochs.train, bench.sizes.epochs)
    bench.epoch_rates[precision] = epochs.structures / statistics.median(seconds)
    aim = EPOCH_AIM if epochs.structures == EPOCH_STRUCTURES else None
    name = f"an epoch of {epochs.structures:,} structures with its evaluation"
    yield _figure(name, "ms", [1000 * s for s in seconds], aim, note)
    alone = bench.seconds_of(epochs.evaluate, bench.sizes.epochs)
    yield _figure("its evaluation alone", "ms", [1000 * s for s in alone])
    yield _figure(
        "peak memory of tensors", "GiB", [torch.cuda.max_memory_allocated(find_device("cuda")) / 2**30]
    )
    yield from _top_kernels(epochs.train)


def measure_small_steps(precision: Precision, bench: Bench) -> Iterator[Figure]:
    """Measure steps that are so small that launching kernels is most of their work."""
    config = replace(CONFIG, batch_size=SMALL_BATCH, epochs=10_000, precision=precision, device="cuda")
    epochs = Epochs(bench.medium_task(), [config])
    yield _figure(
        "the first epoch, in which the CUDA graph is captured", "ms", [1000 * _seconds(epochs.train)]
    )
    seconds = bench.seconds_of(epochs.train, bench.sizes.small_epochs)
    alone = statistics.median(bench.seconds_of(epochs.evaluate, bench.sizes.small_epochs))
    yield _figure(
        f"an epoch of {epochs.steps:,} steps with its evaluation", "ms", [1000 * s for s in seconds]
    )
    steps = [1e6 * (s - alone) / epochs.steps for s in seconds]
    yield _figure(f"a step at batch {SMALL_BATCH}", "us", steps, STEP_AIM, "without the evaluation")


def measure_pack(size: int, bench: Bench) -> Iterator[Figure]:
    """Measure trials an hour and the epoch of a pack; size 1 is the mean of several trainings in turn."""
    task = bench.sample_task()
    configs = [_trial(bench, n, bench.sizes.pack_batches[0]) for n in range(max(size, PACK_SIZES[1]))]
    # The first training of a process sets up libraries.
    _fit_together(bench, task, [replace(configs[0], epochs=2)])
    groups = [configs[:size]] if size > 1 else [[config] for config in configs]
    seconds = sum(_fit_together(bench, task, group).seconds for group in groups)
    rate = 3600 * sum(map(len, groups)) / seconds
    if size == 1:
        bench.trial_rate = rate
    what = f"trials of {bench.sizes.pack_epochs} epochs, batch {bench.sizes.pack_batches[0]}"
    yield _figure(f"{what}, {size} at once", "trials/h", [rate])
    if size > 1 and bench.trial_rate is not None:
        aim = PACK_AIM if size == PACK_SIZES[-1] else None
        yield _figure(f"trials/h, {size} at once to one at a time", RATIO, [rate / bench.trial_rate], aim)
    # The same without starts and ends, and without waiting for late pack members.
    rates = []
    for group in groups:
        epochs = Epochs(task, group)
        epochs.train()
        epochs.train()
        rates.append(len(group) / statistics.median(bench.seconds_of(epochs.train, bench.sizes.epochs)))
        del epochs
    epoch_rate = len(rates) / sum(1 / r for r in rates)
    if size == 1:
        bench.pack_rate = epoch_rate
    yield _figure(f"epochs of single networks, {size} at once", "epochs/s", [epoch_rate])
    if size > 1 and bench.pack_rate is not None:
        yield _figure(f"epochs, {size} at once to one at a time", RATIO, [epoch_rate / bench.pack_rate])


def measure_two_packs(bench: Bench) -> Iterator[Figure]:
    """Measure two packs of different batch sizes, at the same time and one after the other."""
    task, size = bench.sample_task(), PACK_SIZES[1]
    groups = [[_trial(bench, n, batch) for n in range(size)] for batch in bench.sizes.pack_batches]
    _fit_together(bench, task, [replace(groups[0][0], epochs=2)])
    alone = [_fit_together(bench, task, group).seconds for group in groups]
    for batch, seconds in zip(bench.sizes.pack_batches, alone, strict=True):
        yield _figure(f"a pack of {size} with batch {batch}", "s", [seconds])
    together = _fit_together(bench, task, [config for group in groups for config in group]).seconds
    yield _figure("both at once", "s", [together])
    yield _figure("both at once to one after the other", RATIO, [sum(alone) / together])


def compare_repeats(precision: Precision, bench: Bench) -> Iterator[Figure]:
    """Compare the losses of the same training, repeated and resumed from a checkpoint."""
    config = TrainConfig(
        hidden=(64, 32), batch_size=256, epochs=4, dropout=0.1, precision=precision, device="cuda"
    )
    task = bench.sample_task()
    (first,), (second,) = (_fit_together(bench, task, [config]).histories for _ in range(2))
    yield _difference("two runs", first, second)
    (resumed,) = _fit_together(bench, task, [config], stop_after=2).histories
    yield _difference("a resumed run and one without a break", first, resumed)


def measure_streaming(bench: Bench) -> Iterator[Figure]:
    """Measure epochs whose features do not fit on the card, and are read from the store batch by batch."""
    bench.forget_tasks()
    gib = bench.sizes.capped_gib
    with capped_memory(gib):
        task, note = bench.full_task()
        config = replace(
            CONFIG, batch_size=bench.sizes.batch_size, epochs=10_000, precision="tf32", device="cuda"
        )
        epochs = Epochs(task, [config])
        if not epochs.streamed:
            raise RuntimeError("the features of the training subset fit into the memory that is left")
        cap = "no memory for features" if gib is None else f"{gib:g} GiB"
        yield _figure(f"the first epoch with {cap}", "ms", [1000 * _seconds(epochs.train)])
        seconds = bench.seconds_of(epochs.train, 3)
        name = f"an epoch of {epochs.structures:,} structures with {cap}"
        yield _figure(name, "ms", [1000 * s for s in seconds], note=note)
        table_rate = bench.epoch_rates.get("tf32")
        if table_rate is not None:
            ratio = table_rate * statistics.median(seconds) / epochs.structures
            yield _figure("time to that of an epoch with all features on the card", RATIO, [ratio])
        del epochs, task
        bench.forget_tasks()


def measure_reference(bench: Bench) -> Iterator[Figure]:
    """Time the loop that torchani's users write on the same card, and compare ours with it."""
    if bench.sets.wait(bench.sizes.medium, bench.seconds_left()) is None:
        raise RuntimeError(f"the set of {bench.sizes.medium:,} structures is not ready yet")
    file = made_set(bench.data, bench.sizes.medium)
    # The emulated device has no automatic differentiation.
    device = "cpu" if is_emulated() else "cuda"
    times = time_reference(file, device, epochs=3, batch_size=bench.sizes.batch_size)
    rates = [times.train / seconds for seconds in times.epoch_seconds]
    yield _figure(f"the reference loop, batch {bench.sizes.batch_size}", "structures/s", rates)
    for precision, rate in bench.epoch_rates.items():
        yield Figure(
            TOPIC,
            f"our epoch's rate to the reference loop's, {precision}",
            rate / statistics.median(rates),
            RATIO,
            REFERENCE_AIM,
        )


@dataclass(frozen=True)
class _Fits:
    """Trainings that ran at the same time: the seconds of all together, and the history of each."""

    seconds: float
    histories: tuple[tuple[EpochRecord, ...], ...]


class _Stopping(SilentReporter):
    """Stops a training when the time of its part ends, or after a number of epochs."""

    def __init__(self, bench: Bench, after: int | None) -> None:
        self._bench = bench
        self._after = after
        self._asked = 0

    def should_stop(self) -> bool:
        self._asked += 1
        return self._asked == self._after or not self._bench.seconds_left()


def _fit_together(
    bench: Bench, task: Task, configs: Sequence[TrainConfig], stop_after: int | None = None
) -> _Fits:
    """Run whole trainings, each in a thread of its own, with one scheduler."""
    scheduler, ready = PackScheduler(), threading.Barrier(len(configs))

    def run(number: int, folder: Path, after: int | None) -> tuple[EpochRecord, ...]:
        ready.wait()
        reporter = _Stopping(bench, after)
        return fit(task, configs[number], folder / str(number), reporter, scheduler=scheduler).history

    with tempfile.TemporaryDirectory(dir=bench.data) as place, ThreadPoolExecutor(len(configs)) as pool:
        if stop_after is not None:
            list(pool.map(partial(run, folder=Path(place), after=stop_after), range(len(configs))))
        started = time.perf_counter()
        histories = tuple(pool.map(partial(run, folder=Path(place), after=None), range(len(configs))))
        seconds = time.perf_counter() - started
    if any(len(history) < config.epochs for history, config in zip(histories, configs, strict=True)):
        raise RuntimeError("the trainings did not end within the time of this part")
    return _Fits(seconds, histories)


def _trial(bench: Bench, number: int, batch_size: int) -> TrainConfig:
    return TrainConfig(
        **trial_network(number),
        batch_size=batch_size,
        epochs=bench.sizes.pack_epochs,
        seed=number,
        precision="tf32",
        device="cuda",
    )


def _difference(what: str, one: Sequence[EpochRecord], other: Sequence[EpochRecord]) -> Figure:
    pairs = [
        pair
        for a, b in zip(one, other, strict=True)
        for pair in ((a.train_loss, b.train_loss), (a.val_loss, b.val_loss))
    ]
    largest = max(abs(a - b) / abs(a) for a, b in pairs)
    note = "the same bits" if largest == 0 else ""
    return _figure(f"largest difference of a loss: {what}", "relative", [largest], REPEATED_AIM, note)


def _top_kernels(call: Callable[[], object], count: int = 10) -> Iterator[Figure]:
    """Profile a call, and yield the kernels with the largest total time."""
    on_card = ProfilerActivity.CUDA in supported_activities()  # type: ignore[no-untyped-call]
    with profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU]) as profiler:
        call()
    events = [
        (event.self_device_time_total if on_card else event.self_cpu_time_total, event.count, event.key)
        for event in profiler.key_averages()
    ]
    # The host's calls take no time on the device.
    events = [event for event in events if event[0]]
    total = sum(microseconds for microseconds, _, _ in events)
    if not total:
        yield _fact("profiler", "the profiler saw no kernel")
        return
    yield _figure(
        "all kernels of an epoch", "ms", [total / 1000], note=f"{sum(e[1] for e in events)} launches"
    )
    for place, (microseconds, launches, name) in enumerate(sorted(events, reverse=True)[:count], start=1):
        note = f"{100 * microseconds / total:.1f} %, {launches} launches: {name[:160]}"
        yield _figure(f"kernel {place}", "ms", [microseconds / 1000], note=note)


def _graphed_seconds(bench: Bench, call: Callable[[], object]) -> list[float]:
    """Time a call by several calls in a CUDA graph, so that the host's work for a call does not count."""
    stream = torch.cuda.Stream(find_device("cuda"))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(find_device("cuda"))
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize(find_device("cuda"))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(GRAPHED_CALLS):
            call()
    graph.replay()
    torch.cuda.synchronize(find_device("cuda"))
    return [s / GRAPHED_CALLS for s in bench.seconds_of(graph.replay, bench.sizes.epochs)]


def _seconds(call: Callable[[], object]) -> float:
    _wait()
    started = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize(find_device("cuda"))


def _figure(
    name: str, unit: str, values: Sequence[float], goal: Goal | None = None, note: str = ""
) -> Figure:
    return plain(TOPIC, name, unit, values, goal, note)


def _fact(name: str, text: str) -> Figure:
    return Figure(TOPIC, name, None, "", note=text)
