"""Parallel coordinates: each complete trial of a study as a line through its settings.

Drawn as plain lines rather than plotly's own trace type, which needs WebGL and cannot be printed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from dashboards.chart import BLUE, ORANGE, TEXT, Chart, make_chart, set_axes
from dashboards.importance import searched_settings
from dashboards.record import StudyRecord, architecture_of, name_of
from storage.trials.views import error_of


def parallel(record: StudyRecord) -> Chart:
    """Each complete trial as a line through its settings, the best in front."""
    complete = record.complete
    settings = searched_settings(complete)
    names = [name for name in settings if all(value is not None for value in settings[name])]
    columns = {name: _positions(settings[name], name) for name in names}
    errors = [error_of(trial) for trial in complete]
    columns["MAE"] = _positions([*errors], "learning_rate")  # on a log scale, like that setting
    figure = go.Figure()
    # Lines of one shade form one trace, with gaps: thousands of traces would be slow.
    shades = _shades(len(complete))
    for first, last, color, width in shades:
        x: list[float | None] = []
        y: list[float | None] = []
        words: list[str | None] = []
        for i in range(last - 1, first - 1, -1):
            for axis, column in enumerate(columns.values()):
                x.append(axis)
                y.append(column.places[i])
                words.append(f"{name_of(complete[i])}: {architecture_of(complete[i])}, {errors[i]:.3f}")
            x.append(None)
            y.append(None)
            words.append(None)
        figure.add_scatter(
            x=x,
            y=y,
            text=words,
            mode="lines",
            name=f"rank {first + 1} to {last}" if last - first > 1 else f"rank {first + 1}",
            line={"color": color, "width": width},
            hovertemplate="%{text}<extra></extra>",
        )
    for axis, column in enumerate(columns.values()):
        for text, place in column.ticks:
            figure.add_annotation(
                x=axis, y=place, text=text, showarrow=False, xanchor="left", xshift=4, font={"size": 10}
            )
    set_axes(figure, "", "")
    figure.update_yaxes(visible=False, range=[-0.06, 1.06])
    figure.update_xaxes(
        tickvals=list(range(len(columns))),
        ticktext=[name.replace("_", " ") for name in columns],
        range=[-0.1, len(columns) - 0.6],
        showgrid=True,
        gridcolor=TEXT,
    )
    best = f" The best is {architecture_of(complete[0])}." if complete else ""
    return make_chart(
        "parallel",
        "Settings of all complete trials",
        f"Parallel coordinates: {', '.join(columns)} of {len(complete)} complete trials.{best}",
        figure,
    )


@dataclass(frozen=True)
class _Column:
    """An axis of parallel coordinates: where each trial crosses it (0 to 1), and its labels."""

    places: list[float]
    ticks: list[tuple[str, float]]


def _positions(values: Sequence[Any], name: str) -> _Column:
    if not values:
        return _Column([], [])
    if any(isinstance(value, str | bool) for value in values):
        kinds = sorted({str(value) for value in values})
        at = {kind: (i + 0.5) / len(kinds) for i, kind in enumerate(kinds)}
        return _Column([at[str(value)] for value in values], list(at.items()))
    log = name in ("learning_rate", "weight_decay", "batch_size") and min(values) > 0
    numbers = [math.log10(value) if log else float(value) for value in values]
    low, high = min(numbers), max(numbers)
    span = (high - low) or 1.0
    places = [(number - low) / span for number in numbers]
    ends = {low: 0.0, high: 1.0} if high > low else {low: 0.0}
    return _Column(places, [(f"{10**end if log else end:.3g}", place) for end, place in ends.items()])


def _shades(count: int) -> list[tuple[int, int, str, float]]:
    """Ranges of ranks (first, one past the last, from 0) with colour and width; the best are drawn last."""
    ends = sorted({min(end, count) for end in (1, 3, 10, max(10, count // 4), max(10, count // 2), count)})
    colors = (ORANGE, BLUE, "rgba(59,130,214,0.7)", "rgba(59,130,214,0.4)", "rgba(140,148,160,0.4)")
    shades = []
    first = 0
    for i, last in enumerate(end for end in ends if end > 0):
        color = colors[i] if i < len(colors) else "rgba(140,148,160,0.25)"
        shades.append((first, last, color, 3.0 if i == 0 else 1.5 if i < 3 else 1.0))
        first = last
    return shades[::-1]
