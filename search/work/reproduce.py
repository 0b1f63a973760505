"""Trains a recorded trial again without interruptions, and compares every number."""

from __future__ import annotations

import csv
import dataclasses
import math
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from search.errors import SearchError
from storage.blobs.place import open_blobs
from storage.database import Database
from storage.studies import Study
from storage.trials.duplicate_configs import DUPLICATE_TAG
from storage.trials.views import TrialRow, device_kind, metric_history
from trainer.config import TrainConfig, load_config
from trainer.files import MODEL
from trainer.fitting.devices import find_device, resolve_precision
from trainer.fitting.scheduler import GivenPermutations
from trainer.networks.files import same_weights
from trainer.progress import Progress, no_progress
from trainer.reporting import EpochRecord, SilentReporter, epoch_metrics
from trainer.run import HISTORY, run_training
from trainer.task import Task

TIMES: Final = ("train/epoch_seconds",)
"""Metrics that are not compared, as they are times."""

GPU_TOLERANCE: Final = 1e-6
"""Allowed relative difference on a GPU, where a pack sums in another order than a single training."""

MIXED_TOLERANCE: Final = 0.1
"""Allowed relative difference if attempts, or the trial and its reproduction, ran on different kinds of
device or in different precisions: a training amplifies rounding errors."""

Place = tuple[str, str]
"""Kind of device, cpu or cuda, and precision of a training."""

Point = tuple[str, int]
"""Metric and epoch."""


@dataclass(frozen=True)
class RecordedTrial:
    """The record of a trial: how it was trained, and with which result.

    Attributes
    ----------
    config : all settings as plain values, with the precision of the last attempt
    places : devices and precisions of its attempts, in order and without repetitions
    epochs : number of epochs trained
    permutations : number of the data permutation in each epoch; None: those of a training without a pack
    warm_start : model file with the initial weights
    values : metric values by metric and epoch
    model : model file
    """

    number: int
    state: str
    config: dict[str, Any]
    places: tuple[Place, ...]
    epochs: int
    permutations: tuple[int, ...] | None
    warm_start: Path | None
    values: dict[Point, float]
    model: Path | None

    @property
    def device(self) -> str:
        """Kind of device of the last attempt, cpu or cuda."""
        return self.places[-1][0]


@dataclass(frozen=True)
class MetricDifference:
    """A number that was not reproduced; None: one side has no such number."""

    metric: str
    epoch: int
    recorded: float | None
    reproduced: float | None

    @property
    def relative(self) -> float:
        """Absolute difference over the absolute value of the recorded number."""
        if self.recorded is None or self.reproduced is None:
            return math.inf
        if self.recorded == self.reproduced:
            return 0.0
        difference = abs(self.reproduced - self.recorded) / abs(self.recorded) if self.recorded else math.inf
        return difference if math.isfinite(difference) else math.inf


@dataclass(frozen=True)
class Reproduction:
    """Comparison of a trial with its reproduction.

    Attributes
    ----------
    place : kind of device and precision of the reproduction
    compared : how many numbers were compared
    differences : numbers that are not the same bit for bit, by epoch
    same_model : whether the networks have the same weights, bit for bit; None: they cannot, because kinds of
        device or precisions differ or changed between attempts
    """

    number: int
    place: Place
    epochs: int
    compared: int
    differences: tuple[MetricDifference, ...]
    same_model: bool | None

    def alike(self, tolerance: float) -> bool:
        """Whether no number differs by more than a relative tolerance; 0 also requires the same model."""
        if tolerance == 0:
            return not self.differences and self.same_model is not False
        return all(each.relative <= tolerance for each in self.differences)


def recorded_trial(
    database: Database, study: Study, trials: Sequence[TrialRow], number: int
) -> RecordedTrial:
    """Read the record of a trial; for a duplicate configuration, that of the original.

    Parameters
    ----------
    trials : all trials of the study

    Raises
    ------
    SearchError
        if the trial does not exist, or is neither complete nor pruned.
    BlobMissingError
        if a file that is needed to train it is not here.
    """
    by_number = {trial.number: trial for trial in trials}
    if number not in by_number:
        raise SearchError(f"{study.name}: there is no trial {number}; see: anitune study show {study.name}")
    trial = by_number[number]
    if DUPLICATE_TAG in trial.tags:
        return recorded_trial(database, study, trials, int(trial.tags[DUPLICATE_TAG].removeprefix("trial ")))
    if trial.config is None or trial.state not in ("complete", "pruned"):
        raise SearchError(
            f"{study.name}: trial {number} is {trial.state}: only complete and pruned trials can be"
            " reproduced"
        )
    return _read_trial(database, study, trial, trials)


