"""Finds data files that are no longer at their recorded paths, for example after a folder was moved."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from trainer.data.shipped import SAMPLE

log = logging.getLogger("anitune")


def find_again(files: Iterable[str], folders: Sequence[Path]) -> tuple[str, ...]:
    """Return the paths of data files: as recorded, else the longest trailing part that exists below a folder.

    The caller must compare the fingerprint of their content with the recorded one. A file that is not found
    keeps its path, which the reader then reports.
    """
    return tuple(_found(file, folders) for file in files)


def _found(file: str, folders: Sequence[Path]) -> str:
    if file == SAMPLE or Path(file).exists():
        return file
    parts = Path(file).parts[1:]
    for start in range(len(parts)):
        for folder in folders:
            candidate = folder.joinpath(*parts[start:])
            if candidate.is_file():
                log.warning("%s is missing: %s is read instead, if it has the same content", file, candidate)
                return str(candidate)
    return file
