"""Images of trials for the Optuna dashboard: copies of artifacts in the home folder."""

from __future__ import annotations

import json
import logging
import mimetypes
import re
from pathlib import PurePosixPath
from typing import Any, Final

from sqlalchemy import Row, select

from storage.blobs.place import open_blobs
from storage.blobs.store import checked_digest
from storage.database import Database
from storage.errors import BlobDamagedError, BlobMissingError
from storage.records.tables import artifacts

log = logging.getLogger("anitune")

IMAGE: Final = re.compile(r"\d+-(?P<study>\d+)-(?P<number>\d+)-(?P<digest>[0-9a-f]{16})")
"""Name of a copy; files that people uploaded in the dashboard have other names."""


def is_image(path: str) -> bool:
    """Whether the artifact at this path is an image, which the dashboard shows."""
    return (mimetypes.guess_type(path)[0] or "").startswith("image/")


def show_image(database: Database, row: Row[Any]) -> tuple[str, str] | None:
    """Copy an image (a row of artifacts) for the Optuna dashboard; return the attribute that makes it appear.

    Optuna's ``upload_artifact`` is not used: it makes random ids, by which the dashboard sorts images, and a
    repeated call would show the image twice.
    """
    try:
        artifact_id = f"{row.position:02d}-{row.study_id}-{row.number}-{checked_digest(row.digest)[:16]}"
        open_blobs(database).copy(row.digest, database.settings.optuna_artifacts / artifact_id)
    except (BlobMissingError, BlobDamagedError) as error:
        log.warning("trial %d: %s is not shown in the Optuna dashboard: %s", row.number, row.path, error)
        return None
    described = {
        "artifact_id": artifact_id,
        "filename": PurePosixPath(row.path).name,
        "mimetype": mimetypes.guess_type(row.path)[0],
        "encoding": None,
    }
    return f"artifacts:{artifact_id}", json.dumps(described)


def fetch_image(database: Database, artifact_id: str) -> bool:
    """Copy an image of a trial from another machine to this one; return whether there is such an image."""
    name = IMAGE.fullmatch(artifact_id)
    if name is None:
        return False
    query = select(artifacts.c.digest).where(
        artifacts.c.study_id == int(name["study"]),
        artifacts.c.number == int(name["number"]),
        artifacts.c.digest.startswith(name["digest"]),
    )
    with database.reading() as connection:
        digest = connection.execute(query).scalars().first()
    if digest is None:
        return False
    try:
        open_blobs(database).copy(digest, database.settings.optuna_artifacts / artifact_id)
    except (BlobMissingError, BlobDamagedError):
        return False
    return True
