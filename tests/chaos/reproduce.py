"""Reproduces many trials undisturbed, several at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from search.work.reproduce import RecordedTrial, reproduce_trial


def differing(
    study: dict[str, Any], features: Path, trials: Sequence[RecordedTrial], processes: int
) -> list[int]:
    """Numbers of the trials that do not reproduce bit for bit.

    Parameters
    ----------
    study : the recorded configuration of the study
    features : the feature store
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _prepare, (study, features)) as pool:
        return [
            trial.number
            for trial, same in zip(trials, pool.map(_comes_out_alike, trials), strict=True)
            if not same
        ]


_task: Any = None


def _prepare(study: dict[str, Any], features: Path) -> None:
    from search.study import study_from_record
    from trainer.progress import no_progress
    from trainer.task import prepare_task

    global _task
    config = study_from_record(study, study["name"])
    _task = prepare_task(config.task, features, no_progress)


def _comes_out_alike(trial: RecordedTrial) -> bool:
    return reproduce_trial(_task, trial).alike(tolerance=0)
