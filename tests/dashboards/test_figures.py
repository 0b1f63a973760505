"""Figures: what they plot is what was recorded, and each says in words what it shows."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import matplotlib.image
import plotly.graph_objects as go
import pytest

from dashboards import figures
from dashboards.chart import figure_json
from dashboards.drawing import png
from dashboards.record import StudyRecord
from storage.trials.views import TrialRow

MakeTrial = Callable[..., TrialRow]
MakeRecord = Callable[..., StudyRecord]


@pytest.fixture
def record(make_trial: MakeTrial, make_record: MakeRecord) -> StudyRecord:
    row = make_trial(0, 2.5, hidden=(128,), tags={"arch": "384-128-1 relu", "row": "1"})
    return make_record(
        make_trial(0, 2.0, hidden=(64,)),
        make_trial(1, 3.0, hidden=(32,)),
        make_trial(2, 0.5, state="pruned"),
        make_trial(3, None, state="failed"),
        make_trial(4, 1.0, hidden=(128, 64)),
        make_trial(5, 1.5, hidden=(200, 128)),
        reference=make_record(row, name="rows"),
    )


def trace(figure: go.Figure, name: str) -> dict[str, Any]:
    (found,) = (trace for trace in figure.to_dict()["data"] if trace["name"] == name)
    return dict(found)


def test_the_best_so_far_is_of_complete_trials_alone(record: StudyRecord) -> None:
    chart = figures.history([record])
    best = trace(chart.figure, "best so far")
    assert (best["x"], best["y"]) == ([1, 4, 5], [2.0, 1.0, 1.0])
    assert trace(chart.figure, "pruned")["y"] == [0.5]
    assert "from 2.000 to 1.000 kcal/mol" in chart.alt


def test_against_time_each_trial_stands_where_the_work_on_it_ended(record: StudyRecord) -> None:
    best = trace(figures.history([record], "seconds").figure, "best so far")
    assert best["x"] == [20.0, 80.0, 100.0]


def test_the_front_goes_from_the_cheapest_to_the_best(record: StudyRecord) -> None:
    chart = figures.cost([record])
    front = trace(chart.figure, "Pareto front")
    assert front["y"] == [3.0, 2.0, 1.0]
    assert front["x"] == sorted(front["x"])
    assert trace(chart.figure, "rows of the reference")["y"] == [2.5]
    assert "384-128-64-1 silu with 295,680: 1.000" in chart.alt


def test_fast_trials_are_cheap(record: StudyRecord, make_trial: MakeTrial, make_record: MakeRecord) -> None:
    fast = make_trial(1, 2.0)
    fast = make_trial(1, 2.0, summary={**fast.summary, "structures_per_second": 9000.0})
    chart = figures.cost([make_record(make_trial(0, 1.0), fast)], "structures_per_second")
    assert trace(chart.figure, "Pareto front")["x"] == [9000.0, 1000.0]


def test_studies_beside_each_other_keep_their_names(record: StudyRecord, make_record: MakeRecord) -> None:
    other = make_record(*record.trials, name="other")
    names = [trace.name for trace in figures.cost([record, other]).figure.data]
    assert names == [
        "widths: complete",
        "widths: Pareto front",
        "other: complete",
        "other: Pareto front",
    ]


def test_a_setting_that_decides_is_important(make_trial: MakeTrial, make_record: MakeRecord) -> None:
    trials = [
        make_trial(
            n, 1.0 + n % 2, config={"hidden": [64], "activation": ("silu", "relu")[n % 2], "dropout": n / 40}
        )
        for n in range(40)
    ]
    (bar,) = figures.importance(make_record(*trials)).figure.data
    shares = dict(zip(bar.y, bar.x, strict=True))
    assert shares["activation"] > 0.8
    assert set(shares) == {"activation", "dropout"}, "what does not vary is not shown"
    assert figures.importance(make_record(*trials[:1])).figure.data[0].y == ()


def test_widths_by_element_are_compared_by_element(make_trial: MakeTrial, make_record: MakeRecord) -> None:
    trials = [
        make_trial(n, 1.0 + n % 4, config={"hidden": {"H": [32 * (n % 4 + 1)], "O": [64 + 32 * (n % 3)]}})
        for n in range(40)
    ]
    (bar,) = figures.importance(make_record(*trials)).figure.data
    shares = dict(zip(bar.y, bar.x, strict=True))
    assert set(shares) == {"neurons of H", "neurons of O"}
    assert shares["neurons of H"] > 0.8


def test_curves_of_the_best_stand_out_of_the_rest(record: StudyRecord) -> None:
    histories = {number: [(1, 9.0), (2, 9.0 / (number + 1))] for number in range(5)}
    figure = figures.curves(record, histories).figure
    assert [trace.name for trace in figure.data] == [
        "2 others",
        "trial 4: 384-128-64-1 silu",
        "trial 0: 384-64-1 silu",
        "trial 1: 384-32-1 silu",
    ]


def test_a_trial_that_was_stopped_after_one_epoch_can_be_seen(record: StudyRecord) -> None:
    def modes(epochs: int) -> set[str]:
        histories = {number: [(n + 1, 9.0 - n) for n in range(9)] for number in (0, 1, 4)}
        figure = figures.curves(record, histories | {2: [(n + 1, 9.0) for n in range(epochs)]}).figure
        return set(trace(figure, "1 other")["mode"].split("+"))

    assert "markers" in modes(1)
    assert modes(9) == {"lines"}


@pytest.mark.parametrize("name", figures.FIGURES)
def test_each_figure_can_be_shown_and_printed_also_of_an_empty_study(
    name: str, record: StudyRecord, make_record: MakeRecord
) -> None:
    for each in (record, make_record()):
        chart = figures.FIGURES[name](each)
        assert chart.title
        assert len(chart.alt) > 20
        json.loads(figure_json(chart))
        picture = matplotlib.image.imread(io.BytesIO(png(chart)), format="png")
        assert picture.shape[:2] == (528, 1080)


def test_a_figure_cannot_end_the_element_that_holds_it(
    make_trial: MakeTrial, make_record: MakeRecord
) -> None:
    trial = make_trial(0, 1.0, tags={"arch": "</script><script>alert('x')</script>&"})
    text = figure_json(figures.history([make_record(trial)]))
    assert not set("<>&'") & set(text)
    assert "alert('x')" in json.dumps(json.loads(text))


def test_figures_need_no_torch() -> None:
    look = "import sys, dashboards.figures, dashboards.study_files, dashboards.optuna_notes, search.cli.relay"
    look += "; print([m for m in ('torch', 'sklearn', 'mlflow') if m in sys.modules])"
    told = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=300
    )
    assert told.stdout == "[]\n"
