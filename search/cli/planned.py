"""Trainings of a promotion or a learning curve: the data of their study, their plan, and the work itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from search.cli.progress import progress_bar
from search.cli.terminal import echo
from search.recorded import recorded_config
from search.study import StudyConfig
from search.work.stopping import StopRequest, stop_on_signals
from storage.studies import Study
from trainer.progress import Progress
from trainer.task import Task, prepare_task

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Planned(Protocol[T_co]):
    """Work in steps, each of which is recorded."""

    def run(self, stop: StopRequest, progress: Progress) -> T_co:
        """Run all remaining steps, and return the recorded result."""


def recorded_task(study: Study) -> tuple[StudyConfig, Task]:
    """Return the recorded configuration of a study, and the task that its trials were trained on.

    Raises
    ------
    FactsChangedError
        if the data is not what they were trained on: other trainings would say nothing about them.
    """
    config, features = recorded_config(study), study.database.settings.features
    with progress_bar() as progress:
        task = prepare_task(config.task, features, progress)
    study.set_facts(task.fingerprints)
    return config, task


def run_planned(planned: Planned[T], plan: Iterable[str], quiet: bool) -> T:
    """Print the lines of a plan, and run all steps that remain of it.

    Parameters
    ----------
    quiet : keep standard output free for the result

    Raises
    ------
    Stopped, KeyboardInterrupt
        if a signal stopped the work; the next call continues it.
    """
    for line in plan:
        echo(line, err=quiet)
    with progress_bar() as progress, stop_on_signals() as stop:
        return planned.run(stop, progress)
