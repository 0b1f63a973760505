"""Writing files so that they appear complete or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trainer.errors import OutputError

MODEL: Final = "model.safetensors"
"""Name of the file of the weights in the folder of a training."""


def write_by_rename(path: Path, content: bytes) -> None:
    """Write a file that readers see complete or not at all; see :func:`replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to ``path`` at the end unless the block raises.

    Raises
    ------
    OutputError
        if it cannot be written; then ``path`` is unchanged and the temporary file is removed.
    """
    partial = partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch(exist_ok=False)  # fails if the name is taken, even by a link
        try:
            yield partial
            put_in_place(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_be_written(path, error) from error


def partial_name(path: Path) -> Path:
    """Return an unpredictable temporary name beside ``path``, so that nobody can plant a link there."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def put_in_place(finished: Path, path: Path) -> None:
    """Rename a finished file to ``path``, so that it is complete there even after a power cut."""
    with finished.open("rb") as file:
        os.fsync(file.fileno())
    finished.replace(path)


def cannot_be_written(path: Path, error: OSError) -> OutputError:
    """Return the error to raise where the system refuses to write at ``path``."""
    return OutputError(
        f"{path}: cannot be written: {error.strerror or error};"
        " free space, or choose a folder that can be written"
    )


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in ``folder``, which now has one writer."""
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)
