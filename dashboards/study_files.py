"""Artifacts of the study's run in MLflow: the current leaderboard, and plots as images."""

from __future__ import annotations

from typing import Final

from dashboards import figures
from dashboards.record import StudyRecord
from dashboards.report.trial_table import trials_csv

PLOTS: Final = ("plots/history.png", "plots/pareto.png", "plots/importance.png")
"""Images of a study among the artifacts of its run."""

LEADERBOARD: Final = "leaderboard.csv"


def study_files(record: StudyRecord) -> dict[str, bytes]:
    """Leaderboard and plots by their paths; the plots only once a trial is complete."""
    files = {LEADERBOARD: trials_csv([record]).encode()}
    if record.complete:
        # Imported late: matplotlib takes a second, and a new study does not need it yet.
        from dashboards.drawing import png

        charts = (figures.history([record]), figures.cost([record]), figures.importance(record))
        files |= {path: png(chart) for path, chart in zip(PLOTS, charts, strict=True)}
    return files
