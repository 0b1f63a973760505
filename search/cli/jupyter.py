"""Progress in a Jupyter cell: one output whose content is replaced while the cell runs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Hashable
from html import escape
from typing import TYPE_CHECKING, Final

from dashboards.printable import printable
from search.cli.output import study_line, trial_line, trial_title

if TYPE_CHECKING:
    from search.work.worker import TrialNews
    from storage.studies import StudyProgress

INTERVAL: Final = 0.2
"""Minimum time between two updates of an output, s."""

LINES: Final = 10
"""Number of finished trials whose lines stay in the output; the leaderboard shows all."""


class Cell:
    """An output of the running cell: some lines with progress bars below them. Thread-safe."""

    def __init__(self) -> None:
        from IPython.display import display

        self._lock = threading.Lock()
        self._lines: deque[str] = deque(maxlen=LINES)
        self._bars: dict[Hashable, tuple[str, int, int | None, str]] = {}
        self._updated = 0.0
        self._output = display(self._content(), raw=True, display_id=True)

    def write(self, line: str) -> None:
        """Add a line."""
        with self._lock:
            self._lines.append(line)
            self._update()

    def show(self, key: Hashable, label: str, done: int, total: int | None, note: str = "") -> None:
        """Add or update a bar. Without a total, only the number is shown."""
        with self._lock:
            new = key not in self._bars
            self._bars[key] = (label, done, total, note)
            if new or done == total or time.monotonic() - self._updated > INTERVAL:
                self._update()

    def remove(self, key: Hashable) -> None:
        """Remove a bar, if it is there."""
        with self._lock:
            self._bars.pop(key, None)
            self._update()

    def _update(self) -> None:
        self._updated = time.monotonic()
        self._output.update(self._content(), raw=True)

    def _content(self) -> dict[str, str]:
        bars = [
            (label, f"{done}/{total}" if total is not None else str(done), done, total, note)
            for label, done, total, note in self._bars.values()
        ]
        text = [*self._lines, *(" ".join(filter(None, (bar[0], bar[1], bar[4]))) for bar in bars)]
        rows = [
            f"<tr><td>{_html(label)}</td><td>{_bar(done, total)}</td>"
            f"<td>{amount}</td><td>{_html(note)}</td></tr>"
            for label, amount, done, total, note in bars
        ]
        lines = "".join(f"<div>{_html(line)}</div>" for line in self._lines)
        return {
            "text/plain": "\n".join(printable(line) for line in text),
            "text/html": f"{lines}<table>{''.join(rows)}</table>" if rows else lines,
        }


def _html(text: str) -> str:
    return escape(printable(text))


def _bar(done: int, total: int | None) -> str:
    return "" if total is None else f'<progress value="{done}" max="{total}"></progress>'


class CellProgress:
    """Show a bar for each stage of work. See :class:`trainer.progress.Progress`."""

    def __init__(self) -> None:
        self._cell: Cell | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._cell = self._cell or Cell()
        self._cell.show(stage, stage, done, total)


class CellWatcher:
    """Show a line for each finished trial, a bar for the study, and a bar for each running trial.

    See :class:`search.work.worker.Watcher`.
    """

    def __init__(self) -> None:
        self._cell = Cell()
        self._planned: dict[int, tuple[str, int]] = {}

    def begun(self, news: TrialNews, progress: StudyProgress) -> None:
        self._show_study(progress)
        self._planned[news.number] = trial_title(news), news.planned_epochs
        self.epoch(news.number, news.epochs)

    def epoch(self, number: int, done: int) -> None:
        label, total = self._planned[number]
        self._cell.show(number, label, done, total, "epochs")

    def ended(self, news: TrialNews, progress: StudyProgress) -> None:
        self._cell.remove(news.number)
        self._cell.write(trial_line(news, progress))
        self._show_study(progress)

    def left(self, progress: StudyProgress) -> None:
        self._cell.write(study_line(progress))
        self._show_study(progress)

    def _show_study(self, progress: StudyProgress) -> None:
        best = f", best {progress.best_value:.3f} kcal/mol" if progress.best_value is not None else ""
        done = progress.ended
        self._cell.show(progress.name, progress.name, done, progress.budget.trials, f"trials{best}")
