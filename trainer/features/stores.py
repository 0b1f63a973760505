"""The feature stores in a folder: what each belongs to, and how to delete it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from trainer.features.aev_store import FORMAT, MANIFEST
from trainer.fingerprints import digest_of
from trainer.strict_json import read_json

#: A store younger than this (s) may belong to a study that has not recorded it yet, or was built ahead.
YOUNG: Final = 86_400.0


@dataclass(frozen=True)
class UnneededStore:
    """A feature store, or the remains of one."""

    path: Path
    bytes: int


def unneeded_stores(root: Path, needed: Collection[tuple[str, str]]) -> list[UnneededStore]:
    """Return the stores below ``root`` that are not needed and were not built within the last day.

    Parameters
    ----------
    needed : fingerprints of data and of features, as in :attr:`trainer.task.TaskData.fingerprints`
    """
    old = time.time() - YOUNG
    found = []
    for folder in sorted(path for path in root.glob("*") if path.is_dir() and not path.is_symlink()):
        if folder.stat().st_mtime < old and _of(folder) not in needed:
            found.append(UnneededStore(folder, sum(file.stat().st_size for file in folder.glob("*"))))
    return found


def remove_store(store: UnneededStore) -> bool:
    """Delete a store; return False and keep it if a process is building it.

    Processes that have mapped it can still read it: the system keeps the bytes until they end.
    """
    lock = FileLock(store.path.with_name(f"{store.path.name.removesuffix('.unfinished')}.lock"))
    try:
        with lock.acquire(timeout=0):
            shutil.rmtree(store.path)
    except Timeout:
        return False
    return True


def _of(folder: Path) -> tuple[str, str] | None:
    """Return the fingerprints of the data and the features of a store; None if this program cannot use it."""
    try:
        content = read_json(folder / MANIFEST)["content"]
        return (content["dataset"], digest_of(content["aev"])) if content["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
