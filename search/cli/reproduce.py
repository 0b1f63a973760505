"""``anitune reproduce``: train a trial again from its record alone."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import typer

from search.cli.opening import opened_study
from search.cli.options import Json
from search.cli.progress import progress_bar
from search.cli.terminal import echo
from search.plural import count_of
from search.recorded import recorded_config
from search.work.reproduce import (
    Place,
    RecordedTrial,
    Reproduction,
    default_tolerance,
    recorded_trial,
    reproduce_trial,
)
from storage.trials.views import trial_rows
from trainer.task import prepare_task

DIFFERENT = 1
"""Exit code if the losses differ."""


def reproduce(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study.")],
    trial: Annotated[int, typer.Argument(metavar="TRIAL", min=0, help="Number of the trial.")],
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="FRACTION",
            help="Allowed relative difference. Default: 0 on the CPU, 1e-6 on a GPU, 0.1 if attempts ran on"
            " different kinds of device or in different precisions.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a trial again from its record alone, and compare the losses of all epochs.

    The exit code is 1 if they differ.
    """
    with opened_study(study) as opened:
        database = opened.database
        recorded = recorded_trial(database, opened, trial_rows(database, opened), trial)
        config = recorded_config(opened)
        with progress_bar() as progress:
            task = prepare_task(config.task, database.settings.features, progress)
            opened.set_facts(task.fingerprints)  # other data would give other numbers
            reproduction = reproduce_trial(task, recorded, progress)
    if tolerance is None:
        tolerance = default_tolerance(recorded, reproduction)
    alike = reproduction.alike(tolerance)
    if as_json:
        typer.echo(json.dumps(_values(study, trial, recorded, reproduction, tolerance, alike), indent=2))
    else:
        for line in _lines(study, trial, recorded, reproduction, tolerance, alike):
            echo(line)
    if not alike:
        raise typer.Exit(DIFFERENT)


def _lines(
    study: str, trial: int, recorded: RecordedTrial, reproduction: Reproduction, tolerance: float, alike: bool
) -> list[str]:
    reused = f" (whose result is that of trial {recorded.number})" if recorded.number != trial else ""
    allowed = f"within a relative {tolerance:g}" if tolerance else "bit for bit"
    lines = [
        f"{study}: trial {trial}{reused}: {count_of(reproduction.epochs, 'epoch')} trained again on"
        f" {_place(reproduction.place)}, recorded on {', then '.join(map(_place, recorded.places))}"
    ]
    if recorded.places != (reproduction.place,):
        lines.append(
            "on another kind of device, or in another precision, the numbers cannot be identical bit for bit"
        )
    if not reproduction.differences:
        lines.append(f"all {reproduction.compared} numbers are the same, bit for bit")
    else:
        first = reproduction.differences[0]
        largest = max(reproduction.differences, key=lambda each: each.relative)
        lines.append(
            f"{len(reproduction.differences)} of {reproduction.compared} numbers differ: the first is"
            f" {first.metric} of epoch {first.epoch} ({_number(first.recorded)} recorded,"
            f" {_number(first.reproduced)} now), the largest relative difference is {largest.relative:.3g}"
        )
    if reproduction.same_model is not None:
        lines.append(f"the network is {'identical' if reproduction.same_model else 'different'}")
    lines.append(f"{'reproduced' if alike else 'not reproduced'}, {allowed}")
    return lines


def _place(place: Place) -> str:
    device, precision = place
    return f"{device} ({precision})"


def _number(value: float | None) -> str:
    return "nothing" if value is None else repr(value)


def _values(
    study: str, trial: int, recorded: RecordedTrial, reproduction: Reproduction, tolerance: float, alike: bool
) -> dict[str, Any]:
    largest = max((each.relative for each in reproduction.differences), default=0.0)
    return {
        "study": study,
        "trial": trial,
        "result_of_trial": recorded.number,
        "reproduced": alike,
        "tolerance": tolerance,
        "epochs": reproduction.epochs,
        "recorded_on": recorded.device,
        "repeated_on": reproduction.place[0],
        "recorded_places": [_place(place) for place in recorded.places],
        "repeated_place": _place(reproduction.place),
        "compared": reproduction.compared,
        "largest_relative_difference": largest if math.isfinite(largest) else None,
        "same_network": reproduction.same_model,
        "differences": [
            {
                "metric": each.metric,
                "epoch": each.epoch,
                "recorded": each.recorded,
                "repeated": each.reproduced,
            }
            for each in reproduction.differences
        ],
    }
