"""Current record of a study, read once for whatever shows it: page, report, notebook and both dashboards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from storage.database import Database
from storage.earlier_studies import EarlierStudy, earlier_studies
from storage.errors import StudyNotFoundError
from storage.evaluations import EvaluationOnTestSet, evaluations_on_test_set
from storage.promotions import Promotion, promotions
from storage.studies import StudySummary, open_study, summarize_study
from storage.trainings import RecordedTraining, trainings
from storage.trials.front import Front, front_of_several
from storage.trials.views import TrialRow, complete_trials, metric_curves, trial_rows

CURVES: Final = 5
"""Number of trials whose curves are highlighted."""

FAINT_CURVES: Final = 150
"""Maximum number of trials whose curves are drawn faint behind those."""


@dataclass(frozen=True)
class StudyRecord:
    """A study with its trials and promotions.

    Attributes
    ----------
    optuna_id
        Optuna's id of the study.
    config
        Settings of the study file, with defaults filled in.
    facts
        Fingerprints of the data and settings that it was trained on.
    trials
        In the order of their numbers.
    promotions, evaluations
        Promotions, and evaluations on the test set; the oldest first.
    members
        Trainings of the settings of a trial with other seeds, on the subsets of the study.
    reference
        The study of listed configurations that are trained beside it, if any.
    earlier
        Copies of the results of the studies that it learns from.
    """

    name: str
    optuna_id: int
    config: dict[str, Any]
    facts: dict[str, str]
    summary: StudySummary
    trials: tuple[TrialRow, ...]
    promotions: tuple[Promotion, ...]
    evaluations: tuple[EvaluationOnTestSet, ...]
    members: tuple[RecordedTraining, ...]
    reference: StudyRecord | None
    earlier: tuple[EarlierStudy, ...] = ()

    @property
    def complete(self) -> list[TrialRow]:
        """The complete trials, the best first."""
        return complete_trials(self.trials)

    @cached_property
    def front(self) -> Front | None:
        """The Pareto front of the complete trials; None if the study has one objective only."""
        return front_of_several(self.trials, self.summary.objectives)

    @property
    def promoted(self) -> Promotion | None:
        """The latest promotion that led to a registered model."""
        return next((each for each in reversed(self.promotions) if each.model_name is not None), None)

    @property
    def winner(self) -> TrialRow | None:
        """The promoted trial; the best one if none was promoted."""
        if (promoted := self.promoted) is not None:
            return next(trial for trial in self.trials if trial.number == promoted.choice)
        return next(iter(self.complete), None)

    @property
    def rows(self) -> tuple[TrialRow, ...]:
        """The trials of the reference."""
        return self.reference.trials if self.reference is not None else ()


def read_study(database: Database, name: str) -> StudyRecord:
    """Read the current record of the study of that name.

    Raises
    ------
    StudyNotFoundError
        if there is none.
    """
    study = open_study(database, name)
    reference = study.config.get("reference")
    return StudyRecord(
        name=study.name,
        optuna_id=study.optuna_study_id,
        config=study.config,
        facts=study.facts,
        summary=summarize_study(database, study),
        trials=tuple(trial_rows(database, study)),
        promotions=tuple(promotions(database, study)),
        evaluations=tuple(evaluations_on_test_set(database, study)),
        members=tuple(each for each in trainings(database, study).values() if each.kind == "member"),
        earlier=tuple(earlier_studies(database, study)),
        reference=_read_reference(database, reference["name"]) if reference else None,
    )


def read_curves(database: Database, record: StudyRecord) -> dict[int, list[tuple[int, float]]]:
    """Validation MAE (kcal/mol) over the epochs by trial number, of the best trials and some of the rest."""
    best = [trial.number for trial in record.complete[:CURVES]]
    rest = [trial.number for trial in record.trials if trial.epochs and trial.number not in best]
    step = max(1, len(rest) // FAINT_CURVES)
    study = open_study(database, record.name)
    return metric_curves(database, study, "val/mae_kcalmol", [*best, *rest[::step][:FAINT_CURVES]])


def _read_reference(database: Database, name: str) -> StudyRecord | None:
    try:
        return read_study(database, name)
    except StudyNotFoundError:  # deleted since
        return None


def name_of(trial: TrialRow) -> str:
    """What people call a trial: ``trial 9``, or ``row 1`` of listed configurations."""
    return f"row {trial.tags['row']}" if "row" in trial.tags else f"trial {trial.number}"


def architecture_of(trial: TrialRow) -> str:
    """The network as text, such as ``384-128-64-1 silu``; a dash before a network was proposed."""
    return trial.tags.get("arch", "–")
