"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import OutputError


def write_by_rename(path: Path, content: bytes) -> None:
    """Write a file that readers see with all of ``content`` or not at all; see :func:`replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what is to be at ``path``: it is put there at the end of the block, unless that raises.

    Raises
    ------
    OutputError
        if it cannot be written; what was at ``path`` before is still there, and nothing beside it.
    """
    partial = partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch(exist_ok=False)  # of a name that is taken, also by a link, it makes nothing
        try:
            yield partial
            put_in_place(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_be_written(path, error) from error


def partial_name(path: Path) -> Path:
    """Where to write what is to be at ``path``: a name that nobody foresees, so that no link waits there."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def put_in_place(finished: Path, path: Path) -> None:
    """Rename a finished file to ``path``, which holds all of it also after a power cut."""
    with finished.open("rb") as file:
        os.fsync(file.fileno())
    finished.replace(path)


def cannot_be_written(path: Path, error: OSError) -> OutputError:
    """The error to raise where the system refuses to write at ``path``."""
    return OutputError(
        f"{path}: cannot be written: {error.strerror or error};"
        " free space, or choose a folder that can be written"
    )


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written in ``folder``, which now has one writer."""
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)
