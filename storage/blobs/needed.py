"""Finds the blobs that the records name; all others are garbage."""

from __future__ import annotations

from sqlalchemy import Connection, select

from storage.records.tables import artifacts, checkpoints, outbox
from storage.tracking.outbox import ArtifactMessage

NAMING = (artifacts, checkpoints)
"""The tables whose rows name blobs permanently."""


def needed_digests(connection: Connection) -> set[str]:
    """Digests of artifacts, of replaced artifacts still to be delivered to MLflow, and of checkpoints."""
    waiting = select(outbox.c.payload).where(
        outbox.c.kind == ArtifactMessage.kind, outbox.c.delivered_at.is_(None)
    )
    needed = {payload["digest"] for payload in connection.execute(waiting).scalars()}
    for table in NAMING:
        needed |= set(connection.execute(select(table.c.digest).distinct()).scalars())
    return needed
