"""Plots of one training: functions from records to figures."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredText
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from trainer.evaluation.evaluate import Evaluation
from trainer.evaluation.metrics import max_error, mean_absolute_error, root_mean_square_error
from trainer.reporting import EpochRecord

#: With more structures than this, a density is drawn instead of points.
POINTS: Final = 5000

# Matplotlib's fonts and caches are not thread-safe, and trials that train side by side may end at once.
_one_at_a_time = threading.Lock()

_TRAINING: Final = "#3b6fb6"
_VALIDATION: Final = "#d9602b"
_INK: Final = "#2b2f36"
_FAINT: Final = "#d5d9e0"


def loss_figure(history: Sequence[EpochRecord]) -> Figure:
    """Plot loss of training and validation set, and MAE of the validation set, against the epoch."""
    epochs = [r.epoch for r in history]
    best = min(history, key=lambda r: r.val_mae)
    marker: dict[str, Any] = {"marker": "o", "markersize": 3} if len(history) < 30 else {}
    figure = Figure(figsize=(10, 4.2))
    figure.subplots_adjust(left=0.085, right=0.985, bottom=0.135, top=0.915, wspace=0.22)
    losses, errors = figure.subplots(1, 2)

    losses.plot(epochs, [r.train_loss for r in history], color=_TRAINING, label="training", **marker)
    losses.plot(epochs, [r.val_loss for r in history], color=_VALIDATION, label="validation", **marker)
    losses.plot(best.epoch, best.val_loss, **_best_marker(f"best epoch, {best.epoch}"))
    _label(losses, "Loss", "epoch", "loss, hartree²")

    errors.plot(epochs, [r.val_mae for r in history], color=_VALIDATION, label="validation", **marker)
    errors.plot(best.epoch, best.val_mae, **_best_marker(f"best: {best.val_mae:.3g} kcal/mol"))
    _label(errors, "Error on the validation set", "epoch", "MAE, kcal/mol")

    for axes in (losses, errors):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(0.5, len(history) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend(frameon=False)
    return figure


def parity_figure(evaluation: Evaluation) -> Figure:
    """Plot predicted against true energy of every structure."""
    predicted, target = evaluation.predicted, evaluation.target
    figure = Figure(figsize=(6.2, 5.4))
    figure.subplots_adjust(left=0.14, right=0.97, bottom=0.15, top=0.93)
    axes = figure.subplots()
    low = min(predicted.min(), target.min())
    high = max(predicted.max(), target.max())
    margin = 0.04 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=_INK, linewidth=0.8, zorder=0)
    if len(target) > POINTS:
        density = axes.hexbin(
            target, predicted, gridsize=90, extent=(*limits, *limits), bins="log", mincnt=1, cmap="viridis"
        )
        figure.colorbar(density, ax=axes, label="structures", shrink=0.8)
    else:
        axes.scatter(target, predicted, s=16, alpha=0.5, linewidths=0, color=_TRAINING)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    _label(axes, "Validation set", "DFT energy, kcal/mol", "predicted energy, kcal/mol")
    axes.set_xlabel("DFT energy, kcal/mol\n(both without the self-energies of the atoms)")
    errors = evaluation.errors
    _note(
        axes,
        f"MAE  {mean_absolute_error(errors):.3g} kcal/mol\n"
        f"RMSE {root_mean_square_error(errors):.3g} kcal/mol\n"
        f"{len(errors):,} structures",
        "upper left",
    )
    return figure


def errors_figure(evaluation: Evaluation) -> Figure:
    """Plot the distribution of the errors."""
    errors = evaluation.errors
    mae = mean_absolute_error(errors)
    # A few outliers must not squeeze the rest into one bar: the note says how many lie beyond.
    reach = float(np.quantile(np.abs(errors), 0.995)) * 1.1 or 1.0
    outside = int(np.sum(np.abs(errors) > reach))
    figure = Figure(figsize=(6.4, 4.2))
    figure.subplots_adjust(left=0.12, right=0.97, bottom=0.135, top=0.915)
    axes = figure.subplots()
    bins = int(np.clip(np.sqrt(len(errors)), 11, 81)) | 1
    axes.hist(errors, bins=bins, range=(-reach, reach), color=_TRAINING, alpha=0.85)
    for side in (-mae, mae):
        axes.axvline(side, color=_VALIDATION, linewidth=1.2, linestyle="--")
    axes.set_xlim(-reach, reach)
    _label(axes, "Errors on the validation set", "predicted − DFT energy, kcal/mol", "structures")
    beyond = f"\n{outside} beyond ±{reach:.3g}" if outside else ""
    _note(
        axes,
        f"MAE  ±{mae:.3g} kcal/mol\n"
        f"mean  {errors.mean():+.2g} kcal/mol\n"
        f"largest  {max_error(errors):.3g} kcal/mol{beyond}",
        "upper right",
    )
    return figure


def draw_plots(history: Sequence[EpochRecord], evaluation: Evaluation) -> dict[str, bytes]:
    """Draw every plot of a training as PNG, by file name."""
    figures: dict[str, Callable[[], Figure]] = {
        "loss.png": lambda: loss_figure(history),
        "parity.png": lambda: parity_figure(evaluation),
        "errors.png": lambda: errors_figure(evaluation),
    }
    with _one_at_a_time:
        return {name: _png(draw()) for name, draw in figures.items()}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _best_marker(label: str) -> dict[str, Any]:
    return {
        "label": label,
        "color": _INK,
        "marker": "*",
        "markersize": 11,
        "linestyle": "none",
        "markeredgecolor": "white",
        "zorder": 3,
    }


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=_FAINT, linewidth=0.5)
    axes.set_axisbelow(True)


def _note(axes: Axes, text: str, place: str) -> None:
    box = AnchoredText(text, loc=place, prop={"fontsize": 9, "color": _INK})
    box.patch.set(boxstyle="round,pad=0.3", edgecolor=_FAINT, facecolor="white", alpha=0.9)
    axes.add_artist(box)
