"""How long work tells how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called now and then by work that a person may wait for."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of the named stage are finished."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Tell nobody."""
