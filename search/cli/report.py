"""``anitune report``: studies as one page to send to someone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from search.cli.terminal import echo


def report(
    studies: Annotated[
        list[str], typer.Argument(metavar="STUDY...", help="Names of studies; several are compared.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Default: a file in the folder reports of the home."),
    ] = None,
    form: Annotated[
        Literal["html", "md", "csv"] | None,
        typer.Option(
            "--format",
            help="html: one page with interactive plots; md: Markdown and pictures; csv: all trials. Default:"
            " by the end of FILE's name, else html.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the path as JSON.")] = False,
) -> None:
    """Write a report of a study, or of several beside each other: one page that needs no network."""
    from dashboards.report.write import write_report
    from search.cli.output import working
    from storage.database import open_database
    from storage.settings import load_settings

    ends: dict[str, Literal["html", "md", "csv"]] = {".md": "md", ".csv": "csv"}
    chosen = form or (ends.get(out.suffix, "html") if out is not None else "html")
    with open_database(load_settings()) as database, working("writing the report"):
        path = write_report(database, studies, chosen, out)
    echo(json.dumps({"report": str(path)}) if as_json else str(path))
