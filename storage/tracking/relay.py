"""Delivers the outbox of one study to MLflow, in order for each run; deliveries are idempotent.

MLflow is a projection of the records. A repeated delivery (after a crash, a timeout, a lost answer) changes
nothing there: each call of :class:`~storage.tracking.mlflow_runs.MlflowRuns` may be repeated, and its
contents come from the rows. A row is marked delivered only after MLflow has accepted it.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any, assert_never

from sqlalchemy import ColumnElement, func, select, update

from storage.blobs.place import open_blobs
from storage.errors import (
    BlobDamagedError,
    BlobMissingError,
    BlobWriteError,
    RelayLeaseLostError,
    TrackingRefusedError,
    TrackingUnavailableError,
)
from storage.records.tables import artifacts, now, outbox, studies, trials
from storage.studies import Study
from storage.tracking import projection
from storage.tracking.lease import RelayLease
from storage.tracking.mlflow_runs import MlflowRuns, open_runs
from storage.tracking.outbox import (
    METRICS_A_ROW,
    ArtifactMessage,
    Message,
    MetricsMessage,
    StudyMessage,
    TrialEndMessage,
    TrialStartMessage,
    TrialStateMessage,
    TrialTagsMessage,
    read_message,
)
from storage.tracking.saved_view import view_tags
from storage.trials.front import study_front
from storage.trials.views import complete_trials, trial_rows

log = logging.getLogger("anitune")

NoteWriter = Callable[[int | None], str]
"""Returns the Markdown note of a trial's run for the trial's number, and of the study's run for ``None``."""

FileWriter = Callable[[], Mapping[str, bytes]]
"""Returns the current files of the study's run, by their paths in the run."""

ROWS_AT_ONCE = 100
"""Rows of a run that are read together, so that a long queue does not fill the memory."""

FAILURES_IN_A_PASS = 3
"""Number of failed runs after which the server counts as away, and the pass ends."""

RENEW_SECONDS = 15.0
"""Renew a lease older than this before calling MLflow."""

STUDY_NOTE_SECONDS = 15.0
"""Shortest interval between updates of the status and note of the study's run."""

STUDY_FILES_SECONDS = 120.0
"""Shortest interval between updates of its files, which take seconds to draw, except for the last one."""


@dataclass(frozen=True)
class _Row:
    id: int
    time_ms: int
    message: Message


