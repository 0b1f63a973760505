"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[Path, typer.Argument(metavar="FILE", help="The study file (YAML).")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the study.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _trials_at_once(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) == 0:
        raise typer.BadParameter(f"give auto, or a number of at least 1 (got {text!r})")
    return int(text)


Pack = Annotated[
    int | None,
    typer.Option(
        "--pack",
        metavar="auto|N",
        parser=_trials_at_once,
        help="Number of trials to train at once. Default: auto, on the CPU as many as its cores and the free"
        " memory allow, on a GPU as many as a short measurement finds worthwhile. With 1, and no other"
        " worker, a study is reproducible.",
    ),
]
