"""Lifecycle of a study: open, paused, stopped or archived; and its remaining budget.

Workers begin trials of an open study only: a claim reads the state in its own transaction. If a study is
paused, its workers finish their current trials and wait. If it is stopped, they hand their trials back and
leave; they learn of it when they renew their leases. An archived study is stopped, and hidden from the list
of studies.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import Connection, Row, ScalarSelect, func, select, update

from storage.database import Database
from storage.errors import FactsChangedError, StudyNotFoundError, StudyStateError
from storage.records.keys import of_study, study_key
from storage.records.tables import attempts, now, studies, trials
from storage.studies import Budget, ExpectedGain, Study, StudyState, budget_of, budget_values, with_files

CLOSED: frozenset[StudyState] = frozenset({"stopped", "archived"})
"""No worker serves a study in these states."""

_WAY_OUT: dict[StudyState, str] = {
    "open": "",
    "paused": ": anitune study resume {}",
    "stopped": ": anitune study resume {}",
    "archived": ": anitune study archive --undo {}",
}


def study_state(database: Database, study: Study) -> StudyState:
    """The state of the study.

    Raises
    ------
    StudyNotFoundError
        if it was deleted.
    """
    with database.reading() as connection:
        state: StudyState | None = connection.scalar(select(studies.c.state).where(studies.c.id == study.id))
    if state is None:
        raise StudyNotFoundError(f"study {study.name!r} was deleted")
    return state


def has_other_files(database: Database, name: str, config: Mapping[str, Any]) -> bool:
    """Whether a study of that name differs only in its data files, and these files are new to it."""
    with database.reading() as connection:
        row = connection.execute(select(studies).where(studies.c.name == name)).one_or_none()
    if row is None:
        return False
    files = config["data"]["files"]
    if with_files(row.config, files) != config:
        return False
    return files not in (row.config["data"]["files"], *(row.other_files or ()))


def add_files(database: Database, name: str, files: list[str], fingerprint: str) -> None:
    """Record other paths of a study's data, for example on another machine; the recorded files stay.

    Raises
    ------
    FactsChangedError
        if the study began with data of another fingerprint.
    """
    with database.writing() as connection:
        row = connection.execute(select(studies).where(studies.c.name == name).with_for_update()).one()
        if row.facts.get("data", fingerprint) != fingerprint:
            raise FactsChangedError(
                f"study {name!r}: {', '.join(files)} contains other data than the study was started with;"
                " correct data.files, or start a study with another name"
            )
        known = [other for other in row.other_files or () if other != files]
        connection.execute(update(studies).where(studies.c.id == row.id).values(other_files=[files, *known]))


def change_state(database: Database, study: Study, to: StudyState, *, of: Collection[StudyState]) -> None:
    """Change the state of a study that is in one of the states ``of``.

    Raises
    ------
    StudyStateError
        if it is in none of them.
    """
    with database.writing() as connection:
        row = locked_row(connection, study)
        if row.state not in of:
            raise wrong_state(study, row.state)
        connection.execute(update(studies).where(studies.c.id == study.id).values(state=to))


def wrong_state(study: Study, state: StudyState) -> StudyStateError:
    """The error for an action that the state of a study does not allow."""
    return StudyStateError(f"study {study.name!r} is {state}{_WAY_OUT[state].format(study.name)}")


def extend_budget(database: Database, study: Study, more: Budget) -> Budget:
    """Add to the limits of a study and return the new ones.

    Raises
    ------
    StudyStateError
        if the study has no such limit.
    """
    with database.writing() as connection:
        budget = budget_of(locked_row(connection, study))
        values = {
            name: _sum(study, name.removeprefix("budget_"), limit, budget_values(more)[name])
            for name, limit in budget_values(budget).items()
            if not isinstance(limit, bool)
        }
        connection.execute(update(studies).where(studies.c.id == study.id).values(values))
        return budget_of(locked_row(connection, study))


def limit_to_begun(database: Database, study: Study) -> None:
    """Limit the budget to the trials that have begun: no configuration is left to try."""
    with database.writing() as connection:
        locked_row(connection, study)
        _limit_to_begun(connection, study)


def results_without_gain(database: Database, study: Study, states: Collection[str]) -> int | None:
    """Number of results, if the expected gain was not estimated from them yet; else None.

    A duplicate configuration is no result of its own.

    Parameters
    ----------
    states : the states of trials that are results
    """
    results = select(func.count()).where(
        trials.c.study_id == study.id,
        trials.c.state.in_(states),
        trials.c.value.is_not(None),
        trials.c.same_as.is_(None),
    )
    query = select(studies.c.gain, results.scalar_subquery().label("results")).where(
        studies.c.id == study.id, studies.c.budget_until_no_gain
    )
    with database.reading() as connection:
        row = connection.execute(query).one_or_none()
    if row is None or (row.gain is not None and row.gain["results"] >= row.results):
        return None
    return int(row.results)


def record_gain(database: Database, study: Study, gain: ExpectedGain) -> bool:
    """Record how much could be left to gain, and end the study if that is within the noise.

    From then on no trial begins; running and paused ones end as with any other limit. What they show later,
    and the further seeds of finalists, does not replace the reason for which the study has ended.

    Returns
    -------
    Whether the study ends.
    """
    with database.writing() as connection:
        row = locked_row(connection, study)
        if row.gain is not None:
            known = ExpectedGain(**row.gain)
            begun = connection.execute(select(begun_trials()).where(studies.c.id == study.id)).scalar_one()
            has_ended = row.budget_until_no_gain and known.is_noise and begun == row.budget_trials
            if known.results > gain.results or (has_ended and not gain.is_noise):
                return False  # another worker knows more, or the study has ended
        connection.execute(update(studies).where(studies.c.id == study.id).values(gain=asdict(gain)))
        ends = bool(row.budget_until_no_gain) and gain.is_noise
        if ends:
            _limit_to_begun(connection, study)
    return ends


def _limit_to_begun(connection: Connection, study: Study) -> None:
    connection.execute(update(studies).where(studies.c.id == study.id).values(budget_trials=begun_trials()))


def begun_trials() -> ScalarSelect[int]:
    """Number of trials of a row of ``anitune_studies``."""
    count = select(func.count()).where(trials.c.study_id == studies.c.id).correlate(studies)
    return count.scalar_subquery()


def lease_holders(connection: Connection, study: Study) -> list[str]:
    """Names of the workers that hold a lease of a trial now."""
    query = select(attempts.c.worker).where(
        attempts.c.study_id == study.id, attempts.c.ended_at.is_(None), attempts.c.lease_until > now()
    )
    return sorted({worker["name"] for worker in connection.execute(query).scalars()})


def locked_row(connection: Connection, study: Study) -> Row[Any]:
    """Lock the study's row until the open transaction ends, so that claims wait for it.

    Raises
    ------
    StudyNotFoundError
        if the study was deleted.
    """
    row = connection.execute(_LOCKED, study_key(study.id)).one_or_none()
    if row is None:
        raise StudyNotFoundError(f"study {study.name!r} was deleted")
    return row


# The key does not change, so rows that refer to the study, such as outbox rows, can be written meanwhile.
_LOCKED: Final = select(studies).where(of_study()).with_for_update(key_share=True)


def _sum(study: Study, what: str, limit: float | None, more: float | None) -> float | None:
    if more is not None and limit is None:
        raise StudyStateError(f"study {study.name!r} has no limit of {what} that could be extended")
    return limit if limit is None or more is None else limit + more
