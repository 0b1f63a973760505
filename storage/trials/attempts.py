"""Writes of one attempt at a trial. Every write is refused once another worker has the trial."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial
from sqlalchemy import Connection, Row, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import ReturningInsert
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from storage.addresses import without_secrets
from storage.database import Database
from storage.errors import DatabaseBusyError, DatabaseUnreachableError, TrialClosedError
from storage.lifecycle import locked_row
from storage.records.keys import of_study, of_trial, study_key, trial_key
from storage.records.tables import attempts, metrics, now, rungs, studies, trials
from storage.studies import Study, StudyState
from storage.tracking.outbox import (
    METRICS_A_ROW,
    MetricRow,
    MetricsMessage,
    TrialEnd,
    TrialStartMessage,
    TrialTagsMessage,
    enqueue,
)
from storage.trials import (
    checkpoints,
    duplicate_configs,
    fencing,
    finalize,
    optuna_rows,
    paused,
    trial_artifacts,
)
from storage.trials.checkpoints import SavedCheckpoint, StoredCheckpoint
from storage.trials.duplicate_configs import OriginalTrial
from storage.trials.finalize import TrialResult
from storage.trials.queue import Claim, WorkerInfo, worker_tags

PATIENCE = 600.0
"""How long a training waits for an unavailable database, s."""

P = ParamSpec("P")
R = TypeVar("R")

PASSING = retry_if_exception_type((DatabaseUnreachableError, DatabaseBusyError))
"""Condition of tenacity to retry errors that pass by themselves."""


def _patient(method: Callable[Concatenate[Attempt, P], R]) -> Callable[Concatenate[Attempt, P], R]:
    """Repeat a method while the database is unavailable; all these methods are idempotent."""

    @functools.wraps(method)
    def repeated(self: Attempt, *args: P.args, **kwargs: P.kwargs) -> R:
        retrying = Retrying(
            retry=PASSING,
            wait=wait_random_exponential(multiplier=0.1, max=10),
            stop=stop_after_delay(self.patience),
            reraise=True,
        )
        return retrying(method, self, *args, **kwargs)

    return cast(Callable[Concatenate["Attempt", P], R], repeated)


class Attempt:
    """Records the progress and result of a trial that a worker has claimed.

    Every method but :meth:`renew` waits for an unavailable database, up to ``patience`` seconds.
    All raise :class:`LeaseLostError`, and write nothing, once another worker has the trial.
    """

    def __init__(self, database: Database, study: Study, claim: Claim, patience: float = PATIENCE) -> None:
        self.study = study
        self.claim = claim
        self.patience = patience
        self._database = database
        self._lease = fencing.Lease(study.id, claim.number, claim.token)
        self._key = trial_key(study.id, claim.number)
        self._token = {"of_token": claim.token}

    def fenced(self) -> AbstractContextManager[None]:
        """Refuse Optuna's own writes in the block and thread once the lease is lost."""
        return fencing.fenced(self._lease)

    def renew(self) -> StudyState:
        """Renew the lease as a heartbeat; return the state of the study."""
        with self._database.writing() as connection:
            fencing.hold(connection, self._lease)
            connection.execute(_RENEWED, self._token | {"lease_seconds": self.claim.lease_seconds})
            state: StudyState = connection.execute(_STUDY_STATE, study_key(self.study.id)).scalar_one()
        return state

    @_patient
    def record_config(
        self,
        config: Mapping[str, Any],
        params: Mapping[str, Any],
        *,
        planned_epochs: int,
        tags: Mapping[str, str] | None = None,
        settings: str | None = None,
        proposed: Mapping[str, tuple[float, str]] | None = None,
        sampler_state: Mapping[str, Any] | None = None,
        ran_on: tuple[str, str] | None = None,
    ) -> None:
        """Record the proposed configuration of the trial; the first attempt that gets this far does it once.

        Parameters
        ----------
        config
            All settings of the training, with which it can be reproduced.
        params
            The few parameters by which people compare trials: flat names, plain values.
        planned_epochs
            Epochs of the trial if nothing stops it.
        tags
            Texts for table columns, such as the architecture.
        settings
            Digest that is equal for duplicate configurations, see :mod:`storage.trials.duplicate_configs`;
            None if the trial is trained in any case.
        proposed
            The parameters as Optuna stores them: value and distribution (JSON) by name.
        sampler_state
            System attributes in which the sampler keeps its state.
        ran_on
            The arguments of :meth:`record_device`, to record them in the same transaction.

        Raises
        ------
        TrialClosedError
            if the trial was ended or deleted in the Optuna dashboard.
        """
        with self._database.writing() as connection:
            fencing.hold(connection, self._lease)
            trial = self._trial(connection)
            if trial.config is not None:
                assert trial.config == json.loads(json.dumps(config)), "a trial has one configuration"
                return
            params_written = optuna_rows.set_params(
                connection, trial.optuna_trial_id, proposed or {}, sampler_state or {}
            )
            if not params_written:
                raise self._closed()
            worker = self._record_device(connection, *ran_on) if ran_on is not None else self.claim.worker
            tags = dict(tags or {})
            self._update_trial(
                connection,
                config=dict(config),
                params=dict(params),
                planned_epochs=planned_epochs,
                tags=tags,
                settings=settings,
            )
            described = {
                **self.study.facts_in(connection),
                **worker_tags(worker, self.claim.attempt),
            }
            message = TrialStartMessage(params=dict(params), tags={**described, **tags})
            self._enqueue(connection, message)

    @_patient
    def record_device(self, device: str, precision: str) -> None:
        """Record the device and the precision of this attempt, which may differ from those of other attempts.

        Parameters
        ----------
        device
            Description of the device that begins with its kind.
        """
        with self._database.writing() as connection:
            fencing.hold(connection, self._lease)
            worker = self._record_device(connection, device, precision)
            tags = worker_tags(worker, self.claim.attempt)
            self._enqueue(connection, TrialTagsMessage(tags=tags))

    @_patient
    def find_original(self) -> OriginalTrial | None:
        """The trial with equal settings whose result this one takes, if there is one.

        Of trials with equal settings, the first that calls this is trained. Trials that wait for it are
        claimed when it has ended. If it fails, the next one that calls this is trained.
        """
        with self._database.reading() as connection:
            trial = self._trial(connection)
            if trial.same_as is None and not duplicate_configs.exists(connection, trial):
                return None  # later trials become duplicates of this one
        with self._database.writing() as connection:
            locked_row(connection, self.study)  # serializes simultaneous calls
            fencing.hold(connection, self._lease)
            original = duplicate_configs.find(connection, self._trial(connection))
            self._update_trial(connection, same_as=original.number if original is not None else None)
        return original

    @_patient
    def reuse_result(self, original: OriginalTrial) -> bool:
        """End the trial like its original, with the original's metrics, rungs and artifacts.

        Returns
        -------
        Whether it was done; not if the original was paused and has been resumed since.
        """
        with self._database.writing() as connection:
            locked_row(connection, self.study)  # so that the original is not resumed meanwhile
            row = fencing.find(connection, self._lease)
            if row.ended_at is None or row.outcome != original.state:  # else a retry, see :meth:`finish`
                fencing.refuse_ended(self._lease, row)
                if duplicate_configs.find(connection, self._trial(connection)) != original:
                    return False
                history = duplicate_configs.history(connection, self.study.id, original.number)
                for start in range(0, len(history), METRICS_A_ROW):
                    if new := self._insert_metrics(connection, history[start : start + METRICS_A_ROW]):
                        self._enqueue(connection, MetricsMessage(rows=new))
                trial = self._trial(connection)
                attempt = self.claim.attempt
                for artifact in duplicate_configs.copy_files_and_rungs(connection, trial, original, attempt):
                    self._enqueue(connection, artifact)
                result = duplicate_configs.result(connection, trial, original)
                finalize.record(connection, trial, result)
                self._update_attempt(connection, last_epoch=original.epochs)
                self._end_attempt(connection, result.state, result.reason)
        finalize.sync_to_optuna(self._database, self.study, self.claim.number)
        return True

    @_patient
    def record_metrics(self, rows: Sequence[MetricRow], checkpoint: SavedCheckpoint | None = None) -> None:
        """Record metrics of epochs. If a metric already has a value at a step, that value stays.

        Parameters
        ----------
        checkpoint
            The checkpoint saved after these epochs, if it must be stored for workers on other machines.
        """
        with StoredCheckpoint(self._database, checkpoint) as kept, self._database.writing() as connection:
            attempt = fencing.hold(connection, self._lease)
            self._record_metrics(connection, attempt, rows)
            kept.record(connection, attempt)

    @_patient
    def fetch_checkpoint(self, target: Path, after: int) -> int | None:
        """See :func:`storage.trials.checkpoints.fetch`."""
        return checkpoints.fetch(self._database, self.study, self.claim.number, target, after)

    @_patient
    def rung(
        self,
        step: int,
        value: float,
        rows: Sequence[MetricRow],
        decide: Callable[[FrozenTrial], bool],
        checkpoint: SavedCheckpoint | None = None,
    ) -> bool:
        """Record metrics, report to Optuna, and decide whether to stop the trial here.

        A decision is made once: after a crash the recorded one is returned again.

        Parameters
        ----------
        step
            The epoch.
        value
            Best validation MAE so far, kcal/mol.
        rows
            Metrics of the epochs since the last call.
        decide
            Asks the pruner about the current state of the trial in Optuna.
        checkpoint
            As in :meth:`record_metrics`.

        Raises
        ------
        TrialClosedError
            if the trial was ended or deleted in the Optuna dashboard.
        """
        decision = self._open_rung(step, value, rows, checkpoint)
        if decision is not None:
            return decision
        optuna_storage, trial_id = self._database.optuna, self.claim.optuna_trial_id
        with self._database.plain_errors(), self.fenced():
            try:
                optuna_storage.set_trial_intermediate_value(trial_id, step, value)
                stop = decide(optuna_storage.get_trial(trial_id))
            except (UpdateFinishedTrialError, KeyError) as error:
                raise self._closed() from error
        with self._database.writing() as connection:
            fencing.hold(connection, self._lease)
            connection.execute(_DECIDED, self._key | {"of_step": step, "stop": stop})
        return stop

    @_patient
    def record_artifacts(self, files: Mapping[str, Path]) -> None:
        """Store files of the trial, by their paths within its run, such as ``plots/loss.png``.

        A later file replaces an earlier one with the same path.

        Raises
        ------
        BlobWriteError
            if there is no room for them.
        ArtifactNameError
            if a path could lead out of the run's folder.
        """
        if not files:
            return
        with trial_artifacts.stored(self._database, files) as kept, self._database.writing() as connection:
            fencing.hold(connection, self._lease)
            trial_artifacts.record(connection, self.study.id, self.claim.number, self.claim.attempt, kept)

    @_patient
    def finish(
        self,
        state: TrialEnd,
        value: float | None = None,
        reason: str | None = None,
        summary: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """End the trial in our record, then in Optuna with its attributes and images.

        Parameters
        ----------
        state
            The final state.
        value
            Best validation MAE, kcal/mol; a pruned trial has one, too.
        reason
            Why the trial stopped, in plain words.
        summary, tags
            Numbers and texts for table columns; they become user attributes in Optuna.
        """
        reason = reason and without_secrets(reason)
        result = TrialResult(state, value, reason, summary or {}, tags or {})
        with self._database.writing() as connection:
            row = fencing.find(connection, self._lease)
            # If this attempt has ended it already, the acknowledgement of the first try was lost.
            if row.ended_at is None or row.outcome != result.state:
                fencing.refuse_ended(self._lease, row)
                finalize.record(connection, self._trial(connection), result)
                self._end_attempt(connection, result.state, result.reason)
        finalize.sync_to_optuna(self._database, self.study, self.claim.number)

    @_patient
    def pause(self, value: float, reason: str, summary: Mapping[str, float], most: int) -> bool:
        """Leave the trial at its rung: a later claim resumes it, or it ends as pruned with the study.

        Parameters
        ----------
        value, reason, summary
            As in :meth:`finish`, for the trial so far.
        most
            How many trials of the study may be paused at once; the least promising others end as pruned.

        Returns
        -------
        Whether the trial is paused; if not, it has ended as pruned.

        Raises
        ------
        TrialClosedError
            if the trial was ended or deleted in the Optuna dashboard.
        """
        with self._database.writing() as connection:
            locked_row(connection, self.study)
            row = fencing.find(connection, self._lease)
            # If this attempt has paused it already, the acknowledgement of the first try was lost.
            if row.ended_at is None or row.outcome != "paused":
                fencing.refuse_ended(self._lease, row)
                if not paused.pause(connection, self._trial(connection), value, reason, summary):
                    raise self._closed()
                self._end_attempt(connection, "paused", reason)
                paused.end_surplus(connection, self.study, keep=most)
            return bool(self._trial(connection).state == "paused")

    @_patient
    def hand_back(self, reason: str, *, crashed: bool = False) -> None:
        """Hand the trial back unfinished, so that the next claim continues it at once.

        If this attempt has ended the trial, nothing is handed back; the next claim syncs the end to Optuna.

        Parameters
        ----------
        crashed
            Whether the device failed during the training, perhaps because of the trial: after several such
            crashes the trial is given up, as if its workers had died.
        """
        with self._database.writing() as connection:
            row = fencing.find(connection, self._lease)
            if row.ended_at is None or row.outcome == "expired":
                fencing.refuse_ended(self._lease, row)
                self._end_attempt(connection, "crashed" if crashed else "handed_back", reason)

    def _open_rung(
        self, step: int, value: float, rows: Sequence[MetricRow], checkpoint: SavedCheckpoint | None
    ) -> bool | None:
        """Record the metrics, the checkpoint and the rung; return its decision if one is recorded."""
        with StoredCheckpoint(self._database, checkpoint) as kept, self._database.writing() as connection:
            attempt = fencing.hold(connection, self._lease)
            self._record_metrics(connection, attempt, rows)
            kept.record(connection, attempt)
            rung = connection.execute(_RUNG, self._key | {"of_step": step}).one_or_none()
            trial_id = self.claim.optuna_trial_id
            if rung is None:
                connection.execute(
                    rungs.insert().values(
                        study_id=self.study.id,
                        number=self.claim.number,
                        step=step,
                        value=value,
                        earlier_marks=optuna_rows.pruner_attributes(connection, trial_id),
                    )
                )
                return None
            if rung.stop is None:
                # asha and hyperband mark a rung as passed before they return their decision: asked again,
                # they would let the trial pass.
                optuna_rows.drop_pruner_attributes(connection, trial_id, keep=rung.earlier_marks)
            decision: bool | None = rung.stop
            return decision

    def _record_metrics(self, connection: Connection, attempt: Row[Any], rows: Sequence[MetricRow]) -> None:
        for start in range(0, len(rows), METRICS_A_ROW):
            new = self._insert_metrics(connection, rows[start : start + METRICS_A_ROW])
            if new:
                self._enqueue(connection, MetricsMessage(rows=new))
        epochs = {row.step for row in rows if row.step > attempt.last_epoch}
        if epochs:
            self._update_attempt(connection, epochs=attempt.epochs + len(epochs), last_epoch=max(epochs))

    def _insert_metrics(self, connection: Connection, rows: Sequence[MetricRow]) -> tuple[MetricRow, ...]:
        """Write the rows whose metric and step are new, and return them."""
        values = [
            {
                "study_id": self.study.id,
                "number": self.claim.number,
                "key": row.key,
                "step": row.step,
                "value": None if math.isnan(row.value) else row.value,
                "time_ms": row.time_ms,
                "attempt": self.claim.attempt,
            }
            for row in rows
        ]
        # Pass the rows as parameters: a statement with all rows in it would be compiled again each time.
        new = _new_metrics(connection.dialect.name)
        written = {tuple(key) for key in connection.execute(new, values)}
        return tuple(row for row in rows if (row.key, row.step) in written)

    def _record_device(self, connection: Connection, device: str, precision: str) -> WorkerInfo:
        worker = replace(self.claim.worker, device=device, precision=precision)
        self._update_attempt(connection, worker=asdict(worker))
        return worker

    def _closed(self) -> TrialClosedError:
        return TrialClosedError(f"trial {self.claim.number} was ended or deleted in the Optuna dashboard")

    def _trial(self, connection: Connection) -> Row[Any]:
        return connection.execute(_TRIAL, self._key).one()

    def _update_trial(self, connection: Connection, **values: Any) -> None:
        connection.execute(_UPDATED_TRIAL, self._key | values)

    def _update_attempt(self, connection: Connection, **values: Any) -> None:
        connection.execute(_UPDATED, self._token | values)

    def _end_attempt(self, connection: Connection, outcome: str, reason: str | None) -> None:
        connection.execute(_ENDED, self._token | {"outcome": outcome, "reason": reason})

    def _enqueue(self, connection: Connection, message: Any) -> None:
        enqueue(connection, self.study.id, self.claim.number, [message])


@functools.cache
def _new_metrics(dialect: str) -> ReturningInsert[Any]:
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(metrics).on_conflict_do_nothing().returning(metrics.c.key, metrics.c.step)


# These statements run for each trial, so they are made once: see storage.records.keys.
_STUDY_STATE: Final = select(studies.c.state).where(of_study())
_TRIAL: Final = select(trials).where(of_trial(trials))
_UPDATED_TRIAL: Final = update(trials).where(of_trial(trials))
_UPDATED: Final = update(attempts).where(attempts.c.token == bindparam("of_token"))
_ENDED: Final = _UPDATED.values(ended_at=now())
_RENEWED: Final = _UPDATED.values(renewed_at=now(), lease_until=now() + bindparam("lease_seconds"))
_RUNG: Final = select(rungs).where(of_trial(rungs), rungs.c.step == bindparam("of_step"))
_DECIDED: Final = update(rungs).where(of_trial(rungs), rungs.c.step == bindparam("of_step"))
