"""Studies: a name, a fixed configuration, a budget that can be raised, and facts about the data."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from optuna import Study as OptunaStudy
from optuna import Trial as OptunaTrial
from optuna import create_study as create_optuna_study
from optuna import delete_study as delete_optuna_study
from optuna import load_study as load_optuna_study
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from sqlalchemy import Connection, Row, Select, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from storage.addresses import redacted
from storage.database import Database
from storage.earlier_studies import EarlierStudy, record_earlier_studies
from storage.errors import FactsChangedError, SettingsError, StudyExistsError, StudyNotFoundError
from storage.objectives import ERROR, OBJECTIVES, objectives_of
from storage.records.keys import of_study, study_key
from storage.records.tables import attempts, now, of_latest_attempt, seconds_spent, studies, trials
from storage.tracking.outbox import StudyMessage, enqueue

StudyState = Literal["open", "paused", "stopped", "archived"]
"""Whether workers begin trials of a study: see :mod:`storage.lifecycle`."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Budget:
    """Limits from which a study begins no more trials; begun trials are always finished. None: no limit.

    Attributes
    ----------
    trials
        Number of trials begun, whatever their result.
    seconds
        Total time of all attempts, s, without the time between Ctrl-C and the next start.
    epochs
        Total epochs trained in all attempts.
    until_no_gain
        Whether the study ends when the expected gain of going on is within the noise of the error. It then
        gets the number of trials that have begun as its limit.
    """

    trials: int | None = None
    seconds: float | None = None
    epochs: int | None = None
    until_no_gain: bool = False


@dataclass(frozen=True)
class ExpectedGain:
    """How much better the best trial of a study could become if the study goes on, kcal/mol.

    Attributes
    ----------
    results
        Number of results that it was estimated from: errors of full trainings, measured or predicted.
    gain
        Upper bound of the difference between the best error so far and that of the best configuration.
        It is never above the best error, since no error is below zero.
    margin
        Difference below which two errors near the best cannot be told apart (95 %).
    """

    results: int
    gain: float
    margin: float

    @property
    def is_noise(self) -> bool:
        """Whether going on is not worth it: nobody could tell what is gained from chance."""
        return self.gain < self.margin


@dataclass(frozen=True)
class Study:
    """A study in the database."""

    database: Database = field(repr=False, compare=False)
    id: int
    name: str
    optuna_study_id: int
    config: dict[str, Any]
    budget: Budget

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of what its trials are judged by, see :mod:`storage.objectives`."""
        return objectives_of(self.config)

    @property
    def facts(self) -> dict[str, str]:
        """Fingerprints of the data and the split (see :meth:`set_facts`)."""
        with self.database.reading() as connection:
            return self.facts_in(connection)

    def facts_in(self, connection: Connection) -> dict[str, str]:
        """:attr:`facts`, read in an open transaction."""
        return dict(connection.execute(_FACTS, study_key(self.id)).scalar_one())

    def set_facts(self, facts: Mapping[str, str]) -> None:
        """Record fingerprints of the data and the split; the first value of each is kept.

        Raises
        ------
        FactsChangedError
            if one of them has another value already: trials would not be comparable.
        """
        with self.database.writing() as connection:
            query = select(studies.c.facts, studies.c.config).where(studies.c.id == self.id).with_for_update()
            known, config = connection.execute(query).one()
            for name, value in facts.items():
                if known.get(name, value) != value:
                    raise FactsChangedError(
                        f"study {self.name!r}: the {name} was {known[name]} and is {value} now; restore the"
                        " old data, or start a study with another name"
                    )
            new = {name: value for name, value in facts.items() if name not in known}
            if new:
                connection.execute(update(studies).where(studies.c.id == self.id).values(facts=known | new))
                enqueue(connection, self.id, None, [StudyMessage(config=config, tags=new)])

    @cached_property
    def optuna(self) -> OptunaStudy:
        """Optuna's study; the code that proposes configurations sets its sampler and pruner."""
        with self.database.plain_errors():
            try:
                return load_optuna_study(study_name=self.name, storage=self.database.optuna)
            except KeyError:
                raise StudyNotFoundError(f"study {self.name!r} was deleted from Optuna's tables") from None

    def optuna_trial(self, optuna_trial_id: int) -> OptunaTrial:
        """Optuna's trial, to propose a configuration with; it may have begun in another process."""
        with self.database.plain_errors():
            # Optuna's cache refuses parameters of a trial that it has neither created nor listed.
            self.optuna.get_trials(deepcopy=False)
            return OptunaTrial(self.optuna, optuna_trial_id)


