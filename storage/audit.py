"""Compares what SQL, Optuna and MLflow hold about a study. SQL is the record: what differs from it is wrong.

MLflow is read first and the records afterwards, in one snapshot, so that deliveries of a relay in between do
not show up as differences.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import TrialState
from sqlalchemy import Connection, Row, func, select

from storage.blobs.place import open_blobs
from storage.errors import BlobDamagedError, BlobMissingError
from storage.objectives import objectives_of
from storage.records.tables import (
    artifacts,
    attempts,
    metrics,
    now,
    of_latest_attempt,
    outbox,
    studies,
    trials,
)
from storage.studies import Study
from storage.tracking import projection
from storage.tracking.mlflow_runs import FoundRun, MlflowRuns, open_runs
from storage.tracking.outbox import TrialEndMessage
from storage.trials.finalize import OPTUNA_STATES, results
from storage.trials.optuna_rows import OptunaTrial, all_trials

RepairAction = Literal[
    "end attempt",
    "finalize",
    "fail",
    "deliver",
    "redeliver",
    "recreate",
    "delete run",
    "restore run",
    "restore experiment",
    "release name",
    "fetch",
]
"""How :func:`storage.repair.repair` repairs a difference."""

_HARMLESS = (TrialState.WAITING, TrialState.FAIL)
"""States in which a trial that only Optuna has is harmless: it is enqueued, or failed and so ignored."""


@dataclass(frozen=True)
class Difference:
    """A difference between the stores.

    Attributes
    ----------
    number
        Number of the trial; None if the study itself differs.
    action
        The action that repairs it; None if it cannot be repaired.
    subject
        The object to repair, where the trial does not determine it: the id of a run, the path of an artifact.
    """

    number: int | None
    text: str
    action: RepairAction | None
    subject: str = ""

    def __str__(self) -> str:
        return f"study: {self.text}" if self.number is None else f"trial {self.number}: {self.text}"


@dataclass(frozen=True)
class Audit:
    """Result of an audit: the differences, and how much was compared.

    Attributes
    ----------
    trials
        Number of trials by state. Those ``waiting`` were handed back; the next worker continues them.
    budget
        Trials that may begin; None: no limit.
    runs, metrics, artifacts
        How many of the trials' runs, metrics and artifacts were compared with MLflow, equal or not.
    changing
        Runs that were not compared, because the relay delivered to them meanwhile.
    """

    differences: tuple[Difference, ...]
    trials: dict[str, int]
    budget: int | None
    runs: int
    metrics: int
    artifacts: int
    changing: int


@dataclass(frozen=True)
class _Shown:
    """The state of MLflow: its runs, and for each run the values of each metric and step."""

    runs: list[FoundRun]
    values: dict[str, dict[tuple[str, int], list[float]]]
    lost: Difference | None


@dataclass(frozen=True)
class _Record:
    """A snapshot of SQL. ``changing_runs`` are the runs that the relay delivered to during the audit."""

    study: Row[Any]
    trials: list[Row[Any]]
    values: Mapping[int, dict[tuple[str, int], float]]
    digests: Mapping[int, dict[str, str]]
    optuna: dict[int, OptunaTrial]
    undelivered: dict[int | None, Row[Any]]
    changing_runs: frozenset[int | None]


def verify(study: Study) -> Audit:
    """Compare everything that the three stores hold about a study; artifacts are downloaded for that.

    Raises
    ------
    TrackingUnavailableError
        if the tracking server does not answer.
    """
    runs = open_runs(study.database.settings)
    with study.database.reading() as connection:
        began, experiment, created = connection.execute(
            select(now(), studies.c.mlflow_experiment_id, studies.c.created_at).where(
                studies.c.id == study.id
            )
        ).one()
    key = projection.study_run_key(study.name, created)
    shown = _read_mlflow(runs, experiment, study.name, key)
    with study.database.reading() as connection:
        record = _read_record(connection, study, began)
    comparison = _Comparison(study, record, shown, runs, key)
    differences = (*_of_trials(record), *_of_optuna(record), *comparison.differences())
    states: defaultdict[str, int] = defaultdict(int)
    for trial in record.trials:
        states["waiting" if trial.state == "running" and trial.attempt_ended else trial.state] += 1
    return Audit(
        differences=tuple(
            sorted(differences, key=lambda found: -1 if found.number is None else found.number)
        ),
        trials=dict(states),
        budget=record.study.budget_trials,
        runs=comparison.runs,
        metrics=comparison.metrics,
        artifacts=comparison.artifacts,
        changing=comparison.changing,
    )


def _read_mlflow(runs: MlflowRuns, experiment: str | None, name: str, key: str) -> _Shown:
    if experiment is None:
        if (deleted := runs.deleted_experiment(name)) is None:
            return _Shown([], {}, None)
        taken = f"MLflow reserves its name for a deleted experiment, {deleted}"
        return _Shown([], {}, Difference(None, taken, "release name", deleted))
    match runs.is_deleted(experiment):
        case True:
            gone = Difference(None, "its experiment was deleted in MLflow", "restore experiment", experiment)
            return _Shown([], {}, gone)
        case None:
            unknown = f"MLflow does not know its experiment, {experiment}"
            return _Shown([], {}, Difference(None, unknown, "recreate"))
    found = runs.find(experiment, key)
    having: defaultdict[str, list[str]] = defaultdict(list)
    for run in found:
        for metric in run.metrics if not run.deleted else ():
            having[metric].append(run.id)
    values: dict[str, dict[tuple[str, int], list[float]]] = {run.id: {} for run in found}
    for metric, ids in having.items():
        for run_id, row in runs.histories(ids, metric):
            values[run_id].setdefault((row.key, row.step), []).append(row.value)
    return _Shown(found, values, None)


def _read_record(connection: Connection, study: Study, began: float) -> _Record:
    leased = (attempts.c.lease_until >= now()).label("leased")
    latest = (
        select(trials, attempts.c.ended_at.is_not(None).label("attempt_ended"), leased)
        .join(attempts, of_latest_attempt)
        .where(trials.c.study_id == study.id)
        .order_by(trials.c.number)
    )
    values: defaultdict[int, dict[tuple[str, int], float]] = defaultdict(dict)
    of_metrics = select(metrics.c.number, metrics.c.key, metrics.c.step, metrics.c.value)
    for number, key, step, value in connection.execute(of_metrics.where(metrics.c.study_id == study.id)):
        values[number][key, step] = math.nan if value is None else value
    digests: defaultdict[int, dict[str, str]] = defaultdict(dict)
    of_artifacts = select(artifacts.c.number, artifacts.c.path, artifacts.c.digest)
    for number, path, digest in connection.execute(
        of_artifacts.where(artifacts.c.study_id == study.id).order_by(artifacts.c.position)
    ):
        digests[number][path] = digest
    undelivered = (
        select(
            outbox.c.number,
            func.count().label("rows"),
            func.max(outbox.c.rejected).label("refused"),
        )
        .where(outbox.c.study_id == study.id, outbox.c.delivered_at.is_(None))
        .group_by(outbox.c.number)
    )
    changing_runs = select(outbox.c.number).where(
        outbox.c.study_id == study.id, outbox.c.delivered_at >= began
    )
    return _Record(
        study=connection.execute(select(studies).where(studies.c.id == study.id)).one(),
        trials=list(connection.execute(latest)),
        values=values,
        digests=digests,
        optuna=all_trials(connection, study.optuna_study_id),
        undelivered={row.number: row for row in connection.execute(undelivered)},
        changing_runs=frozenset(connection.scalars(changing_runs.distinct())),
    )


def _of_trials(record: _Record) -> Iterator[Difference]:
    """Check the budget, and that a worker holds the lease of each running trial."""
    budget = record.study.budget_trials
    if budget is not None and len(record.trials) > budget:
        yield Difference(
            None,
            f"{len(record.trials)} trials have started, but {budget} were requested: started trials"
            " cannot be undone",
            None,
        )
    for trial in record.trials:
        if trial.state == "running" and not trial.attempt_ended and not trial.leased:
            yield Difference(
                trial.number, "it is running, but the lease of its worker has expired", "end attempt"
            )


def _values_text(values: Sequence[float]) -> str:
    return ", ".join(map(str, values)) or "None"


def _of_optuna(record: _Record) -> Iterator[Difference]:
    known = set()
    objectives = objectives_of(record.study.config)
    for trial in record.trials:
        known.add(trial.number)
        there = record.optuna.get(trial.number)
        if there is None:
            yield Difference(trial.number, "Optuna does not have it, and it cannot be added", None)
            continue
        state = OPTUNA_STATES.get(trial.state, TrialState.RUNNING)
        values = results(trial, objectives)
        if there.state != state:
            text = f"it is {there.state.name} in Optuna, {state.name} in the record"
            yield Difference(trial.number, text, "finalize")
        elif there.values != values:
            text = (
                f"its value is {_values_text(there.values)} in Optuna, {_values_text(values)} in the record"
            )
            yield Difference(trial.number, text, "finalize")
    for number, there in record.optuna.items():
        if number not in known and there.state not in _HARMLESS:
            text = f"Optuna has it as {there.state.name}, the record does not have it"
            yield Difference(number, text, "fail", str(there.id))


class _Comparison:
    """Compares the runs in MLflow with the record, and counts what was compared."""

    def __init__(self, study: Study, record: _Record, shown: _Shown, runs: MlflowRuns, key: str) -> None:
        self.runs = self.metrics = self.artifacts = self.changing = 0
        self._record = record
        self._shown = shown
        self._mlflow = runs
        self._key = key
        self._blobs = open_blobs(study.database)
        self._active: defaultdict[str, list[FoundRun]] = defaultdict(list)
        for run in sorted(shown.runs, key=lambda run: run.id):
            if not run.deleted:
                self._active[run.key].append(run)
        self._deleted = {run.id for run in shown.runs if run.deleted}

    def differences(self) -> Iterator[Difference]:
        for number, row in self._record.undelivered.items():
            why = f", which refused: {row.refused}" if row.refused is not None else ""
            yield Difference(number, f"{row.rows} messages are not delivered to MLflow yet{why}", "deliver")
        for trial in self._record.trials:
            yield from self._of_blobs(trial.number)
        if self._shown.lost is not None:
            yield self._shown.lost
            return
        yield from self._of_study()
        expected = {self._key}
        for trial in self._record.trials:
            if trial.state != "running" or trial.config is not None:  # else it has no messages for MLflow yet
                expected.add(f"{self._key}/{trial.number}")
                yield from self._of_trial(trial)
        for key in self._active.keys() - expected:
            number = int(key.rpartition("/")[2])
            for run in self._active[key] if number not in self._record.changing_runs else ():
                text = f"MLflow has run {run.id} of it, the record does not have it"
                yield Difference(number, text, "delete run", run.id)

    def _of_study(self) -> Iterator[Difference]:
        run, found = self._choose(None, self._key, self._record.study.mlflow_run_id)
        yield from found
        ended = [trial.ended_at for trial in self._record.trials]
        status = "RUNNING" if not ended or None in ended else "FINISHED"
        if run is not None and None not in self._record.undelivered and run.status != status:
            yield Difference(None, f"its run is {run.status} in MLflow, {status} in the record", "deliver")

    def _of_trial(self, trial: Row[Any]) -> Iterator[Difference]:
        number = trial.number
        run, found = self._choose(number, f"{self._key}/{number}", trial.mlflow_run_id)
        yield from found
        if run is None:
            return
        status, tags, values = _expected(trial, self._record)
        params = projection.param_texts(trial.params or {})
        history = self._shown.values[run.id]
        contents = [*_of_params(number, run.params, params), *_of_metrics(number, history, values)]
        if number in self._record.undelivered:
            # Missing contents are still to come. But MLflow refuses values that contradict those it has.
            yield from (found for found in contents if found.action == "recreate")
            return
        self.runs += 1
        self.metrics += len(values)
        if run.status != status:
            text = f"its run is {run.status} in MLflow, {status} in the record"
            yield Difference(number, text, "redeliver")
        for name, tag in tags.items():
            if run.tags.get(name) != tag:
                text = f"its tag {name} is {run.tags.get(name)} in MLflow, {tag} in the record"
                yield Difference(number, text, "redeliver")
        yield from contents
        yield from self._of_artifacts(number, run)

    def _choose(
        self, number: int | None, key: str, recorded: str | None
    ) -> tuple[FoundRun | None, list[Difference]]:
        """The run to compare, if there is one now; and the differences in which runs exist."""
        if number in self._record.changing_runs:
            self.changing += 1
            return None, []
        active = self._active[key]
        kept = next((run for run in active if run.id == recorded), None)
        found = [
            Difference(number, f"MLflow has another run of it, {run.id}", "delete run", run.id)
            for run in active
            if kept is not None and run is not kept
        ]
        if kept is None and recorded in self._deleted:
            found.append(Difference(number, "its run was deleted in MLflow", "restore run", recorded or ""))
        elif kept is None and (recorded is not None or number not in self._record.undelivered):
            found.append(Difference(number, "MLflow does not have its run", "recreate"))
        return kept, found

    def _of_artifacts(self, number: int, run: FoundRun) -> Iterator[Difference]:
        expected = self._record.digests.get(number, {})
        there = self._mlflow.artifact_digests(run.id) if expected else {}
        self.artifacts += len(expected)
        for path, digest in expected.items():
            if path not in there:
                yield Difference(number, f"MLflow does not have its artifact {path}", "redeliver")
            elif there[path] != digest:
                yield Difference(number, f"its artifact {path} has another content in MLflow", "redeliver")

    def _of_blobs(self, number: int) -> Iterator[Difference]:
        for path, digest in self._record.digests.get(number, {}).items():
            try:
                self._blobs.verify(digest)
            except (BlobMissingError, BlobDamagedError) as error:
                yield Difference(number, f"its file {path} is lost here: {error}", "fetch", path)


def _expected(trial: Row[Any], record: _Record) -> tuple[str, dict[str, str], dict[tuple[str, int], float]]:
    """The status, tags and metrics that the run of a trial must have."""
    values = dict(record.values.get(trial.number, {}))
    tags = {projection.PARENT_TAG: record.study.mlflow_run_id}
    if (unfinished := projection.UNFINISHED.get(trial.state)) is not None:
        return unfinished[0], tags | unfinished[1], values
    end = TrialEndMessage(trial.state, trial.value, trial.reason, trial.summary, tags={})
    tags[projection.STATE_TAG] = projection.end_tags(end)[projection.STATE_TAG]
    values |= {(row.key, row.step): row.value for row in projection.end_metrics(end, ended_ms=0)}
    return projection.end_status(end), tags, values


def _of_params(number: int, there: Mapping[str, str], expected: Mapping[str, str]) -> Iterator[Difference]:
    for name in sorted(there.keys() | expected.keys()):
        if name not in there:
            yield Difference(number, f"MLflow does not have its parameter {name}", "redeliver")
        elif there[name] != expected.get(name):
            text = f"its parameter {name} is {there[name]} in MLflow, {expected.get(name)} in the record"
            yield Difference(number, text, "recreate")


def _of_metrics(
    number: int, there: Mapping[tuple[str, int], list[float]], expected: Mapping[tuple[str, int], float]
) -> Iterator[Difference]:
    for name, step in sorted(there.keys() | expected.keys()):
        found, value = there.get((name, step), []), expected.get((name, step))
        if not found:
            yield Difference(number, f"MLflow does not have its {name} at step {step}", "redeliver")
        elif len(found) > 1:
            text = f"MLflow has its {name} at step {step} {len(found)} times"
            yield Difference(number, text, "recreate")
        elif value is None or not _same(found[0], value):
            text = f"its {name} at step {step} is {found[0]} in MLflow, {value} in the record"
            yield Difference(number, text, "recreate")


def _same(shown: float, recorded: float) -> bool:
    """Whether MLflow shows the recorded value; it stores infinity as the largest float."""
    largest = sys.float_info.max
    return shown == max(-largest, min(largest, recorded)) or (math.isnan(shown) and math.isnan(recorded))
