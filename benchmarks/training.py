"""Training one network: structures a second of our loop and of the reference loop, end to end."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Final, get_args, get_type_hints

import numpy as np
import torch

from benchmarks import reference_loop
from benchmarks.figures import RATIO, Figure, Goal, Samples, plain, rate_ratio
from benchmarks.made_sets import made_set
from benchmarks.plan import BenchmarkPlan
from benchmarks.sides import SideTask, take_turns
from trainer.config import (
    AEVConfig,
    DataConfig,
    Precision,
    TaskConfig,
    TrainConfig,
)
from trainer.errors import ConfigError
from trainer.features.aev import aev_length
from trainer.features.compositions import find_compositions
from trainer.features.source import GPU_SHARE, StoredFeatures
from trainer.fitting.devices import find_device, resolve_precision
from trainer.fitting.loop import fit
from trainer.networks.widths import widest, widths_text
from trainer.progress import no_progress
from trainer.reporting import SilentReporter
from trainer.task import Task, prepare_task

TOPIC: Final = "training"

#: The network and settings of the report's first row.
CONFIG: Final = TrainConfig(
    hidden=(128,),
    activation="relu",
    learning_rate=1e-3,
    batch_size=8192,
    weight_decay=1e-5,
    optimizer="adam",
    schedule="constant",
)

#: Smallest ratios to the reference loop, by precision on a CPU; on a GPU one for all precisions.
CPU_GOALS: Final[Mapping[Precision, Goal]] = {"float32": Goal("at least", 20), "auto": Goal("at least", 30)}
GPU_GOAL: Final = Goal("at least", 50)

#: Milliseconds of an epoch of all of ANI-1's small molecules on a GPU.
EPOCH_GOAL: Final = Goal("below", 30)
EPOCH_STRUCTURES: Final = 691_918

START_GOAL: Final = Goal("below", 1)  # s

#: The reference's rate does not grow with the data, but its time and memory for loading do.
REFERENCE_STRUCTURES: Final = 100_000

#: Rows of the products whose rate is measured, from few, which stay in a cache, to the hydrogens of a batch.
PRODUCT_ROWS: Final = (1024, 8192, 40_960)

#: Duration of a measurement of the products' rate, s.
PRODUCT_SECONDS: Final = 0.5
CALLS_AT_ONCE: Final = 4

PRODUCT_GOAL: Final = Goal("at least", 80)  # %


@dataclass(frozen=True)
class FitTimes:
    """Times of one training with our loop.

    Attributes
    ----------
    seconds : duration of ``fit``: setting up, epochs, evaluation, checkpoints
    start_seconds : time from the call to the start of the first epoch, if that took as long as the others
    epoch_seconds : median duration of the epochs, each with its evaluation
    train, validation : numbers of structures of the subsets
    product_operations : operations of one product of the first layer, for one structure of the training set
    """

    seconds: float
    start_seconds: float
    epoch_seconds: float
    train: int
    validation: int
    product_operations: float


@dataclass(frozen=True)
class Products:
    """Rates of float32 matrix products of the first layer's shape, operations/s."""

    forward: float
    weight_gradient: float


def measure(plan: BenchmarkPlan, folder: Path) -> list[Figure]:
    """Compare every precision with the reference loop, and float32 with the machine's rate of products."""
    file = made_set(folder, plan.train_structures)
    reference_file = made_set(folder, min(plan.train_structures, REFERENCE_STRUCTURES))
    config = replace(CONFIG, epochs=plan.train_epochs, threads=plan.threads, device=plan.device)
    # On a CPU an epoch of the reference takes so long that one is enough.
    reference_epochs = plan.train_epochs if _on_gpu(plan.device) else 1
    chosen = precisions()
    sides: dict[str, SideTask] = {
        f"ours {p}": partial(fit_once, file, folder, replace(config, precision=p)) for p in chosen
    }
    if not _on_gpu(plan.device):
        for p in CPU_GOALS:
            each = partial(fit_on_each_core, file, folder, replace(config, precision=p), plan.threads)
            sides[f"each core {p}"] = each
    sides["reference"] = partial(train_reference, reference_file, plan.device, reference_epochs)
    if _on_gpu(plan.device):
        sides["streamed"] = partial(fit_capped, file, folder, config, plan.capped_gib)
    sides["products"] = partial(product_rates, plan.device, widest(config.hidden)[0])
    results = take_turns(sides, plan.repeats, plan.threads)
    reference = Samples("structures/s", tuple(results["reference"]))
    figures = []
    for precision in chosen:
        figures += _precision_figures(precision, results[f"ours {precision}"], reference, config, plan)
    fits = [times for times in results["ours float32"] if isinstance(times, FitTimes)]
    if _on_gpu(plan.device):
        figures.append(_streamed_figure(results["streamed"], fits, plan.capped_gib))
    else:
        figures += [
            rate_ratio(
                TOPIC,
                f"{plan.threads} of them at once, each in a process and a thread of its own, {precision}",
                Samples("structures/s", tuple(results[f"each core {precision}"])),
                reference,
                goal,
                "all together; what a worker does",
            )
            for precision, goal in CPU_GOALS.items()
        ]
    figures.append(_share_of_products(fits, results["products"], config))
    figures.append(
        plain(
            TOPIC,
            "start of a second trial in a worker",
            "s",
            [times.start_seconds for times in fits],
            START_GOAL,
        )
    )
    return figures