@dataclass(frozen=True, kw_only=True)
class StudyProgress:
    """How far a study has come.

    Attributes
    ----------
    trials
        Number of trials by state: running, interrupted (no worker has it now), paused, complete, pruned,
        failed.
    best_number, best_value
        The complete trial with the smallest validation MAE (kcal/mol), if there is one. For a trial with
        replicates this is the mean over the seeds.
    best_seeds
        Number of trainings that this is the mean of.
    """

    name: str
    budget: Budget
    trials: dict[str, int]
    best_number: int | None
    best_value: float | None
    best_seeds: int = 1

    @property
    def ended(self) -> int:
        """Number of trials that have ended: complete, pruned or failed."""
        return sum(self.trials[state] for state in ("complete", "pruned", "failed"))


@dataclass(frozen=True, kw_only=True)
class StudySummary(StudyProgress):
    """Summary of a study.

    Attributes
    ----------
    created_at
        Seconds since 1970-01-01 UTC.
    seconds, epochs
        Total time and epochs of all attempts.
    epochs_saved
        Epochs that were planned for pruned trials and not trained.
    mlflow_experiment_id, mlflow_run_id
        The study's experiment and run in MLflow, once they have been created there.
    gain
        What could be left to gain; None if it was not estimated.
    """

    state: StudyState
    created_at: float
    seconds: float
    epochs: int
    epochs_saved: int
    mlflow_experiment_id: str | None
    mlflow_run_id: str | None
    objectives: tuple[str, ...] = (ERROR,)
    gain: ExpectedGain | None = None


