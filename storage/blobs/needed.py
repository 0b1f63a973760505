"""Which blobs the records name: the others are garbage."""

from __future__ import annotations

from sqlalchemy import Connection, select

from storage.records.tables import artifacts, checkpoints, outbox
from storage.tracking.outbox import ArtifactMessage

NAMING = (artifacts, checkpoints)
"""The tables whose rows name blobs for good."""


def needed_digests(connection: Connection) -> set[str]:
    """Of artifacts, of those earlier ones that MLflow is still to be told of, and of checkpoints."""
    waiting = select(outbox.c.payload).where(
        outbox.c.kind == ArtifactMessage.kind, outbox.c.delivered_at.is_(None)
    )
    needed = {payload["digest"] for payload in connection.execute(waiting).scalars()}
    for table in NAMING:
        needed |= set(connection.execute(select(table.c.digest).distinct()).scalars())
    return needed
