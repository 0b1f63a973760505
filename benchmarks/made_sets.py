"""Made sets of several sizes in one folder, each created on first use."""

from __future__ import annotations

from pathlib import Path

from benchmarks.make_big import make_big


def made_set(folder: Path, structures: int) -> Path:
    """The file of the made set of this size, created if it does not exist."""
    path = folder / f"made-{structures}.h5"
    if not path.exists():
        make_big(path, structures)
    return path
