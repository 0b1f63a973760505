"""``anitune learning-curve``: would more data, or a larger network, give less error?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from dashboards.formatting import duration
from dashboards.learning_curve import CAPTION, curve_headings, curve_rows, curve_sentences
from search.cli.interrupted import exit_if_stopped
from search.cli.opening import opened_study
from search.cli.options import Json
from search.cli.output import make_console
from search.cli.planned import recorded_task, run_planned
from search.curve.learning_curve import LearningCurve, Options
from search.plural import count_of, trials_named
from search.work.forkserver import start_forkserver
from storage.learning_curves import RecordedCurve
from storage.studies import Study


def learning_curve(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study.")],
    top: Annotated[int, typer.Option(min=1, help="Number of best configurations to train.")] = 3,
    seeds: Annotated[
        int, typer.Option(min=2, help="Number of seeds of each configuration on each share of the data.")
    ] = 3,
    as_json: Json = False,
) -> None:
    """Train the best configurations on shares of the data, to tell what more data or a larger network gives.

    Trains them on 1/8, 1/4, 1/2 and all of the training set, and the best also with the next larger network.
    A power law predicts the error with twice the data. The validation set measures; the test set is not used.

    To continue a learning curve that was stopped or killed, run the command again.
    """
    start_forkserver()
    options = Options(top, seeds)
    given = "".join(f" --{name} {value}" for name, value in asdict(options).items())
    command = f"anitune learning-curve {study}{given}"
    with opened_study(study) as opened, exit_if_stopped(command):
        curve = measure_learning_curve(opened, options, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(curve.values, indent=2))
        return
    console = make_console()
    console.print(curve_table(curve))
    for line in curve_sentences(curve.values):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def measure_learning_curve(study: Study, options: Options, quiet: bool = False) -> RecordedCurve:
    """Print the plan of a learning curve, and train all that remains of it; see :func:`run_planned`."""
    curve = LearningCurve(study.database, study, *recorded_task(study), options)
    return run_planned(curve, _plan_lines(curve), quiet)


def _plan_lines(curve: LearningCurve) -> list[str]:
    count, seconds = curve.estimate()
    sizes = ", ".join(f"{each.structures:,}" for each in curve.sizes)
    return [
        f"trained      {trials_named([each.trial for each in curve.candidates])}",
        f"each         on {sizes} training structures, with {curve.options.seeds} seeds",
        "larger       the best of them with the next larger network, on all",
        f"to be done   {count_of(count, 'training')}, about {duration(seconds)}",
    ]


def curve_table(curve: RecordedCurve) -> Table:
    """Tabulate the errors of all configurations by the size of the training set."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=CAPTION)
    for heading in curve_headings(curve.values):
        table.add_column(heading)
    for row in curve_rows(curve.values):
        table.add_row(*map(escape, row))
    return table
