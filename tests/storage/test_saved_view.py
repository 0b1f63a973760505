from __future__ import annotations

import json

from storage.tracking.saved_view import VIEW, view_tags


def test_the_view_sorts_by_what_complete_trials_reached_and_begins_with_architectures() -> None:
    ((key, value),) = view_tags(1_700_000_000_000, ["val_mae"]).items()
    assert key == f"mlflow.sharedViewState.{VIEW}"
    assert len(value) <= 5000  # what MLflow takes
    view = json.loads(value)
    state = json.loads(view["state"])
    assert view["createdAt"] == 1_700_000_000_000
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`final/val_mae_kcalmol`", True)
    assert state["selectedColumns"][0] == "tags.`arch`"
    assert [chart["metricKey"] for chart in state["compareRunCharts"]][:2] == ["val/mae_kcalmol", "val/loss"]
    (section,) = state["compareRunSections"]
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {section["uuid"]}
