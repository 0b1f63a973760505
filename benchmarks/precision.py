"""Validation errors of whole trainings in float32, and in what ``precision: auto`` is for large batches."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.figures import Figure, Goal, Samples, plain
from benchmarks.plan import BenchmarkPlan
from benchmarks.sides import take_turns
from trainer.config import Precision, TaskConfig, TrainConfig
from trainer.fitting.devices import resolve_precision
from trainer.fitting.loop import fit
from trainer.progress import no_progress
from trainer.reporting import SilentReporter
from trainer.task import prepare_task

TOPIC: Final = "precision"

#: The batch is large enough for ``auto`` to round operands; the learning rate grows with the batch.
CONFIG: Final = TrainConfig(
    hidden=(128, 64), activation="celu", learning_rate=5e-3, batch_size=512, ema_decay=0.9
)


def measure(plan: BenchmarkPlan, folder: Path) -> list[Figure]:
    """Train with the same seeds in both precisions, on the shipped sample."""
    base = replace(CONFIG, epochs=plan.precision_epochs, device=plan.device)
    chosen = resolve_precision(replace(base, precision="auto")).precision
    if chosen == "float32":
        return [Figure(TOPIC, "auto is float32 on this machine", None, "kcal/mol")]
    errors: dict[Precision, tuple[float, ...]] = {}
    for precision in ("float32", chosen):
        config = replace(base, precision=precision)
        task = partial(train_seeds, config, plan.precision_seeds, folder)
        errors[precision] = tuple(take_turns({"errors": task}, 1, plan.threads)["errors"][0])
    spread = statistics.stdev(errors["float32"])
    means = {precision: statistics.mean(values) for precision, values in errors.items()}
    name = f"validation MAE, batch {base.batch_size}, {base.epochs} epochs, {plan.precision_seeds} seeds"
    return [
        *(plain(TOPIC, f"{name}, {precision}", "kcal/mol", values) for precision, values in errors.items()),
        Figure(
            TOPIC,
            f"{chosen} above float32, difference of the means",
            means[chosen] - means["float32"],
            "kcal/mol",
            Goal("below", spread),
            Samples("kcal/mol", errors[chosen]),
            Samples("kcal/mol", errors["float32"]),
            "the goal is the standard deviation of the seeds in float32",
        ),
    ]


def train_seeds(config: TrainConfig, seeds: int, folder: Path) -> list[float]:
    """Least validation MAE of one training for each seed, kcal/mol."""
    task = prepare_task(TaskConfig(), folder / "features", no_progress)
    errors = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            seeded = replace(config, seed=seed)
            errors.append(fit(task, seeded, Path(place), SilentReporter()).best.val_mae)
    return errors
