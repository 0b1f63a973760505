"""Content of a report: from the records of studies to sections of text, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from dashboards import figures
from dashboards.chart import Chart
from dashboards.formatting import (
    duration,
    format_budget,
    format_earlier,
    format_front,
    format_gain,
    format_noise,
    format_number,
)
from dashboards.parallel import parallel
from dashboards.ranking import FEW_COMPLETE, Leaderboard, Place, leaderboard
from dashboards.record import StudyRecord, architecture_of, name_of
from dashboards.report.data import StudyData
from dashboards.report.machines import format_versions, machines_table
from dashboards.report.reproduce import commands, study_file
from dashboards.winner import format_promoted, smoothness_warning
from storage.objectives import ERROR
from storage.trials.front import study_front
from storage.trials.views import error_of
from trainer.config import ISOLATED_ATOMS

PLACES: Final = 40
"""Maximum number of places of a leaderboard in a report; the table of all trials is a file of its own."""


@dataclass(frozen=True)
class Table:
    """Cells of text under headings.

    Attributes
    ----------
    name
        Unique name of the table in its report.
    numbers
        Indices of the numeric columns.
    marked
        Indices of highlighted rows: those of the reference study.
    values
        Sort keys of a column, by its index, where the text of its cells, such as a duration, does not sort.
    """

    name: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()
    values: Mapping[int, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A titled part of a report: text, then a table, figures, and text to be copied."""

    title: str
    text: tuple[str, ...] = ()
    table: Table | None = None
    charts: tuple[Chart, ...] = ()
    copied: tuple[str, ...] = ()
    level: int = 2


@dataclass(frozen=True)
class Source:
    """All that is known about a study: its records, the curves of its trials, and its data.

    Attributes
    ----------
    curves
        Validation MAE over the epochs, kcal/mol, by trial number.
    notes
        Further sections, such as promotions and evaluations on the test set.
    """

    record: StudyRecord
    curves: dict[int, list[tuple[int, float]]]
    data: StudyData
    notes: tuple[Section, ...] = ()


