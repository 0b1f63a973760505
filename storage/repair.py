"""Repairs the differences that an audit lists. SQL's record wins, also over edits in a dashboard.

After each step the next audit finds what remains to be done, so a repair that was killed can be repeated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, select, update

from storage.audit import Difference, RepairAction, verify
from storage.blobs.folder import FolderBlobs
from storage.blobs.place import open_blobs
from storage.errors import (
    BlobMissingError,
    BlobWriteError,
    TrackingRefusedError,
)
from storage.records.tables import artifacts, attempts, now, outbox, studies, trials
from storage.studies import Study
from storage.tracking.lease import RelayLease, wait_for_lease
from storage.tracking.mlflow_runs import MlflowRuns, open_runs
from storage.tracking.process import sync
from storage.tracking.relay import NoteWriter
from storage.trials import finalize
from storage.trials.optuna_rows import set_state

ROUNDS = 3
"""Rounds of audit and repair: a restored experiment may hold deleted runs, a restored run wrong values."""


@dataclass(frozen=True)
class Repair:
    """Result of a repair: the repaired differences, and those left, each with the reason if it is known."""

    repaired: tuple[Difference, ...]
    left: Mapping[Difference, str]


def repair(study: Study, write_note: NoteWriter) -> Repair:
    """Repair the differences that :func:`storage.audit.verify` finds, and verify again.

    Raises
    ------
    RelayBusyError
        while a relay delivers the study.
    TrackingUnavailableError
        if the tracking server does not answer.
    """
    found: dict[Difference, None] = {}
    reasons: dict[Difference, str] = {}
    left = verify(study).differences
    for _ in range(ROUNDS):
        found |= dict.fromkeys(left)
        wrong = [difference for difference in left if difference.action is not None]
        if not wrong:
            break
        lease = wait_for_lease(study)
        try:
            repairer = _Repairer(study, lease)
            for difference in wrong:
                if (reason := repairer.repair(difference)) is not None:
                    reasons[difference] = reason
        finally:
            lease.release()
        sync(study, write_note)
        left = verify(study).differences
    return Repair(
        repaired=tuple(difference for difference in found if difference not in left),
        left={difference: reasons.get(difference, "") for difference in left},
    )


class _Repairer:
    def __init__(self, study: Study, lease: RelayLease) -> None:
        self._study = study
        self._lease = lease
        self._db = study.database
        self._runs: MlflowRuns = open_runs(self._db.settings)
        self._ways: Mapping[RepairAction, Callable[[Difference], None]] = {
            "end attempt": self._end_attempt,
            "finalize": self._finalize,
            "fail": self._fail,
            "deliver": lambda difference: None,  # the sync after the repairs delivers in any case
            "redeliver": self._redeliver,
            "recreate": self._recreate,
            "delete run": lambda difference: self._runs.delete(difference.subject),
            "restore run": lambda difference: self._runs.restore(difference.subject),
            "release name": lambda difference: self._runs.free_name(difference.subject),
            "restore experiment": lambda difference: self._runs.restore_experiment(difference.subject),
            "fetch": self._fetch,
        }

    def repair(self, difference: Difference) -> str | None:
        """Repair one difference; return the reason if that is impossible."""
        assert difference.action is not None
        try:
            self._ways[difference.action](difference)
        except (TrackingRefusedError, BlobMissingError, BlobWriteError) as error:
            return str(error)
        return None

    def _end_attempt(self, difference: Difference) -> None:
        """End the attempt, so that the next claim takes the trial; its old worker is refused from now on."""
        with self._db.writing() as connection:
            connection.execute(
                update(attempts)
                .where(
                    attempts.c.study_id == self._study.id,
                    attempts.c.number == difference.number,
                    attempts.c.ended_at.is_(None),
                    attempts.c.lease_until < now(),
                )
                .values(
                    ended_at=attempts.c.renewed_at,
                    outcome="expired",
                    reason="its worker sent no more heartbeats",
                )
            )

    def _finalize(self, difference: Difference) -> None:
        """Set the recorded state in Optuna: reopen the trial there, then finalize it like any other."""
        assert difference.number is not None
        this = (trials.c.study_id == self._study.id, trials.c.number == difference.number)
        with self._db.writing() as connection:
            trial = connection.execute(select(trials).where(*this).with_for_update()).one()
            set_state(connection, trial.optuna_trial_id, TrialState.RUNNING)
            connection.execute(update(trials).where(*this).values(told=False))
        if trial.state in finalize.OPTUNA_STATES:
            finalize.sync_to_optuna(self._db, self._study, difference.number)

    def _fail(self, difference: Difference) -> None:
        """Mark a trial that the record does not have as failed, since Optuna cannot delete it."""
        with self._db.writing() as connection:
            set_state(connection, int(difference.subject), TrialState.FAIL)

    def _redeliver(self, difference: Difference) -> None:
        """Mark all outbox rows of a run for redelivery; values that MLflow already has do not change."""
        with self._lease.writing() as connection:
            connection.execute(update(outbox).where(*self._about(difference)).values(delivered_at=None))

    def _recreate(self, difference: Difference) -> None:
        """Recreate the run from the record, since MLflow cannot change a value or a parameter."""
        number = difference.number
        if number is None:
            # The runs of its trials are its children and get the new parent; existing ones are found again.
            with self._lease.writing() as connection:
                nothing = {"mlflow_experiment_id": None, "mlflow_run_id": None}
                connection.execute(update(studies).where(studies.c.id == self._study.id).values(nothing))
                of_study = trials.c.study_id == self._study.id
                connection.execute(update(trials).where(of_study).values(mlflow_run_id=None))
                everything = outbox.c.study_id == self._study.id
                connection.execute(update(outbox).where(everything).values(delivered_at=None))
            return
        this = (trials.c.study_id == self._study.id, trials.c.number == number)
        with self._db.reading() as connection:
            run = connection.scalar(select(trials.c.mlflow_run_id).where(*this))
        if run is not None:
            with suppress(TrackingRefusedError):  # it is gone
                self._runs.delete(run)
        with self._lease.writing() as connection:
            connection.execute(update(trials).where(*this).values(mlflow_run_id=None))
            connection.execute(update(outbox).where(*self._about(difference)).values(delivered_at=None))

    def _fetch(self, difference: Difference) -> None:
        """Restore the bytes of an artifact from MLflow."""
        with self._db.reading() as connection:
            this = (trials.c.study_id == self._study.id, trials.c.number == difference.number)
            run = connection.scalar(select(trials.c.mlflow_run_id).where(*this))
            digest = connection.scalar(
                select(artifacts.c.digest).where(
                    artifacts.c.study_id == self._study.id,
                    artifacts.c.number == difference.number,
                    artifacts.c.path == difference.subject,
                )
            )
        if run is None:
            raise BlobMissingError("MLflow does not have it either")
        with tempfile.TemporaryDirectory() as folder:
            copy = self._runs.fetch(run, difference.subject, Path(folder))
            if FolderBlobs(Path(folder) / "check").put(copy) != digest:
                raise BlobMissingError("MLflow has another content of it")
            open_blobs(self._db).put(copy)

    def _about(self, difference: Difference) -> tuple[ColumnElement[bool], ...]:
        return (
            outbox.c.study_id == self._study.id,
            outbox.c.number.is_not_distinct_from(difference.number),
        )
