"""Restricts the files of MLflow's runs to two places: MLflow's server, or anitune's own folder.

The address of the files is part of the run, and anybody who can write to the tracking server can set it.
MLflow's client would follow it to any folder of this machine, or with our password to any host.

MLflow takes seconds to import, so the functions that need it do so.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from storage.confined import descendant
from storage.errors import TrackingRefusedError

if TYPE_CHECKING:
    from mlflow.entities import RunInfo

    from storage.tracking.mlflow_private import ArtifactRepository

_PROXIED: Final = "mlflow-artifacts"
"""Scheme of files that the server stores on the client's behalf."""

_FOLDER: Final = "artifacts"
"""Name of the artifact folder of a run: EXPERIMENT/RUN/artifacts."""


def open_store(run: RunInfo, tracking_uri: str, root: Path) -> ArtifactRepository:
    """The store of the files of a run, which reads and writes only in the run's place.

    Parameters
    ----------
    tracking_uri
        URI of the server or database that the run comes from.
    root
        Our own folder for the files of runs.

    Raises
    ------
    TrackingRefusedError, OutsideFolderError
        if the files are in any other place.
    """
    from storage.tracking.mlflow_private import LocalArtifactRepository, MlflowArtifactsRepository

    uri = str(run.artifact_uri)
    parts = urlsplit(uri)
    if parts.scheme == _PROXIED and parts.netloc in ("", urlsplit(tracking_uri).netloc.rpartition("@")[2]):
        return MlflowArtifactsRepository(uri, tracking_uri=tracking_uri)
    place = Path(url2pathname(parts.path))
    ours = (
        parts.scheme in ("", "file")
        and parts.netloc == ""
        and len(place.parts) > 3
        and place.parts[-2:] == (run.run_id, _FOLDER)
        and place.parents[2].resolve() == root.resolve()
    )
    if ours:
        folder = descendant(root, "/".join(place.parts[-3:]))
        return LocalArtifactRepository(folder.as_uri())
    named = f"{parts.scheme}:{parts.path}"[:200]
    raise TrackingRefusedError(
        f"MLflow keeps the files of run {run.run_id} at {named!r}: anitune stores and reads them only"
        f" through MLflow's server ({_PROXIED}:/...) or in {root}"
    )


def upload(store: ArtifactRepository, files: Mapping[str, Path]) -> None:
    """Upload files, given by their paths in the store (such as plots/loss.png).

    Raises
    ------
    OutsideFolderError
        if the store is a folder of this machine and a link is in the way.
    """
    from storage.tracking.mlflow_private import LocalArtifactRepository

    if isinstance(store, LocalArtifactRepository):
        for path in files:
            descendant(Path(store.artifact_dir), path)
    with tempfile.TemporaryDirectory() as named:
        for path, file in files.items():
            link = Path(named) / path  # MLflow takes the names of the local files
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
        store.log_artifacts(named)  # type: ignore[no-untyped-call]


def digests(store: ArtifactRepository) -> dict[str, str]:
    """The SHA-256 digest of each file in a store, by its path; all bytes are read."""
    if not store.list_artifacts():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(store.download_artifacts("", folder))  # type: ignore[no-untyped-call]
        return {
            file.relative_to(root).as_posix(): _digest(file) for file in root.rglob("*") if file.is_file()
        }


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
