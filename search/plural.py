"""Numbers with their nouns, in the singular or the plural."""

from __future__ import annotations

from collections.abc import Sequence


def count_of(number: int, noun: str) -> str:
    """Return a number and its noun: 1 trial, 1,200 trials."""
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def trials_named(numbers: Sequence[int]) -> str:
    """Name trials by their numbers: trial 3; trials 3, 0."""
    return f"trial{'s' if len(numbers) != 1 else ''} {', '.join(map(str, numbers))}"
