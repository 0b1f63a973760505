"""What the settings of a study promise of its result, checked from the numbers of each epoch."""

from __future__ import annotations

import filecmp
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from search.propose.earlier import learned
from search.propose.gain import FEWEST, states_of_results
from search.study import StudyConfig, study_from_record
from storage.earlier_studies import EarlierStudy, earlier_studies
from storage.objectives import OBJECTIVES
from storage.studies import ExpectedGain, Study, StudySummary, summarize_study
from storage.tracking.projection import FINAL_METRIC, FRONT_TAG
from storage.trials.front import study_front
from storage.trials.views import TrialRow, complete_trials, metric_history, trial_rows
from tests.chaos.servers import MlflowServer
from trainer.evaluation.metrics import MAE
from trainer.features.aev import aev_length
from trainer.fingerprints import digest_of
from trainer.networks.widths import widths_of

IN_MLFLOW: Final = {"val_mae": FINAL_METRIC, "parameters": "cost/parameters"}
"""Objective, and its metric in MLflow."""


@dataclass(frozen=True)
class EndedStudy:
    """A study that has ended, and what is known of it.

    Attributes
    ----------
    trials_asked : its limit of trials
    learns_from : the copies of earlier results when it began
    errors : for each trial, the validation MAE of each epoch, kcal/mol
    """

    study: Study
    config: StudyConfig
    summary: StudySummary
    trials: Sequence[TrialRow]
    trials_asked: int
    learns_from: Sequence[EarlierStudy]
    errors: Mapping[int, Sequence[float]]

    @property
    def searched(self) -> list[TrialRow]:
        """The trials that are not further seeds of others."""
        return [trial for trial in self.trials if trial.replicate_of is None]

    @property
    def without_gain(self) -> bool:
        """Whether it ended because nothing was left to gain, as recorded."""
        gain = self.summary.gain
        return gain is not None and gain.is_noise and self.summary.budget.until_no_gain

    def error(self, trial: TrialRow) -> float:
        """The best validation MAE of a trial, kcal/mol."""
        return min(self.errors[trial.number])


def ended_study(study: Study, trials_asked: int, learns_from: Sequence[EarlierStudy]) -> EndedStudy:
    """Read the records of a study that has ended."""
    trials = trial_rows(study.database, study)
    errors = {
        trial.number: [row.value for row in metric_history(study.database, study, trial.number)[f"val/{MAE}"]]
        for trial in trials
    }
    return EndedStudy(
        study,
        study_from_record(study.config, study.name),
        summarize_study(study.database, study),
        trials,
        trials_asked,
        learns_from,
        errors,
    )


def broken_rules(ended: EndedStudy, mlflow: MlflowServer) -> list[str]:
    """Return what differs from what the settings of a study promise."""
    return [*broken_records(ended), *_of_objectives(ended, mlflow)]


def broken_records(ended: EndedStudy) -> list[str]:
    """Return what differs in our own records."""
    return [
        *_of_earlier_studies(ended),
        *_of_the_end(ended, ended.summary.gain),
        *_of_finalists(ended),
    ]


def differing_files(folder: Path, other: Path) -> list[str]:
    """Names of the files of feature stores that are not the same in two folders."""
    names = {
        str(file.relative_to(root))
        for root in (folder, other)
        for file in root.rglob("*")
        if file.is_file() and file.suffix == ".npy"
    }
    _, different, missing = filecmp.cmpfiles(folder, other, names, shallow=False)
    return sorted([*different, *missing])


def _of_earlier_studies(ended: EndedStudy) -> Iterator[str]:
    copies = earlier_studies(ended.study.database, ended.study)
    if copies != ended.learns_from:
        yield "the copies of earlier results have changed"
    for copy in copies:
        values = {"study": copy.name, "trials": copy.trials, "facts": copy.facts, "results": copy.results}
        if digest_of(values) != copy.digest:
            yield f"the copy of the results of {copy.name} has another digest than recorded"
    first = [each.source for each in learned(ended.config, copies).first]
    tried = {t.number: t.tags["learned_from"] for t in ended.trials if "learned_from" in t.tags}
    if tried != dict(enumerate(first)):
        yield f"the first trials should be {', '.join(first)}, and are {tried}"


def _of_the_end(ended: EndedStudy, gain: ExpectedGain | None) -> Iterator[str]:
    if ended.summary.budget.trials != len(ended.trials):
        yield f"its limit is {ended.summary.budget.trials} trials, and it has {len(ended.trials)}"
    if len(ended.searched) < ended.trials_asked and not ended.without_gain:
        yield f"it ended after {len(ended.searched)} trials, and no reason is recorded"
    results = sum(trial.state in states_of_results(ended.config) for trial in ended.trials)
    if ended.summary.budget.until_no_gain and results >= FEWEST and gain is None:
        yield f"nothing is recorded of what {results} results leave to gain"
    if gain is not None and not FEWEST <= gain.results <= results:
        yield f"what is left to gain comes from {gain.results} results, of {results}"


