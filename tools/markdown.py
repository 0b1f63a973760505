"""Formats settings and tables of settings in Markdown."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

LONGEST_LIST = 8
"""Longest list whose values are all written out."""


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with a line of headings."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def anchor(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return heading.replace("`", "").replace(".", "").replace(" ", "-").lower()


def paragraphs(text: str | None) -> list[str]:
    """The paragraphs of a docstring, each on one line."""
    return [
        " ".join(paragraph.replace("``", "`").split())
        for paragraph in inspect.cleandoc(text or "").split("\n\n")
    ]


def as_yaml(value: Any) -> str:
    """A value in the form that a study file uses."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {as_yaml(each)}' for key, each in value.items())}}}"
    if isinstance(value, tuple | list):
        words = [as_yaml(each) for each in value]
        if len(words) > LONGEST_LIST:
            words = [*words[:2], "...", words[-1]]
        return f"[{', '.join(words)}]"
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value) or '""'
