"""Addresses of pages in the two dashboards, as their pages themselves use them.

MLflow opens in a mode for language models: every link to it names the other mode. Its pages are named after
the ``#`` of the address, so ``server`` may be a server's address, one that redirects to it, or empty for a
link from one of its pages to another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import quote, urlencode

from storage.tracking.projection import FINAL_METRIC, STATE_TAG

MLFLOW_VIA_OPTUNA = "/mlflow"
"""Leads from the Optuna dashboard to MLflow, whatever its port: see :mod:`dashboards.optuna_server`."""

_VIEW = "leaderboard"
_VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
_BEST_FIRST = {"orderByKey": f"metrics.`{FINAL_METRIC}`", "orderByAsc": True}
_COLUMNS = (
    "tags.`arch`",
    f"metrics.`{FINAL_METRIC}`",
    "metrics.`cost/parameters`",
    "metrics.`cost/seconds`",
    "params.`learning_rate`",
    "params.`batch_size`",
    "params.`dropout`",
    "params.`weight_decay`",
    f"tags.`{STATE_TAG}`",
)


def mlflow_experiments(server: str) -> str:
    """All experiments, one a study."""
    return _mlflow(server, "experiments")


def mlflow_leaderboard(server: str, experiment: str) -> str:
    """The runs of a study as a table, the best first, in the view that :func:`mlflow_view_tags` keeps."""
    return _mlflow(server, f"experiments/{experiment}/runs", viewStateShareKey=_VIEW, **_sorted())


def mlflow_curves(server: str, experiment: str) -> str:
    """Loss curves of the best runs of a study, over each other."""
    return _mlflow(server, f"experiments/{experiment}/runs", compareRunsMode="CHART", **_sorted())


def mlflow_run(server: str, experiment: str, run: str) -> str:
    """One run: note, parameters, final metrics."""
    return _mlflow(server, f"experiments/{experiment}/runs/{run}")


def mlflow_run_curves(server: str, experiment: str, run: str) -> str:
    """The metrics of one run over its epochs."""
    return _mlflow(server, f"experiments/{experiment}/runs/{run}/model-metrics")


def mlflow_run_file(server: str, experiment: str, run: str, path: str) -> str:
    """A file of one run, such as ``plots/loss.png``."""
    return _mlflow(server, f"experiments/{experiment}/runs/{run}/artifactPath/{quote(path)}")


def mlflow_image(run: str, path: str) -> str:
    """The content of an image of a run, for a note that MLflow shows."""
    return f"get-artifact?{urlencode({'run_uuid': run, 'path': path}, safe='/')}"


def mlflow_view_tags(time_ms: int) -> Mapping[str, str]:
    """The tag of an experiment that puts the leaderboard, with columns worth reading, into its menu of views.

    Parameters
    ----------
    time_ms
        When the view is said to be made: milliseconds since 1970-01-01 UTC.
    """
    state = {
        "searchFilter": "",
        **_BEST_FIRST,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": _COLUMNS,
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsHiddenMode": "SHOWALL",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
    }
    view = {"name": _VIEW, "createdAt": time_ms, "updatedAt": time_ms, "state": json.dumps(state)}
    return {_VIEW_TAG: json.dumps(view)}


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
    return f"/artifacts/{study}/{trial}/{artifact}"


def _sorted() -> dict[str, str]:
    return {key: json.dumps(value) if value is True else str(value) for key, value in _BEST_FIRST.items()}


def _mlflow(server: str, page: str, **query: str) -> str:
    start = f"{server}/" if server else ""
    words = urlencode({**query, "workflowType": "machine_learning"}, quote_via=quote, safe="")
    return f"{start}#/{page}?{words}"