def _read_trial(
    database: Database, study: Study, trial: TrialRow, trials: Sequence[TrialRow]
) -> RecordedTrial:
    assert trial.config is not None
    digests = _digests(trial)
    blobs = open_blobs(database)
    warm_start = None
    if (label := trial.tags.get("start_from")) is not None:
        start = next(each for each in trials if each.tags.get("row") == label)
        warm_start = blobs.path(_digests(start)[MODEL])
    history = metric_history(database, study, trial.number)
    # Older records have the precision in the configuration, not in the attempts.
    in_config = trial.config["precision"]
    places = [(device_kind(each.device), each.precision or in_config) for each in trial.attempts]
    places = places or [(device_kind(trial.worker.device), trial.worker.precision or in_config)]
    return RecordedTrial(
        number=trial.number,
        state=trial.state,
        config={**trial.config, "precision": places[-1][1]},
        places=tuple(dict.fromkeys(places)),
        epochs=trial.epochs,
        permutations=_permutations(blobs.path(digests[HISTORY])) if HISTORY in digests else None,
        warm_start=warm_start,
        values={(row.key, row.step): row.value for rows in history.values() for row in rows},
        model=blobs.path(digests[MODEL]) if MODEL in digests else None,
    )


def _digests(trial: TrialRow) -> dict[str, str]:
    return {file.path: file.digest for file in trial.artifacts}


def _permutations(file: Path) -> tuple[int, ...]:
    with file.open(newline="") as rows:
        return tuple(int(row["order"]) for row in csv.DictReader(rows))


def reproduce_trial(task: Task, trial: RecordedTrial, progress: Progress = no_progress) -> Reproduction:
    """Train a trial again with the same settings, data permutations and end, and compare.

    If this machine allows it, the kind of device and the precision are those of the last attempt.

    Raises
    ------
    TrainerError
        if the trial cannot be trained here.
    """
    config = _on_same_kind_of_device(trial)
    pruned = trial.state == "pruned"
    with tempfile.TemporaryDirectory() as folder:
        result = run_training(
            task,
            config,
            Path(folder),
            _UpToTheEnd(trial),
            rungs=(trial.epochs,) if pruned else (),
            warm_start=trial.warm_start,
            scheduler=GivenPermutations(trial.permutations) if trial.permutations is not None else None,
            progress=progress,
        )
        same_model = None
        if trial.places == (_place(config),):
            same_model = trial.model is not None and same_weights(trial.model, Path(folder) / MODEL)
    values = {
        (key, record.epoch): value
        for record in result.history
        for key, value in epoch_metrics(record).items()
    }
    # An epoch that an earlier version trained lacks what is measured since.
    epochs = {epoch for _, epoch in trial.values}
    values = {
        point: value for point, value in values.items() if point in trial.values or point[1] not in epochs
    }
    differences = _differences(trial.values, values)
    return Reproduction(
        number=trial.number,
        place=_place(config),
        epochs=result.epochs,
        compared=len(_results(trial.values).keys() | _results(values).keys()),
        differences=differences,
        same_model=same_model,
    )


def default_tolerance(trial: RecordedTrial, reproduced: Reproduction) -> float:
    """Return the allowed relative difference of a reproduction; 0: it must agree bit for bit."""
    if trial.places != (reproduced.place,):
        return MIXED_TOLERANCE
    return GPU_TOLERANCE if reproduced.place[0] == "cuda" else 0.0


def _place(config: TrainConfig) -> Place:
    return find_device(config.device).type, resolve_precision(config).precision


class _UpToTheEnd(SilentReporter):
    """Ends the training at the epoch and with the outcome of the recorded trial."""

    def __init__(self, trial: RecordedTrial) -> None:
        self._trial = trial

    def rung(self, epoch: int, best_val_mae: float, records: tuple[EpochRecord, ...]) -> bool:
        return epoch == self._trial.epochs and self._trial.state == "pruned"


def _on_same_kind_of_device(trial: RecordedTrial) -> TrainConfig:
    config = load_config(TrainConfig, trial.config, f"the record of trial {trial.number}")
    has_gpu = find_device("auto").type == "cuda"
    if trial.device == "cpu" and config.device == "auto" and has_gpu:
        return dataclasses.replace(config, device="cpu")
    if trial.device == "cuda" and config.device != "auto":
        return dataclasses.replace(config, device="auto")
    return config


def _differences(
    recorded: Mapping[Point, float], reproduced: Mapping[Point, float]
) -> tuple[MetricDifference, ...]:
    there, here = _results(recorded), _results(reproduced)
    return tuple(
        MetricDifference(metric, epoch, there.get((metric, epoch)), here.get((metric, epoch)))
        for metric, epoch in sorted(there.keys() | here.keys(), key=lambda point: (point[1], point[0]))
        if _bits(there.get((metric, epoch))) != _bits(here.get((metric, epoch)))
    )


def _results(values: Mapping[Point, float]) -> dict[Point, float]:
    return {point: value for point, value in values.items() if point[0] not in TIMES}


def _bits(value: float | None) -> bytes | None:
    return None if value is None else struct.pack("<d", value)
