"""``anitune study list``, ``show`` and ``best``: show studies and their results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape

from dashboards.formatting import format_earlier, format_front
from search.cli.opening import open_home, opened_study
from search.cli.options import Json, Name
from search.cli.output import leaderboard, make_console, rows_table, studies_table, summary_lines
from search.cli.terminal import echo
from search.errors import SearchError
from search.recorded import with_reference
from storage.blobs.place import open_blobs
from storage.earlier_studies import EarlierStudy, earlier_studies
from storage.studies import Study, StudySummary, list_studies, summarize_study
from storage.trials.front import front_of_several
from storage.trials.views import TrialRow, complete_trials, errors_over_seeds, trial_rows
from trainer.files import MODEL


def list_(
    as_json: Json = False,
    archived: Annotated[bool, typer.Option("--archived", help="Show the archived studies instead.")] = False,
) -> None:
    """Show all studies that are not archived."""
    with open_home() as database:
        summaries = list_studies(database, archived=archived)
    if as_json:
        typer.echo(json.dumps([_summary_values(summary) for summary in summaries], indent=2))
    elif summaries:
        make_console().print(studies_table(summaries))
    elif archived:
        echo("No study is archived.")
    else:
        echo("No studies yet. Create one with: anitune study run FILE")


def show(name: Name, as_json: Json = False) -> None:
    """Show the state of a study: trials by state, the best one, time spent, epochs saved by pruning."""
    with opened_study(name) as study:
        summary = summarize_study(study.database, study)
        trials = trial_rows(study.database, study)
        earlier = earlier_studies(study.database, study)
        facts = study.facts
        *references, (_, config) = with_reference(study)
        reference = [row for other, _ in references for row in trial_rows(study.database, other)]
    front = front_of_several(trials, summary.objectives)
    if as_json:
        if front is not None:
            knee = front.knee.number if front.knee is not None else None
            of_front = {"front": [trial.number for trial in front.trials], "knee": knee}
        else:
            of_front = {}
        values = _summary_values(summary) | of_front
        values |= {"learned_from": [_earlier_values(each) for each in earlier]}
        values |= {"rows": [_trial_values(trial) for trial in trials]}
        typer.echo(json.dumps(values, indent=2))
        return
    console = make_console()
    console.print(f"[bold]{escape(name)}[/]")
    for line in summary_lines(summary):
        console.print(line, markup=False)
    for each in earlier:
        console.print(f"learns from  {format_earlier(each, facts)}", markup=False)
    console.print(leaderboard(trials, reference, summary.objectives))
    if front is not None:
        console.print(format_front(front, summary.objectives), markup=False)
    if config.rows is not None:
        console.print(rows_table(config, trials))


def best(name: Name, as_json: Json = False) -> None:
    """Show the best trial of a study: its settings, validation MAE, MLflow run and weights."""
    with opened_study(name) as study:
        values = best_values(study, trial_rows(study.database, study))
    if values is None:
        raise SearchError(f"{name}: no trial is complete yet; see: anitune study show {name}")
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    for key, value in values.items():
        echo(f"{key:<20} {json.dumps(value) if isinstance(value, dict) else value}")


def best_values(study: Study, trials: Sequence[TrialRow]) -> dict[str, Any] | None:
    """Return what people want to know about the best trial of a study, by name, if a trial is complete.

    The error of a finalist is the mean over its ``seeds``.
    """
    trial = next(iter(complete_trials(trials)), None)
    if trial is None:
        return None
    errors = errors_over_seeds(trials)(trial)
    folder = study.database.settings.attempt_folder(study.name, trial.number, trial.attempt)
    weights = folder / MODEL
    if not weights.is_file():  # trained on another machine
        digest = next(file.digest for file in trial.artifacts if file.path == MODEL)
        weights = open_blobs(study.database).path(digest)
    return {
        "study": study.name,
        "trial": trial.number,
        "architecture": trial.tags["arch"],
        "val_mae_kcalmol": statistics.fmean(errors),
        "seeds": len(errors),
        "parameters": trial.params,
        "mlflow_run_id": trial.mlflow_run_id,
        "weights": str(weights),
        "plots": str(folder / "plots"),
    }


def _summary_values(summary: StudySummary) -> dict[str, Any]:
    return {
        "name": summary.name,
        "state": summary.state,
        "created_at": summary.created_at,
        "limits": {
            "trials": summary.budget.trials,
            "seconds": summary.budget.seconds,
            "epochs": summary.budget.epochs,
            "until_no_gain": summary.budget.until_no_gain,
        },
        "objectives": list(summary.objectives),
        "expected_gain": asdict(summary.gain) if summary.gain is not None else None,
        "trials": summary.trials,
        "best_trial": summary.best_number,
        "best_val_mae_kcalmol": summary.best_value,
        "seconds": summary.seconds,
        "epochs": summary.epochs,
        "epochs_saved_by_pruning": summary.epochs_saved,
    }


def _earlier_values(earlier: EarlierStudy) -> dict[str, Any]:
    return {
        "study": earlier.name,
        "trials": earlier.trials,
        "trials_used": len(earlier.results),
        "digest": earlier.digest,
    }


def _trial_values(trial: TrialRow) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "state": trial.state,
        "architecture": trial.tags.get("arch"),
        "val_mae_kcalmol": trial.value,
        "parameters": trial.params,
        "epochs": trial.epochs,
        "seconds": trial.seconds,
        "attempt": trial.attempt,
        "reason": trial.reason,
        "mlflow_run_id": trial.mlflow_run_id,
        "metrics": trial.summary,
    }