def create_study(
    database: Database,
    name: str,
    config: Mapping[str, Any],
    budget: Budget,
    priority: int = 0,
    earlier: Sequence[EarlierStudy] = (),
) -> Study:
    """Begin a study, or continue the one with that name and configuration.

    Parameters
    ----------
    budget
        The limits in the study file. If the study exists, a limit that was edited since the last call
        replaces the current one; the others stay as ``extend`` has left them.
    priority
        Workers that serve all studies take trials from the study with the highest priority first. A later
        call may change it.
    earlier
        What a new study learns from; a study that exists keeps the copies that it has.

    Raises
    ------
    StudyExistsError
        if a study with that name has another configuration, or exists in Optuna but not in our records.
    SettingsError
        if the name is not valid.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"{name!r} is not a valid name of a study: use 1 to 100 letters, digits, dots, dashes or"
            " underscores, beginning with a letter or a digit"
        )
    plain = json.loads(json.dumps(config))
    if not _exists(database, name):
        optuna_study_id = _create_in_optuna(database, name, objectives_of(plain))
        try:
            with database.writing() as connection:
                _insert(connection, name, optuna_study_id, plain, budget, earlier)
        except StudyExistsError:
            pass  # begun by another process at this moment
    with database.writing() as connection:
        row = connection.execute(select(studies).where(studies.c.name == name).with_for_update()).one()
        _refuse_other_settings(row, plain)
        asked, given = row.asked or {}, budget_values(budget)
        edited = {
            limit: value for limit, value in given.items() if limit not in asked or asked[limit] != value
        }
        values = {**edited, "asked": given, "priority": priority}
        connection.execute(update(studies).where(studies.c.id == row.id).values(values))
    return open_study(database, name)


def is_begun(database: Database, name: str, config: Mapping[str, Any]) -> bool:
    """Whether there is a study of that name and configuration.

    Raises
    ------
    StudyExistsError
        if a study of that name has another configuration.
    """
    with database.reading() as connection:
        row = connection.execute(select(studies).where(studies.c.name == name)).one_or_none()
    if row is not None:
        _refuse_other_settings(row, json.loads(json.dumps(config)))
    return row is not None


def open_study(database: Database, name: str) -> Study:
    """The study of that name, with the paths of its data files on this machine, if any are recorded.

    Raises
    ------
    StudyNotFoundError
        if there is none.
    """
    row = None
    if _NAME.fullmatch(name):  # no other name may become part of a path
        with database.reading() as connection:
            row = connection.execute(select(studies).where(studies.c.name == name)).one_or_none()
    if row is None:
        raise StudyNotFoundError(
            f"there is no study {name!r} in {redacted(database.settings.storage_url)}:"
            " list all with `anitune study list`"
        )
    return Study(
        database=database,
        id=row.id,
        name=row.name,
        optuna_study_id=row.optuna_study_id,
        config=_config_here(row),
        budget=budget_of(row),
    )


def list_studies(database: Database, *, archived: bool = False) -> list[StudySummary]:
    """The studies that are not archived, or those that are, oldest first."""
    kept = studies.c.state == "archived" if archived else studies.c.state != "archived"
    with database.reading() as connection:
        rows = connection.execute(select(studies).where(kept).order_by(studies.c.id)).all()
        return [_summary(connection, row) for row in rows]


def summarize_study(database: Database, study: Study) -> StudySummary:
    """The summary of one study."""
    with database.reading() as connection:
        row = connection.execute(select(studies).where(studies.c.id == study.id)).one()
        return _summary(connection, row)


def study_progress(database: Database, study: Study) -> StudyProgress:
    """How far one study has come; fast enough to call for each trial."""
    with database.reading() as connection:
        row = connection.execute(_STUDY, study_key(study.id)).one()
        return StudyProgress(**_progress(connection, row))


def budget_of(row: Row[Any]) -> Budget:
    """The budget in a row of ``anitune_studies``."""
    return Budget(
        trials=row.budget_trials,
        seconds=row.budget_seconds,
        epochs=row.budget_epochs,
        until_no_gain=row.budget_until_no_gain,
    )


def budget_values(budget: Budget) -> dict[str, Any]:
    """The columns of ``anitune_studies`` that hold a budget."""
    return {
        "budget_trials": budget.trials,
        "budget_seconds": budget.seconds,
        "budget_epochs": budget.epochs,
        "budget_until_no_gain": budget.until_no_gain,
    }


def _exists(database: Database, name: str) -> bool:
    with database.reading() as connection:
        return connection.execute(select(studies.c.id).where(studies.c.name == name)).first() is not None


def _create_in_optuna(database: Database, name: str, objectives: Sequence[str]) -> int:
    def create() -> OptunaStudy:
        directions = [StudyDirection.MINIMIZE] * len(objectives)
        return create_optuna_study(
            study_name=name, storage=database.optuna, directions=directions, load_if_exists=True
        )

    with database.plain_errors(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        made = create()
        if made.get_trials(deepcopy=False) and not _exists(database, name):
            raise StudyExistsError(
                f"Optuna has a study {name!r} in this database that anitune did not make: choose another name"
            )
        if len(made.directions) != len(objectives) and not _exists(database, name):
            # It is left from a creation with other objectives that was interrupted.
            delete_optuna_study(study_name=name, storage=database.optuna)
            made = create()
        made.set_metric_names([OBJECTIVES[objective].label for objective in objectives])
        return database.optuna.get_study_id_from_name(name)


def with_files(config: Mapping[str, Any], files: list[str]) -> dict[str, Any]:
    """A configuration with other paths of data files."""
    changed = {**config, "data": {**config.get("data", {}), "files": files}}
    if config.get("reference"):
        changed["reference"] = with_files(config["reference"], files)
    return changed


def _config_here(row: Row[Any]) -> dict[str, Any]:
    for files in row.other_files or ():
        # Only the name of the shipped data set is not an absolute path.
        if all(Path(file).exists() or not Path(file).is_absolute() for file in files):
            return with_files(row.config, files)
    return dict(row.config)


def _refuse_other_settings(row: Row[Any], given: dict[str, Any]) -> None:
    known = row.config
    if (files := given.get("data", {}).get("files")) in (row.other_files or ()):
        known = with_files(known, files)
    refuse_other_settings(row.name, known, given)


def refuse_other_settings(name: str, known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise if the settings of a study are not those of its record.

    Raises
    ------
    StudyExistsError
        with a line that names what differs.
    """
    differing = [
        f"{key}: {json.dumps(there)} there, {json.dumps(here)} here"
        for key, there, here in differences(known, given)
    ]
    if differing:
        raise StudyExistsError(
            f"study {name!r} exists with other settings ({', '.join(differing)}):"
            " give this one another name, or undo the change"
        )


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """The settings that differ: name with its sections, old value and new value; None where there is none."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [(path, old, new)]
    found = []
    for key in sorted(old.keys() | new.keys()):
        found += differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    return found


def _insert(
    connection: Connection,
    name: str,
    optuna_study_id: int,
    config: dict[str, Any],
    budget: Budget,
    earlier: Sequence[EarlierStudy],
) -> None:
    values = {
        "name": name,
        "optuna_study_id": optuna_study_id,
        "config": config,
        "facts": {},
        "created_at": now(),
        "asked": budget_values(budget),
        "finalists_among": 0 if config.get("finalists") is not None else None,
        **budget_values(budget),
    }
    try:
        study_id = connection.execute(insert(studies).values(values).returning(studies.c.id)).scalar_one()
    except IntegrityError as error:
        raise StudyExistsError(f"study {name!r} exists") from error
    record_earlier_studies(connection, study_id, earlier)
    enqueue(connection, study_id, None, [StudyMessage(config=config, tags={})])


def _progress_query() -> Select[Any]:
    """How many trials of a study are in each state, and which is the best."""
    ours = of_study(trials.c.study_id)
    silent = (
        select(func.count())
        .select_from(trials.join(attempts, of_latest_attempt))
        .where(
            ours,
            trials.c.state == "running",
            trials.c.told.is_(False),
            attempts.c.ended_at.is_not(None) | (attempts.c.lease_until < now()),
        )
    )
    best = select(trials.c.number, trials.c.value).where(ours, trials.c.state == "complete")
    best = best.order_by(trials.c.value, trials.c.number).limit(1)
    numbers = {
        state: select(func.count()).select_from(trials).where(ours, trials.c.state == state)
        for state in ("running", "paused", "complete", "pruned", "failed")
    }
    return select(
        *(number.scalar_subquery().label(state) for state, number in numbers.items()),
        silent.scalar_subquery().label("interrupted"),
        best.with_only_columns(trials.c.number).scalar_subquery().label("best_number"),
        best.with_only_columns(trials.c.value).scalar_subquery().label("best_value"),
        select(trials.c.number)
        .where(ours, trials.c.replicate_of.is_not(None))
        .limit(1)
        .scalar_subquery()
        .label("replicate"),
    )


def _best_mean_query() -> Select[Any]:
    """Which trial is the best, by the mean over its seeds."""
    original = func.coalesce(trials.c.replicate_of, trials.c.number)
    mean = func.avg(trials.c.value)
    return (
        select(original.label("number"), mean.label("value"), func.count().label("seeds"))
        .where(of_study(trials.c.study_id), trials.c.state == "complete")
        .group_by(original)
        .order_by(mean, original)
        .limit(1)
    )


# These statements run for each trial, so they are made once: see storage.records.keys.
_STUDY: Final = select(studies).where(of_study())
_FACTS: Final = select(studies.c.facts).where(of_study())
_PROGRESS: Final = _progress_query()
_BEST_MEAN: Final = _best_mean_query()


def _progress(connection: Connection, row: Row[Any]) -> dict[str, Any]:
    """The fields of :class:`StudyProgress`."""
    found = connection.execute(_PROGRESS, study_key(row.id)).one()
    best: tuple[int | None, float | None, int] = (found.best_number, found.best_value, 1)
    if found.replicate is not None and (mean := connection.execute(_BEST_MEAN, study_key(row.id)).first()):
        best = (mean.number, mean.value, mean.seeds)
    return {
        "name": row.name,
        "budget": budget_of(row),
        "trials": {
            "running": found.running - found.interrupted,
            "interrupted": found.interrupted,
            "paused": found.paused,
            "complete": found.complete,
            "pruned": found.pruned,
            "failed": found.failed,
        },
        "best_number": best[0],
        "best_value": best[1],
        "best_seeds": best[2],
    }


def _summary(connection: Connection, row: Row[Any]) -> StudySummary:
    spent = select(
        func.coalesce(func.sum(seconds_spent()), 0.0), func.coalesce(func.sum(attempts.c.epochs), 0)
    ).where(attempts.c.study_id == row.id)
    seconds, epochs = connection.execute(spent).one()
    reached = (
        select(func.max(attempts.c.last_epoch))
        .where(attempts.c.study_id == trials.c.study_id, attempts.c.number == trials.c.number)
        .scalar_subquery()
    )
    saved = select(func.coalesce(func.sum(trials.c.planned_epochs - reached), 0)).where(
        trials.c.study_id == row.id, trials.c.state == "pruned"
    )
    return StudySummary(
        **_progress(connection, row),
        state=row.state,
        created_at=row.created_at,
        seconds=float(seconds),
        epochs=int(epochs),
        epochs_saved=int(connection.execute(saved).scalar_one()),
        mlflow_experiment_id=row.mlflow_experiment_id,
        mlflow_run_id=row.mlflow_run_id,
        objectives=objectives_of(row.config),
        gain=ExpectedGain(**row.gain) if row.gain is not None else None,
    )
