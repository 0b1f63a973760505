"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from trainer.errors import OutputError


def write_by_rename(path: Path, content: bytes) -> None:
    """Write a file that readers see with all of ``content`` or not at all, also after a power cut.

    Raises
    ------
    OutputError
        if it cannot be written; what was at ``path`` before is still there, and nothing beside it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror}; free space, or choose a folder that can be written"
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written in ``folder``, which now has one writer."""
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)