class Relay:
    """Delivers one study while it holds the lease.

    Parameters
    ----------
    lease
        The lease of this relay; every write to the records is refused once another relay has it.
    write_note
        See :data:`NoteWriter`.
    stopping
        Event that ends a pass after the current batch.
    write_files
        See :data:`FileWriter`; None if the study's run has no files that change.
    """

    def __init__(
        self,
        lease: RelayLease,
        write_note: NoteWriter,
        stopping: Event,
        write_files: FileWriter | None = None,
    ) -> None:
        self.lease = lease
        self._db = lease.study.database
        self.study = lease.study
        self._write_note = write_note
        self._stopping = stopping
        self._blobs = open_blobs(self._db)
        self._failed: dict[int | None, float] = {}  # time of the last failure, by time.monotonic()
        self._study_synced = float("-inf")  # time of the last sync, by time.monotonic()
        self._marked: dict[int, str] = {}  # marks of trials by the Pareto front, as MLflow has them from here
        self._study_changed = True  # an earlier relay may have ended before its sync
        self._write_files = write_files
        self._files_synced = time.monotonic()  # a study that has just begun has nothing to draw
        self._files_changed = True

    @cached_property
    def _runs(self) -> MlflowRuns:
        return open_runs(self._db.settings)

    @cached_property
    def _run_key(self) -> str:
        return study_run_key(self.study)

    def deliver(self) -> int:
        """Make one pass over all runs with undelivered rows; return how many rows MLflow has accepted.

        Raises
        ------
        TrackingUnavailableError
            at the end of the pass, if some runs must be retried.
        RelayLeaseLostError
            if another relay took over.
        """
        self._hold()
        delivered = 0
        failures: list[Exception] = []
        for number in self._waiting():
            if self._stopping.is_set() or len(failures) == FAILURES_IN_A_PASS:
                break
            if number is not None and self._run_id(None) is None:
                break  # the run of a trial needs that of the study as its parent
            try:
                delivered += self._deliver_run(number)
                self._failed.pop(number, None)
            except (TrackingUnavailableError, BlobWriteError, OSError) as error:
                # The server, or our disk, may fail only for this run, so continue with the others.
                failures.append(error)
                self._failed[number] = time.monotonic()
        if time.monotonic() - self._study_synced > STUDY_NOTE_SECONDS:
            self.sync_study()
        if failures:
            raise TrackingUnavailableError(f"{_names(self._failed)}: {failures[0]}")
        return delivered

    def _hold(self) -> None:
        """Renew the lease if necessary: this process may have been suspended for a long time."""
        if time.monotonic() - self.lease.renewed > RENEW_SECONDS:
            self.lease.renew()

    def _deliver_run(self, number: int | None) -> int:
        delivered = 0
        batches = deque(_batches(self._rows(number)))
        while batches and not self._stopping.is_set():
            batch = batches.popleft()
            self._hold()
            try:
                self._send(number, batch)
                self._acknowledge(batch)
            except RelayLeaseLostError:
                self._redeliver_after(number, after=batch[-1])
                raise
            except (TrackingRefusedError, BlobMissingError, BlobDamagedError) as refusal:
                if len(batch) > 1:  # one row is refused: send them one by one
                    batches.extendleft([row] for row in reversed(batch))
                    continue
                self._reject(number, batch[0], str(refusal))
                break
            delivered += len(batch)
        return delivered

    def _redeliver_after(self, number: int | None, after: _Row) -> None:
        """Mark all later rows as undelivered: our late write may have overwritten them in MLflow."""
        with self._db.writing() as connection:
            connection.execute(
                update(outbox)
                .where(
                    outbox.c.study_id == self.study.id,
                    outbox.c.number.is_not_distinct_from(number),
                    outbox.c.id > after.id,
                )
                .values(delivered_at=None)
            )

    def sync_study(self) -> None:
        """Update status, note and files of the study's run, if a trial began or ended.

        They are derived from the trials, so nothing is lost if this fails: the next sync makes up for it. If
        all trials end meanwhile, or one begins, the update is repeated. So even if one of two relays was
        suspended for a long time, the last one to write has written the current state.
        """
        if not self._study_changed or (run := self._run_id(None)) is None:
            return
        try:
            ended = self._ended()
            self._sync_study_run(run, ended)
            while (now_ended := self._ended()) != ended:
                self._sync_study_run(run, now_ended)
                ended = now_ended
        except TrackingRefusedError as refusal:
            log.warning("%s: the study's run was not updated: %s", self.study.name, refusal)
        self._study_changed = False
        self._study_synced = time.monotonic()

    def _ended(self) -> float | None:
        """When the last trial ended, s since 1970; None if there is no trial, or one has not ended."""
        ends = select(trials.c.ended_at).where(trials.c.study_id == self.study.id)
        with self._db.reading() as connection:
            known = connection.scalars(ends).all()
        return max((end for end in known if end is not None), default=None) if None not in known else None

    def _sync_study_run(self, run: str, ended: float | None) -> None:
        self._files_changed = True
        self._mark_front()
        self._runs.log(run, tags={projection.NOTE_TAG: self._write_note(None)})
        if ended is None:
            self._runs.set_status(run, "RUNNING")
        else:
            self._runs.set_status(run, "FINISHED", _milliseconds(ended))
        self._sync_study_files(run, at_rest=ended is not None)

    def _mark_front(self) -> None:
        """Mark the trials on the Pareto front, if there are several objectives, and unmark the others."""
        if len(self.study.objectives) == 1:
            return
        complete = complete_trials(trial_rows(self._db, self.study))
        front = study_front(complete, self.study.objectives)
        for trial in complete:
            mark = front.mark(trial)
            if self._marked.get(trial.number) == mark or trial.mlflow_run_id is None:
                continue
            try:
                self._runs.log(trial.mlflow_run_id, tags={projection.FRONT_TAG: mark})
            except TrackingRefusedError as refusal:  # somebody may have deleted this run
                log.warning("%s: trial %d has no tag front: %s", self.study.name, trial.number, refusal)
            self._marked[trial.number] = mark

    def _sync_study_files(self, run: str, at_rest: bool) -> None:
        due = at_rest or time.monotonic() - self._files_synced > STUDY_FILES_SECONDS
        if self._write_files is None or not self._files_changed or not due:
            return
        written = self._write_files()
        with tempfile.TemporaryDirectory() as folder:
            files = {path: Path(folder) / str(n) for n, path in enumerate(written)}
            for path, file in files.items():
                file.write_bytes(written[path])
            self._runs.upload(run, files)
        self._files_changed = False
        self._files_synced = time.monotonic()

    def _waiting(self) -> list[int | None]:
        """The runs with undelivered rows and without rejected ones, in order of delivery.

        First comes the study's run, then the trial runs that have waited longest. Runs whose delivery failed
        come last, the most recently tried at the end, since otherwise they would block the others forever.
        """
        with self._db.reading() as connection:
            numbers = connection.scalars(
                select(outbox.c.number)
                .where(*_undelivered(self.study))
                .group_by(outbox.c.number)
                .having(func.count(outbox.c.rejected) == 0)
                .order_by(func.min(outbox.c.id))
            ).all()
        return sorted(numbers, key=lambda number: (number is not None, self._failed.get(number, 0.0)))

    def _rows(self, number: int | None) -> list[_Row]:
        with self._db.reading() as connection:
            rows = connection.execute(
                select(outbox.c.id, outbox.c.kind, outbox.c.payload, outbox.c.created_at)
                .where(*_undelivered(self.study), outbox.c.number.is_not_distinct_from(number))
                .order_by(outbox.c.id)
                .limit(ROWS_AT_ONCE)
            ).all()
        return [
            _Row(row.id, _milliseconds(row.created_at), read_message(row.kind, row.payload)) for row in rows
        ]

    def _send(self, number: int | None, batch: Sequence[_Row]) -> None:
        row = batch[0]
        match row.message:
            case StudyMessage():
                self._send_study(row.message, row.time_ms)
            case TrialStartMessage():
                self._send_start(_trial(number), row.message, row.time_ms)
            case TrialTagsMessage():
                self._runs.log(self._known_run(number), tags=row.message.tags)
            case TrialStateMessage():
                status, tags = projection.UNFINISHED[row.message.state]
                run = self._known_run(number)
                self._runs.log(run, tags=tags)
                self._runs.set_status(run, status)
            case MetricsMessage():
                metrics = [metric for row in batch for metric in _metrics(row)]
                self._runs.log(self._known_run(number), metrics)
            case ArtifactMessage():
                with ExitStack() as stack:
                    self._runs.upload(self._known_run(number), self._files(number, batch, stack))
            case TrialEndMessage():
                self._send_end(_trial(number), row.message, row.time_ms)
            case _:
                assert_never(row.message)

    def _files(self, number: int | None, batch: Iterable[_Row], stack: ExitStack) -> dict[str, Path]:
        """The files of a batch of artifacts, except those with a newer version in the records.

        A trial that was resumed after a pause has newer files at the same paths; the older ones may be gone.
        """
        with self._db.reading() as connection:
            of_trial = (artifacts.c.study_id == self.study.id, artifacts.c.number == number)
            known = select(artifacts.c.path, artifacts.c.digest).where(*of_trial)
            latest = {row.path: row.digest for row in connection.execute(known)}
        files = {}
        for artifact in (row.message for row in batch):
            assert isinstance(artifact, ArtifactMessage), "a batch holds messages of one kind"
            if latest.get(artifact.path, artifact.digest) == artifact.digest:
                files[artifact.path] = stack.enter_context(self._blobs.lend(artifact.digest))
        return files

    def _send_study(self, message: StudyMessage, time_ms: int) -> None:
        tags = {**message.tags, "anitune.study": self.study.name}
        run = self._run_id(None)
        if run is None:
            try:
                experiment = self._runs.experiment(self.study.name, view_tags(time_ms, self.study.objectives))
            except TrackingRefusedError as refusal:
                raise TrackingRefusedError(
                    f"{refusal} and `anitune sync {self.study.name}`, or create another one with `anitune"
                    f" study repair {self.study.name}`"
                ) from None
            run = self._runs.find_or_create(experiment, self._run_key, self.study.name, time_ms, tags)
            with self.lease.writing() as connection:
                connection.execute(
                    update(studies)
                    .where(studies.c.id == self.study.id)
                    .values(mlflow_experiment_id=experiment, mlflow_run_id=run)
                )
        self._runs.log(run, tags=tags)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "study.json"
            file.write_text(json.dumps(message.config, indent=2) + "\n")
            self._runs.upload(run, {file.name: file})
        self._study_changed = True

    def _send_start(self, number: int, message: TrialStartMessage, time_ms: int) -> None:
        tags = {
            **message.tags,
            **projection.RUNNING_TAGS,
            projection.PARENT_TAG: self._known_run(None),
            "anitune.study": self.study.name,
        }
        run = self._run_id(number)
        if run is None:
            run = self._runs.find_or_create(
                self._experiment(), self._trial_run_key(number), projection.run_name(number), time_ms, tags
            )
            with self.lease.writing() as connection:
                connection.execute(
                    update(trials)
                    .where(trials.c.study_id == self.study.id, trials.c.number == number)
                    .values(mlflow_run_id=run)
                )
        else:  # redelivery: somebody may have changed the status
            self._runs.set_status(run, "RUNNING")
        self._runs.log(run, params=projection.param_texts(message.params), tags=tags)
        self._study_changed = True

    def _send_end(self, number: int, message: TrialEndMessage, time_ms: int) -> None:
        run = self._known_run(number)
        tags = {**projection.end_tags(message), projection.NOTE_TAG: self._write_note(number)}
        self._runs.log(run, projection.end_metrics(message, time_ms), tags=tags)
        self._runs.set_status(run, projection.end_status(message), time_ms)
        self._runs.delete_doubles(self._experiment(), self._trial_run_key(number), keep=run)
        self._study_changed = True

    def _acknowledge(self, batch: Iterable[_Row]) -> None:
        with self.lease.writing() as connection:
            connection.execute(
                update(outbox).where(outbox.c.id.in_([row.id for row in batch])).values(delivered_at=now())
            )

    def _reject(self, number: int | None, row: _Row, reason: str) -> None:
        log.warning(
            "%s: no more updates of %s are sent to MLflow: %s", self.study.name, _names([number]), reason
        )
        with self.lease.writing() as connection:
            connection.execute(update(outbox).where(outbox.c.id == row.id).values(rejected=reason))

    def _trial_run_key(self, number: int) -> str:
        return f"{self._run_key}/{number}"

    def _experiment(self) -> str:
        with self._db.reading() as connection:
            experiment: str | None = connection.scalar(
                select(studies.c.mlflow_experiment_id).where(studies.c.id == self.study.id)
            )
        assert experiment is not None, "it is recorded with the study's run, before any trial's"
        return experiment

    def _run_id(self, number: int | None) -> str | None:
        """The recorded run id of a trial, or of the study."""
        if number is None:
            query = select(studies.c.mlflow_run_id).where(studies.c.id == self.study.id)
        else:
            query = select(trials.c.mlflow_run_id).where(
                trials.c.study_id == self.study.id, trials.c.number == number
            )
        with self._db.reading() as connection:
            return connection.scalar(query)

    def _known_run(self, number: int | None) -> str:
        run = self._run_id(number)
        assert run is not None, "the first message about a run makes and records it"
        return run


