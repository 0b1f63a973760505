"""Maps messages to the names, tags, colours and states that MLflow's UI shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from storage.tracking.mlflow_runs import RunStatus
from storage.tracking.outbox import MetricRow, TrialEnd, TrialEndMessage

PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
COLOR_TAG = "mlflow.runColor"
STATE_TAG = "optuna.state"
FRONT_TAG = "front"
"""Marks the trials on the Pareto front of a study of several objectives: ``front``, or ``knee``."""

FINAL_METRIC = "final/val_mae_kcalmol"
"""Only complete trials have it: by the last step of a metric a pruned trial can beat a complete one."""

RUNNING_TAGS = {STATE_TAG: "RUNNING"}

UNFINISHED: Final[Mapping[str, tuple[RunStatus, dict[str, str]]]] = {
    "running": ("RUNNING", RUNNING_TAGS),
    "paused": ("SCHEDULED", {STATE_TAG: "PAUSED"}),
}
"""Run status and tags of a trial that has not ended, by the trial's state."""


@dataclass(frozen=True)
class _End:
    status: RunStatus
    optuna_state: str
    color: str | None
    """None lets MLflow choose distinct colours for complete trials. It shows KILLED and FAILED alike."""


_ENDS: Mapping[TrialEnd, _End] = {
    "complete": _End("FINISHED", "COMPLETE", None),
    "pruned": _End("KILLED", "PRUNED", "#9e9e9e"),
    "failed": _End("FAILED", "FAIL", "#d32f2f"),
}


def study_run_key(name: str, created_at: float) -> str:
    """A permanent key of a study in MLflow, where another home folder may have a study of the same name."""
    return f"{name}@{round(created_at * 1000)}"


def run_name(number: int) -> str:
    """The name of a trial's run."""
    return f"trial {number}"


def param_texts(params: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as MLflow stores them: text unchanged, everything else as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in params.items()}


def end_status(message: TrialEndMessage) -> RunStatus:
    """Run status of a trial that ended."""
    return _ENDS[message.state].status


def end_tags(message: TrialEndMessage) -> dict[str, str]:
    """Tags with the result of a trial."""
    end = _ENDS[message.state]
    tags = {**message.tags, STATE_TAG: end.optuna_state}
    if end.color is not None:
        tags[COLOR_TAG] = end.color
    if message.state == "pruned":
        tags["pruned"] = "true"
    if message.state == "failed":
        tags["fail_reason"] = message.reason or "unknown"
    return tags


def end_metrics(message: TrialEndMessage, ended_ms: int) -> list[MetricRow]:
    """Final metrics of a trial: always its cost (``cost/...``), and its accuracy if complete (``final/...``).

    Accuracies are the summary keys that contain a slash: ``val/mae_kcalmol_heavy_2`` becomes
    ``final/val_mae_kcalmol_heavy_2``.
    """
    values: dict[str, float] = {}
    for key, value in message.summary.items():
        if "/" not in key:
            values[f"cost/{key}"] = value
        elif message.state == "complete":
            values[f"final/{key.replace('/', '_')}"] = value
    if message.state == "complete" and message.value is not None:
        values[FINAL_METRIC] = message.value  # exactly the number in Optuna
    return [MetricRow(key, step=0, value=value, time_ms=ended_ms) for key, value in values.items()]