@dataclass(frozen=True)
class StudyReport:
    """A title, a line below it, and sections."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]


def make_report(sources: Sequence[Source], made: str) -> StudyReport:
    """Make the report of one study, or of several next to each other.

    Parameters
    ----------
    made
        Date and time of the report as text.
    """
    names = [source.record.name for source in sources]
    if len(sources) == 1:
        return StudyReport(names[0], f"Report of a study by anitune, made {made}", tuple(_study(sources[0])))
    sections = [_comparison(sources)]
    for source in sources:
        sections.append(Section(source.record.name))
        sections += [replace(part, level=3) for part in _study(source)]
    return StudyReport(" and ".join(names), f"Report of studies by anitune, made {made}", tuple(sections))


def _study(source: Source) -> list[Section]:
    record, data = source.record, source.data
    board = leaderboard(record, data.parts[1] if data.parts is not None else None)
    sections = [
        _summary(record, board, data),
        _data(record, data),
        _leaderboard(record, board),
        Section(
            "Progress of the search",
            charts=(figures.history([record]), figures.history([record], "seconds")),
        ),
    ]
    if record.earlier:
        sections.append(_earlier(record))
    if record.complete:
        sections += [
            _settings(record),
            Section(
                "Error against cost",
                (
                    "A trial is on the Pareto front if no other is at least as good in both error and cost."
                    " Speed is that of training, on the machine and beside the other trainings that it ran"
                    " with.",
                ),
                charts=(figures.cost([record]), figures.cost([record], "structures_per_second")),
            ),
            Section("Loss curves", charts=(figures.curves(record, source.curves),)),
            Section(
                "Error by kind of molecule",
                charts=(figures.errors_by(record, "heavy"), figures.errors_by(record, "elements")),
            ),
        ]
    sections.append(_pruning(record))
    sections += source.notes
    sections.append(_machines(record))
    if failed := [trial for trial in record.trials if trial.state == "failed"]:
        rows = tuple((name_of(trial), architecture_of(trial), trial.reason or "unknown") for trial in failed)
        sections.append(
            Section(
                "Failures", table=Table(f"failures-{record.name}", ("trial", "architecture", "reason"), rows)
            )
        )
    sections.append(_reproduce(record))
    return sections


def _summary(record: StudyRecord, board: Leaderboard, data: StudyData) -> Section:
    summary = record.summary
    what = _format_data(record, data)
    text = [f"Question: which ANI network predicts the energies of {what} best, and at what cost?"]
    if not record.complete:
        return Section("Summary", (*text, "No trial is complete yet: there is no answer."))
    best = _first(board)
    seeds = sum(trial.state == "complete" and trial.replicate_of is not None for trial in record.trials)
    further = f"further seeds: {seeds}, " if seeds else ""
    head = "Answer"
    if (promoted := format_promoted(record)) is not None:
        text.append(f"Answer: {promoted}.")
        head = "Best of the search"
    text.append(
        f"{head}: {architecture_of(best.trial)} ({name_of(best.trial)}), with a validation MAE of"
        f" {error_of(best.trial):.3f}{_interval(best)} kcal/mol and"
        f" {best.trial.summary.get('parameters', 0):,.0f} parameters, the best of {len(record.complete)}"
        f" complete trials ({further}pruned: {summary.trials['pruned']}, failed: {summary.trials['failed']})."
    )
    if record.front is not None:
        text.append(format_front(record.front, record.summary.objectives))
    if best.spread is not None:
        text.append(
            f"Over {best.spread.count} seeds, this configuration has {best.spread.mean:.3f} ±"
            f" {best.spread.deviation:.3f} kcal/mol (mean and standard deviation)."
        )
    if (rough := smoothness_warning(record)) is not None:
        text.append(rough)
    tied = [place for place in board.places if place.in_noise and place.rank is not None]
    text.append(format_noise(board))
    if len(tied) > 1:
        cheapest = min(tied, key=lambda place: place.trial.summary.get("parameters", float("inf")))
        text.append(
            f"{len(tied)} trials are within that noise of the best. The cheapest of them is"
            f" {architecture_of(cheapest.trial)} ({name_of(cheapest.trial)}) with"
            f" {cheapest.trial.summary.get('parameters', 0):,.0f} parameters and"
            f" {error_of(cheapest.trial):.3f} kcal/mol."
        )
    if (gain := format_gain(summary)) is not None:
        text.append(f"A longer search could make the best trial better by {gain}.")
    rows = [trial for trial in record.rows if trial.state == "complete"]
    if rows:
        row = min(rows, key=error_of)
        times = error_of(row) / error_of(best.trial)
        text.append(
            f"The best configuration of the reference study, {name_of(row)} ({architecture_of(row)}),"
            f" reaches {error_of(row):.3f} kcal/mol on the same data: {times:.1f} times the error of the best"
            " trial."
        )
    text.append(
        "Caution: the best trial was chosen by its error on the validation set, so this error is a little"
        " too low. The error on data that influenced no choice comes from the test set, which a search never"
        " uses."
    )
    return Section("Summary", tuple(text))


def _data(record: StudyRecord, data: StudyData) -> Section:
    split = record.config["split"]
    kept = "whole molecules" if split["by"] == "molecule" else "single structures"
    shares = ", ".join(f"{share:.0%}" for share in split["fractions"])
    test = f"{split['fractions'][2]:.0%}"
    parts = (
        f"fold {split['fold'] + 1} of {split['folds']} validates; the test set is {test}"
        if split.get("folds")
        else f"shares of training, validation and test set: {shares}"
    )
    text = [f"Split by {kept}, seed {split['seed']}; {parts}."]
    if data.parts is not None:
        text.append(
            "Structures: {:,} to train on, {:,} to validate, {:,} to test.".format(*data.parts)
            + " The test set was not used in the search."
        )
    if data.why_not:
        text.append(data.why_not)
    facts = dict(record.facts)
    if self_energies := facts.pop("self_energies", None):
        fitted = self_energies == "fitted"
        given = (
            "those of the isolated atoms in the data files, which are not trained on"
            if record.config["data"].get("self_energies") == ISOLATED_ATOMS
            else "those of the study file"
        )
        text.append(f"Self-energies are {'fitted on the training set' if fitted else given}.")
    text += [f"{kind} fingerprint: {value}" for kind, value in sorted(facts.items())]
    table = None
    if data.summary is not None:
        rows = tuple(
            (
                str(kind.heavy_atoms),
                f"{kind.molecules:,}",
                f"{kind.structures:,}",
                f"{kind.atoms_min} to {kind.atoms_max}",
                f"{kind.widest_kcalmol:,.1f}",
            )
            for kind in data.summary.by_heavy_atoms
        )
        headings = (
            "heavy atoms",
            "molecules",
            "structures",
            "atoms",
            "widest range in a molecule, kcal/mol",
        )
        table = Table(f"data-{record.name}", headings, rows, frozenset({0, 1, 2, 4}))
    return Section("Data and split", tuple(text), table)


def _leaderboard(record: StudyRecord, board: Leaderboard) -> Section:
    headings = (
        "rank",
        "trial",
        "architecture",
        "MAE",
        "95 % interval",
        "over seeds",
        "parameters",
        "structures/s",
        "epochs",
        "s",
        "state",
        *(("front",) if record.front is not None else ()),
    )
    shown = [
        place
        for i, place in enumerate(board.places)
        if i < PLACES or ("row" in place.trial.tags and place.trial.state == "complete")
    ]
    rows = tuple(
        (
            str(place.rank or ""),
            name_of(place.trial).removeprefix("trial "),
            architecture_of(place.trial) + (" ≈" if place.in_noise and place.rank != 1 else ""),
            format_number(place.trial.value, 3),
            f"{error_of(place.trial) - place.interval:.3f} to {error_of(place.trial) + place.interval:.3f}"
            if place.interval is not None
            else "",
            f"{place.spread.mean:.3f} ± {place.spread.deviation:.3f} ({place.spread.count})"
            if place.spread is not None
            else "",
            format_number(place.trial.summary.get("parameters")),
            format_number(place.trial.summary.get("structures_per_second")),
            f"{place.trial.epochs:,}",
            f"{place.trial.seconds:,.0f}",
            place.trial.state,
            *((place.front,) if record.front is not None else ()),
        )
        for place in shown
    )
    interval = (
        " Its 95 % interval shows how much that error depends on which structures are in the validation set;"
        " it follows from mean and root mean square of the errors (a bootstrap would need the error"
        " of each structure, which trials do not keep)."
    )
    text = [
        f"MAE: best validation error of a trial, kcal/mol.{'' if board.by_molecule else interval} Over seeds:"
        " mean, standard deviation and number of trainings of equal settings with several seeds, by trials or"
        " by a promotion. ≈: within the noise of the best."
    ]
    if record.front is not None:
        text.append(
            "Front: trials to which no other is at least as good in all objectives of the study; the knee is"
            " the one farthest from the line between the ends of the front (error, and costs by their"
            " logarithms, scaled to between 0 and 1)."
        )
    if any(trial.replicate_of is not None for trial in record.trials):
        text.append(
            "The finalists were trained with further seeds. They are ranked by the mean over their seeds; the"
            " further trainings follow them without a rank."
        )
    if len(board.places) > len(shown):
        text.append(f"The first {len(shown)} of {len(board.places):,}; the table of all trials has the rest.")
    if record.rows:
        text.append(
            "Rows are configurations of the reference study, in the order of their errors but without a rank."
        )
    own = {id(trial) for trial in record.trials}
    marked = frozenset(i for i, place in enumerate(shown) if id(place.trial) not in own)
    numbers = frozenset({0, 1, 3, 6, 7, 8, 9})
    return Section(
        "Leaderboard",
        tuple(text),
        Table(f"leaderboard-{record.name}", headings, rows, numbers, marked),
    )


def _earlier(record: StudyRecord) -> Section:
    tried = [trial for trial in record.trials if "learned_from" in trial.tags]
    text = [
        f"It learns from {'; '.join(format_earlier(each, record.facts) for each in record.earlier)}. The"
        " copies were made when this study was created, so that what became of those studies later changes"
        " nothing here. Their errors are not comparable with those of this study, so only the order of their"
        " trials counts."
    ]
    if tried:
        words = ", ".join(f"{name_of(trial)} ({trial.tags['learned_from']})" for trial in tried)
        text.append(f"These configurations were tried first: {words}.")
    return Section("Earlier studies", tuple(text))


def _settings(record: StudyRecord) -> Section:
    count = len(record.complete)
    text = [
        f"Importance is computed from {count} complete trials by PED-ANOVA: how much a setting decides"
        " whether a trial is among the best tenth."
    ]
    if count < FEW_COMPLETE:
        text.append(
            f"With {count} complete trials only, much of it is chance: a setting that changes nothing may"
            " seem important."
        )
    return Section(
        "Effect of the settings", tuple(text), charts=(figures.importance(record), parallel(record))
    )


def _pruning(record: StudyRecord) -> Section:
    summary = record.summary
    pruner = (record.config.get("pruner") or {}).get("kind", "none")
    if pruner == "none":
        return Section("Savings by pruning", ("Nothing was pruned: the study has no pruner.",))
    seconds = sum(
        trial.seconds * ((trial.planned_epochs or 0) - trial.epochs) / trial.epochs
        for trial in record.trials
        if trial.state == "pruned" and trial.epochs
    )
    planned = summary.epochs + summary.epochs_saved
    share = summary.epochs_saved / planned if planned else 0.0
    waiting = summary.trials["paused"]
    paused = f"; paused until later results promote them: {waiting}" if waiting else ""
    return Section(
        "Savings by pruning",
        (
            f"Trials stopped early ({pruner}): {summary.trials['pruned']}{paused}. So"
            f" {summary.epochs_saved:,} of {planned:,} epochs were not trained ({share:.0%}), at the speed of"
            f" those trials about {duration(seconds)} of {duration(seconds + summary.seconds)}."
            " A pruned trial might have become better than it looked.",
        ),
    )


def _machines(record: StudyRecord) -> Section:
    headings, rows, seconds = machines_table(record)
    return Section(
        "Machines",
        (
            f"{duration(record.summary.seconds)} were spent on trials by all workers together, and"
            f" {record.summary.epochs:,} epochs trained. Limits: {format_budget(record.summary.budget)}.",
            *format_versions(record),
        ),
        Table(f"machines-{record.name}", headings, rows, frozenset({2, 3, 4, 5}), values={5: seconds}),
    )


def _reproduce(record: StudyRecord) -> Section:
    return Section(
        "How to reproduce the study",
        (
            "Save the study file below, and run the commands. From the configuration that is stored with its"
            " trial, each training can be reproduced bit for bit on the CPU, nearly on a GPU, and to a few"
            " percent if its attempts ran on different kinds of device or in different precisions. The"
            " trials that a study proposes depend on which trials have ended before: with one worker that"
            " trains one trial at a time they are the same every time."
            + (
                " They also depend on the earlier studies that it learns from, as these were at its creation."
                if record.earlier
                else ""
            ),
        ),
        copied=(commands(record), study_file(record)),
    )


def _comparison(sources: Sequence[Source]) -> Section:
    records = [source.record for source in sources]
    rows = []
    for record in records:
        board = leaderboard(record)
        best = _first(board) if record.complete else None
        measured = [trial for trial in record.trials if "parameters" in trial.summary]
        front = study_front(measured, (ERROR, "parameters")).trials
        rows.append(
            (
                record.name,
                architecture_of(best.trial) if best is not None else "–",
                f"{error_of(best.trial):.3f}{_interval(best)}" if best is not None else "–",
                format_number(best.trial.summary.get("parameters")) if best is not None else "–",
                str(len(front)),
                f"{sum(record.summary.trials.values()):,}",
                duration(record.summary.seconds),
            )
        )
    seconds = [record.summary.seconds for record in records]
    text = []
    for kind in ("data", "split"):
        if len({record.facts.get(kind) for record in records}) > 1:
            text.append(f"Not directly comparable: the studies differ in their {kind} (by fingerprint).")
    headings = ("study", "best", "MAE, kcal/mol", "parameters", "on the front", "trials", "time")
    return Section(
        "Comparison",
        tuple(text),
        Table("comparison", headings, tuple(rows), frozenset({3, 4, 5, 6}), values={6: seconds}),
        (figures.history(records), figures.history(records, "seconds"), figures.cost(records)),
    )


def _first(board: Leaderboard) -> Place:
    return next(place for place in board.places if place.rank == 1)


def _interval(place: Place) -> str:
    return f" ± {place.interval:.3f}" if place.interval is not None else ""


def _format_data(record: StudyRecord, data: StudyData) -> str:
    files = ", ".join(file.rpartition("/")[2] for file in record.config["data"]["files"])
    if data.summary is None:
        return f"the structures in {files}"
    return (
        f"{data.summary.structures:,} structures of {data.summary.molecules:,} molecules"
        f" ({', '.join(data.summary.elements)}; {files})"
    )
