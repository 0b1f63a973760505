"""Reads artifacts of MLflow; its client leaves a folder behind for each that it downloads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any


def artifact(client: Any, run_id: str, path: str) -> bytes:
    """The content of an artifact of a run."""
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run_id, path, folder)).read_bytes()
