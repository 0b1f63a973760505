"""``anitune report``: write a report of studies as one page that can be sent to others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from dashboards.report.write import write_report
from search.cli.opening import open_home
from search.cli.output import working
from search.cli.terminal import echo


def report(
    studies: Annotated[
        list[str], typer.Argument(metavar="STUDY...", help="Names of studies; several are compared.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="File to write. Default: one in the folder reports of the home."
        ),
    ] = None,
    form: Annotated[
        Literal["html", "md", "csv"] | None,
        typer.Option(
            "--format",
            help="html: one page with interactive plots; md: Markdown and pictures; csv: all trials. Default:"
            " by the suffix of FILE, else html.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the path as JSON.")] = False,
) -> None:
    """Write a report of one study, or a comparison of several, as one page that needs no network."""
    ends: dict[str, Literal["html", "md", "csv"]] = {".md": "md", ".csv": "csv"}
    chosen = form or (ends.get(out.suffix, "html") if out is not None else "html")
    with open_home() as database, working("writing the report"):
        path = write_report(database, studies, chosen, out)
    echo(json.dumps({"report": str(path)}) if as_json else str(path))
