"""The first page that people open: studies, leaderboards and running workers, read from SQL for each request.

The server of the Optuna dashboard serves it under ``/anitune``, so its links to that dashboard, and to MLflow
by ``/mlflow``, hold for any port. It only reads, takes no input but addresses, and loads nothing from
elsewhere.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from flask import Flask, Response, render_template, request

from dashboards import figures, links
from dashboards.chart import Chart, figure_json
from dashboards.formatting import (
    duration,
    format_budget,
    format_earlier,
    format_front,
    format_gain,
    format_noise,
    format_number,
    study_state_line,
)
from dashboards.page.coalescing import Coalescing
from dashboards.ranking import Leaderboard, leaderboard
from dashboards.record import StudyRecord, architecture_of, name_of, read_study
from dashboards.winner import smoothness_warning
from storage.database import Database
from storage.errors import DatabaseError, StudyNotFoundError
from storage.studies import StudySummary, list_studies
from storage.trials.views import TrialRow
from storage.workers import LiveWorker, live_workers

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Allows inline styles, which plotly sets; nothing from elsewhere, and no scripts but our two files."""

_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True)
class Failure:
    """A reason, and the trials that failed because of it."""

    reason: str
    trials: tuple[TrialRow, ...]


def make_app(database: Database) -> Flask:
    """The pages under ``/anitune`` as a WSGI application."""
    app = Flask(
        __name__,
        static_folder="../assets",
        static_url_path=f"{links.PAGE}/static",
        template_folder="templates",
    )
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters |= {
        "duration": duration,
        "number": format_number,
        "arch": architecture_of,
        "name": name_of,
        "figure": figure_json,
    }
    app.jinja_env.globals |= {"links": links, "mlflow": links.MLFLOW_VIA_OPTUNA}

    shared: Coalescing[str] = Coalescing()

    @app.get(f"{links.PAGE}/")
    def studies() -> str:
        return shared(request.path, lambda: _studies(database))

    @app.get(f"{links.PAGE}/studies/<name>")
    def study(name: str) -> str:
        return shared(request.path, lambda: _study(database, name))

    @app.get(f"{links.PAGE}/static/plotly.min.js")
    def plotly() -> Response:
        response = Response(_plotly(), mimetype="text/javascript")
        response.headers["Content-Encoding"] = "gzip"
        response.cache_control.max_age = 86_400
        return response

    @app.after_request
    def finish(response: Response) -> Response:
        response.headers.update(_HEADERS)
        if response.mimetype == "text/html" and response.status_code == 200:
            response.cache_control.no_cache = True  # the browser asks each time whether the page has changed
            response.add_etag()
            response.make_conditional(request)
        return response

    @app.errorhandler(StudyNotFoundError)
    def no_study(error: StudyNotFoundError) -> tuple[str, int]:
        return render_template("error.html", message=str(error)), 404

    @app.errorhandler(404)
    def no_page(error: Exception) -> tuple[str, int]:
        return render_template("error.html", message="There is no such page."), 404

    @app.errorhandler(DatabaseError)
    def no_database(error: DatabaseError) -> tuple[str, int]:
        return render_template("error.html", message=str(error)), 503

    return app


def _studies(database: Database) -> str:
    return render_template(
        "studies.html",
        studies=[(summary, study_state_line(summary)) for summary in reversed(list_studies(database))],
        workers=live_workers(database),
    )


def _study(database: Database, name: str) -> str:
    record = read_study(database, name)
    board = leaderboard(record)
    return render_template(
        "study.html",
        record=record,
        summary=record.summary,
        state_line=study_state_line(record.summary),
        budget=format_budget(record.summary.budget),
        gain=format_gain(record.summary),
        earlier=[format_earlier(each, record.facts) for each in record.earlier],
        board=board,
        first=next((place for place in board.places if place.rank == 1), None),
        replicates=any(trial.replicate_of is not None for trial in record.trials),
        noise=format_noise(board),
        front=format_front(record.front, record.summary.objectives) if record.front is not None else None,
        rough=smoothness_warning(record),
        tied=_tied(board),
        charts=charts(record),
        workers=[worker for worker in live_workers(database) if _serves(worker, record.summary)],
        failures=failures(record.trials),
    )


def charts(record: StudyRecord) -> list[Chart]:
    """The plots of a study's page."""
    return [
        figures.history([record]),
        figures.cost([record]),
        figures.history([record], "seconds"),
        figures.cost([record], "structures_per_second"),
    ]


def failures(trials: Sequence[TrialRow]) -> list[Failure]:
    """Reasons of failed trials, the most frequent first."""
    failed = [trial for trial in trials if trial.state == "failed"]
    counts = Counter(trial.reason or "the reason is unknown" for trial in failed)
    return [
        Failure(
            reason, tuple(trial for trial in failed if (trial.reason or "the reason is unknown") == reason)
        )
        for reason, _ in counts.most_common()
    ]


@cache
def _plotly() -> bytes:
    return gzip.compress(files("plotly").joinpath("package_data", "plotly.min.js").read_bytes())


def _tied(board: Leaderboard) -> int:
    return sum(place.in_noise for place in board.places if place.rank is not None)


def _serves(worker: LiveWorker, summary: StudySummary) -> bool:
    return worker.study in (None, summary.name) or any(trial.study == summary.name for trial in worker.trials)
