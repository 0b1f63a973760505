"""What the tracking server must be told: rows written in the very transaction that records what happened.

A row never changes what it says; its ``created_at`` is the time at which that happened. The relay
delivers the rows of a study in the order of their ids, and marks them delivered (``delivered_at``), or
parked with the reason if the server will never take them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, insert

from storage.records.tables import now, outbox

METRICS_A_ROW = 1000
"""Metrics in one row at most: what MLflow takes in one batch."""

TrialEnd = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class MetricRow:
    """One value of a metric at a step (an epoch).

    ``time_ms`` is when the worker measured it: milliseconds since 1970-01-01 UTC.
    """

    key: str
    step: int
    value: float
    time_ms: int


@dataclass(frozen=True)
class StudyMessage:
    """A study began, or learned something about itself. A later one adds to the tags of an earlier one."""

    kind = "study"
    config: dict[str, Any]
    tags: dict[str, str]


@dataclass(frozen=True)
class TrialStartMessage:
    """A trial began: its configuration is known. Comes once, before all others of the trial."""

    kind = "trial_start"
    params: dict[str, Any]
    """What a person compares trials by: flat names, plain values."""
    tags: dict[str, str]


@dataclass(frozen=True)
class TrialTagsMessage:
    """Another attempt goes on with the trial: tags to be set over those before."""

    kind = "trial_tags"
    tags: dict[str, str]


@dataclass(frozen=True)
class TrialStateMessage:
    """A trial was paused at a rung, or runs again."""

    kind = "trial_state"
    state: Literal["paused", "running"]


@dataclass(frozen=True)
class MetricsMessage:
    """Metrics that were recorded for the first time, at most :data:`METRICS_A_ROW`."""

    kind = "metrics"
    rows: tuple[MetricRow, ...]


@dataclass(frozen=True)
class ArtifactMessage:
    """A file of the trial, whose content is among the blobs."""

    kind = "artifact"
    path: str
    """Within the run, as plots/loss.png."""
    digest: str
    size: int


@dataclass(frozen=True)
class TrialEndMessage:
    """A trial ended. Comes once, after all others of the trial."""

    kind = "trial_end"
    state: TrialEnd
    value: float | None
    """Best validation MAE, kcal/mol."""
    reason: str | None
    summary: dict[str, float]
    tags: dict[str, str]


Message = (
    StudyMessage
    | TrialStartMessage
    | TrialTagsMessage
    | TrialStateMessage
    | MetricsMessage
    | ArtifactMessage
    | TrialEndMessage
)

_KINDS: dict[str, type[Message]] = {
    kind.kind: kind
    for kind in (
        StudyMessage,
        TrialStartMessage,
        TrialTagsMessage,
        TrialStateMessage,
        MetricsMessage,
        ArtifactMessage,
        TrialEndMessage,
    )
}


def enqueue(connection: Connection, study_id: int, number: int | None, messages: Sequence[Message]) -> None:
    """Write messages about a trial (or, without a number, about the study) in the open transaction."""
    for message in messages:
        row = {"study_id": study_id, "number": number, "kind": message.kind, "payload": asdict(message)}
        connection.execute(_NEW, row)


def read_message(kind: str, payload: Mapping[str, Any]) -> Message:
    """The message of an outbox row."""
    if kind == MetricsMessage.kind:
        return MetricsMessage(rows=tuple(MetricRow(**row) for row in payload["rows"]))
    return _KINDS[kind](**payload)


_NEW: Final = insert(outbox).values(created_at=now())
