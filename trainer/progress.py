"""Progress callback protocol."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Callback that long work calls now and then."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` units of the named stage are finished."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Ignore the progress."""
