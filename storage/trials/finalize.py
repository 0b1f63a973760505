"""Finalizes trials: first in our record, then in Optuna; each step can be repeated.

The end, the attributes and the images of a trial are written to Optuna's tables in one transaction, after the
record has them. If a worker dies in between, the next claim syncs the trial to Optuna from the record.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from optuna.trial import TrialState
from sqlalchemy import Connection, Row, bindparam, select, update

from storage.blobs.place import open_blobs
from storage.database import Database
from storage.objectives import objective_values
from storage.records.keys import of_study, of_trial, study_key, trial_key
from storage.records.tables import artifacts, attempts, now, seconds_spent, trials
from storage.settings import attempt_logs
from storage.studies import Study
from storage.tracking.outbox import TrialEnd, TrialEndMessage, TrialStartMessage, enqueue
from storage.trials import checkpoints, optuna_rows, trial_artifacts
from storage.trials.images import is_image, show_image

log = logging.getLogger("anitune")

OPTUNA_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
"""Optuna's states of trials that have ended, by ours."""


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial.

    Attributes
    ----------
    value
        Best validation MAE, kcal/mol; a pruned trial has one, too.
    reason
        Why the trial stopped, in plain words.
    summary, tags
        Numbers and texts for table columns; they become user attributes in Optuna.
    """

    state: TrialEnd
    value: float | None = None
    reason: str | None = None
    summary: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def results(trial: Row[Any], objectives: Sequence[str]) -> tuple[float, ...]:
    """The values of the objectives that Optuna has of a trial (a row of ``anitune_trials``), if it has any.

    Parameters
    ----------
    objectives
        Those of the study.
    """
    if trial.state not in ("complete", "pruned") or trial.value is None:
        return ()
    return objective_values(objectives, trial.value, trial.summary)


def record(connection: Connection, trial: Row[Any], result: TrialResult) -> None:
    """Write the end of a trial (a row of ``anitune_trials``) in the open transaction."""
    values = {
        "state": result.state,
        "value": result.value,
        "reason": result.reason,
        "summary": dict(result.summary),
        "tags": {**trial.tags, **result.tags},
    }
    connection.execute(_ENDED, trial_key(trial.study_id, trial.number) | values)
    end = TrialEndMessage(
        state=result.state,
        value=result.value,
        reason=result.reason,
        summary=dict(result.summary),
        tags=dict(result.tags),
    )
    # A trial can fail before a configuration was proposed for it.
    start = [TrialStartMessage(params={}, tags={})] if trial.config is None else []
    enqueue(connection, trial.study_id, trial.number, [*start, end])


def pending_sync(connection: Connection, study: Study, leave: Collection[int] = ()) -> Sequence[int]:
    """The trials whose end is pending sync to Optuna, except those in ``leave``."""
    return connection.execute(_PENDING_SYNC, study_key(study.id) | {"leave": list(leave)}).scalars().all()


def sync_to_optuna(database: Database, study: Study, number: int) -> None:
    """Write the attributes, images and end of a trial that has ended to Optuna.

    Two processes may do this at the same time, since they write the same.
    """
    this = trial_key(study.id, number)
    with database.reading() as connection:
        trial = connection.execute(_TRIAL, this).one()
        attributes = _user_attributes(connection, trial)
        rows = [row for row in _artifact_rows(connection, trial) if is_image(row.path)]
    images = dict(shown for row in rows if (shown := show_image(database, row)) is not None)
    # The logs are stored here, because the last worker may have died before it could store them.
    logs = attempt_logs(database.settings.attempt_folder(study.name, number, trial.attempt))
    with trial_artifacts.stored(database, logs) as kept, database.writing() as connection:
        # The lock serializes processes: the second one finds what the first has written.
        connection.execute(_LOCKED, this)
        trial_artifacts.record(connection, study.id, number, trial.attempt, kept)
        known = optuna_rows.end_trial(
            connection,
            trial.optuna_trial_id,
            OPTUNA_STATES[trial.state],
            results(trial, study.objectives),
            attributes,
            images,
        )
        connection.execute(_UPDATED, this | {"told": True})
        elsewhere = database.settings.artifacts_elsewhere
        dropped = checkpoints.drop(connection, study, number) if elsewhere else None
    if dropped is not None:
        open_blobs(database).delete(dropped)
    if not known:
        log.warning("study %s: trial %d was deleted in the Optuna dashboard", study.name, number)


def _user_attributes(connection: Connection, trial: Row[Any]) -> dict[str, str | float]:
    rows = connection.execute(_SPENT, trial_key(trial.study_id, trial.number)).all()
    on_gpu = [row.seconds for row in rows if str(row.worker.get("device")).startswith("cuda")]
    why = "fail_reason" if trial.state == "failed" else "stopped_because"
    return {
        **trial.tags,
        **trial.summary,
        "epochs": max(row.epochs for row in rows),
        "seconds": round(sum(row.seconds for row in rows), 1),
        **({"gpu_seconds": round(sum(on_gpu), 1)} if on_gpu else {}),
        "attempt": trial.attempt,
        **({why: trial.reason} if trial.reason is not None else {}),
    }


def _artifact_rows(connection: Connection, trial: Row[Any]) -> list[Row[Any]]:
    return list(connection.execute(_ARTIFACTS, trial_key(trial.study_id, trial.number)))


# These statements run for each trial, so they are made once: see storage.records.keys.
_TRIAL: Final = select(trials).where(of_trial(trials))
_LOCKED: Final = select(trials.c.number).where(of_trial(trials)).with_for_update()
_UPDATED: Final = update(trials).where(of_trial(trials))
_ENDED: Final = _UPDATED.values(ended_at=now())
_PENDING_SYNC: Final = (
    select(trials.c.number)
    .where(
        of_study(trials.c.study_id),
        trials.c.state.in_(tuple(OPTUNA_STATES)),
        trials.c.told.is_(False),
        trials.c.number.not_in(bindparam("leave", expanding=True)),
    )
    .order_by(trials.c.number)
)
_SPENT: Final = select(
    seconds_spent().label("seconds"), attempts.c.last_epoch.label("epochs"), attempts.c.worker
).where(of_trial(attempts))
_ARTIFACTS: Final = select(artifacts).where(of_trial(artifacts)).order_by(artifacts.c.position)
