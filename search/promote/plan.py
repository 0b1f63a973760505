"""The plan of a promotion: candidates, their runs on folds, and the members of the ensemble."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import numpy as np

from search.errors import SearchError
from search.promote.choice import FoldKind
from search.propose.seeds import fold_seed, member_seed
from storage.objectives import objective_values
from storage.trainings import TrainingKind
from storage.trials.front import front_of_several
from storage.trials.views import TrialRow, complete_trials, error_of
from trainer.config import (
    SAME_CONFIGURATION,
    SAME_NUMBERS,
    FoldConfig,
    TrainConfig,
    compared_settings,
    dump_config,
    load_config,
)
from trainer.data.self_energies import fit_self_energies
from trainer.data.splits import fold_units, split_fold
from trainer.errors import DataError
from trainer.fingerprints import digest_of
from trainer.task import Task

KINDS: Final[tuple[FoldKind, ...]] = ("structure", "molecule")

PACKAGES: Final = ("anitune", "torch", "torchani")
"""Packages whose version changes results; trainings with other versions are not compared with new ones."""


@dataclass(frozen=True)
class Options:
    """Options of a promotion, which determine how much it trains.

    Attributes
    ----------
    top : maximum number of candidates
    seeds, folds : numbers of seeds and folds for each kind of folds; run i of a candidate uses fold i and
        seed i, both counted cyclically
    ensemble : number of members of the ensemble
    at_most_parameters : candidates have no more weights and biases; None: see :func:`affordable_trials`
    """

    top: int = 5
    seeds: int = 5
    folds: int = 5
    ensemble: int = 8
    at_most_parameters: int | None = None

    def values(self) -> dict[str, int]:
        """Return the options that are set, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Candidate:
    """A configuration that may be chosen.

    Attributes
    ----------
    trial : number of the trial; of several trials of the same configuration, the best one
    val_mae : validation MAE, kcal/mol
    seconds : time that the training took
    """

    trial: int
    architecture: str
    config: TrainConfig
    val_mae: float
    parameters: int
    seconds: float


@dataclass(frozen=True)
class PlannedTraining:
    """A training of a study beside its trials.

    Attributes
    ----------
    key : digest of everything that determines the result
    trial : number of the trial whose settings are used
    kind, run : see :class:`storage.trainings.RecordedTraining`
    description : what is trained, for people
    fold : fold to train on; None: the training set of the study
    share : share of that training set to train on
    """

    key: str
    trial: int
    kind: TrainingKind
    run: int
    config: TrainConfig
    description: str
    fold: FoldConfig | None = None
    share: float = 1.0


@dataclass(frozen=True)
class PromotionPlan:
    """All trainings on folds of a promotion.

    Attributes
    ----------
    folds, runs : numbers of folds and of runs by kind
    missing : for each kind without folds, why the data has none
    fold_trainings : trainings of all candidates, grouped by fold
    """

    options: Options
    candidates: tuple[Candidate, ...]
    folds: dict[FoldKind, int]
    runs: dict[FoldKind, int]
    missing: dict[FoldKind, str]
    fold_trainings: tuple[PlannedTraining, ...]

    def values(self) -> dict[str, Any]:
        """Return the recorded values, which distinguish this plan from others."""
        return {
            **self.options.values(),
            "candidates": [each.trial for each in self.candidates],
            "folds_by_kind": dict(self.folds),
            "runs_by_kind": dict(self.runs),
        }

    def candidate(self, trial: int) -> Candidate:
        """Return the candidate of a trial."""
        return next(each for each in self.candidates if each.trial == trial)


def affordable_trials(
    trials: Sequence[TrialRow], objectives: Sequence[str], at_most_parameters: int | None
) -> list[TrialRow]:
    """Return the trials of a study that cost no more than the point of the Pareto front that is promoted.

    Parameters
    ----------
    objectives : those of the study
    at_most_parameters : maximum number of weights and biases; None: of a study of several objectives, trials
        may cost as much as the knee of its front, and all trials are returned of a study of one

    Raises
    ------
    SearchError
        if all complete trials have more parameters.
    """
    complete = complete_trials(trials)
    if at_most_parameters is not None:
        found = [trial for trial in complete if trial.summary["parameters"] <= at_most_parameters]
        if complete and not found:
            least = min(trial.summary["parameters"] for trial in complete)
            raise SearchError(
                f"no complete trial has at most {at_most_parameters:,} parameters: the smallest network has"
                f" {least:,.0f}"
            )
        return found
    front = front_of_several(complete, objectives)
    if front is None or front.knee is None:
        return list(trials)
    most = _costs(front.knee, objectives)
    return [
        trial
        for trial in complete
        if all(cost <= limit for cost, limit in zip(_costs(trial, objectives), most, strict=True))
    ]


def _costs(trial: TrialRow, objectives: Sequence[str]) -> tuple[float, ...]:
    return objective_values(objectives, error_of(trial), trial.summary)[1:]


