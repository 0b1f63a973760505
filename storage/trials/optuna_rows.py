"""The few statements of ours on Optuna's own tables.

Optuna commits every call by itself. Made in our transaction instead, a trial of Optuna and the claim of it
exist both or not at all: no crash leaves a trial that nobody owns, and no lost acknowledgement makes a
second one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from optuna.distributions import json_to_distribution
from optuna.storages._rdb import models
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
from storage.records.tables import trials as our_trials

_studies: Table = models.StudyModel.__table__
_trials: Table = models.TrialModel.__table__
_attributes: Table = models.TrialSystemAttributeModel.__table__
_user_attributes: Table = models.TrialUserAttributeModel.__table__
_values: Table = models.TrialIntermediateValueModel.__table__
_results: Table = models.TrialValueModel.__table__
_params: Table = models.TrialParamModel.__table__

PAUSED = "paused"
"""User attribute of a trial that is paused."""

_PRUNER_PREFIX = "completed_rung_"
"""Beginning of the attributes by which asha and hyperband remember the rungs that a trial has passed."""


@dataclass(frozen=True)
class OptunaTrial:
    """A trial as Optuna has it. ``value`` is its objective."""

    id: int
    state: TrialState
    value: float | None


def all_trials(connection: Connection, optuna_study_id: int) -> dict[int, OptunaTrial]:
    """Every trial of a study by its number: what is there, not what Optuna remembers of it."""
    query = (
        select(_trials.c.number, _trials.c.trial_id, _trials.c.state, _results.c.value, _results.c.value_type)
        .join_from(_trials, _results, _trials.c.trial_id == _results.c.trial_id, isouter=True)
        .where(_trials.c.study_id == optuna_study_id)
    )
    read = models.TrialValueModel.stored_repr_to_value
    return {
        row.number: OptunaTrial(
            row.trial_id, row.state, None if row.value_type is None else read(row.value, row.value_type)
        )
        for row in connection.execute(query)
    }


def set_state(connection: Connection, optuna_trial_id: int, state: TrialState) -> None:
    """Set the state of a trial, also of one that has ended, and drop its value; Optuna refuses that."""
    this = _trials.c.trial_id == optuna_trial_id
    connection.execute(delete(_results).where(_results.c.trial_id == optuna_trial_id))
    connection.execute(update(_trials).where(this).values(state=state, datetime_complete=None))


def begin_trial(connection: Connection, optuna_study_id: int) -> tuple[int, int, Any]:
    """Begin the first trial that waits in Optuna's queue, else a new one.

    Returns
    -------
    Its number, its id, and what :func:`asked_for` finds.

    Raises
    ------
    StudyNotFoundError
        if the study was deleted in the Optuna dashboard.
    """
    this = {"of_study": optuna_study_id}
    if connection.execute(_LOCKED_STUDY, this).first() is None:
        raise StudyNotFoundError("the study was deleted in the Optuna dashboard: begin one of another name")
    running = {"state": TrialState.RUNNING, "datetime_start": _now()}
    waiting = connection.execute(_FIRST_WAITING, this).first()
    if waiting is not None:
        connection.execute(_UPDATED, {"of_trial": waiting.trial_id, **running})
        return waiting.number, waiting.trial_id, asked_for(connection, waiting.trial_id)
    number = connection.execute(_COUNTED, this).scalar_one()
    new = {"study_id": optuna_study_id, "number": number, **running}
    return number, connection.execute(_NEW, new).scalar_one(), {}


def asked_for(connection: Connection, optuna_trial_id: int) -> Any:
    """What somebody wants the parameters of a trial to be: a value by name, unless it was written by hand.

    Nobody has checked it: Optuna, its dashboard, and whoever reaches the database, write such trials.
    """
    query = select(_attributes.c.value_json).where(
        _attributes.c.trial_id == optuna_trial_id, _attributes.c.key == "fixed_params"
    )
    text = connection.execute(query).scalar()
    try:
        fixed = json.loads(text) if text is not None else {}
    except (ValueError, RecursionError):
        return text
    if not isinstance(fixed, dict):
        return fixed
    rows = connection.execute(select(_params).where(_params.c.trial_id == optuna_trial_id))
    return {row.param_name: _value(row) for row in rows} | fixed


def _value(row: Row[Any]) -> Any:
    """That of a parameter, which a trial that was made by hand can have before it begins."""
    try:
        return json_to_distribution(row.distribution_json).to_external_repr(row.param_value)
    except (ValueError, KeyError, TypeError, IndexError):
        return row.param_value


def set_params(connection: Connection, optuna_trial_id: int, params: Mapping[str, tuple[float, str]]) -> bool:
    """Set the parameters of a trial, all at once; whether Optuna knows the trial, and not its end.

    Parameters
    ----------
    params
        Value and distribution (JSON) by name, as Optuna keeps them. They replace those that the trial has.
    """
    state = _locked_state(connection, optuna_trial_id)
    if state is None or state.is_finished():
        return False
    connection.execute(delete(_params).where(_params.c.trial_id == optuna_trial_id))
    if params:
        connection.execute(
            insert(_params),
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
    return True


def end_trial(
    connection: Connection,
    optuna_trial_id: int,
    state: TrialState,
    value: float | None,
    user: Mapping[str, Any],
    system: Mapping[str, Any],
) -> bool:
    """End a trial, with its objective and attributes; whether Optuna knows it. An end that it has stays.

    Parameters
    ----------
    value
        Its objective; None: it has none.
    user, system
        The two kinds of attributes, by key: plain JSON values.
    """
    now = _locked_state(connection, optuna_trial_id)
    if now is None or now.is_finished():
        return now is not None
    dialect = connection.dialect.name
    for table, values in ((_user_attributes, user), (_attributes, system)):
        if values:
            connection.execute(
                _set(table, dialect),
                [
                    {"trial_id": optuna_trial_id, "key": key, "value_json": json.dumps(value)}
                    for key, value in values.items()
                ],
            )
    if value is not None:
        stored, kind = models.TrialValueModel.value_to_stored_repr(value)
        row = {"trial_id": optuna_trial_id, "objective": 0, "value": stored, "value_type": kind}
        connection.execute(_added(_results, dialect), row)
    ended = {"of_trial": optuna_trial_id, "state": state, "datetime_complete": _now()}
    connection.execute(_UPDATED, ended)
    return True


def mark_paused(connection: Connection, optuna_trial_id: int, words: str) -> bool:
    """Say in Optuna, which has no such state, that a trial is paused; whether Optuna has it as running."""
    state = _locked_state(connection, optuna_trial_id)
    if state is None or state.is_finished():
        return False
    row = {"trial_id": optuna_trial_id, "key": PAUSED, "value_json": json.dumps(words)}
    connection.execute(_set(_user_attributes, connection.dialect.name), row)
    return True


def unmark_paused(connection: Connection, optuna_trial_id: int) -> bool:
    """Undo :func:`mark_paused`; whether Optuna has the trial as running."""
    state = _locked_state(connection, optuna_trial_id)
    this = (_user_attributes.c.trial_id == optuna_trial_id, _user_attributes.c.key == PAUSED)
    connection.execute(delete(_user_attributes).where(*this))
    return state is not None and not state.is_finished()


def copy_reports(connection: Connection, source: int, target: int) -> None:
    """Give the trial of the id ``target`` what the other one reported at rungs.

    Not the pruner's marks: of trials that are trained once, one is compared with others. And the rungs of
    hyperband depend on the number of a trial.
    """
    columns = ("step", "intermediate_value", "intermediate_value_type")
    reported = select(literal(target), *(_values.c[name] for name in columns)).where(
        _values.c.trial_id == source,
        _values.c.step.not_in(select(_values.c.step).where(_values.c.trial_id == target)),
    )
    connection.execute(insert(_values).from_select(["trial_id", *columns], reported))


def pruner_attributes(connection: Connection, optuna_trial_id: int) -> list[str]:
    """Names of the rungs that the pruner has marked as passed."""
    query = (
        select(_attributes.c.key).where(*_pruner_attributes_of(optuna_trial_id)).order_by(_attributes.c.key)
    )
    return list(connection.execute(query).scalars())


def drop_pruner_attributes(connection: Connection, optuna_trial_id: int, keep: Collection[str]) -> None:
    """Take back the marks of a rung whose decision was never recorded, so that the pruner decides afresh."""
    connection.execute(
        delete(_attributes).where(*_pruner_attributes_of(optuna_trial_id), _attributes.c.key.not_in(keep))
    )


def _locked_state(connection: Connection, optuna_trial_id: int) -> TrialState | None:
    """The state of a trial, whose row is locked until the open transaction ends; None if it was deleted."""
    state: TrialState | None = connection.execute(_LOCKED_STATE, {"of_trial": optuna_trial_id}).scalar()
    return state


def _now() -> datetime:
    """As Optuna's columns keep times: in UTC, without saying so. Its models show them as local ones."""
    return datetime.now(UTC).replace(tzinfo=None)


