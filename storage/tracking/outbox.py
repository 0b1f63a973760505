"""Outbox of messages for the tracking server, written in the transaction that records the event itself.

The message of a row never changes; its ``created_at`` is the time of the event. The relay delivers the rows
of a study in the order of their ids, and marks them as delivered (``delivered_at``), or as rejected, with the
reason, if the server will never accept them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, insert

from storage.records.tables import now, outbox

METRICS_A_ROW = 1000
"""Maximum number of metrics in a row, which is MLflow's limit for a batch."""

TrialEnd = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class MetricRow:
    """One value of a metric at a step (an epoch).

    ``time_ms`` is the time at which the worker measured it: milliseconds since 1970-01-01 UTC.
    """

    key: str
    step: int
    value: float
    time_ms: int


@dataclass(frozen=True)
class StudyMessage:
    """A study began, or new facts about it were recorded. Later messages add to the tags of earlier ones."""

    kind = "study"
    config: dict[str, Any]
    tags: dict[str, str]


@dataclass(frozen=True)
class TrialStartMessage:
    """A trial began, and its configuration is known. It is the first message of a trial, sent once."""

    kind = "trial_start"
    params: dict[str, Any]
    """Parameters by which people compare trials: flat names, plain values."""
    tags: dict[str, str]


@dataclass(frozen=True)
class TrialTagsMessage:
    """Another attempt continues the trial; its tags replace earlier ones."""

    kind = "trial_tags"
    tags: dict[str, str]


@dataclass(frozen=True)
class TrialStateMessage:
    """A trial was paused at a rung, or resumed."""

    kind = "trial_state"
    state: Literal["paused", "running"]


@dataclass(frozen=True)
class MetricsMessage:
    """Metrics that were recorded for the first time, at most :data:`METRICS_A_ROW`."""

    kind = "metrics"
    rows: tuple[MetricRow, ...]


@dataclass(frozen=True)
class ArtifactMessage:
    """A file of the trial, whose content is in the blob store."""

    kind = "artifact"
    path: str
    """Path within the run, such as plots/loss.png."""
    digest: str
    size: int


@dataclass(frozen=True)
class TrialEndMessage:
    """A trial ended. It is the last message of a trial, sent once."""

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
