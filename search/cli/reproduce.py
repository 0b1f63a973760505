"""``anitune reproduce``: a trial once more, from its record alone."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.cli.progress import progress_bar
from search.cli.terminal import echo

if TYPE_CHECKING:
    from search.work.reproduce import Place, Recorded, Repeat

DIFFERENT = 1
"""Exit code."""


def reproduce(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study.")],
    trial: Annotated[int, typer.Argument(metavar="TRIAL", min=0, help="Number of the trial.")],
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="FRACTION",
            help="Relative difference that is allowed. Default: none on the CPU, 1e-6 on a GPU, 0.1 where"
            " attempts were on different kinds of device, or in different precisions.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a trial again from what was recorded of it alone, and compare the losses of all epochs.

    It exits with 1 if they differ.
    """
    from search.recorded import recorded_config
    from search.work.reproduce import default_tolerance, recorded_trial, repeat_trial
    from storage.database import open_database
    from storage.settings import load_settings
    from storage.studies import open_study
    from storage.trials.views import trial_rows
    from trainer.task import prepare_task

    with open_database(load_settings()) as database:
        opened = open_study(database, study)
        recorded = recorded_trial(database, opened, trial_rows(database, opened), trial)
        config = recorded_config(opened)
        with progress_bar() as progress:
            task = prepare_task(
                config.data, config.split, config.features, database.settings.features, progress
            )
            opened.set_facts(task.fingerprints)  # other data would give other numbers
            repeated = repeat_trial(task, recorded, progress)
    if tolerance is None:
        tolerance = default_tolerance(recorded, repeated)
    alike = repeated.alike(tolerance)
    if as_json:
        typer.echo(json.dumps(_values(study, trial, recorded, repeated, tolerance, alike), indent=2))
    else:
        for line in _lines(study, trial, recorded, repeated, tolerance, alike):
            echo(line)
    if not alike:
        raise typer.Exit(DIFFERENT)


def _lines(
    study: str, trial: int, recorded: Recorded, repeated: Repeat, tolerance: float, alike: bool
) -> list[str]:
    reused = f" (whose result is that of trial {recorded.number})" if recorded.number != trial else ""
    allowed = f"within a relative {tolerance:g}" if tolerance else "bit for bit"
    lines = [
        f"{study}: trial {trial}{reused}: {repeated.epochs} epochs trained again on {_place(repeated.place)},"
        f" recorded on {', then '.join(map(_place, recorded.places))}"
    ]
    if recorded.places != (repeated.place,):
        lines.append("on another kind of device, or in another precision, its numbers are not the same bits")
    if not repeated.differences:
        lines.append(f"all {repeated.compared} numbers are the same, bit for bit")
    else:
        first = repeated.differences[0]
        largest = max(repeated.differences, key=lambda each: each.relative)
        lines.append(
            f"{len(repeated.differences)} of {repeated.compared} numbers differ: the first is {first.metric}"
            f" of epoch {first.epoch} ({_number(first.recorded)} recorded, {_number(first.repeated)} now),"
            f" the largest relative difference is {largest.relative:.3g}"
        )
    if repeated.same_model is not None:
        lines.append(f"the network is {'the same' if repeated.same_model else 'another one'}")
    lines.append(f"{'reproduced' if alike else 'not reproduced'}, {allowed}")
    return lines


def _place(place: Place) -> str:
    device, precision = place
    return f"{device} ({precision})"


def _number(value: float | None) -> str:
    return "nothing" if value is None else repr(value)


def _values(
    study: str, trial: int, recorded: Recorded, repeated: Repeat, tolerance: float, alike: bool
) -> dict[str, Any]:
    largest = max((each.relative for each in repeated.differences), default=0.0)
    return {
        "study": study,
        "trial": trial,
        "result_of_trial": recorded.number,
        "reproduced": alike,
        "tolerance": tolerance,
        "epochs": repeated.epochs,
        "recorded_on": recorded.device,
        "repeated_on": repeated.place[0],
        "recorded_places": [_place(place) for place in recorded.places],
        "repeated_place": _place(repeated.place),
        "compared": repeated.compared,
        "largest_relative_difference": largest if math.isfinite(largest) else None,
        "same_network": repeated.same_model,
        "differences": [
            {
                "metric": each.metric,
                "epoch": each.epoch,
                "recorded": each.recorded,
                "repeated": each.repeated,
            }
            for each in repeated.differences
        ],
    }