def _pruner_attributes_of(optuna_trial_id: int) -> tuple[Any, ...]:
    return (
        _attributes.c.trial_id == optuna_trial_id,
        _attributes.c.key.startswith(_PRUNER_PREFIX, autoescape=True),
    )


@cache
def _added(table: Table, dialect: str) -> Insert:
    """New rows; those that are there stay."""
    return _insert(table, dialect).on_conflict_do_nothing()


@cache
def _set(table: Table, dialect: str) -> Insert:
    """Rows of attributes, whether they are there or not."""
    new = _insert(table, dialect)
    return new.on_conflict_do_update(
        index_elements=[table.c.trial_id, table.c.key], set_={"value_json": new.excluded.value_json}
    )


def _insert(table: Table, dialect: str) -> postgresql.Insert | sqlite.Insert:
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


# Executed for each trial, and so made once: see storage.records.keys.
_OURS: Final = _trials.c.study_id == bindparam("of_study")
_THIS: Final = _trials.c.trial_id == bindparam("of_trial")
_LOCKED_STUDY: Final = (  # the lock that Optuna takes itself when it numbers a trial
    select(_studies.c.study_id).where(_studies.c.study_id == bindparam("of_study")).with_for_update()
)
_FIRST_WAITING: Final = (
    select(_trials.c.number, _trials.c.trial_id)
    # Of those that have begun, one can be set back by hand.
    .where(
        _OURS,
        _trials.c.state == TrialState.WAITING,
        ~select(our_trials.c.number).where(our_trials.c.optuna_trial_id == _trials.c.trial_id).exists(),
    )
    .order_by(_trials.c.number)
    .limit(1)
    .with_for_update()
)
_COUNTED: Final = select(func.count()).select_from(_trials).where(_OURS)
_NEW: Final = insert(_trials).returning(_trials.c.trial_id)
_UPDATED: Final = update(_trials).where(_THIS)
_LOCKED_STATE: Final = select(_trials.c.state).where(_THIS).with_for_update()