def find_candidates(trials: Sequence[TrialRow], top: int) -> list[Candidate]:
    """Find the best complete trials with different configurations, the best first.

    Trials that began with the weights of another trial are left out, as their settings alone do not reproduce
    them.

    Raises
    ------
    SearchError
        if no such trial is complete.
    """
    found: dict[str, Candidate] = {}
    for trial in complete_trials(trials):
        if "start_from" in trial.tags:
            continue
        assert trial.config is not None
        assert trial.value is not None
        config = load_config(TrainConfig, trial.config, f"the record of trial {trial.number}")
        candidate = Candidate(
            trial=trial.number,
            architecture=trial.tags["arch"],
            config=config,
            val_mae=trial.value,
            parameters=round(trial.summary["parameters"]),
            seconds=trial.summary["seconds"],
        )
        found.setdefault(digest_of(compared_settings(dump_config(config), SAME_CONFIGURATION)), candidate)
    if not found:
        raise SearchError("no trial is complete that could be trained again: let the study continue")
    return list(found.values())[:top]


def make_plan(
    candidates: Sequence[Candidate], task: Task, study_seed: int, options: Options
) -> PromotionPlan:
    """Plan the runs of candidates on folds.

    Parameters
    ----------
    task : task of the study

    Raises
    ------
    SearchError
        if the data cannot be divided into folds of any kind.
    """
    folds: dict[FoldKind, int] = {}
    missing: dict[FoldKind, str] = {}
    for kind in KINDS:
        try:
            folds[kind] = _folds(task, kind, options.folds)
        except DataError as error:
            missing[kind] = str(error)
    if not folds:
        raise SearchError(f"there is nothing to compare candidates on: {missing[KINDS[0]]}")
    runs = {kind: max(options.seeds, number) for kind, number in folds.items()}
    trainings = [
        _on_fold(candidate, task, study_seed, kind, run, folds[kind], options.seeds)
        for kind in folds
        for fold in range(folds[kind])
        for run in range(fold, runs[kind], folds[kind])
        for candidate in candidates
    ]
    return PromotionPlan(options, tuple(candidates), folds, runs, missing, tuple(trainings))


def members(candidate: Candidate, task: Task, study_seed: int, count: int) -> list[PlannedTraining]:
    """Plan the members of an ensemble, trained on the training and validation sets of the study."""
    planned = []
    for number in range(count):
        config = dataclasses.replace(candidate.config, seed=member_seed(study_seed, number))
        key = training_key(config, task.of(config).fingerprints)
        what = f"trial {candidate.trial}, member {number + 1} of the ensemble"
        planned.append(PlannedTraining(key, candidate.trial, "member", number, config, what))
    return planned


def seconds_of(training: PlannedTraining, plan: PromotionPlan, task: Task) -> float:
    """Estimate the time of a training on a fold, s, from the time that the trial took."""
    assert training.fold is not None
    rest = len(task.split.train) + len(task.split.validation)
    share = (1 - 1 / training.fold.folds) * rest / len(task.split.train)
    return plan.candidate(training.trial).seconds * share


def _folds(task: Task, kind: FoldKind, wanted: int) -> int:
    """Return the number of folds, at most ``wanted``, after checking that each can be trained on.

    Raises
    ------
    DataError
        if there are fewer than two, or a fold leaves an element out of training.
    """
    number = min(wanted, len(np.unique(fold_units(task.dataset, task.split, kind))))
    if number < 2:
        raise DataError(f"one {kind} only")
    for fold in range(number):
        labels = split_fold(task.dataset, task.split, _fold_config(task, kind, number, fold))
        fit_self_energies(task.dataset, labels, task.aev.elements)
    return number


def _fold_config(task: Task, kind: FoldKind, folds: int, fold: int) -> FoldConfig:
    return FoldConfig(kind, folds, fold, seed=task.config.split.seed)


def _on_fold(
    candidate: Candidate, task: Task, study_seed: int, kind: FoldKind, run: int, folds: int, seeds: int
) -> PlannedTraining:
    fold = _fold_config(task, kind, folds, run % folds)
    config = dataclasses.replace(candidate.config, seed=fold_seed(study_seed, run % seeds))
    what = f"trial {candidate.trial}, {kind} fold {fold.fold + 1} of {folds}, run {run + 1}"
    key = training_key(config, task.of(config).fingerprints, fold)
    return PlannedTraining(key, candidate.trial, kind, run, config, what, fold)


def training_key(config: TrainConfig, fingerprints: Mapping[str, str], fold: FoldConfig | None = None) -> str:
    """Digest everything that determines the result of a training.

    Parameters
    ----------
    fingerprints : those of the task with the features of the training
    """
    settings = compared_settings(dump_config(config), SAME_NUMBERS)
    del settings["features"]  # a name; what it stands for is in the fingerprints
    return digest_of(
        {
            "training": settings,
            "task": dict(fingerprints),
            "fold": dump_config(fold) if fold is not None else None,
            "versions": {name: version(name) for name in PACKAGES},
        }
    )