def _of_finalists(ended: EndedStudy) -> Iterator[str]:
    finalists = ended.config.finalists
    complete = [trial for trial in ended.searched if trial.state == "complete"]
    trainings: defaultdict[int, list[TrialRow]] = defaultdict(list)
    for trial in ended.trials:
        trainings[trial.number if trial.replicate_of is None else trial.replicate_of].append(trial)
    trained_again = {number: group for number, group in trainings.items() if len(group) > 1}
    if finalists is None:
        if trained_again:
            yield f"trials {[*trained_again]} were trained again"
    else:
        ranked = sorted(complete, key=ended.error)
        if missing := {trial.number for trial in ranked[:2]} - trained_again.keys():
            yield f"trials {sorted(missing)} are among the best two, and not among the finalists"
        if len(trained_again) > finalists.most:
            yield f"there are {len(trained_again)} finalists, of {finalists.most}"
        for number, group in trained_again.items():
            states, seeds = {trial.state for trial in group}, {_settings(trial)["seed"] for trial in group}
            if len(group) != finalists.seeds or len(seeds) != finalists.seeds or states != {"complete"}:
                yield (
                    f"finalist {number} has {len(group)} trainings with {len(seeds)} seeds ({states}),"
                    f" and should have {finalists.seeds}"
                )
            if len({digest_of(_settings(trial) | {"seed": None}) for trial in group}) > 1:
                yield f"the trainings of finalist {number} have different settings"
    means = {t.number: fmean(map(ended.error, trainings[t.number])) for t in complete}
    best = min(means, key=lambda number: means[number])
    named = (complete_trials(ended.trials)[0].number, ended.summary.best_number)
    if named != (best, best):
        yield f"trial {best} is the best by the mean over seeds; leaderboard and summary name trials {named}"


def _of_objectives(ended: EndedStudy, mlflow: MlflowServer) -> Iterator[str]:
    """Each complete trial has all its values in Optuna and MLflow; the front is that of these values."""
    objectives = ended.study.objectives
    optuna = ended.study.optuna.get_trials(deepcopy=False)
    complete = [trial for trial in ended.trials if trial.state == "complete"]
    expected = {
        trial.number: tuple(
            ended.error(trial) if OBJECTIVES[name].metric is None else _parameters(ended.config, trial)
            for name in objectives
        )
        for trial in complete
    }
    shown: defaultdict[int, list[float]] = defaultdict(list)
    numbers = {trial.mlflow_run_id: trial.number for trial in complete if trial.mlflow_run_id is not None}
    for name in objectives:
        for run, value in mlflow.values_of_metric(IN_MLFLOW[name]):
            if run in numbers:
                shown[numbers[run]].append(value)
    for number, values in expected.items():
        if optuna[number].values != [*values]:
            yield f"trial {number} has the values {optuna[number].values} in Optuna, and should have {values}"
        if shown[number] != [*values]:
            yield f"trial {number} has the values {shown[number]} in MLflow, and should have {values}"
    if len(objectives) == 1:
        return
    front = {
        number
        for number, values in expected.items()
        if not any(
            other != values and all(a <= b for a, b in zip(other, values, strict=True))
            for other in expected.values()
        )
    }
    shown_front = study_front(ended.trials, objectives)
    if {trial.number for trial in shown_front.trials} != front:
        yield f"trials {sorted(front)} are on the front, and the leaderboard has {shown_front}"
    marks = {trial.number: shown_front.mark(trial) for trial in shown_front.trials}
    marked = {numbers[run]: mark for run, mark in mlflow.values_of_tag(FRONT_TAG) if run in numbers and mark}
    if marked != marks or [*marks.values()].count("knee") != 1:
        yield f"the front is {marks}, and MLflow marks {marked}"


def _parameters(config: StudyConfig, trial: TrialRow) -> float:
    """Number of weights and biases of the networks of all elements."""
    settings = _settings(trial)
    aev = config.features.named(settings["features"])
    total = 0
    for element in aev.elements:
        sizes = (aev_length(aev), *widths_of(settings["hidden"], element), 1)
        total += sum((before + 1) * after for before, after in pairwise(sizes))
    return float(total)


def _settings(trial: TrialRow) -> dict[str, Any]:
    assert trial.config is not None, "a trial with a result has settings"
    return trial.config
