from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from trainer.evaluation import plots
from trainer.evaluation.evaluate import Evaluation
from trainer.evaluation.metrics import MAE
from trainer.evaluation.plots import POINTS, draw_plots, errors_figure, loss_figure, parity_figure
from trainer.reporting import EpochRecord


def make_history(val_maes: list[float]) -> list[EpochRecord]:
    return [
        EpochRecord(n, n, 1e-2 / n, 2e-2 / n, {MAE: mae}, 1e-3, 0.5, 0.0)
        for n, mae in enumerate(val_maes, start=1)
    ]


def make_evaluation(structures: int, scale: float = 1.0) -> Evaluation:
    random = np.random.default_rng(0)
    target = random.normal(scale=80, size=structures)
    return Evaluation(
        predicted=target + random.normal(scale=scale, size=structures),
        target=target,
        heavy_atoms=np.ones(structures, dtype=np.int64),
        element_sets=np.full(structures, "CH"),
    )


def texts(axes: Axes) -> str:
    return " ".join(text.get_text() for artist in axes.artists for text in artist.findobj(match=is_text))


def is_text(artist: object) -> bool:
    return hasattr(artist, "get_text")


@pytest.mark.parametrize(("epochs", "structures"), [(1, 1), (7, 24), (60, 500), (30, POINTS + 1)])
def test_plots_of_short_and_long_trainings_are_pictures(epochs: int, structures: int) -> None:
    drawn = draw_plots(make_history([5.0 / n for n in range(1, epochs + 1)]), make_evaluation(structures))
    assert set(drawn) == {"loss.png", "parity.png", "errors.png"}
    for png in drawn.values():
        picture = imread(io.BytesIO(png))
        assert picture.shape[0] > 400
        assert picture.shape[1] > 600
        assert picture.std() > 0.05


def test_plots_of_trainings_side_by_side_are_those_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = [
        (make_history([5.0 / n for n in range(1, n + 3)]), make_evaluation(100 * n)) for n in range(1, 5)
    ]
    alone = [draw_plots(*training) for training in trainings]
    drawing, most = 0, 0

    def count(*arguments: Any) -> Figure:
        nonlocal drawing, most
        drawing += 1
        most = max(most, drawing)
        figure = loss_figure(*arguments)
        drawing -= 1
        return figure

    monkeypatch.setattr(plots, "loss_figure", count)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda training: draw_plots(*training), trainings)) == alone
    assert most == 1


def test_loss_is_drawn_by_epoch_on_a_log_scale_and_the_best_epoch_is_marked() -> None:
    losses, errors = loss_figure(make_history([4.0, 1.5, 3.0])).axes
    curves = {line.get_label(): line.get_xydata() for line in losses.lines}
    np.testing.assert_allclose(curves["training"], [(1, 1e-2), (2, 5e-3), (3, 1e-2 / 3)])
    np.testing.assert_allclose(curves["validation"], [(1, 2e-2), (2, 1e-2), (3, 2e-2 / 3)])
    np.testing.assert_allclose(curves["best epoch, 2"], [(2, 1e-2)])
    assert losses.get_yscale() == errors.get_yscale() == "log"
    assert [tuple(point) for point in errors.lines[1].get_xydata()] == [(2, 1.5)]


def test_parity_shows_every_structure_on_equal_axes_with_its_errors() -> None:
    evaluation = make_evaluation(200)
    (axes,) = parity_figure(evaluation).axes
    points = np.asarray(axes.collections[0].get_offsets())
    np.testing.assert_allclose(points, np.stack([evaluation.target, evaluation.predicted], axis=1))
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_aspect() == 1
    assert f"MAE  {np.abs(evaluation.errors).mean():.3g} kcal/mol" in texts(axes)
    assert f"RMSE {np.sqrt((evaluation.errors**2).mean()):.3g} kcal/mol" in texts(axes)


def test_many_structures_are_drawn_as_a_density_that_counts_each() -> None:
    axes, _ = parity_figure(make_evaluation(POINTS + 1)).axes
    assert axes.collections[0].get_array().sum() == POINTS + 1


def test_histogram_names_the_number_of_outliers() -> None:
    evaluation = make_evaluation(1000)
    evaluation.predicted[0] = evaluation.target[0] + 500
    (axes,) = errors_figure(evaluation).axes
    shown = sum(bar.get_height() for bar in axes.patches)
    beyond = 1000 - int(shown)
    assert beyond >= 1
    assert f"{beyond} beyond" in texts(axes)
    assert "largest  500 kcal/mol" in texts(axes)
    assert f"±{np.abs(evaluation.errors).mean():.3g}" in texts(axes)


def test_perfect_predictions_can_be_drawn() -> None:
    draw_plots(make_history([1.0]), make_evaluation(50, scale=0.0))
