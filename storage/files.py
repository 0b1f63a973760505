"""Atomic writes: a file of the storage appears whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

PARTIAL: Final = ".partial"
"""Suffix of an unfinished file; its name begins with a dot."""


def partial_name(path: Path) -> Path:
    """A temporary name beside ``path`` that nobody can predict, so nobody can have put a link there."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that durably replaces ``path`` at the end of the block, unless the block raises."""
    partial = partial_name(path)
    try:
        with partial.open("xb") as file:  # "x" fails where the name is taken, also by a link
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
