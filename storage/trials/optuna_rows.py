"""Our own statements on Optuna's tables.

Optuna commits every call separately. These statements run in our transaction instead, so that a trial in
Optuna and its claim exist together or not at all: no crash leaves a trial without an owner, and no lost
acknowledgement creates a second trial.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import groupby
from typing import Any, Final

from optuna.distributions import json_to_distribution
from optuna.trial import TrialState
from sqlalchemy import (
    Connection,
    Insert,
    Row,
    Table,
    bindparam,
    delete,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from storage.errors import StudyNotFoundError
from storage.optuna_private import (
    ENQUEUED_KEY,
    INTERMEDIATE_VALUES,
    PARAMS,
    RESULTS,
    RUNG_PREFIX,
    STUDIES,
    SYSTEM_ATTRIBUTES,
    TRIALS,
    USER_ATTRIBUTES,
    read_result,
    stored_result,
)
from storage.records.tables import trials as our_trials

PAUSED = "paused"
"""User attribute that marks a paused trial."""


@dataclass(frozen=True)
class OptunaTrial:
    """A trial in Optuna. ``values`` are its objectives, none if it has no result."""

    id: int
    state: TrialState
    values: tuple[float, ...]


def all_trials(connection: Connection, optuna_study_id: int) -> dict[int, OptunaTrial]:
    """Every trial of a study by its number, read from the tables and not from Optuna's cache."""
    query = (
        select(TRIALS.c.number, TRIALS.c.trial_id, TRIALS.c.state, RESULTS.c.value, RESULTS.c.value_type)
        .join_from(TRIALS, RESULTS, TRIALS.c.trial_id == RESULTS.c.trial_id, isouter=True)
        .where(TRIALS.c.study_id == optuna_study_id)
        .order_by(TRIALS.c.number, RESULTS.c.objective)
    )
    return {
        number: OptunaTrial(
            rows[0].trial_id,
            rows[0].state,
            tuple(read_result(row.value, row.value_type) for row in rows if row.value_type is not None),
        )
        for number, group in groupby(connection.execute(query), key=lambda row: row.number)
        if (rows := list(group))
    }


def set_state(connection: Connection, optuna_trial_id: int, state: TrialState) -> None:
    """Set the state of a trial and drop its value, also after its end, which Optuna itself refuses."""
    this = TRIALS.c.trial_id == optuna_trial_id
    connection.execute(delete(RESULTS).where(RESULTS.c.trial_id == optuna_trial_id))
    connection.execute(update(TRIALS).where(this).values(state=state, datetime_complete=None))


def begin_trial(connection: Connection, optuna_study_id: int) -> tuple[int, int, Any]:
    """Begin the first trial that waits in Optuna's queue, else a new one.

    Returns
    -------
    Its number, its id, and the result of :func:`asked_for`.

    Raises
    ------
    StudyNotFoundError
        if the study was deleted in the Optuna dashboard.
    """
    this = {"of_study": optuna_study_id}
    if connection.execute(_LOCKED_STUDY, this).first() is None:
        raise StudyNotFoundError("the study was deleted in the Optuna dashboard: start one with another name")
    running = {"state": TrialState.RUNNING, "datetime_start": _now()}
    waiting = connection.execute(_FIRST_WAITING, this).first()
    if waiting is not None:
        connection.execute(_UPDATED, {"of_trial": waiting.trial_id, **running})
        return waiting.number, waiting.trial_id, asked_for(connection, waiting.trial_id)
    return *new_trial(connection, optuna_study_id), {}


def new_trial(connection: Connection, optuna_study_id: int) -> tuple[int, int]:
    """Begin a new trial, whatever waits in Optuna's queue; return its number and its id."""
    connection.execute(_LOCKED_STUDY, {"of_study": optuna_study_id})
    number = connection.execute(_COUNTED, {"of_study": optuna_study_id}).scalar_one()
    running = {"state": TrialState.RUNNING, "datetime_start": _now()}
    return number, connection.execute(
        _NEW, {"study_id": optuna_study_id, "number": number, **running}
    ).scalar_one()


