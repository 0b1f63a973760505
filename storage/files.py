"""Files of the storage that appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

PARTIAL: Final = ".partial"
"""How the name of a file ends that is not finished; it begins with a dot."""


def partial_name(path: Path) -> Path:
    """Where to write what is to be at ``path``: a name that nobody foresees, so that no link waits there."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file, durable and in the place of ``path`` at the end of the block, unless that raises."""
    partial = partial_name(path)
    try:
        with partial.open("xb") as file:  # of a name that is taken, also by a link, it makes nothing
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
