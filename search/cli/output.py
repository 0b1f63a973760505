"""Output for people: the state of a study, its leaderboard, and why published figures differ."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dashboards.formatting import duration, format_budget, format_gain, format_seeds, study_state_line
from dashboards.printable import printable

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType
    from rich.segment import Segment

    from search.study import StudyConfig
    from search.work.worker import TrialNews
    from storage.studies import StudyProgress, StudySummary
    from storage.trials.views import TrialRow

WIDE = 132
"""Width of the output in columns if it does not go to a terminal."""

PLACES = 40
"""Number of trials of a leaderboard that are shown."""


class _PrintableConsole(Console):
    """A rich console that writes no control sequences except its own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def make_console(stderr: bool = False, file: IO[str] | None = None) -> Console:
    """Make a console that does not squeeze tables when its output goes to a file.

    Parameters
    ----------
    file : where the output goes; None: to a terminal or notebook, or to the output of the program
    """
    console = _PrintableConsole(
        stderr=stderr, highlight=False, file=file, force_jupyter=False if file is not None else None
    )
    if not console.is_terminal:
        console.width = WIDE
    return console


def print_value(console: Console, name: str, value: str) -> None:
    """Print a name and its value on a line. The value may be any text, such as a path."""
    console.print(Text.assemble((f"{name:<20}", "bold"), value), soft_wrap=True)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Print what the program waits for, with a spinner on a terminal."""
    console = make_console(stderr=True)
    if console.is_terminal:
        with console.status(f"{escape(what)} ..."):
            yield
    else:
        console.print(f"{what} ...", markup=False)
        yield


def trial_line(news: TrialNews, progress: StudyProgress) -> str:
    """Describe the outcome of a trial in a line."""
    return f"{_ended_of(progress)}  {trial_title(news)}  {_outcome(news, progress)}"


def study_line(progress: StudyProgress) -> str:
    """Describe the trials of a study in a line: how many there are in each state."""
    states = ", ".join(f"{count} {state}" for state, count in progress.trials.items() if count)
    return f"{_ended_of(progress)}  {states}"


def _ended_of(progress: StudyProgress) -> str:
    """Name of the study, and how many of its trials have ended."""
    total = f"/{progress.budget.trials}" if progress.budget.trials is not None else ""
    return f"{progress.name} {progress.ended}{total}"


def trial_title(news: TrialNews) -> str:
    """Return the name of a trial and its architecture."""
    label = f"row {news.label}" if news.label is not None else f"trial {news.number}"
    return f"{label}: {news.architecture}" if news.architecture else label


def _outcome(news: TrialNews, progress: StudyProgress) -> str:
    if news.state == "failed":
        return f"failed: {news.reason}"
    if news.state == "lost":
        return f"lost: {news.reason}"
    epochs = f"{news.epochs} of {news.planned_epochs}"
    if news.state == "interrupted":
        return f"stopped after {epochs} epochs; will continue from there"
    if news.original is not None:
        same = f"{news.state} as trial {news.original}, which has the same settings"
        return f"{same}, val MAE {news.value:.3f} kcal/mol"
    best = ", the best so far" if news.number == progress.best_number else ""
    return f"{news.state} after {epochs} epochs, val MAE {news.value:.3f} kcal/mol{best}"


def leaderboard(
    trials: Sequence[TrialRow], reference: Sequence[TrialRow] = (), objectives: Sequence[str] = ()
) -> Table:
    """Rank all trials: by state, complete ones first, and by validation MAE within a state.

    Parameters
    ----------
    reference : trials of the reference study, sorted among the others but without a rank
    objectives : those of the study; of several, the table says which trials are on the Pareto front
    """
    from storage.trials.front import front_of_several
    from storage.trials.views import complete_trials, errors_over_seeds, leaderboard_order

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    for heading in ("rank", "trial"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("architecture", overflow="fold")
    for heading in ("val MAE", "params", "lr", "batch", "decay", "dropout", "epochs", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    if (front := front_of_several(trials, objectives)) is not None:
        table.add_column("front", no_wrap=True)
    ranks = {id(trial): rank for rank, trial in enumerate(complete_trials(trials), start=1)}
    places = leaderboard_order([*trials, *reference])
    errors = errors_over_seeds(places)
    shown = [
        trial
        for place, trial in enumerate(places)
        if place < PLACES or (front is not None and front.mark(trial))
    ]
    for trial in shown:
        row = trial.tags.get("row")
        rank = str(ranks.get(id(trial), "")) if row is None else ""
        style = "bold green" if rank == "1" else "cyan" if row is not None else "dim" if not rank else ""
        table.add_row(
            rank,
            str(trial.number) if row is None else f"row {escape(row)}",
            *_cells(trial, errors(trial)),
            *((front.mark(trial),) if front is not None else ()),
            style=style,
        )
    more = f"; {len(places) - len(shown)} more" if len(places) > len(shown) else ""
    seeds = (
        "; mean ± standard deviation (number of seeds)"
        if any(trial.replicate_of is not None for trial in trials)
        else ""
    )
    rows = ", row: configuration of the reference study" if reference else ""
    table.caption = f"val MAE in kcal/mol{seeds}{rows}{more}"
    return table


def _cells(trial: TrialRow, errors: Sequence[float]) -> list[str]:
    """Cells of a trial, given its errors over seeds."""
    value = f"{trial.value:.3f}" if trial.value is not None else ""
    if len(errors) > 1 and trial.replicate_of is None:
        value = f"{statistics.fmean(errors):.3f} ± {statistics.stdev(errors):.3f} ({len(errors)})"
    state = trial.state if trial.replicate_of is None else f"{trial.state}, seed of {trial.replicate_of}"
    config = trial.config or {}

    def number(name: str, form: str) -> str:
        return format(config[name], form) if name in config else ""

    return [
        escape(trial.tags.get("arch", "")),
        value,
        f"{trial.summary['parameters']:,.0f}" if "parameters" in trial.summary else "",
        number("learning_rate", ".2g"),
        number("batch_size", "d"),
        number("weight_decay", ".1g"),
        number("dropout", ".2g"),
        str(trial.epochs),
        f"{trial.seconds:.0f}",
        state,
    ]


def rows_table(config: StudyConfig, trials: Sequence[TrialRow]) -> Table:
    """Compare published figures with those of the trials, with the reasons why they differ."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"{config.name}: published errors and errors measured here, MAE in kcal/mol",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("row", no_wrap=True)
    table.add_column("settings", max_width=40)
    table.add_column("reported", justify="right", no_wrap=True)
    table.add_column("val MAE here", justify="right", no_wrap=True)
    table.add_column("why they differ")
    found = {trial.tags.get("row"): trial for trial in trials}
    for row in config.rows or ():
        trial = found.get(row.label)
        reported = f"{row.reported_mae:.2f}" if row.reported_mae is not None else ""
        table.add_row(
            escape(row.label), escape(_settings(trial)), reported, _ours(trial), escape(row.note.strip())
        )
    return table