def asked_for(connection: Connection, optuna_trial_id: int) -> Any:
    """The enqueued configuration of a trial: values by parameter name, or anything if written by hand.

    It is not validated: Optuna, its dashboard, and anybody with access to the database can write such trials.
    """
    query = select(SYSTEM_ATTRIBUTES.c.value_json).where(
        SYSTEM_ATTRIBUTES.c.trial_id == optuna_trial_id, SYSTEM_ATTRIBUTES.c.key == ENQUEUED_KEY
    )
    text = connection.execute(query).scalar()
    try:
        fixed = json.loads(text) if text is not None else {}
    except (ValueError, RecursionError):
        return text
    if not isinstance(fixed, dict):
        return fixed
    rows = connection.execute(select(PARAMS).where(PARAMS.c.trial_id == optuna_trial_id))
    return {row.param_name: _value(row) for row in rows} | fixed


def _value(row: Row[Any]) -> Any:
    """The value of a parameter; a trial created by hand can have parameters before it begins."""
    try:
        return json_to_distribution(row.distribution_json).to_external_repr(row.param_value)
    except (ValueError, KeyError, TypeError, IndexError):
        return row.param_value


def set_params(
    connection: Connection,
    optuna_trial_id: int,
    params: Mapping[str, tuple[float, str]],
    attributes: Mapping[str, Any],
) -> bool:
    """Replace all parameters of a trial; return whether the trial exists in Optuna and has not ended.

    Parameters
    ----------
    params
        Value and distribution (JSON) by name, as Optuna stores them.
    attributes
        System attributes in which the sampler keeps its state, as plain JSON values by key.
    """
    state = _locked_state(connection, optuna_trial_id)
    if state is None or state.is_finished():
        return False
    connection.execute(delete(PARAMS).where(PARAMS.c.trial_id == optuna_trial_id))
    if params:
        connection.execute(
            insert(PARAMS),
            [
                {
                    "trial_id": optuna_trial_id,
                    "param_name": name,
                    "param_value": value,
                    "distribution_json": distribution,
                }
                for name, (value, distribution) in params.items()
            ],
        )
    _set_attributes(connection, SYSTEM_ATTRIBUTES, optuna_trial_id, attributes)
    return True


def end_trial(
    connection: Connection,
    optuna_trial_id: int,
    state: TrialState,
    values: Sequence[float],
    user: Mapping[str, Any],
    system: Mapping[str, Any],
) -> bool:
    """End a trial with its objectives and attributes; return whether it exists. An earlier end stays.

    Parameters
    ----------
    values
        The objectives; empty if the trial has none.
    user, system
        The two kinds of attributes, as plain JSON values by key.
    """
    now = _locked_state(connection, optuna_trial_id)
    if now is None or now.is_finished():
        return now is not None
    for table, attributes in ((USER_ATTRIBUTES, user), (SYSTEM_ATTRIBUTES, system)):
        _set_attributes(connection, table, optuna_trial_id, attributes)
    rows = [
        {"trial_id": optuna_trial_id, "objective": objective, "value": stored, "value_type": kind}
        for objective, (stored, kind) in enumerate(map(stored_result, values))
    ]
    if rows:
        connection.execute(_added(RESULTS, connection.dialect.name), rows)
    ended = {"of_trial": optuna_trial_id, "state": state, "datetime_complete": _now()}
    connection.execute(_UPDATED, ended)
    return True


def mark_paused(connection: Connection, optuna_trial_id: int, words: str) -> bool:
    """Mark a trial as paused by an attribute, since Optuna has no such state.

    Returns
    -------
    Whether it was marked: not if it has ended or was deleted in Optuna.
    """
    state = _locked_state(connection, optuna_trial_id)
    if state is None or state.is_finished():
        return False
    row = {"trial_id": optuna_trial_id, "key": PAUSED, "value_json": json.dumps(words)}
    connection.execute(_set(USER_ATTRIBUTES, connection.dialect.name), row)
    return True


def unmark_paused(connection: Connection, optuna_trial_id: int) -> bool:
    """Undo :func:`mark_paused`; return whether the trial exists in Optuna and has not ended."""
    state = _locked_state(connection, optuna_trial_id)
    this = (USER_ATTRIBUTES.c.trial_id == optuna_trial_id, USER_ATTRIBUTES.c.key == PAUSED)
    connection.execute(delete(USER_ATTRIBUTES).where(*this))
    return state is not None and not state.is_finished()


