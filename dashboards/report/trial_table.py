"""All trials of one or more studies as a table, for CSV files and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dashboards.formatting import trained_on
from dashboards.ranking import leaderboard
from dashboards.record import StudyRecord, architecture_of
from storage.trials.views import TrialRow
from trainer.csv_text import csv_text
from trainer.networks.widths import widths_text


def trials_table(records: Sequence[StudyRecord], reference: bool = True) -> list[dict[str, Any]]:
    """One row for each trial, the best of each study first.

    Settings are named ``config.NAME``, and metrics as they are recorded, such as
    ``val/mae_kcalmol_heavy_2`` (kcal/mol).

    Parameters
    ----------
    reference
        Whether to include the rows of the reference study, which have no rank.
    """
    rows = []
    for record in records:
        for place in leaderboard(record).places:
            own = place.trial in record.trials if "row" in place.trial.tags else True
            if not own and not reference:
                continue
            home = record if own or record.reference is None else record.reference
            spread = place.spread
            rows.append(
                {
                    "study": home.name,
                    "trial": place.trial.number,
                    "row": place.trial.tags.get("row"),
                    "rank": place.rank,
                    "state": place.trial.state,
                    "architecture": architecture_of(place.trial),
                    "val_mae_kcalmol": place.trial.value,
                    "ci95_half_width_kcalmol": place.interval,
                    "seeds_mean_kcalmol": spread.mean if spread is not None else None,
                    "seeds_deviation_kcalmol": spread.deviation if spread is not None else None,
                    "seeds": spread.count if spread is not None else None,
                    "in_noise_of_best": place.in_noise,
                    **({"front": place.front} if home.front is not None else {}),
                    **_of_trial(place.trial),
                }
            )
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def trials_csv(records: Sequence[StudyRecord]) -> str:
    """The same table as comma-separated values with a header line."""
    return csv_text(trials_table(records), columns=("study", "trial"))


def _of_trial(trial: TrialRow) -> dict[str, Any]:
    config = dict(trial.config or {})
    if (hidden := config.get("hidden")) is not None:
        config["hidden"] = widths_text(hidden)
    return {
        "epochs": trial.epochs,
        "planned_epochs": trial.planned_epochs,
        "wall_seconds": round(trial.seconds, 3),
        "attempts": trial.attempt,
        "worker": trial.worker.name,
        "device": trial.worker.device,
        "precision": trial.worker.precision,
        "trained_on": trained_on(trial),
        "reason": trial.reason,
        "mlflow_run_id": trial.mlflow_run_id,
        **{f"config.{name}": value for name, value in config.items()},
        **trial.summary,
    }
