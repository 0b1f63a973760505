"""A saved view of an experiment: by default MLflow shows neither architectures nor errors, and curves last.

MLflow stores shared views as tags of the experiment. Their format is not documented; the one used here is
that of MLflow 3.17.2. ``tests/storage/test_private_parts.py`` fails first when it changes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from storage.tracking.projection import FINAL_METRIC, FRONT_TAG, STATE_TAG

VIEW = "leaderboard"
"""Name of the view, in the menu of views and in addresses."""

_WIDTHS = {
    "tags.`arch`": 190,
    f"metrics.`{FINAL_METRIC}`": 170,
    "metrics.`cost/parameters`": 130,
    "metrics.`cost/seconds`": 110,
    "params.`learning_rate`": 110,
    "params.`batch_size`": 100,
    "params.`dropout`": 90,
    "params.`weight_decay`": 110,
    f"tags.`{STATE_TAG}`": 110,
}
"""The columns in their order, with widths in pixels."""

_CURVES = ("val/mae_kcalmol", "val/loss", "train/loss", "train/learning_rate")
_SECTION = "Curves"


def view_tags(time_ms: int, objectives: Sequence[str]) -> dict[str, str]:
    """The tag that gives an experiment the view; MLflow's limit is 5,000 characters.

    Parameters
    ----------
    time_ms
        Creation time recorded in the view: milliseconds since 1970-01-01 UTC.
    objectives
        Those of the study; with several, a column marks the trials on the Pareto front.
    """
    widths = _WIDTHS | ({f"tags.`{FRONT_TAG}`": 80} if len(objectives) > 1 else {})
    state = {
        "searchFilter": "",
        "orderByKey": f"metrics.`{FINAL_METRIC}`",  # sorting also shows the child runs of the study's run
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(widths),
        "columnOrder": list(widths),
        "columnWidths": widths,
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsHiddenMode": "FIRST_20_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,  # keeps our section above those that MLflow adds
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "compareRunSections": [
            {
                "uuid": _identity(_SECTION),
                "name": _SECTION,
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
        ],
        "compareRunCharts": [_curve(metric) for metric in _CURVES],
    }
    view = {"name": VIEW, "createdAt": time_ms, "updatedAt": time_ms, "state": json.dumps(state)}
    return {f"mlflow.sharedViewState.{VIEW}": json.dumps(view)}


def _curve(metric: str) -> dict[str, Any]:
    """A chart of a metric over the epochs, on a log scale."""
    return {
        "type": "LINE",
        "uuid": _identity(metric),
        "metricSectionId": _identity(_SECTION),
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 20,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "displayName": metric,
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": False,
        "xAxisKey": "step",
        "useGlobalXaxisKey": False,
        "selectedXAxisMetricKey": "",
        "xAxisScaleType": "linear",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "scaleType": "log",
        "range": {},
        "ignoreOutliers": False,
    }


def _identity(name: str) -> str:
    """Id of a chart or section. MLflow's are random; these depend only on the name."""
    return str(uuid5(NAMESPACE_URL, f"anitune:{name}"))
