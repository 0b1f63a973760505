"""Who is ahead, and by more than chance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from dashboards.formatting import format_noise
from dashboards.ranking import leaderboard, validation_structures
from dashboards.record import StudyRecord
from search.cli.output import leaderboard as printed_leaderboard
from search.promote.plan import find_candidates
from storage.trainings import RecordedTraining
from storage.trials.views import TrialRow

MakeTrial = Callable[..., TrialRow]
MakeRecord = Callable[..., StudyRecord]


def test_complete_trials_are_ranked_and_rows_stand_in_their_places_without_a_rank(
    make_trial: MakeTrial, make_record: MakeRecord
) -> None:
    row = make_trial(0, 0.9, tags={"arch": "384-128-1 relu", "row": "1"})
    record = make_record(
        make_trial(0, 1.5),
        make_trial(1, 0.8, hidden=(32,)),
        make_trial(2, 0.1, state="pruned"),
        make_trial(3, None, state="failed"),
        make_trial(4, None, state="running"),
        reference=make_record(row, name="rows"),
    )
    places = leaderboard(record).places
    assert [(place.rank, place.trial.number, place.trial.tags.get("row")) for place in places] == [
        (1, 1, None),
        (None, 0, "1"),
        (2, 0, None),
        (None, 2, None),
        (None, 4, None),
        (None, 3, None),
    ]


def test_finalists_are_ranked_by_the_mean_over_their_seeds(
    make_trial: MakeTrial, make_record: MakeRecord
) -> None:
    record = make_record(
        make_trial(0, 0.5, hidden=(8,)),
        make_trial(1, 0.58, hidden=(16,)),
        replace(make_trial(2, 0.7, hidden=(8,)), replicate_of=0),
        replace(make_trial(3, 0.6, hidden=(16,)), replicate_of=1),
    )
    places = leaderboard(record).places
    assert [(place.rank, place.trial.number) for place in places] == [(1, 1), (None, 3), (2, 0), (None, 2)]
    assert [place.spread.mean for place in places if place.spread] == pytest.approx([0.59, 0.59, 0.6, 0.6])
    assert [each.trial for each in find_candidates(record.trials, 5)] == [1, 0]


def test_command_line_report_and_promotion_have_the_same_order(
    make_trial: MakeTrial, make_record: MakeRecord
) -> None:
    record = make_record(
        make_trial(0, 1.5, hidden=(8,)),
        make_trial(1, 0.8, hidden=(16,)),
        make_trial(2, 0.8, hidden=(32,)),  # of two with the same error the earlier one
        make_trial(3, 0.1, state="pruned"),
        make_trial(4, 0.2, state="paused"),
        make_trial(5, None, state="failed"),
        make_trial(6, 0.3, state="interrupted"),
        make_trial(7, 0.4, state="running"),
    )
    order = [1, 2, 0, 4, 3, 7, 6, 5]
    assert [place.trial.number for place in leaderboard(record).places] == order
    table = printed_leaderboard(record.trials)
    assert [*table.columns[1].cells] == [str(number) for number in order]
    assert [*table.columns[0].cells] == ["1", "2", "3", *[""] * 5]
    assert [trial.number for trial in record.complete] == order[:3]
    assert [candidate.trial for candidate in find_candidates(record.trials, 5)] == order[:3]


def test_replicates_tell_the_spread_over_seeds_and_so_the_noise(
    make_trial: MakeTrial, make_record: MakeRecord
) -> None:
    record = make_record(
        make_trial(0, 1.0),
        make_trial(1, 1.02),  # the same but for the seed
        make_trial(2, 1.2, hidden=(32,)),
        make_trial(3, 1.4, hidden=(32, 32)),
    )
    board = leaderboard(record)
    assert board.noise is not None
    deviation = 0.02 / math.sqrt(2)
    assert (board.noise.kind, board.noise.groups) == ("seeds", 1)
    assert board.noise.deviation == pytest.approx(deviation)
    # Of one pair little is known: Student's t of one degree of freedom.
    assert board.noise.margin == pytest.approx(12.706 * math.sqrt(2) * deviation, rel=1e-4)  # 0.25
    by_number = {place.trial.number: place for place in board.places}
    assert by_number[0].spread is not None
    assert (by_number[0].spread.mean, by_number[0].spread.count) == (pytest.approx(1.01), 2)
    assert by_number[2].spread is None
    assert [by_number[n].in_noise for n in range(4)] == [True, True, True, False]
    assert "from 1 set of replicates near the best" in format_noise(board)


def test_the_spread_of_poor_configurations_says_nothing_of_the_best(
    make_trial: MakeTrial, make_record: MakeRecord
) -> None:
    near = [make_trial(n, value) for n, value in enumerate((1.0, 1.02, 1.01))]
    poor = [make_trial(n, value, hidden=(8,)) for n, value in ((3, 1.6), (4, 2.6))]
    rows = make_record(*(make_trial(n, 700.0 + 50 * n, hidden=(9,), tags={"row": "5"}) for n in range(2)))
    noise = leaderboard(make_record(*near, *poor, reference=rows)).noise
    assert noise is not None
    assert (noise.kind, noise.groups, noise.freedom) == ("seeds", 1, 2)
    assert noise.deviation == pytest.approx(0.01)
    noise = leaderboard(make_record(near[0], *poor, reference=rows)).noise
    assert noise is not None
    assert noise.kind == "structures"


def test_the_members_of_an_ensemble_tell_the_spread_of_its_configuration(
    make_trial: MakeTrial, make_record: MakeRecord
) -> None:
    members = tuple(
        RecordedTraining(f"key{run}", 0, "member", run, value, {}) for run, value in enumerate((1.01, 1.02))
    )
    row = make_record(make_trial(0, 1.1, hidden=(9,), tags={"row": "1"}), members=members[:1])
    record = make_record(make_trial(0, 1.0), make_trial(1, 1.4, hidden=(8,)), members=members, reference=row)
    board = leaderboard(record)
    first, of_row, other = board.places
    assert first.spread is not None
    assert (first.spread.mean, first.spread.deviation) == (pytest.approx(1.01), pytest.approx(0.01))
    assert first.spread.count == 3
    assert of_row.spread is not None
    assert of_row.spread.count == 2
    assert other.spread is None
    assert board.noise is not None
    assert (board.noise.kind, board.noise.groups, board.noise.freedom) == ("seeds", 2, 3)


def test_where_molecules_are_kept_whole_no_interval_follows_from_the_number_of_structures(
    make_trial: MakeTrial, make_record: MakeRecord
) -> None:
    trials = (make_trial(0, 1.0), make_trial(1, 1.01, hidden=(8,)))
    board = leaderboard(make_record(*trials, by="molecule"), structures=250)
    assert (board.noise, [place.interval for place in board.places]) == (None, [None, None])
    assert not any(place.in_noise for place in board.places)
    assert "No interval is given for an error: the split keeps molecules whole" in format_noise(board)
    again = make_trial(2, 1.02)
    with_seeds = leaderboard(make_record(*trials, again, by="molecule"))
    assert with_seeds.noise is not None
    assert with_seeds.noise.kind == "seeds"
    assert "the split keeps molecules whole" in format_noise(with_seeds)
    assert "molecules whole" not in format_noise(leaderboard(make_record(*trials)))


def test_a_result_that_was_taken_over_says_nothing_of_seeds(
    make_trial: MakeTrial, make_record: MakeRecord
) -> None:
    original = replace(make_trial(1, 1.0), tags={"arch": "a", "same_as": "trial 0"})
    board = leaderboard(make_record(make_trial(0, 1.0), original))
    assert board.noise is not None
    assert board.noise.kind == "structures"
    assert all(place.spread is None for place in board.places)


def test_without_replicates_the_size_of_the_validation_set_limits_what_can_be_said(
    make_trial: MakeTrial, make_record: MakeRecord
) -> None:
    record = make_record(
        make_trial(0, 1.0), make_trial(1, 1.05, hidden=(8,)), make_trial(2, 2.0, hidden=(9,))
    )
    # 1,000 structures a second for 18 s are 9 epochs of 2,000; at 8 : 1 there are 250 to validate.
    assert validation_structures(record) == 250
    board = leaderboard(record)
    error = math.sqrt((1.5**2 - 1.0**2) / 250)
    assert board.noise is not None
    assert board.noise.deviation == pytest.approx(error)
    assert board.places[0].interval == pytest.approx(1.96 * error)
    assert [place.in_noise for place in board.places] == [True, True, False]
    assert "not known" in format_noise(board)


def test_nothing_is_promised_where_nothing_is_known(make_trial: MakeTrial, make_record: MakeRecord) -> None:
    assert leaderboard(make_record()).places == ()
    board = leaderboard(make_record(make_trial(0, 1.0, summary={})))
    assert (board.noise, board.places[0].interval, board.places[0].in_noise) == (None, None, False)
