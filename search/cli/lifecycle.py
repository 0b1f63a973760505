"""``anitune study enqueue``, ``extend``, ``pause``, ``resume``, ``stop``, ``archive``, ``delete``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from dashboards.formatting import format_budget
from search.cli.opening import open_home, opened_study
from search.cli.options import Name
from search.cli.output import summary_lines, working
from search.cli.terminal import echo
from search.documents import read_document
from search.propose.enqueued import enqueued, params_from_settings, setting_value
from search.propose.samplers import trial_limit
from search.study import study_from_record
from storage.database import Database
from storage.deletion import delete_study
from storage.errors import StudyNotFoundError
from storage.lifecycle import change_state, extend_budget
from storage.studies import Budget, Study, StudyState, open_study, summarize_study
from trainer.errors import ConfigError


def enqueue(
    name: Name,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Settings of a training (YAML), such as hidden: [128, 64]."),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting; it overrides FILE.")
    ] = None,
) -> None:
    """Enqueue a configuration as the next trial. The sampler proposes the settings that it leaves open."""
    document = read_document(file) if file is not None else None
    values: dict[str, Any] = dict(document.values) if document is not None else {}
    for word in setting or ():
        key, equals, text = word.partition("=")
        if not equals:
            raise typer.BadParameter(f"write KEY=VALUE (got {word!r})", param_hint="--set")
        values[key] = setting_value(key, text)
    with opened_study(name) as study:
        config = study_from_record(study.config, name)
        lines = document.lines if document is not None else None
        params = params_from_settings(config, values, str(file or "--set"), lines)
        enqueued(study, params)
        summary = summarize_study(study.database, study)
    echo(f"{name}: enqueued {', '.join(f'{key} {value}' for key, value in params.items())}")
    if summary.budget.trials is not None and sum(summary.trials.values()) >= summary.budget.trials:
        echo(f"All trials of its budget have started; add one with: anitune study extend {name} --trials 1")


def extend(
    name: Name,
    trials: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of additional trials.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(min=0, metavar="N", help="Number of additional hours of work.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of additional epochs.")
    ] = None,
) -> None:
    """Raise the limits of a study.

    `study run FILE` keeps the new limits until a limit in the file is edited.
    """
    if trials is None and hours is None and epochs is None:
        raise typer.BadParameter("give --trials, --hours or --epochs")
    more = Budget(trials=trials, seconds=hours * 3600 if hours is not None else None, epochs=epochs)
    with opened_study(name) as study:
        most = trial_limit(study_from_record(study.config, name))
        # The recorded study has no limits, so `most` counts the rows or grid points, if there are any.
        if most is not None and trials is not None and (study.budget.trials or 0) + trials > most:
            raise ConfigError(f"--trials: study {name!r} has one trial per row or grid point, {most} in all")
        budget = extend_budget(study.database, study, more)
    echo(f"{name}: the limit is now {format_budget(budget)}")


def pause(name: Name) -> None:
    """Begin no new trials. Running trials continue, and the workers wait."""
    _change(name, "paused", of=("open", "paused"))
    echo(f"{name}: paused; resume it with: anitune study resume {name}")


def resume(name: Name) -> None:
    """Begin trials again after pause or stop."""
    _change(name, "open", of=("open", "paused", "stopped"))
    echo(f"{name}: open")


def stop(name: Name) -> None:
    """Stop the workers: they hand their trials back at the end of an epoch and exit."""
    _change(name, "stopped", of=("open", "paused", "stopped"))
    echo(f"{name}: stopped; resume it with: anitune study resume {name}")


def archive(
    name: Name, undo: Annotated[bool, typer.Option("--undo", help="Unarchive the study and open it.")] = False
) -> None:
    """Stop a study, and hide it from lists."""
    if undo:
        _change(name, "open", of={"archived"})
        echo(f"{name}: open")
    else:
        _change(name, "archived", of=("open", "paused", "stopped", "archived"))
        echo(f"{name}: archived; restore it with: anitune study archive --undo {name}")


def delete(
    name: Name, yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False
) -> None:
    """Delete a study with its reference rows: records, MLflow runs, checkpoints and artifacts."""
    with open_home() as database:
        studies = _with_rows(database, name)[::-1]
        if not yes:
            for study in studies:
                echo(f"{study.name}\n  " + "\n  ".join(summary_lines(summarize_study(database, study))))
            typer.confirm("Delete all of this permanently?", abort=True)
        for study in studies:
            with working(f"{study.name}: deleting"):
                delete_study(database, study)
            echo(f"{study.name}: deleted")


def _with_rows(database: Database, name: str) -> list[Study]:
    """Return the reference study of a study, unless it was deleted, and the study."""
    study = open_study(database, name)
    reference = study_from_record(study.config, name).reference
    try:
        return [study] if reference is None else [open_study(database, reference.name), study]
    except StudyNotFoundError:
        return [study]


def _change(name: str, to: StudyState, *, of: Collection[StudyState]) -> None:
    """Change the state of a study and of its reference study."""
    with open_home() as database:
        # The study itself comes first: its state decides whether the change is allowed.
        for study in reversed(_with_rows(database, name)):
            change_state(database, study, to, of=of)