def _on_gpu(device: str) -> bool:
    return torch.device(device).type == "cuda"


def precisions() -> tuple[Precision, ...]:
    """All values of the setting ``precision``."""
    return get_args(get_type_hints(TrainConfig)["precision"])


def fit_once(
    file: Path, folder: Path, config: TrainConfig, ready: Callable[[], None] = lambda: None
) -> FitTimes | str:
    """Train with our loop as the second trial of a worker; the first is a short one.

    Parameters
    ----------
    ready : called before the second trial

    Returns
    -------
    The times, or why this machine cannot train in this way.
    """
    data = DataConfig(files=(str(file),))
    task = prepare_task(TaskConfig(data), folder / "features", no_progress)
    if config.precision not in ("auto", resolve_precision(config).precision):
        return f"there is no {config.precision} on {config.device} here"
    try:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            fit(task, replace(config, epochs=2), Path(place) / "first", SilentReporter())
            ready()
            began, started = time.time(), time.perf_counter()
            result = fit(task, config, Path(place) / "second", SilentReporter())
            seconds = time.perf_counter() - started
    except ConfigError as error:
        return str(error)
    epoch_seconds = statistics.median(record.seconds for record in result.history)
    return FitTimes(
        seconds=seconds,
        # If the epochs vary by more than the start takes, the difference can be negative.
        start_seconds=max(0.0, result.history[0].finished_at - began - epoch_seconds),
        epoch_seconds=epoch_seconds,
        train=len(task.split.train),
        validation=len(task.split.validation),
        product_operations=_product_operations(task, config),
    )


def fit_capped(file: Path, folder: Path, config: TrainConfig, gib: float) -> FitTimes | str:
    """Train with so little GPU memory that the features must be streamed.

    Returns
    -------
    The times, or why nothing is streamed.
    """
    device = find_device(config.device)
    task = prepare_task(TaskConfig(DataConfig(files=(str(file),))), folder / "features", no_progress)
    assert isinstance(task.features, StoredFeatures)
    needed = task.features.stored_subset(task.split.train).atoms * task.features.length * 4 / 2**30
    if needed <= GPU_SHARE * gib:
        return f"the features of the training set, {needed:.3g} GiB, fit into {gib:.3g} GiB"
    total = torch.cuda.get_device_properties(device).total_memory / 2**30
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib / total), device)
    return fit_once(file, folder, config)


def _product_operations(task: Task, config: TrainConfig) -> float:
    """Operations of one product of the first layer for a mean training structure.

    Only columns that can differ from zero count.
    """
    compositions = find_compositions(task.dataset, task.aev)
    numbers = np.array([sum(some.row_lengths) for some in compositions.each])
    molecules = task.dataset.molecule_of(task.split.train)
    return 2 * widest(config.hidden)[0] * float(numbers[compositions.of_molecule[molecules]].mean())


def fit_on_each_core(file: Path, folder: Path, config: TrainConfig, cores: int) -> float | str:
    """Train as a worker does: one training for each core, each in a process with one thread, all at once.

    Returns
    -------
    Structures/s of all together, or why this machine cannot train in this way.
    """
    context = get_context("spawn")
    begin = context.Barrier(cores)
    with ProcessPoolExecutor(cores, context, initializer=_begin_together, initargs=(begin,)) as pool:
        config = replace(config, threads=1)
        runs = [pool.submit(fit_once, file, folder, config, _wait_for_others) for _ in range(cores)]
        fits = [run.result() for run in runs]
    if isinstance(fits[0], str):
        return fits[0]
    return sum(config.epochs * times.train / times.seconds for times in fits if isinstance(times, FitTimes))


_others: list[Barrier] = []


def _begin_together(begin: Barrier) -> None:
    _others.append(begin)


def _wait_for_others() -> None:
    _others[0].wait()


@dataclass(frozen=True)
class ReferenceTimes:
    """One training with the reference loop.

    Attributes
    ----------
    seconds : duration of all epochs, with evaluation and checkpoints
    epoch_seconds : duration of each epoch
    train : number of structures of the training set
    """

    seconds: float
    epoch_seconds: tuple[float, ...]
    train: int


def train_reference(file: Path, device: str, epochs: int) -> float:
    """Rate of the reference loop, evaluation and checkpoints included, structures/s."""
    times = time_reference(file, device, epochs)
    return epochs * times.train / times.seconds


