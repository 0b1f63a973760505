"""Notes on trials, runs and studies in the two dashboards: records in, Markdown out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dashboards import links
from dashboards.formatting import format_front, format_seeds, trained_on
from dashboards.formatting import markdown_code as _code
from dashboards.formatting import markdown_text as _text
from dashboards.ranking import FEW_COMPLETE
from storage.studies import StudySummary
from storage.trials.front import front_of_several
from storage.trials.views import TrialRow

PLACES = 20
"""Maximum number of trials in a ranked table."""

LOSS_PLOT = "plots/loss.png"
PARITY_PLOT = "plots/parity.png"

_SETTINGS = ("learning_rate", "batch_size", "dropout", "weight_decay")
_MORE_SETTINGS = ("optimizer", "schedule", "epochs", "ema_decay", "loss", "seed", "precision")
_HEAVY = re.compile(r"val/mae_kcalmol_heavy_(\d+)")


@dataclass(frozen=True)
class OptunaImage:
    """An image of a trial in the Optuna dashboard: its file name, such as ``loss.png``, and its Optuna id."""

    name: str
    artifact_id: str


def mlflow_trial_note(trial: TrialRow, back: str | None = None) -> str:
    """The note of a trial's run. MLflow cuts it after about four lines, so the first lines say what matters.

    Parameters
    ----------
    back
        Address of the trial in the Optuna dashboard, if it is known.
    """
    link = f" · [trial {trial.number} in Optuna]({back})" if back is not None else ""
    note = [f"{_name(trial)}: {_outcome(trial)}{link}", "", _cost(trial), "", *_errors(trial)]
    if trial.mlflow_run_id is not None:
        note += [
            f"![{path}]({links.mlflow_image(trial.mlflow_run_id, path)})"
            for path in (LOSS_PLOT, PARITY_PLOT)
            if path in {file.path for file in trial.artifacts}
        ]
    return _joined(note)


def mlflow_study_note(summary: StudySummary, trials: Sequence[TrialRow], back: str | None = None) -> str:
    """The note of a study's run: the best architecture, the state of the study, and a ranked table.

    Parameters
    ----------
    back
        Address of the study on our page, if it is known.
    """

    def link(trial: TrialRow) -> str | None:
        if trial.mlflow_run_id is None or summary.mlflow_experiment_id is None:
            return None
        return links.mlflow_run("", summary.mlflow_experiment_id, trial.mlflow_run_id)

    leaderboard = f" · [leaderboard]({back})" if back is not None else ""
    best = f"{_best(summary, trials)}{leaderboard}"
    return _joined(
        [best, "", *_front(summary, trials), _state_line(summary), "", *_ranked(summary, trials, link)]
    )


def optuna_trial_note(
    study: int, experiment: str | None, trial: TrialRow, images: Sequence[OptunaImage]
) -> str:
    """The note of a trial in the Optuna dashboard: outcome, plots, errors, settings.

    Parameters
    ----------
    study
        Optuna's id of the study.
    experiment
        MLflow's id of the study's experiment, if it exists already.
    """
    note = [f"### {_name(trial)}", "", _outcome(trial), "", _cost(trial)]
    if experiment is not None and trial.mlflow_run_id is not None:
        place = (links.MLFLOW_VIA_OPTUNA, experiment, trial.mlflow_run_id)
        note += [
            "",
            f"[Run in MLflow]({links.mlflow_run(*place)}), [its losses]({links.mlflow_run_losses(*place)})",
        ]
    note.append("")
    plots = {image.name: image.artifact_id for image in images}
    for path in (LOSS_PLOT, PARITY_PLOT):
        name = path.rpartition("/")[2]
        if name in plots:
            note += [f"![{name}]({links.optuna_image(study, trial.optuna_trial_id, plots[name])})", ""]
    return _joined([*note, *_errors(trial), *_settings(trial)])


def optuna_study_note(study: int, summary: StudySummary, trials: Sequence[TrialRow]) -> str:
    """The note of a study in the Optuna dashboard: links, the best architecture, and a ranked table."""
    note = [f"### {_text(summary.name)}", ""]
    pages = {
        "Leaderboard": links.study_page("", summary.name),
        "Best trial": links.optuna_best_trials("", study),
    }
    if (experiment := summary.mlflow_experiment_id) is not None:
        pages["Runs in MLflow, best first"] = links.mlflow_leaderboard(links.MLFLOW_VIA_OPTUNA, experiment)
        pages["Loss curves of the best"] = links.mlflow_curves(links.MLFLOW_VIA_OPTUNA, experiment)
    note += [", ".join(f"[{title}]({url})" for title, url in pages.items()), ""]
    note += [_best(summary, trials), "", *_front(summary, trials), _state_line(summary), ""]
    note += _ranked(summary, trials, lambda trial: links.optuna_trial("", study, trial.number))
    if (count := summary.trials["complete"]) < FEW_COMPLETE:
        note += [f"With {count} complete trials only, much of what the importance plot shows is chance."]
    return _joined(note)


def _best(summary: StudySummary, trials: Sequence[TrialRow]) -> str:
    best = next((trial for trial in trials if trial.number == summary.best_number), None)
    if best is None:
        return "No trial is complete yet."
    error, seeds = f"{summary.best_value:.3f} kcal/mol", format_seeds(summary.best_seeds)
    return f"Best: {_name(best)}, validation MAE **{error}** (trial {best.number}{seeds})"


def _front(summary: StudySummary, trials: Sequence[TrialRow]) -> list[str]:
    """The Pareto front and its knee, for a study of several objectives."""
    front = front_of_several(trials, summary.objectives)
    return [format_front(front, summary.objectives), ""] if front is not None else []


def _state_line(summary: StudySummary) -> str:
    states = ", ".join(f"{count} {state}" for state, count in summary.trials.items() if count)
    limit = f" of {summary.budget.trials}" if summary.budget.trials is not None else ""
    return (
        f"{sum(summary.trials.values())}{limit} trials started ({states or 'none'});"
        f" {summary.epochs:,} epochs trained, {summary.epochs_saved:,} saved by pruning"
    )


def _name(trial: TrialRow) -> str:
    """The architecture, preceded by the label of a listed configuration."""
    name = _code(trial.tags["arch"]) if "arch" in trial.tags else f"trial {trial.number}"
    return f"row {_text(trial.tags['row'])}, {name}" if "row" in trial.tags else name


def _outcome(trial: TrialRow) -> str:
    of_planned = f"{trial.epochs} of {trial.planned_epochs} epochs"
    if trial.state == "failed":
        return f"**failed** after {trial.epochs} epochs: {_text(trial.reason or 'the reason is unknown')}"
    if trial.value is None:
        return f"{trial.state}, {of_planned}"
    error = f"validation MAE **{trial.value:.3f} kcal/mol**"
    return (
        f"{error} after {of_planned}"
        if trial.state == "complete"
        else f"{error} when {trial.state} after {of_planned}"
    )


def _cost(trial: TrialRow) -> str:
    words = [f"{trial.summary['parameters']:,.0f} parameters"] if "parameters" in trial.summary else []
    words += [
        f"{trial.seconds:,.0f} s",
        f"on {_text(trained_on(trial))}",
        f"by {_text(trial.worker.name)}",
    ]
    words += [f"attempt {trial.attempt}"] if trial.attempt > 1 else []
    return ", ".join(words)


def _settings(trial: TrialRow) -> list[str]:
    config = trial.config or {}
    shown = {name: config[name] for name in (*_SETTINGS, *_MORE_SETTINGS) if config.get(name) is not None}
    return _table(
        ("setting", "value"), [(name.replace("_", " "), _value(value)) for name, value in shown.items()]
    )


def _errors(trial: TrialRow) -> list[str]:
    """Errors by number of heavy atoms, kcal/mol."""
    rows = [
        (found[1], f"{value:.3f}", f"{trial.summary[key.replace('mae', 'rmse')]:.3f}")
        for key, value in trial.summary.items()
        if (found := _HEAVY.fullmatch(key)) is not None
    ]
    return _table(("heavy atoms", "val MAE, kcal/mol", "val RMSE, kcal/mol"), rows)


def _ranked(
    summary: StudySummary, trials: Sequence[TrialRow], link: Callable[[TrialRow], str | None]
) -> list[str]:
    """The best complete trials, one row each; all of the Pareto front if there are several objectives."""
    front = front_of_several(trials, summary.objectives)
    complete = sorted(
        ((trial.value, trial) for trial in trials if trial.state == "complete" and trial.value is not None),
        key=lambda pair: pair[0],
    )
    rows = []
    for rank, (value, trial) in enumerate(complete, start=1):
        mark = front.mark(trial) if front is not None else ""
        if rank > PLACES and not mark:
            continue
        url = link(trial)
        number = f"[{trial.number}]({url})" if url is not None else str(trial.number)
        config: Mapping[str, object] = trial.config or {}
        cells = [str(rank), number, _name(trial), f"**{value:.3f}**"]
        cells += [f"{trial.summary['parameters']:,.0f}" if "parameters" in trial.summary else ""]
        cells += [_value(config[name]) if name in config else "" for name in _SETTINGS]
        rows.append((*cells, f"{trial.seconds:,.0f}", *((mark,) if front is not None else ())))
    headings = ["rank", "trial", "architecture", "val MAE, kcal/mol", "parameters"]
    headings += [*(name.replace("_", " ") for name in _SETTINGS), "time, s"]
    headings += ["front"] if front is not None else []
    left = len(complete) - len(rows)
    return [*_table(headings, rows), *([f"{left} more complete trials.", ""] if left else [])]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    return [*(f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)), ""]


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else _text(str(value))


def _joined(lines: Sequence[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"