def study_run_key(study: Study) -> str:
    """The permanent key of the study in MLflow, see :func:`storage.tracking.projection.study_run_key`."""
    with study.database.reading() as connection:
        query = select(studies.c.created_at).where(studies.c.id == study.id)
        created = connection.execute(query).scalar_one()
    return projection.study_run_key(study.name, created)


def retry_rejected(study: Study) -> None:
    """Clear the rejections of rows, so that they are tried again, for example after the cause is removed."""
    with study.database.writing() as connection:
        connection.execute(update(outbox).where(*_undelivered(study)).values(rejected=None))


@dataclass(frozen=True)
class Backlog:
    """Numbers of outbox rows that are not delivered to MLflow.

    Attributes
    ----------
    waiting
        Rows that will be delivered.
    rejected
        Rows that MLflow refused; each blocks the later rows of its run.
    """

    waiting: int
    rejected: int


def backlog(study: Study) -> Backlog:
    """Count the undelivered rows of a study."""
    query = select(func.count(), func.count(outbox.c.rejected)).where(*_undelivered(study))
    with study.database.reading() as connection:
        rows, rejected = connection.execute(query).one()
    return Backlog(waiting=rows - rejected, rejected=rejected)


def undelivered(study: Study) -> int:
    """Number of outbox rows that MLflow has not accepted yet."""
    with study.database.reading() as connection:
        return connection.execute(
            select(func.count()).select_from(outbox).where(*_undelivered(study))
        ).scalar_one()


