"""Progress bars of commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from trainer.progress import Progress, no_progress

if TYPE_CHECKING:
    from rich.progress import ProgressColumn, TaskID


@contextmanager
def progress_bar(unit: Literal["steps", "bytes"] = "steps") -> Iterator[Progress]:
    """Show a bar for each stage on a terminal and in a notebook, and nothing otherwise."""
    from rich import progress as rich_progress

    from search.cli.output import make_console

    console = make_console(stderr=True)
    if console.is_jupyter:
        from search.cli.jupyter import CellProgress

        yield CellProgress()
        return
    if not console.is_terminal:
        yield no_progress
        return
    amounts: list[ProgressColumn] = (
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
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=total)

        yield show
