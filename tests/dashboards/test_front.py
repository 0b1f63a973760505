"""The Pareto front of a study of several objectives, wherever people see it, and what is promoted of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dashboards import figures
from dashboards.formatting import format_front
from dashboards.notes import PLACES, mlflow_study_note, optuna_study_note
from dashboards.page.app import make_app
from dashboards.ranking import leaderboard
from dashboards.record import StudyRecord
from dashboards.report.contents import Source, make_report
from dashboards.report.data import StudyData
from dashboards.report.trial_table import trials_table
from search.cli.output import leaderboard as table_of_command
from search.errors import SearchError
from search.promote.plan import affordable_trials, find_candidates
from storage.database import Database
from storage.studies import Study
from storage.trials.front import Front
from storage.trials.views import TrialRow

MakeTrial = Callable[..., TrialRow]
MakeRecord = Callable[..., StudyRecord]

OBJECTIVES = ("val_mae", "parameters")
KNEE = 3
FRONT = [4, KNEE, 1]
"""The cheapest, the knee, and the best."""


@pytest.fixture
def record(make_trial: MakeTrial, make_record: MakeRecord) -> StudyRecord:
    """Five complete trials; 0 and 2 are beaten, one in error and one in cost."""
    sizes = {0: (2.0, 64), 1: (0.8, 256), 2: (1.1, 300), KNEE: (0.9, 32), 4: (4.0, 8)}
    trials = [make_trial(number, error, (width,)) for number, (error, width) in sizes.items()]
    made = make_record(*trials)
    return replace(made, summary=replace(made.summary, objectives=OBJECTIVES))


@pytest.fixture
def one(record: StudyRecord) -> StudyRecord:
    """The same trials of a study of one objective."""
    return replace(record, summary=replace(record.summary, objectives=("val_mae",)))


def test_a_leaderboard_shows_the_front_and_its_knee(record: StudyRecord, one: StudyRecord) -> None:
    places = {place.trial.number: place.front for place in leaderboard(record).places}
    assert places == {0: "", 1: "front", 2: "", KNEE: "knee", 4: "front"}
    assert [place.rank for place in leaderboard(record).places] == [1, 2, 3, 4, 5], "ranks are by error"
    assert not any(place.front for place in leaderboard(one).places)
    assert one.front is None


def test_a_sentence_names_the_knee_with_its_values(record: StudyRecord) -> None:
    assert record.front is not None
    assert format_front(record.front, OBJECTIVES) == (
        "Pareto front of val MAE (kcal/mol) and parameters: 3 trials; its knee is trial 3 with 0.900"
        " kcal/mol, 49,280 parameters."
    )
    knee = record.front.knee
    assert knee is not None
    timed = replace(knee, summary={**knee.summary, "inference_us_per_atom": 1.70325})
    assert format_front(Front((timed,), timed), (*OBJECTIVES, "inference_time")) == (
        "Pareto front of val MAE (kcal/mol), parameters and inference time (µs per atom): 1 trial; its knee"
        " is trial 3 with 0.900 kcal/mol, 49,280 parameters, inference time 1.7 µs per atom."
    )


def test_the_figure_of_error_against_parameters_has_the_same_front(
    record: StudyRecord, one: StudyRecord
) -> None:
    drawn = {trace.name: trace for trace in figures.cost([record]).figure.data}
    assert record.front is not None
    assert list(drawn["Pareto front"].y) == [trial.value for trial in record.front.trials] == [4.0, 0.9, 0.8]
    assert (list(drawn["knee"].x), list(drawn["knee"].y)) == ([49_280.0], [0.9])
    assert "knee" not in {trace.name for trace in figures.cost([one]).figure.data}


def test_both_notes_have_the_whole_front(
    record: StudyRecord, one: StudyRecord, make_trial: MakeTrial
) -> None:
    many = [make_trial(number, 1.5 + number / 1000, (256,)) for number in range(10, 10 + 2 * PLACES)]
    trials = [*record.trials, *many]
    for note in (mlflow_study_note(record.summary, trials), optuna_study_note(3, record.summary, trials)):
        assert "its knee is trial 3" in note
        rows = [line for line in note.splitlines() if line.endswith(("| front |", "| knee |"))]
        assert len(rows) == 1 + len(FRONT), "a heading, and the front beyond the first places too"
    note = mlflow_study_note(one.summary, one.trials)
    assert "front" not in note


def test_report_and_tables_show_the_front(record: StudyRecord, one: StudyRecord) -> None:
    def report(shown: StudyRecord) -> str:
        return str(make_report([Source(shown, {}, StudyData(None, None, ""))], "today"))

    assert "its knee is trial 3 with 0.900 kcal/mol" in report(record)
    assert "knee" not in report(one)
    rows = {row["trial"]: row["front"] for row in trials_table([record])}
    assert rows[KNEE] == "knee"
    assert "front" not in trials_table([one])[0]
    columns = table_of_command(record.trials, objectives=OBJECTIVES).columns
    assert [str(column.header) for column in columns][-1] == "front"
    assert list(columns[-1].cells) == ["front", "knee", "", "", "front"]
    assert str(table_of_command(one.trials, objectives=("val_mae",)).columns[-1].header) == "state"


def test_a_page_without_several_objectives_has_no_front(database: Database, study: Study) -> None:
    page = make_app(database).test_client().get("/anitune/studies/widths").text
    assert "knee" not in page


def test_what_is_promoted_costs_no_more_than_the_knee(record: StudyRecord) -> None:
    trials = affordable_trials(record.trials, OBJECTIVES, None)
    assert [candidate.trial for candidate in find_candidates(trials, 5)] == [KNEE, 4]


def test_a_limit_of_parameters_chooses_another_point_of_the_front(
    record: StudyRecord, one: StudyRecord
) -> None:
    most = round(record.trials[1].summary["parameters"])
    for objectives in (OBJECTIVES, ("val_mae",)):
        trials = affordable_trials(record.trials, objectives, most)
        assert [candidate.trial for candidate in find_candidates(trials, 5)] == [1, KNEE, 0, 4]
    assert affordable_trials(one.trials, ("val_mae",), None) == list(one.trials), "as before"
    with pytest.raises(SearchError) as caught:
        affordable_trials(record.trials, OBJECTIVES, 100)
    assert str(caught.value) == (
        "no complete trial has at most 100 parameters: the smallest network has 12,320"
    )