def _ours(trial: TrialRow | None) -> str:
    if trial is None:
        return ""
    return f"{trial.value:.3f}" if trial.value is not None else trial.state


def _settings(trial: TrialRow | None) -> str:
    if trial is None or trial.config is None:
        return ""
    config = trial.config
    words = [trial.tags["arch"], f"lr {config['learning_rate']:g}", f"batch {config['batch_size']}"]
    words += [f"dropout {config['dropout']:g}"] if config["dropout"] else []
    words += [f"from {trial.tags['start_from']}"] if "start_from" in trial.tags else []
    return ", ".join(words)


def studies_table(summaries: Sequence[StudySummary]) -> Table:
    """List all studies, one per line."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption="best: validation MAE, kcal/mol")
    table.add_column("study", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for heading in ("trials", "complete", "pruned", "failed", "open", "best", "time", "epochs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for summary in summaries:
        states = summary.trials
        table.add_row(
            escape(summary.name),
            study_state_line(summary),
            f"{summary.ended}/{summary.budget.trials}"
            if summary.budget.trials is not None
            else str(summary.ended),
            *(str(states[state]) for state in ("complete", "pruned", "failed")),
            str(states["running"] + states["interrupted"] + states["paused"]),
            f"{summary.best_value:.3f}" if summary.best_value is not None else "",
            duration(summary.seconds),
            f"{summary.epochs:,}",
        )
    return table


def summary_lines(summary: StudySummary) -> list[str]:
    """Summarize a study in lines of text."""
    states = ", ".join(f"{count} {state}" for state, count in summary.trials.items() if count) or "none yet"
    total = summary.epochs + summary.epochs_saved
    share = f" ({summary.epochs_saved / total:.0%} of the epochs that all trials would take)" if total else ""
    of_seeds = format_seeds(summary.best_seeds)
    best = (
        f"{summary.best_value:.3f} kcal/mol (validation MAE of trial {summary.best_number}{of_seeds})"
        if summary.best_value is not None
        else "no complete trial yet"
    )
    gain = format_gain(summary)
    return [
        f"state        {study_state_line(summary)}",
        f"trials       {states}; limit: {format_budget(summary.budget)}",
        f"best         {best}",
        *([f"could gain   {gain}"] if gain is not None else []),
        f"time spent   {duration(summary.seconds)}, {summary.epochs:,} epochs",
        f"pruning      saved {summary.epochs_saved:,} epochs{share}",
    ]
