"""Addresses of pages in the two dashboards, in the form that their own pages use.

MLflow opens in a mode for language models unless the link names the other mode, so each link does. The names
of its pages follow the ``#`` of the address, so ``server`` may be a server's address, one that redirects to
it, or empty for a link from one of its pages to another.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Final
from urllib.parse import quote, urlencode, urlsplit

from storage.settings import Settings
from storage.tracking.saved_view import VIEW

DASHBOARDS_VARIABLE: Final = "ANITUNE_DASHBOARDS_URL"
"""Variable with the address of our first page and the Optuna dashboard, for links in MLflow's notes."""

PAGE: Final = "/anitune"
"""Prefix of the paths of our own pages, on the server of the Optuna dashboard."""

MLFLOW_VIA_OPTUNA = "/mlflow"
"""Path that leads from the Optuna dashboard to MLflow on any port: see :mod:`dashboards.optuna_server`."""


def usual_port(settings: Settings) -> int:
    """Default port of our pages and the Optuna dashboard, which depends only on the home folder.

    So links to them in MLflow's notes stay right. It is below the range of ephemeral ports.
    """
    digest = hashlib.sha256(str(settings.home).encode()).digest()
    return 20_000 + int.from_bytes(digest[:4]) % 10_000


def usual_address(settings: Settings) -> str | None:
    """Address of our pages and the Optuna dashboard, as far as it is known before they start.

    With an MLflow server on another machine it is known only if :data:`DASHBOARDS_VARIABLE` gives it.
    """
    if said := os.environ.get(DASHBOARDS_VARIABLE):
        return said.rstrip("/")
    host = urlsplit(settings.tracking_uri).hostname if "://" in settings.tracking_uri else None
    if settings.tracking_uri.startswith(("http://", "https://")) and host not in ("127.0.0.1", "localhost"):
        return None
    return f"http://127.0.0.1:{usual_port(settings)}"


def first_page(server: str) -> str:
    """Our page of all studies and running workers."""
    return f"{server}{PAGE}/"


def study_page(server: str, study: str, trial: int | None = None) -> str:
    """Our page with the leaderboard of a study; the line of ``trial`` is highlighted."""
    mark = f"#trial-{trial}" if trial is not None else ""
    return f"{server}{PAGE}/studies/{quote(study)}{mark}"


def mlflow_experiments(server: str) -> str:
    """All experiments, one for each study."""
    return _mlflow(server, "experiments")


def mlflow_leaderboard(server: str, experiment: str) -> str:
    """The runs of a study as a table, the best first."""
    return _mlflow(server, f"experiments/{_part(experiment)}/runs", viewStateShareKey=VIEW)


def mlflow_curves(server: str, experiment: str) -> str:
    """Loss curves of the best runs of a study, over each other."""
    return _mlflow(
        server,
        f"experiments/{_part(experiment)}/runs",
        viewStateShareKey=VIEW,
        compareRunsMode="CHART",
    )


def mlflow_run(server: str, experiment: str, run: str) -> str:
    """One run: note, parameters, final metrics."""
    return _mlflow(server, f"experiments/{_part(experiment)}/runs/{_part(run)}")


def mlflow_run_losses(server: str, experiment: str, run: str) -> str:
    """The losses of one run over its epochs, on a log scale."""
    return _mlflow(
        server,
        "metric",
        runs=json.dumps([run]),
        experiments=json.dumps([experiment]),
        metric=json.dumps("val/loss"),
        plot_metric_keys=json.dumps(["train/loss", "val/loss"]),
        x_axis="step",
        y_axis_scale="log",
        plot_layout=json.dumps({"autosize": True, "xaxis": {}, "yaxis": {"type": "log"}}),
        show_point="true",
    )


def mlflow_run_file(server: str, experiment: str, run: str, path: str) -> str:
    """A file of one run, such as ``plots/loss.png``."""
    return _mlflow(server, f"experiments/{_part(experiment)}/runs/{_part(run)}/artifactPath/{quote(path)}")


def mlflow_image(run: str, path: str) -> str:
    """The content of an image of a run, for a note that MLflow shows."""
    return f"get-artifact?{urlencode({'run_uuid': run, 'path': path}, safe='/')}"


def optuna_studies(server: str) -> str:
    """All studies."""
    return f"{server}/dashboard"


def optuna_study(server: str, study: int) -> str:
    """A study: history, importance of settings, intermediate values."""
    return f"{server}/dashboard/studies/{study}"


def optuna_note(server: str, study: int) -> str:
    """The note of a study, with the ranked table."""
    return f"{server}/dashboard/studies/{study}/note"


def optuna_best_trials(server: str, study: int) -> str:
    """The best trial of a study, among the list of all."""
    return f"{server}/dashboard/studies/{study}/trials?best=true"


def optuna_trial(server: str, study: int, number: int) -> str:
    """One trial of a study."""
    return f"{server}/dashboard/studies/{study}/trials?numbers={number}"


def optuna_image(study: int, trial: int, artifact: str) -> str:
    """The content of an image of a trial (by Optuna's ids), for a note that the dashboard shows."""
    return f"/artifacts/{study}/{trial}/{_part(artifact)}"


def _part(name: str) -> str:
    return quote(name, safe="")


def _mlflow(server: str, page: str, **query: str) -> str:
    start = f"{server}/" if server else ""
    words = urlencode({**query, "workflowType": "machine_learning"}, quote_via=quote, safe="")
    return f"{start}#/{page}?{words}"
