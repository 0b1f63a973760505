"""The folder of an attempt at a trial. A worker that takes over a trial renames the folder.

A worker that was suspended beyond its lease and wakes up later still writes its checkpoint. It uses the
folder name of its own attempt, which no longer exists, so its files do not reach the new attempt.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from trainer.errors import CheckpointError
from trainer.fitting.checkpoints import CHECKPOINT, set_aside
from trainer.run import TrainingResult

logger = logging.getLogger("anitune")


def take_folder(folder: Path) -> Path:
    """Create the folder of an attempt, with the checkpoint that earlier attempts left.

    Only folders of earlier attempts are renamed or deleted, so a worker that has lost the trial without
    noticing takes nothing from its successor.

    Parameters
    ----------
    folder : path of the folder, from :meth:`storage.settings.Settings.attempt_folder`
    """
    while not folder.exists() and (earlier := _earlier(folder)):
        try:
            earlier[-1].rename(folder)
        except FileNotFoundError:
            continue  # an attempt between that one and ours has just renamed it: look again
    for stray in _earlier(folder):  # written by workers that woke up
        shutil.rmtree(stray, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def from_checkpoint(folder: Path, trial: str, train: Callable[[], TrainingResult]) -> TrainingResult:
    """Train; if the checkpoint is rejected, train again from the start, so a damaged file costs no trial.

    Parameters
    ----------
    trial : name of the trial, for messages
    """
    try:
        return train()
    except CheckpointError as error:
        aside = set_aside(folder / CHECKPOINT)
        logger.warning(
            "%s starts again from the beginning, because its checkpoint was rejected: %s (moved to %s)",
            trial,
            error,
            aside.name,
        )
        return train()


def _earlier(folder: Path) -> list[Path]:
    """List the folders of earlier attempts, the latest last."""
    attempts = [path for path in folder.parent.glob("attempt-*") if _number(path) < _number(folder)]
    return sorted(attempts, key=_number)


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("attempt-"))
