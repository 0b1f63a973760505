"""Progress of commands: bars on a terminal and in a notebook, and the trials of a study."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from rich import progress as rich_progress
from rich.console import Console

from search.cli.jupyter import CellProgress, CellWatcher
from search.cli.output import make_console, study_line, trial_line, trial_title
from trainer.progress import Progress, no_progress

if TYPE_CHECKING:
    from search.work.worker import TrialNews, Watcher
    from storage.studies import StudyProgress


@contextmanager
def progress_bar(unit: Literal["steps", "bytes"] = "steps") -> Iterator[Progress]:
    """Show a bar for each stage on a terminal and in a notebook, and nothing otherwise."""
    console = make_console(stderr=True)
    if console.is_jupyter:
        yield CellProgress()
        return
    if not console.is_terminal:
        yield no_progress
        return
    amounts: list[rich_progress.ProgressColumn] = (
        [rich_progress.DownloadColumn(), rich_progress.TransferSpeedColumn()]
        if unit == "bytes"
        else [rich_progress.MofNCompleteColumn()]
    )
    with rich_progress.Progress(
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        *amounts,
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
        console=console,
    ) as bars:
        tasks: dict[str, rich_progress.TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


@contextmanager
def watch() -> Iterator[Watcher]:
    """Show the progress of a study: as bars on a terminal and in a notebook, else as one line per trial."""
    console = make_console(stderr=True)
    if console.is_jupyter:
        yield CellWatcher()
        return
    if not console.is_terminal:
        yield _Lines(console)
        return
    with rich_progress.Progress(
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[unit]}", markup=False),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("{task.fields[best]}", markup=False),
        console=console,
        transient=True,
    ) as bars:
        yield _Bars(console, bars)


class _Lines:
    """Prints a line for each finished trial, and a last one for the study."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begun(self, news: TrialNews, progress: StudyProgress) -> None:
        pass

    def epoch(self, number: int, done: int) -> None:
        pass

    def ended(self, news: TrialNews, progress: StudyProgress) -> None:
        self._console.print(trial_line(news, progress), soft_wrap=True, markup=False)

    def left(self, progress: StudyProgress) -> None:
        self._console.print(study_line(progress), soft_wrap=True, markup=False)


class _Bars(_Lines):
    """Prints the same lines and, below them, a bar for the study and one for each running trial."""

    def __init__(self, console: Console, bars: rich_progress.Progress) -> None:
        super().__init__(console)
        self._bars = bars
        self._studies: dict[str, rich_progress.TaskID] = {}
        self._trials: dict[int, rich_progress.TaskID] = {}

    def begun(self, news: TrialNews, progress: StudyProgress) -> None:
        self._show_study(progress)
        self._trials[news.number] = self._bars.add_task(
            trial_title(news), total=news.planned_epochs, unit="epochs", best=""
        )

    def epoch(self, number: int, done: int) -> None:
        self._bars.update(self._trials[number], completed=done)

    def ended(self, news: TrialNews, progress: StudyProgress) -> None:
        super().ended(news, progress)
        self._show_study(progress)
        if news.number in self._trials:  # a trial can fail before it begins
            self._bars.remove_task(self._trials.pop(news.number))

    def left(self, progress: StudyProgress) -> None:
        super().left(progress)
        self._show_study(progress)

    def _show_study(self, progress: StudyProgress) -> None:
        if progress.name not in self._studies:
            self._studies[progress.name] = self._bars.add_task(progress.name, unit="trials", best="")
        best = f"best {progress.best_value:.3f} kcal/mol" if progress.best_value is not None else ""
        self._bars.update(
            self._studies[progress.name],
            completed=progress.ended,
            total=progress.budget.trials,
            best=best,
        )