def time_reference(
    file: Path, device: str, epochs: int, batch_size: int = CONFIG.batch_size
) -> ReferenceTimes:
    """Time the reference loop, after one step that warms the process up."""
    training, validation = (
        reference_loop.make_batches(part, batch_size, find_device(device))
        for part in reference_loop.load_subsets(file)
    )
    torch.manual_seed(0)
    model = reference_loop.Potential(widest(CONFIG.hidden)).to(device)
    # A step that warms the process up; its gradient is not used.
    model(training[0].species, training[0].coordinates).sum().backward()
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        history = reference_loop.train(
            model,
            training,
            validation,
            epochs=epochs,
            learning_rate=CONFIG.learning_rate,
            weight_decay=CONFIG.weight_decay,
            checkpoint=Path(place) / "best.pt",
        )
        seconds = time.perf_counter() - started
    return ReferenceTimes(
        seconds=seconds,
        epoch_seconds=tuple(epoch.seconds for epoch in history),
        train=sum(len(batch.energies) for batch in training),
    )


def product_rates(device: str, width: int) -> Products:
    """Measure how fast torch multiplies float32 matrices of the first layer's shape, at the best size."""
    inputs = aev_length(AEVConfig())
    forward, weight_gradient = [], []
    for rows in PRODUCT_ROWS:
        x = torch.randn(rows, inputs, device=device)
        weight = torch.randn(width, inputs, device=device)
        grad_output = torch.randn(rows, width, device=device)
        operations = 2 * x.numel() * width
        y, gradient = torch.empty_like(grad_output), torch.empty_like(weight)
        forward.append(operations / _seconds_a_call(partial(torch.mm, x, weight.T, out=y), device))
        weight_gradient.append(
            operations / _seconds_a_call(partial(torch.mm, grad_output.T, x, out=gradient), device)
        )
    return Products(forward=max(forward), weight_gradient=max(weight_gradient))


def _seconds_a_call(call: Callable[[], object], device: str) -> float:
    def wait() -> None:
        if _on_gpu(device):
            torch.cuda.synchronize(find_device(device))

    call()
    wait()
    calls, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < PRODUCT_SECONDS:
        for _ in range(CALLS_AT_ONCE):
            call()
        wait()
        calls += CALLS_AT_ONCE
    return seconds / calls


def _precision_figures(
    precision: Precision,
    fits: list[FitTimes | str],
    reference: Samples,
    config: TrainConfig,
    plan: BenchmarkPlan,
) -> list[Figure]:
    """Figures of a precision: the ratio to the reference, and on a GPU the time of an epoch."""
    on_gpu = _on_gpu(plan.device)
    widths = widths_text(config.hidden)
    name = f"384-{widths}-1, batch {config.batch_size}, {precision}, {plan.device}"
    goal = GPU_GOAL if on_gpu else CPU_GOALS.get(precision)
    done = [times for times in fits if isinstance(times, FitTimes)]
    if len(done) < len(fits):
        reason = next(times for times in fits if isinstance(times, str))
        return [Figure(TOPIC, name, None, RATIO, note=reason)]
    rates = Samples("structures/s", tuple(config.epochs * times.train / times.seconds for times in done))
    figures = [rate_ratio(TOPIC, name, rates, reference, goal, f"{config.epochs} epochs, start included")]
    if on_gpu:
        train = done[0].train
        figures.append(
            plain(
                TOPIC,
                f"an epoch of {train:,} structures and its evaluation, {precision}",
                "ms",
                [times.epoch_seconds * 1000 for times in done],
                EPOCH_GOAL if train == EPOCH_STRUCTURES else None,
            )
        )
    return figures


def _streamed_figure(streamed: list[FitTimes | str], fits: list[FitTimes], gib: float) -> Figure:
    """The time of an epoch with streamed features, and how much slower it is."""
    name = f"an epoch with features streamed, {gib:.3g} GiB of GPU memory, float32"
    times = [some.epoch_seconds * 1000 for some in streamed if isinstance(some, FitTimes)]
    if len(times) < len(streamed):
        return Figure(TOPIC, name, None, "ms", note=next(some for some in streamed if isinstance(some, str)))
    table_milliseconds = statistics.median(some.epoch_seconds * 1000 for some in fits)
    note = f"{statistics.median(times) / table_milliseconds:.3g} times that with all features on the GPU"
    return plain(TOPIC, name, "ms", times, note=note)


def _share_of_products(fits: list[FitTimes], products: list[Products], config: TrainConfig) -> Figure:
    """Share of a whole training that the first layer's products alone would take at the machine's rate."""
    forward = statistics.median(rates.forward for rates in products)
    weight_gradient = statistics.median(rates.weight_gradient for rates in products)
    shares = []
    for times in fits:
        products_seconds = times.product_operations * (
            times.train / forward + times.train / weight_gradient + times.validation / forward
        )
        shares.append(100 * config.epochs * products_seconds / times.seconds)
    return plain(
        TOPIC,
        "share of the machine's product rate, float32",
        "%",
        shares,
        PRODUCT_GOAL,
        f"first layer's products without zero columns, end to end; torch reaches {forward / 1e9:.0f} Gflop/s "
        f"forward and {weight_gradient / 1e9:.0f} for weight gradients",
    )
