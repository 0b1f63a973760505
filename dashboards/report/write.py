"""Write a report of studies from their current records, in the requested format."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from dashboards.record import read_curves, read_study
from dashboards.report.contents import Source, make_report
from dashboards.report.data import read_data
from dashboards.report.html import report_html
from dashboards.report.learning_curve import learning_curve_sections
from dashboards.report.promotions import promotion_sections
from dashboards.report.trial_table import trials_csv
from storage.database import Database
from trainer.files import write_by_rename

Form = Literal["html", "md", "csv"]


def write_report(
    database: Database, studies: Sequence[str], form: Form = "html", out: Path | None = None
) -> Path:
    """Write a report of one study, or of several next to each other, and return its path.

    Parameters
    ----------
    out
        File to write; None: a file named after the studies in the folder ``reports`` of the home. Images of a
        Markdown report are in a folder next to it.

    Raises
    ------
    StudyNotFoundError
        if there is no study with one of the names.
    OutputError
        if the file cannot be written.
    """
    records = [read_study(database, name) for name in dict.fromkeys(studies)]
    if out is None:
        more = f"-and-{len(records) - 1}-more" if len(records) > 1 else ""
        out = database.settings.home / "reports" / f"{records[0].name}{more}.{form}"
    if form == "csv":
        write_by_rename(out, trials_csv(records).encode())
        return out
    sources = [
        Source(
            record,
            read_curves(database, record),
            read_data(record, database.settings.home),
            (*learning_curve_sections(database, record), *promotion_sections(database, record)),
        )
        for record in records
    ]
    report = make_report(sources, datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"))
    if form == "html":
        write_by_rename(out, report_html(report).encode())
        return out
    # Imported late: matplotlib takes a second, and only this form needs it.
    from dashboards.report.markdown import report_markdown

    folder = out.with_name(f"{out.stem}_files")
    markdown = report_markdown(report, quote(folder.name))
    for name, picture in markdown.pictures.items():
        write_by_rename(folder / name, picture)
    write_by_rename(out, markdown.text.encode())
    return out
