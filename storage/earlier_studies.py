"""Copies of the results of earlier studies, from which a study learns.

A copy is made when the study is created, so that a later change or deletion of the earlier study does not
change this one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, insert, select

from storage.database import Database
from storage.records.tables import earlier_studies as table

if TYPE_CHECKING:
    from storage.studies import Study  # which imports this module


@dataclass(frozen=True)
class EarlierStudy:
    """The results of an earlier study, as they were when the study that learns from it was created.

    Attributes
    ----------
    name
        Its name at that time.
    trials
        Number of its trials that had a result.
    facts
        Fingerprints of its data and its split.
    results
        Its results that lie in the space of this study, the best first, as
        :func:`search.propose.earlier.copy_of` writes them.
    digest
        SHA-256 digest of the copy, in hexadecimal.
    """

    name: str
    trials: int
    facts: Mapping[str, str]
    results: Sequence[Mapping[str, Any]]
    digest: str


def record_earlier_studies(connection: Connection, study_id: int, copies: Sequence[EarlierStudy]) -> None:
    """Record the copies that a new study learns from, in the open transaction."""
    for position, copy in enumerate(copies):
        values = {
            "study_id": study_id,
            "position": position,
            "name": copy.name,
            "trials": copy.trials,
            "facts": dict(copy.facts),
            "results": json.loads(json.dumps(list(copy.results))),
            "digest": copy.digest,
        }
        connection.execute(insert(table).values(values))


def earlier_studies(database: Database, study: Study) -> list[EarlierStudy]:
    """The copies that a study learns from, in the order of its study file."""
    query = select(table).where(table.c.study_id == study.id).order_by(table.c.position)
    with database.reading() as connection:
        rows = connection.execute(query).all()
    return [EarlierStudy(row.name, row.trials, row.facts, row.results, row.digest) for row in rows]
