"""The images of trials, for the Optuna dashboard: also of trials that another machine has trained."""

from __future__ import annotations

from typing import BinaryIO

from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from storage.database import Database
from storage.trials.images import fetch_image


class TrialImages:
    """A store of Optuna's kind: the home folder's, which fetches what is not there.

    Workers put the images of their trials into the folder of their own home. They are artifacts as well, so
    where machines share no folder they are fetched by digest when somebody looks at them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        folder = database.settings.optuna_artifacts
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = FileSystemArtifactStore(folder)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an image, or what a person has uploaded."""
        try:
            return self._folder.open_reader(artifact_id)
        except ArtifactNotFound:
            if not fetch_image(self._database, artifact_id):
                raise
            return self._folder.open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Keep what a person uploads: in this home alone."""
        self._folder.write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """Delete what a person has uploaded, or an image, which comes back if it is opened again."""
        self._folder.remove(artifact_id)
