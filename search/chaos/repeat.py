"""Repeats trials undisturbed from their records, and compares every number."""

from __future__ import annotations

import hashlib
import multiprocessing
import struct
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMES = ("train/epoch_seconds",)
"""Metrics that are no results."""


@dataclass(frozen=True)
class Recorded:
    """What the record has of a trial: with what it was trained, and what came of it."""

    number: int
    state: str
    config: dict[str, Any]
    epochs: int
    values: dict[tuple[str, int], float]
    model: str | None


def differing(study: dict[str, Any], features: Path, trials: Sequence[Recorded], processes: int) -> list[int]:
    """The numbers of the trials that do not come out bit for bit as they were recorded.

    Parameters
    ----------
    study : its recorded configuration
    features : the feature store
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _prepare, (study, features)) as pool:
        return [
            trial.number
            for trial, same in zip(trials, pool.map(_comes_out_alike, trials), strict=True)
            if not same
        ]


_task: Any = None


def _prepare(study: dict[str, Any], features: Path) -> None:
    from search.study import study_from_values
    from trainer.progress import no_progress
    from trainer.task import prepare_task

    global _task
    config = study_from_values(study, "the record")
    _task = prepare_task(config.data, config.split, config.features, features, no_progress)


def _comes_out_alike(trial: Recorded) -> bool:
    from trainer.config import TrainConfig, load_config
    from trainer.reporting import EpochRecord, SilentReporter, epoch_metrics
    from trainer.run import run_training

    class UpToTheEnd(SilentReporter):
        """Stops where the trial stopped, in the same way."""

        def rung(self, epoch: int, best_val_mae: float, records: tuple[EpochRecord, ...]) -> bool:
            return epoch == trial.epochs and trial.state == "pruned"

    config = load_config(TrainConfig, trial.config, "the record")
    with tempfile.TemporaryDirectory() as folder:
        result = run_training(
            _task,
            config,
            Path(folder),
            UpToTheEnd(),
            rungs=(trial.epochs,) if trial.state == "pruned" else (),
        )
        model = hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()
    values = {
        (key, record.epoch): value
        for record in result.history
        for key, value in epoch_metrics(record).items()
    }
    return _bits(values) == _bits(trial.values) and model == trial.model


def _bits(values: dict[tuple[str, int], float]) -> dict[tuple[str, int], bytes]:
    return {point: struct.pack("<d", value) for point, value in values.items() if point[0] not in TIMES}