def copy_reports(connection: Connection, source: int, target: int) -> None:
    """Copy the values that the trial with id ``source`` reported at rungs to the one with id ``target``.

    The pruner's attributes are not copied: only the trained trial is compared with others, and the rungs of
    hyperband depend on the number of a trial.
    """
    columns = ("step", "intermediate_value", "intermediate_value_type")
    reported = select(literal(target), *(INTERMEDIATE_VALUES.c[name] for name in columns)).where(
        INTERMEDIATE_VALUES.c.trial_id == source,
        INTERMEDIATE_VALUES.c.step.not_in(
            select(INTERMEDIATE_VALUES.c.step).where(INTERMEDIATE_VALUES.c.trial_id == target)
        ),
    )
    connection.execute(insert(INTERMEDIATE_VALUES).from_select(["trial_id", *columns], reported))


def pruner_attributes(connection: Connection, optuna_trial_id: int) -> list[str]:
    """Names of the attributes by which the pruner has marked rungs as passed."""
    query = (
        select(SYSTEM_ATTRIBUTES.c.key)
        .where(*_pruner_attributes_of(optuna_trial_id))
        .order_by(SYSTEM_ATTRIBUTES.c.key)
    )
    return list(connection.execute(query).scalars())


def drop_pruner_attributes(connection: Connection, optuna_trial_id: int, keep: Collection[str]) -> None:
    """Remove the pruner's attributes of a rung without a recorded decision, so that it decides again."""
    connection.execute(
        delete(SYSTEM_ATTRIBUTES).where(
            *_pruner_attributes_of(optuna_trial_id), SYSTEM_ATTRIBUTES.c.key.not_in(keep)
        )
    )


def _set_attributes(
    connection: Connection, table: Table, optuna_trial_id: int, attributes: Mapping[str, Any]
) -> None:
    if attributes:
        rows = [
            {"trial_id": optuna_trial_id, "key": key, "value_json": json.dumps(value)}
            for key, value in attributes.items()
        ]
        connection.execute(_set(table, connection.dialect.name), rows)


def _locked_state(connection: Connection, optuna_trial_id: int) -> TrialState | None:
    """Lock the row of a trial until the transaction ends; return its state, or None if it was deleted."""
    state: TrialState | None = connection.execute(_LOCKED_STATE, {"of_trial": optuna_trial_id}).scalar()
    return state


def _now() -> datetime:
    """The time as in Optuna's columns: UTC without a time zone. Optuna's models show it as local time."""
    return datetime.now(UTC).replace(tzinfo=None)


def _pruner_attributes_of(optuna_trial_id: int) -> tuple[Any, ...]:
    return (
        SYSTEM_ATTRIBUTES.c.trial_id == optuna_trial_id,
        SYSTEM_ATTRIBUTES.c.key.startswith(RUNG_PREFIX, autoescape=True),
    )


@cache
def _added(table: Table, dialect: str) -> Insert:
    """Insert of rows that leaves existing ones unchanged."""
    return _insert(table, dialect).on_conflict_do_nothing()


@cache
def _set(table: Table, dialect: str) -> Insert:
    """Insert of rows of attributes that replaces existing values."""
    new = _insert(table, dialect)
    return new.on_conflict_do_update(
        index_elements=[table.c.trial_id, table.c.key], set_={"value_json": new.excluded.value_json}
    )


def _insert(table: Table, dialect: str) -> postgresql.Insert | sqlite.Insert:
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


# These statements run for each trial, so they are made once: see storage.records.keys.
_OURS: Final = TRIALS.c.study_id == bindparam("of_study")
_THIS: Final = TRIALS.c.trial_id == bindparam("of_trial")
_LOCKED_STUDY: Final = (  # the lock that Optuna itself takes to number a trial
    select(STUDIES.c.study_id).where(STUDIES.c.study_id == bindparam("of_study")).with_for_update()
)
_FIRST_WAITING: Final = (
    select(TRIALS.c.number, TRIALS.c.trial_id)
    # A trial that has begun can be set back to waiting by hand; exclude those that we have.
    .where(
        _OURS,
        TRIALS.c.state == TrialState.WAITING,
        ~select(our_trials.c.number).where(our_trials.c.optuna_trial_id == TRIALS.c.trial_id).exists(),
    )
    .order_by(TRIALS.c.number)
    .limit(1)
    .with_for_update()
)
_COUNTED: Final = select(func.count()).select_from(TRIALS).where(_OURS)
_NEW: Final = insert(TRIALS).returning(TRIALS.c.trial_id)
_UPDATED: Final = update(TRIALS).where(_THIS)
_LOCKED_STATE: Final = select(TRIALS.c.state).where(_THIS).with_for_update()
