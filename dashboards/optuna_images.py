"""Images of trials for the Optuna dashboard, including trials that another machine trained."""

from __future__ import annotations

from typing import BinaryIO

from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from storage.database import Database
from storage.trials.images import fetch_image


class TrialImages:
    """Artifact store for Optuna: the home folder's store, which fetches missing images.

    Workers put the images of their trials into the folder of their own home. The images are also artifacts,
    so where machines share no folder they are fetched by digest when somebody looks at them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        folder = database.settings.optuna_artifacts
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = FileSystemArtifactStore(folder)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an image, or a file that a person uploaded."""
        try:
            return self._folder.open_reader(artifact_id)
        except ArtifactNotFound:
            if not fetch_image(self._database, artifact_id):
                raise
            return self._folder.open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Store a file that a person uploads, in this home only."""
        self._folder.write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """Delete an uploaded file or an image; an image is fetched again when it is next opened."""
        self._folder.remove(artifact_id)
