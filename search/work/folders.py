"""The folder of an attempt at a trial: who takes a trial over takes its folder away from the worker before.

A worker that was stopped past its lease and wakes up later still writes its checkpoint. It knows the folder
by the number of its own attempt, and nothing has that name any more: what it writes reaches nobody.
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
    """Give an attempt its folder, with the checkpoint that the attempts before it left.

    Only folders of earlier attempts are touched: a worker that has lost the trial, and does not know it yet,
    takes nothing from the one who has it.

    Parameters
    ----------
    folder : as :meth:`storage.settings.Settings.attempt_folder` names it
    """
    while not folder.exists() and (earlier := _earlier(folder)):
        try:
            earlier[-1].rename(folder)
        except FileNotFoundError:
            continue  # an attempt between that one and ours has just taken it: look again
    for stray in _earlier(folder):  # of workers that woke up
        shutil.rmtree(stray, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def from_checkpoint(folder: Path, trial: str, train: Callable[[], TrainingResult]) -> TrainingResult:
    """Train, and once more from the start where the checkpoint is refused: what befell a file costs no trial.

    Parameters
    ----------
    trial : what a person calls it
    """
    try:
        return train()
    except CheckpointError as error:
        aside = set_aside(folder / CHECKPOINT)
        logger.warning(
            "%s begins again from the start, its checkpoint was refused: %s (it is %s now)",
            trial,
            error,
            aside.name,
        )
        return train()


def _earlier(folder: Path) -> list[Path]:
    """The folders of earlier attempts, the latest last."""
    attempts = [path for path in folder.parent.glob("attempt-*") if _number(path) < _number(folder)]
    return sorted(attempts, key=_number)


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("attempt-"))
