"""An epoch on a GPU beside what the card can do at most: its measured copies and products."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch

from benchmarks.figures import Figure, plain
from benchmarks.made_sets import made_set
from benchmarks.plan import Plan
from benchmarks.sides import SideTask, take_turns
from benchmarks.training import CONFIG
from trainer.config import DataConfig, FeatureConfig, Precision, SplitConfig, TrainConfig
from trainer.features.fixed_batches import FixedFeatures
from trainer.fitting.devices import find_device, products
from trainer.fitting.recorded import RecordedEpochs
from trainer.fitting.training import Training
from trainer.progress import no_progress
from trainer.task import prepare_task

TOPIC: Final = "roofline"

PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "tf32", "bfloat16")

#: Of the copy and the products whose rates are the ceilings: larger than the caches.
COPIED_BYTES: Final = 2**30
PRODUCT_SIZE: Final = 8192

#: Times that each is repeated in a row.
CALLS: Final = 10


@dataclass(frozen=True)
class Ceilings:
    """What the card reaches.

    Attributes
    ----------
    bandwidth : bytes/s, read and written
    product_rates : operations/s in square products, by precision
    """

    bandwidth: float
    product_rates: dict[Precision, float]


@dataclass(frozen=True)
class Cost:
    """What a step or an epoch must do at least, counted from its shapes.

    Attributes
    ----------
    operations : of its products of matrices
    moved : bytes that its operations read and write if none finds anything in a cache
    """

    operations: float
    moved: float

    def bound(self, ceilings: Ceilings, precision: Precision) -> float:
        """Seconds that it takes at least."""
        return max(self.operations / ceilings.product_rates[precision], self.moved / ceilings.bandwidth)


@dataclass(frozen=True)
class EpochTimes:
    """Epochs of a training without their evaluation.

    Attributes
    ----------
    first_seconds : of the first epoch, in which the step is set up and recorded
    seconds : median of the others
    cost : of an epoch
    """

    first_seconds: float
    seconds: float
    cost: Cost


def measure(plan: Plan, folder: Path) -> list[Figure]:
    """Measure ceilings and epochs in turns. A CPU has its share of products in the topic training."""
    if torch.device(plan.device).type != "cuda":
        return []
    file = made_set(folder, plan.train_structures)
    sides: dict[str, SideTask] = {"ceilings": partial(measure_ceilings, plan.device)}
    for precision in PRECISIONS:
        config = replace(CONFIG, precision=precision, device=plan.device, epochs=plan.train_epochs)
        sides[precision] = partial(time_epochs, file, folder, config)
    results = take_turns(sides, plan.repeats, plan.threads)
    ceilings: list[Ceilings] = results["ceilings"]
    figures = [plain(TOPIC, "copies", "GB/s", [some.bandwidth / 1e9 for some in ceilings])]
    for precision in PRECISIONS:
        rates = [some.product_rates[precision] / 1e12 for some in ceilings]
        figures.append(plain(TOPIC, f"products, {precision}", "Tflop/s", rates))
    best = Ceilings(
        statistics.median(some.bandwidth for some in ceilings),
        {p: statistics.median(some.product_rates[p] for some in ceilings) for p in PRECISIONS},
    )
    for precision in PRECISIONS:
        figures += _epoch_figures(precision, results[precision], best)
    return figures


def measure_ceilings(device: str) -> Ceilings:
    """Copies and products at sizes where the card is at its best."""
    card = find_device(device)
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=card)
    target = torch.empty_like(source)
    bandwidth = 2 * COPIED_BYTES / _seconds(lambda: target.copy_(source), card)
    rates: dict[Precision, float] = {}
    for precision in PRECISIONS:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        a, b = torch.randn(2, PRODUCT_SIZE, PRODUCT_SIZE, device=card).to(dtype)
        out = torch.empty_like(a)
        with products(precision, card):
            seconds = _seconds(partial(torch.mm, a, b, out=out), card)
        rates[precision] = 2 * PRODUCT_SIZE**3 / seconds
    return Ceilings(bandwidth, rates)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one of several calls in a row."""
    call()
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(CALLS):
        call()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / CALLS


def time_epochs(file: Path, folder: Path, config: TrainConfig) -> EpochTimes:
    """Go through the training part several times."""
    data = DataConfig(files=(str(file),))
    task = prepare_task(data, SplitConfig(), FeatureConfig(), folder / "features", no_progress)
    training = Training(task, config, None)
    features = training.train.features
    assert isinstance(features, FixedFeatures)
    epochs = RecordedEpochs([training])
    training.start_epoch()
    seconds = []
    for order in range(config.epochs + 1):
        torch.cuda.synchronize(training.device)
        started = time.perf_counter()
        epochs.run(order)
        torch.cuda.synchronize(training.device)
        seconds.append(time.perf_counter() - started)
    # What fills up batches is not counted: it is not needed.
    cost = training_cost(
        rows=features.layouts.rows,
        widths=(task.features.length, *config.hidden, 1),
        aev_bytes=2 if config.precision == "bfloat16" else 4,
        weights=training.model.parameter_count,
        steps=-(-len(training.train) // config.batch_size),
    )
    return EpochTimes(seconds[0], statistics.median(seconds[1:]), cost)


def training_cost(*, rows: int, widths: Sequence[int], aev_bytes: int, weights: int, steps: int) -> Cost:
    """What an epoch costs.

    Parameters
    ----------
    rows : atoms, each of which goes through a network once
    widths : of the network, from the AEV to the energy
    aev_bytes : of a number of an AEV
    weights : of the networks of all elements
    """
    first, *later = [before * after for before, after in itertools.pairwise(widths)]
    # Forward and over the weights; over the input too, but for that of the first layer.
    operations = 2 * rows * (2 * first + 3 * sum(later))
    # An AEV is read and written by the gather, and read by both products of the first layer.
    moved = rows * widths[0] * aev_bytes * 4
    # A hidden neuron is written before and after its function, which reads it once, and the next layer reads
    # it; on the way back its slope is written twice and read three times (function, bias, weights), and the
    # neuron itself read for the function and for the next layer's weights.
    moved += rows * sum(widths[1:-1]) * 4 * 11
    # Adam reads and writes the weights and two averages, and reads the gradient, which is set to zero and
    # written before.
    moved += steps * weights * 4 * 9
    return Cost(operations, moved)


def _epoch_figures(precision: Precision, times: list[EpochTimes], ceilings: Ceilings) -> list[Figure]:
    cost = times[0].cost
    bound = cost.bound(ceilings, precision)
    by_products = cost.operations / ceilings.product_rates[precision] >= bound
    note = (
        f"{cost.operations / 1e9:.0f} Gflop and {cost.moved / 1e9:.1f} GB, bound by "
        f"{'products' if by_products else 'memory'} to {bound * 1000:.3g} ms"
    )
    return [
        plain(TOPIC, f"an epoch's steps, {precision}", "ms", [1000 * some.seconds for some in times]),
        plain(
            TOPIC,
            f"share of the ceiling, {precision}",
            "%",
            [100 * bound / some.seconds for some in times],
            note=note,
        ),
        plain(
            TOPIC,
            f"setting up and recording a step, {precision}",
            "ms",
            [1000 * (some.first_seconds - some.seconds) for some in times],
        ),
    ]
