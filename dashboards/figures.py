"""Figures of studies: records in, plotly figures out, for the page, the report, Optuna's notes and notebooks.

:mod:`dashboards.chart` gives them their common look.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Final, Literal

import plotly.graph_objects as go

from dashboards.chart import BLUE, COLORS, ERROR, GREY, ORANGE, PURPLE, Chart, make_chart, set_axes
from dashboards.importance import importances
from dashboards.parallel import parallel
from dashboards.record import CURVES, StudyRecord, architecture_of, name_of
from storage.trials.front import pareto_front
from storage.trials.views import TrialRow, error_of

Cost = Literal["parameters", "structures_per_second", "seconds"]

COSTS: Final[Mapping[Cost, str]] = {
    "parameters": "parameters",
    "structures_per_second": "structures/s in training",
    "seconds": "seconds of training",
}


def history(records: Sequence[StudyRecord], against: Literal["trials", "seconds"] = "trials") -> Chart:
    """Validation MAE of each trial in the order in which they ended, and the best so far."""
    figure = go.Figure()
    words = []
    for record, color in zip(records, _colors(records), strict=True):
        ended = sorted(
            (trial for trial in record.trials if trial.ended is not None and trial.value is not None),
            key=lambda trial: trial.ended or 0.0,
        )
        x, best_x, best_y = _along(record, ended, against)
        prefix = f"{record.name}: " if len(records) > 1 else ""
        for state, shade, size in (("pruned", GREY, 5), ("complete", color, 7)):
            chosen = [i for i, trial in enumerate(ended) if trial.state == state]
            figure.add_scatter(
                x=[x[i] for i in chosen],
                y=[ended[i].value for i in chosen],
                mode="markers",
                name=f"{prefix}{state}",
                marker={"color": shade, "size": size, "opacity": 0.75},
                **_hover([ended[i] for i in chosen]),
            )
        figure.add_scatter(
            x=best_x,
            y=best_y,
            mode="lines",
            name=f"{prefix}best so far",
            line={"color": color if len(records) > 1 else ORANGE, "width": 2, "shape": "hv"},
            hovertemplate="best so far %{y:.3f} kcal/mol<extra></extra>",
        )
        if best_y:
            words.append(
                f"{prefix}the best complete trial went from {best_y[0]:.3f} to {best_y[-1]:.3f} kcal/mol"
                f" over {len(ended)} trials"
            )
    label = "trials that ended" if against == "trials" else "seconds spent on trials, by all workers"
    return make_chart(
        f"history_{against}" if against == "seconds" else "history",
        f"Best so far against {'trials' if against == 'trials' else 'time'}",
        f"{ERROR} against {label}: {'; '.join(words) or 'no trial is complete yet'}.",
        set_axes(figure, label, ERROR, log_y=True),
    )


def cost(records: Sequence[StudyRecord], against: Cost = "parameters") -> Chart:
    """Error against cost of the complete trials, with their Pareto front (storage/trials/front.py)."""
    figure = go.Figure()
    words = []
    for record, color in zip(records, _colors(records), strict=True):
        prefix = f"{record.name}: " if len(records) > 1 else ""
        complete = [trial for trial in record.complete if against in trial.summary]
        rows = [trial for trial in record.rows if trial.state == "complete" and against in trial.summary]
        if rows and len(records) == 1:
            figure.add_scatter(
                x=[trial.summary[against] for trial in rows],
                y=[trial.value for trial in rows],
                mode="markers",
                name="rows of the reference",
                marker={"color": PURPLE, "size": 8, "symbol": "diamond", "opacity": 0.8},
                **_hover(rows),
            )
        figure.add_scatter(
            x=[trial.summary[against] for trial in complete],
            y=[trial.value for trial in complete],
            mode="markers",
            name=f"{prefix}complete",
            marker={"color": color, "size": 7, "opacity": 0.75},
            **_hover(complete),
        )
        front = _front(complete, against)
        figure.add_scatter(
            x=[trial.summary[against] for trial in front],
            y=[trial.value for trial in front],
            mode="lines+markers",
            name=f"{prefix}Pareto front",
            line={"color": color if len(records) > 1 else ORANGE, "width": 2, "dash": "dot"},
            marker={"size": 9, "symbol": "circle-open", "line": {"width": 2}},
            **_hover(front),
        )
        if record.front is not None and (knee := record.front.knee) in complete:
            assert knee is not None
            figure.add_scatter(
                x=[knee.summary[against]],
                y=[knee.value],
                mode="markers",
                name=f"{prefix}knee",
                marker={"color": ORANGE, "size": 15, "symbol": "star", "line": {"width": 1}},
                **_hover([knee]),
            )
            words.append(f"{prefix}knee {name_of(knee)}")
        if front:
            words.append(
                prefix
                + ", ".join(
                    f"{architecture_of(trial)} with {trial.summary[against]:,.0f}: {trial.value:.3f}"
                    for trial in front[:6]
                )
            )
    return make_chart(
        f"cost_{against}" if against != "parameters" else "cost",
        f"Error against {COSTS[against]}",
        f"{ERROR}, against {COSTS[against]}. Pareto front, of trials to"
        f" which no other is at least as good in both: {'; '.join(words) or 'none yet'}.",
        set_axes(figure, COSTS[against], ERROR, log_x=True, log_y=True),
    )


def importance(record: StudyRecord) -> Chart:
    """How much each searched setting decides whether a trial is among the best (PED-ANOVA of Optuna)."""
    found = importances(record.complete)
    names = [name.replace("_", " ") for name in found][::-1]
    values = list(found.values())[::-1]
    figure = go.Figure(
        go.Bar(
            x=values,
            y=names,
            orientation="h",
            marker={"color": BLUE, "opacity": 0.85},
            text=[f"{value:.0%}" for value in values],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
            showlegend=False,
        )
    )
    set_axes(figure, f"share, from {len(record.complete)} complete trials", "")
    figure.update_xaxes(range=[0, max([0.1, *values]) * 1.15], tickformat=".0%")
    listed = ", ".join(f"{name.replace('_', ' ')} {value:.0%}" for name, value in found.items())
    return make_chart(
        "importance",
        "Importance of settings",
        f"Importance of the searched settings, from {len(record.complete)} complete trials:"
        f" {listed or 'not known with fewer than two complete trials'}.",
        figure,
    )


def curves(
    record: StudyRecord,
    histories: Mapping[int, Sequence[tuple[int, float]]],
    metric: str = "validation MAE, kcal/mol",
) -> Chart:
    """Metric of the best trials over their epochs, with other trials faint behind them.

    Parameters
    ----------
    histories
        Epochs and values, by trial number.
    """
    best = [trial for trial in record.complete if trial.number in histories][:CURVES]
    known = {trial.number for trial in best}
    rest = [number for number in histories if number not in known]
    figure = go.Figure()
    x: list[float | None] = []
    y: list[float | None] = []
    for number in rest:
        x += [*(epoch for epoch, _ in histories[number]), None]
        y += [*(value for _, value in histories[number]), None]
    figure.add_scatter(
        x=x,
        y=y,
        # A trial that was stopped after its first epoch has no line.
        mode="lines+markers" if any(len(histories[number]) == 1 for number in rest) else "lines",
        name=f"{len(rest)} other{'s' if len(rest) != 1 else ''}",
        line={"color": "rgba(140,148,160,0.35)", "width": 1},
        marker={"size": 4},
        hoverinfo="skip",
    )
    for trial, color in zip(best, COLORS, strict=False):
        figure.add_scatter(
            x=[epoch for epoch, _ in histories[trial.number]],
            y=[value for _, value in histories[trial.number]],
            mode="lines",
            name=f"{name_of(trial)}: {architecture_of(trial)}",
            line={"color": color, "width": 2},
            hovertemplate="epoch %{x}: %{y:.3f}",
        )
    ends = "; ".join(f"{architecture_of(trial)} {error_of(trial):.3f}" for trial in best)
    return make_chart(
        "curves",
        "Curves of the best trials",
        f"{metric} over the epochs of the {len(best)} best trials, and faint of {len(rest)} others;"
        f" they reached: {ends}.",
        set_axes(figure, "epoch", metric, log_y=True),
    )


def errors_by(record: StudyRecord, kind: Literal["heavy", "elements"]) -> Chart:
    """Validation MAE of the best trials for each kind of molecule."""
    start = f"val/mae_kcalmol_{kind}_"
    shown = record.complete[:3]
    rows = [trial for trial in record.rows if trial.state == "complete"]
    shown += sorted(rows, key=error_of)[:1]
    kinds = sorted(
        {key.removeprefix(start) for trial in shown for key in trial.summary if key.startswith(start)},
        key=lambda word: (len(word), word),
    )
    figure = go.Figure()
    words = []
    for trial, color in zip(shown, (BLUE, "#7fb0e8", GREY, PURPLE), strict=False):
        values = [trial.summary.get(f"{start}{kind}") for kind in kinds]
        figure.add_bar(
            x=kinds,
            y=values,
            name=f"{name_of(trial)}: {architecture_of(trial)}",
            marker={"color": PURPLE if "row" in trial.tags else color, "opacity": 0.85},
            hovertemplate="%{x}: %{y:.3f} kcal/mol",
        )
    if shown:
        words = [f"{word} {shown[0].summary.get(f'{start}{word}', math.nan):.3f}" for word in kinds]
    label = "heavy atoms of the molecule" if kind == "heavy" else "elements of the molecule"
    set_axes(figure, label, ERROR)
    figure.update_layout(barmode="group")
    figure.update_xaxes(type="category")
    return make_chart(
        f"errors_by_{kind}",
        f"Error by {'number of heavy atoms' if kind == 'heavy' else 'elements'}",
        f"{ERROR} of the best trials by {label}; of the best: {', '.join(words) or 'not known'}.",
        figure,
    )


def learning_curve(values: Mapping[str, Any]) -> Chart:
    """Error against the size of the training set, with power laws up to twice that size.

    Parameters
    ----------
    values
        A learning curve as :class:`storage.learning_curves.RecordedCurve` has it.
    """
    figure = go.Figure()
    sizes, twice = [size["structures"] for size in values["sizes"]], values["twice"]
    words = []
    sound = [each for each in values["configurations"] if each["failed"] is None]
    for number, (each, color) in enumerate(zip(sound, itertools.cycle(COLORS))):
        name = f"trial {each['trial']}: {each['architecture']}"
        law, line = each["law"], [*sizes, twice]
        figure.add_scatter(
            x=[size for size, errors in zip(sizes, each["errors"], strict=True) for _ in errors],
            y=[error for errors in each["errors"] for error in errors],
            mode="markers",
            name=name,
            marker={"color": color, "size": 7, "opacity": 0.75},
            hovertemplate=f"{escape(name)}<br>%{{y:.3f}} kcal/mol with %{{x:,}} structures<extra></extra>",
        )
        figure.add_scatter(
            x=line,
            y=[law["factor"] * size ** -law["exponent"]["mean"] for size in line],
            mode="lines",
            showlegend=False,
            line={"color": color, "width": 2, "dash": "dot"},
            hoverinfo="skip",
        )
        if number == 0:
            figure.add_scatter(
                x=[twice, twice],
                y=[law["twice"]["low"], law["twice"]["high"]],
                mode="lines",
                name="twice the data, 95 % interval",
                line={"color": color, "width": 5},
                hovertemplate="%{y:.3f} kcal/mol with %{x:,} structures<extra></extra>",
            )
        words.append(f"{name} {law['twice']['mean']:.3f} with {twice:,} structures")
    if (larger := values["larger"])["failed"] is None:
        figure.add_scatter(
            x=[sizes[-1]] * len(larger["errors"][-1]),
            y=larger["errors"][-1],
            mode="markers",
            name=f"next larger network: {larger['architecture']}",
            marker={"color": PURPLE, "size": 9, "symbol": "diamond", "opacity": 0.8},
            hovertemplate="larger network: %{y:.3f} kcal/mol<extra></extra>",
        )
    set_axes(figure, "structures to train on", ERROR, log_x=True, log_y=True)
    measured = [*sizes, twice]
    figure.update_xaxes(
        tickvals=measured,
        ticktext=[f"{size:,}" for size in measured],
        range=[math.log10(measured[0]) - 0.05, math.log10(twice) + 0.05],
    )
    return make_chart(
        "learning_curve",
        "Error against the size of the training set",
        f"{ERROR}, against structures to train on, with power laws; they predict: {'; '.join(words)}.",
        figure,
    )


FIGURES: Final[Mapping[str, Callable[[StudyRecord], Chart]]] = {
    "history": lambda record: history([record]),
    "history_seconds": lambda record: history([record], "seconds"),
    "cost": lambda record: cost([record]),
    "cost_structures_per_second": lambda record: cost([record], "structures_per_second"),
    "cost_seconds": lambda record: cost([record], "seconds"),
    "importance": importance,
    "parallel": parallel,
    "errors_by_heavy": lambda record: errors_by(record, "heavy"),
    "errors_by_elements": lambda record: errors_by(record, "elements"),
}
"""All figures that need nothing but the records of a study, by name."""


def _along(
    record: StudyRecord, ended: Sequence[TrialRow], against: str
) -> tuple[list[float], list[float], list[float]]:
    """The x value of each trial, and the corners of the line of the best so far."""
    x: list[float] = []
    best_x: list[float] = []
    best_y: list[float] = []
    worked = 0.0
    for count, trial in enumerate(ended, start=1):
        worked += trial.seconds
        x.append(count if against == "trials" else worked)
        if trial.state == "complete" and (not best_y or error_of(trial) < best_y[-1]):
            best_x.append(x[-1])
            best_y.append(error_of(trial))
    if best_y and best_x[-1] < x[-1]:
        best_x.append(x[-1])
        best_y.append(best_y[-1])
    return x, best_x, best_y


def _front(trials: Sequence[TrialRow], against: Cost) -> list[TrialRow]:
    sign = -1.0 if against == "structures_per_second" else 1.0
    return pareto_front(trials, lambda trial: (error_of(trial), sign * trial.summary[against]))


def _hover(trials: Sequence[TrialRow]) -> dict[str, Any]:
    return {
        "text": [f"{name_of(trial)}: {architecture_of(trial)}" for trial in trials],
        "hovertemplate": "%{text}<br>%{y:.3f} kcal/mol at %{x:,}<extra></extra>",
    }


def _colors(records: Sequence[StudyRecord]) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(len(records))]
