"""Views of the trials of a study, for display and for tables."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from sqlalchemy import ColumnElement, Connection, Row, Table, func, select

from storage.database import Database
from storage.records.tables import artifacts, attempts, metrics, now, of_latest_attempt, seconds_spent, trials
from storage.studies import Study
from storage.tracking.outbox import MetricRow
from storage.trials.queue import WorkerInfo

TrialState = Literal["complete", "paused", "pruned", "running", "interrupted", "failed"]
"""In the order of a leaderboard."""


@dataclass(frozen=True)
class ArtifactRow:
    """A file of a trial: path within the run, SHA-256 digest of its content in hexadecimal, size in bytes."""

    path: str
    digest: str
    size: int


@dataclass(frozen=True)
class AttemptRow:
    """An attempt that trained at least one epoch of a trial.

    Attributes
    ----------
    attempt
        Number of the attempt, from 1.
    device
        Description of the device that begins with its kind, such as ``cuda:0 NVIDIA H200``.
    precision
        Precision of the matrix products; None for attempts older than this field, for which the configuration
        of the trial has it.
    """

    attempt: int
    device: str
    precision: str | None


@dataclass(frozen=True)
class TrialRow:
    """One trial of a study.

    Attributes
    ----------
    state
        ``interrupted``: the trial was handed back or its worker lost its lease; the next claim continues it.
        ``paused``: it waits at a rung until later results put it among the best there.
    value
        Best validation MAE, kcal/mol.
    config, params, tags, planned_epochs
        The proposed configuration; before the proposal None, and no tags.
    attempt, worker
        The latest attempt, and its worker.
    started, ended
        Seconds since 1970-01-01 UTC.
    seconds
        Total time of all attempts.
    epochs
        Number of the last epoch reached.
    trained_epochs
        Total over all attempts; more than ``epochs`` if some were repeated after a crash.
    attempts
        The attempts that trained at least one epoch.
    replicate_of
        Number of the trial whose configuration it trains with another seed; None: it has its own.
    """

    number: int
    optuna_trial_id: int
    state: TrialState
    value: float | None
    config: dict[str, Any] | None
    params: dict[str, Any] | None
    tags: dict[str, str]
    summary: dict[str, float]
    reason: str | None
    attempt: int
    worker: WorkerInfo
    started: float
    ended: float | None
    seconds: float
    epochs: int
    trained_epochs: int
    planned_epochs: int | None
    mlflow_run_id: str | None
    artifacts: tuple[ArtifactRow, ...]
    attempts: tuple[AttemptRow, ...] = ()
    replicate_of: int | None = None


_PLACES: Final = {state: place for place, state in enumerate(get_args(TrialState))}


def error_of(trial: TrialRow) -> float:
    """Best validation MAE of a trial, kcal/mol; infinity if there is none."""
    return trial.value if trial.value is not None else math.inf


def errors_over_seeds(trials: Iterable[TrialRow]) -> Callable[[TrialRow], Sequence[float]]:
    """Return a function that gives the errors of a complete trial and its replicates, kcal/mol.

    For trials that are not complete it gives nothing.
    """
    values: defaultdict[tuple[int, bool], list[float]] = defaultdict(list)
    for trial in trials:
        if trial.state == "complete" and trial.value is not None:
            values[_configuration(trial)].append(trial.value)
    return lambda trial: values[_configuration(trial)] if trial.state == "complete" else ()


def mean_errors(trials: Iterable[TrialRow]) -> Callable[[TrialRow], float]:
    """Return a function that gives the error by which a trial is ranked: the mean over seeds, kcal/mol."""
    errors = errors_over_seeds(trials)

    def ranked_by(trial: TrialRow) -> float:
        found = errors(trial)
        return statistics.fmean(found) if found else error_of(trial)

    return ranked_by


def _configuration(trial: TrialRow) -> tuple[int, bool]:
    """Number of the trial that a configuration comes from, and whether it is a row of the reference study."""
    return (trial.number if trial.replicate_of is None else trial.replicate_of, "row" in trial.tags)


def leaderboard_order(trials: Iterable[TrialRow]) -> list[TrialRow]:
    """Order trials, the best first: complete ones, then those of each other state, by validation MAE.

    Trials of one configuration with several seeds are ranked by the mean, next to each other. Trials with the
    same error keep their order, which is usually that of their numbers.
    """
    known = list(trials)
    ranked_by = mean_errors(known)
    return sorted(known, key=lambda trial: (_PLACES[trial.state], ranked_by(trial)))


def complete_trials(trials: Iterable[TrialRow]) -> list[TrialRow]:
    """Return the complete trials, the best first: the rank of a trial is its place among them.

    Replicates are not among them: they count for the place of the trial that they repeat.
    """
    ordered = leaderboard_order(trials)
    return [trial for trial in ordered if trial.state == "complete" and trial.replicate_of is None]


def trial_rows(database: Database, study: Study) -> list[TrialRow]:
    """All trials of the study, by number."""
    with database.reading() as connection:
        files, earlier = _artifacts(connection, study), _earlier_attempts(connection, study)
        return [
            _trial(row, files.get(row.number, ()), earlier.get(row.number, ()))
            for row in _rows(connection, study)
        ]


def trial_row(database: Database, study: Study, number: int) -> TrialRow:
    """One trial of the study."""
    with database.reading() as connection:
        files = _artifacts(connection, study, number)
        earlier = _earlier_attempts(connection, study, number)
        (row,) = _rows(connection, study, number)
        return _trial(row, files.get(number, ()), earlier.get(number, ()))


def metric_history(database: Database, study: Study, number: int) -> dict[str, tuple[MetricRow, ...]]:
    """Each metric of a trial over its epochs."""
    query = (
        select(metrics)
        .where(metrics.c.study_id == study.id, metrics.c.number == number)
        .order_by(metrics.c.key, metrics.c.step)
    )
    history: defaultdict[str, list[MetricRow]] = defaultdict(list)
    with database.reading() as connection:
        for row in connection.execute(query):
            value = math.nan if row.value is None else row.value
            history[row.key].append(MetricRow(row.key, row.step, value, row.time_ms))
    return {key: tuple(rows) for key, rows in history.items()}


def metric_curves(
    database: Database, study: Study, key: str, numbers: Collection[int]
) -> dict[int, list[tuple[int, float]]]:
    """One metric of some trials: for each trial number, steps and values in order."""
    query = (
        select(metrics.c.number, metrics.c.step, metrics.c.value)
        .where(metrics.c.study_id == study.id, metrics.c.key == key, metrics.c.number.in_(numbers))
        .order_by(metrics.c.number, metrics.c.step)
    )
    found: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
    with database.reading() as connection:
        for number, step, value in connection.execute(query):
            if value is not None:
                found[number].append((step, value))
    return dict(found)


def _rows(connection: Connection, study: Study, number: int | None = None) -> list[Row[Any]]:
    total = (
        select(
            attempts.c.number,
            func.sum(seconds_spent()).label("seconds"),
            func.sum(attempts.c.epochs).label("trained_epochs"),
            func.max(attempts.c.last_epoch).label("reached"),
        )
        .where(attempts.c.study_id == study.id, *_only(attempts, number))
        .group_by(attempts.c.number)
        .subquery()
    )
    live = attempts.c.ended_at.is_(None) & (attempts.c.lease_until >= now())
    query = (
        select(
            trials,
            attempts.c.worker,
            attempts.c.epochs.label("latest_epochs"),
            live.label("live"),
            total.c.seconds,
            total.c.trained_epochs,
            total.c.reached,
        )
        .join(total, total.c.number == trials.c.number)
        .join(attempts, of_latest_attempt)
        .where(trials.c.study_id == study.id, *_only(trials, number))
        .order_by(trials.c.number)
    )
    return list(connection.execute(query))


def _artifacts(
    connection: Connection, study: Study, number: int | None = None
) -> dict[int, tuple[ArtifactRow, ...]]:
    this = (artifacts.c.study_id == study.id, *_only(artifacts, number))
    query = select(artifacts).where(*this).order_by(artifacts.c.position)
    files: defaultdict[int, list[ArtifactRow]] = defaultdict(list)
    for row in connection.execute(query):
        files[row.number].append(ArtifactRow(row.path, row.digest, row.size))
    return {number: tuple(rows) for number, rows in files.items()}


def _earlier_attempts(
    connection: Connection, study: Study, number: int | None = None
) -> dict[int, tuple[AttemptRow, ...]]:
    """For each trial number, the attempts before the latest that trained epochs; there are few."""
    query = (
        select(attempts.c.number, attempts.c.attempt, attempts.c.worker)
        .join(trials, (trials.c.study_id == attempts.c.study_id) & (trials.c.number == attempts.c.number))
        .where(
            attempts.c.study_id == study.id,
            *_only(attempts, number),
            attempts.c.attempt < trials.c.attempt,
            attempts.c.epochs > 0,
        )
        .order_by(attempts.c.number, attempts.c.attempt)
    )
    found: defaultdict[int, list[AttemptRow]] = defaultdict(list)
    for row in connection.execute(query):
        found[row.number].append(_attempt(row.attempt, row.worker))
    return {number: tuple(rows) for number, rows in found.items()}


def device_kind(device: str) -> str:
    """The kind of a device, such as cpu or cuda, from its description."""
    return device.partition(" ")[0].partition(":")[0]


def _attempt(number: int, worker: dict[str, Any]) -> AttemptRow:
    return AttemptRow(number, worker["device"], worker.get("precision"))


def _only(table: Table, number: int | None) -> tuple[ColumnElement[bool], ...]:
    return () if number is None else (table.c.number == number,)


def _trial(row: Row[Any], files: tuple[ArtifactRow, ...], earlier: tuple[AttemptRow, ...]) -> TrialRow:
    latest = (_attempt(row.attempt, row.worker),) if row.latest_epochs else ()
    return TrialRow(
        number=row.number,
        optuna_trial_id=row.optuna_trial_id,
        state="interrupted" if row.state == "running" and not row.live else row.state,
        value=row.value,
        config=row.config,
        params=row.params,
        tags=row.tags,
        summary=row.summary,
        reason=row.reason,
        attempt=row.attempt,
        worker=WorkerInfo(**row.worker),
        started=row.created_at,
        ended=row.ended_at,
        seconds=row.seconds,
        epochs=row.reached,
        trained_epochs=int(row.trained_epochs),
        planned_epochs=row.planned_epochs,
        mlflow_run_id=row.mlflow_run_id,
        artifacts=files,
        attempts=(*earlier, *latest),
        replicate_of=row.replicate_of,
    )
