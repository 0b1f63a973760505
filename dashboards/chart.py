"""Common look of our figures: name, title, alternative text, colours and axes.

Their backgrounds are transparent and their colours of middle lightness, so that they can be read on white and
on black; our own pages also set the colours of text and grid (``assets/style.css``).
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Final

import plotly.graph_objects as go

ERROR: Final = "validation MAE, kcal/mol"

BLUE: Final = "#3b82d6"
ORANGE: Final = "#e07a30"
PURPLE: Final = "#9461d6"
GREY: Final = "#99a1ad"
RED: Final = "#d8504d"
#: Colours of compared studies, and of curves in one figure.
COLORS: Final = (BLUE, ORANGE, "#2f9e6e", PURPLE, "#c2528b", "#8a7a2f", "#3a9fb5", "#b0573a")

TEXT: Final = "#78818e"
_GRID: Final = "rgba(128,136,148,0.22)"
_HEIGHT: Final = 340  # pixels


@dataclass(frozen=True)
class Chart:
    """A figure with its name, its title, and an alternative text for those who do not see it."""

    name: str
    title: str
    alt: str
    figure: go.Figure


def set_axes(figure: go.Figure, x: str, y: str, *, log_x: bool = False, log_y: bool = False) -> go.Figure:
    """Name the axes of a figure, and give them a faint grid."""
    grid = {"gridcolor": _GRID, "zeroline": False, "linecolor": _GRID, "automargin": True}
    # Without a format plotly labels the ticks between powers of ten with a single digit. With so few ticks it
    # chooses 1, 2 and 5 times a power.
    log = {"type": "log", "nticks": 3}
    figure.update_xaxes(title={"text": x}, **(log | {"tickformat": "~s"} if log_x else {}), **grid)
    figure.update_yaxes(title={"text": y}, **(log | {"tickformat": "~g"} if log_y else {}), **grid)
    return figure


def make_chart(name: str, title: str, alt: str, figure: go.Figure) -> Chart:
    """Give a figure the common look, its name, its title and its alternative text."""
    _show_as_text(figure)
    figure.layout.template = go.layout.Template()  # plotly's own would be 7 kB in each figure
    figure.update_layout(
        height=_HEIGHT,
        margin={"l": 56, "r": 16, "t": 12, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": TEXT},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hovermode="closest",
        meta={"alt": alt},
    )
    return Chart(name, title, alt, figure)


def _show_as_text(figure: go.Figure) -> None:
    """Escape text of other people, in which plotly would read links and tags."""
    for trace in figure.data:
        for name in ("name", "text", "x", "y"):
            value = trace[name]
            if isinstance(value, str):
                trace[name] = escape(value, quote=False)
            elif value is not None and any(isinstance(item, str) for item in value):
                trace[name] = [escape(item, quote=False) if isinstance(item, str) else item for item in value]
    for note in figure.layout.annotations:
        note.text = escape(note.text, quote=False)


def figure_json(chart: Chart) -> str:
    """A figure as JSON that is safe inside a page: nothing in it can end the element that holds it."""
    text: str = chart.figure.to_json()
    for letter in "<>&'":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text