def _undelivered(study: Study) -> tuple[ColumnElement[bool], ...]:
    return (outbox.c.study_id == study.id, outbox.c.delivered_at.is_(None))


def _batches(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    """Group rows into batches: single rows, but files together, and metrics up to MLflow's limit."""
    batch: list[_Row] = []
    metrics = 0
    for row in rows:
        size = len(_metrics(row))
        together = (
            batch
            and isinstance(row.message, MetricsMessage | ArtifactMessage)
            and type(row.message) is type(batch[0].message)
            and metrics + size <= METRICS_A_ROW
        )
        if batch and not together:
            yield batch
            batch, metrics = [], 0
        batch.append(row)
        metrics += size
    if batch:
        yield batch


def _metrics(row: _Row) -> tuple[Any, ...]:
    return row.message.rows if isinstance(row.message, MetricsMessage) else ()


def _names(numbers: Iterable[int | None]) -> str:
    """Runs in words, such as "the study, trial 3"; only the first ones if there are many."""
    ordered = sorted(numbers, key=lambda number: -1 if number is None else number)
    names = ["the study" if number is None else f"trial {number}" for number in ordered]
    more = " and others" if len(names) > FAILURES_IN_A_PASS else ""
    return ", ".join(names[:FAILURES_IN_A_PASS]) + more


def _trial(number: int | None) -> int:
    assert number is not None, "a message about a trial has its number"
    return number


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
