"""Report section on the learning curve of a study."""

from __future__ import annotations

from dashboards import figures
from dashboards.learning_curve import CAPTION, curve_headings, curve_rows, curve_sentences
from dashboards.record import StudyRecord
from dashboards.report.contents import Section, Table
from storage.database import Database
from storage.learning_curves import latest_learning_curve
from storage.studies import open_study


def learning_curve_sections(database: Database, record: StudyRecord) -> tuple[Section, ...]:
    """A section on the latest learning curve, if there is one."""
    curve = latest_learning_curve(database, open_study(database, record.name))
    if curve is None:
        return ()
    headings = curve_headings(curve.values)
    return (
        Section(
            "More data or a larger network?",
            (*curve_sentences(curve.values), CAPTION),
            Table(f"learning-curve-{record.name}", headings, tuple(curve_rows(curve.values))),
            (figures.learning_curve(curve.values),),
        ),
    )
