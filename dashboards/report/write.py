"""Writes a report of studies as it stands in the records, in the form that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from dashboards.record import read_curves, read_study
from dashboards.report.contents import Source, make_report
from dashboards.report.data import read_data
from dashboards.report.promotions import promotion_sections
from storage.database import Database
from trainer.files import write_by_rename

Form = Literal["html", "md", "csv"]


def write_report(
    database: Database, studies: Sequence[str], form: Form = "html", out: Path | None = None
) -> Path:
    """Write a report of one study, or of several beside each other, and give back its path.

    Parameters
    ----------
    out
        Its file; None: one named after the studies in the folder ``reports`` of the home. Pictures of a
        report in Markdown lie in a folder beside it.

    Raises
    ------
    StudyNotFoundError
        if there is no study of a name.
    OutputError
        if it cannot be written.
    """
    records = [read_study(database, name) for name in dict.fromkeys(studies)]
    if out is None:
        more = f"-and-{len(records) - 1}-more" if len(records) > 1 else ""
        out = database.settings.home / "reports" / f"{records[0].name}{more}.{form}"
    if form == "csv":
        from dashboards.report.trial_table import trials_csv

        write_by_rename(out, trials_csv(records).encode())
        return out
    sources = [
        Source(
            record,
            read_curves(database, record),
            read_data(record, database.settings.home),
            promotion_sections(database, record),
        )
        for record in records
    ]
    report = make_report(sources, datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"))
    if form == "html":
        from dashboards.report.html import report_html

        write_by_rename(out, report_html(report).encode())
        return out
    from dashboards.report.markdown import report_markdown

    folder = out.with_name(f"{out.stem}_files")
    markdown = report_markdown(report, quote(folder.name))
    for name, picture in markdown.pictures.items():
        write_by_rename(folder / name, picture)
    write_by_rename(out, markdown.text.encode())
    return out
