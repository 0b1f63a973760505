from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
import sys
from pathlib import Path

import optuna
import pytest
from optuna.samplers import TPESampler

from benchmarks import search_quality
from benchmarks.search_peers import SCHEDULERS, has_syne_tune, replay_syne_tune
from benchmarks.search_quality import Result, judge, limit, main, read_histories, searches, verdicts
from benchmarks.search_replay import Point, Trainings, replay_optuna
from benchmarks.search_table import EPOCHS, Cell, Training, read_table, write_table

NEEDS_SYNE_TUNE = pytest.mark.skipif(
    not has_syne_tune(), reason="Syne Tune is not installed: install it with make bench-search"
)


@pytest.fixture(scope="module")
def table(made_rows: list[Training]) -> Trainings:
    return Trainings(made_rows)


def history(table: Trainings, *choices: tuple[int, int]) -> list[Point]:
    """Of a search that takes a configuration, by its rank from 0, from so many epochs on."""
    return [(epochs, float(epochs), table.ranked()[rank][0]) for epochs, rank in choices]


def test_the_error_of_a_configuration_is_the_mean_over_its_seeds(
    table: Trainings, made_rows: list[Training]
) -> None:
    repeated, single = made_rows[-1].cell, made_rows[0].cell
    errors = [
        min(row.val_mae) for row in made_rows if dataclasses.replace(row.cell, seed=repeated.seed) == repeated
    ]
    assert len(errors) == 3
    assert table.error(repeated) == pytest.approx(statistics.mean(errors))
    assert table.error(single) == min(made_rows[0].val_mae)
    lucky = min(min(row.val_mae) for row in made_rows)
    assert lucky < table.ranked()[0][0], "the best is no lucky seed"


def test_regrets_are_of_the_configuration_that_is_taken_at_a_share_of_the_cost(table: Trainings) -> None:
    cost = table.epochs
    assert cost == 48 * EPOCHS
    errors = [error for error, _ in table.ranked()]
    result = judge("made", 1, [history(table, (cost // 50, 20), (cost // 25, 5), (cost // 20, 0))], table)
    assert result.regrets == {
        0.01: (math.inf,),  # nothing was trained yet
        0.02: (pytest.approx(errors[20] / errors[0] - 1),),
        0.03: (pytest.approx(errors[20] / errors[0] - 1),),
        0.04: (pytest.approx(errors[5] / errors[0] - 1),),
        0.05: (0.0,),
    }


def test_a_search_has_arrived_where_it_stays_close(table: Trainings) -> None:
    histories = [
        history(table, (10, 30), (20, 0), (30, 30), (40, 1), (50, 0)),  # close, far again, close
        history(table, (10, 30), (20, 0), (30, 30)),  # not in the end
        history(table, (5, 0)),
        history(table, (5, 30), (limit(table) + 1, 0)),  # too late
        [],
    ]
    errors = [error for error, _ in table.ranked()]
    assert errors[1] < errors[0] * 1.05 < errors[30]
    result = judge("made", 1, histories, table)
    assert result.arrived == (40, math.inf, 5, math.inf, math.inf)


def test_the_share_among_the_ten_best_counts_those_that_took_none(table: Trainings) -> None:
    histories = [history(table, (10, 9)), history(table, (10, 10)), history(table, (10, 0)), []]
    assert judge("made", 1, histories, table).among_best == 0.5


def result(name: str, regret: float, arrived: float) -> Result:
    return Result(name, 4, dict.fromkeys(search_quality.SHARES, (regret,)), (arrived,), 1.0)


def test_goals_compare_with_optuna_and_the_best_of_syne_tune() -> None:
    results = [
        result("anitune", 0.04, 100),
        result("Optuna", 0.2, math.inf),
        result("Syne Tune, ASHA", 0.2, 300),
        result("Syne Tune, BOHB", 0.2, 140),
    ]
    close, optuna_, syne_tune = verdicts(results, limit=200)
    assert (close.measured, close.met) == ("4.0%", True)
    assert (optuna_.measured, optuna_.met) == ("more than 2.00", True)
    assert "BOHB" in syne_tune.name
    assert (syne_tune.measured, syne_tune.met) == ("1.40", False)


@pytest.mark.parametrize(
    ("ours", "peer", "met"),
    [(math.inf, 100, False), (math.inf, math.inf, False), (180, math.inf, None), (100, math.inf, True)],
)
def test_a_search_that_never_arrived_decides_what_it_can(ours: float, peer: float, met: bool | None) -> None:
    found = verdicts([result("anitune", math.inf, ours), result("Optuna", 0.1, peer)], limit=200)
    assert [each.met for each in found] == [False, met]
    assert found[0].measured == "nothing taken"


def test_what_learning_saves_is_relative_to_the_same_search_without_it() -> None:
    results = [
        result("anitune", 0.04, 200),
        result("anitune, learning from all", 0.04, 50),
        result("anitune, learning from a part", 0.04, math.inf),
        result("Optuna", 0.04, 100),
    ]
    lines = search_quality.learning_table(results, 10_000)
    assert [[cell.strip() for cell in line.split("|")[1:5]] for line in lines[2:]] == [
        ["anitune", "4", "200", ""],
        ["anitune, learning from all", "4", "50", "75%"],
        ["anitune, learning from a part", "4", "", ""],
    ]


def test_a_search_that_ends_with_a_poor_choice_has_ended_too_early(table: Trainings) -> None:
    quarter = table.epochs // 4
    found = [
        history(table, (10, 30), (quarter, 30)),
        history(table, (10, 30), (quarter, 0)),
        history(table, (10, 0), (table.epochs, 0)),
    ]
    whole = [
        history(table, (2 * quarter, 0)),
        history(table, (quarter, 0)),
        history(table, (table.epochs, 0)),
    ]
    lines = search_quality.stopping_table(
        {
            ("anitune", 1): found,
            (search_quality.TO_THE_END, 1): whole,
            (search_quality.STOPPING, 1): found,
        },
        table,
    )
    spent = f"{quarter:,} ({quarter:,} to {table.epochs:,})"
    assert [cell.strip() for cell in lines[-1].split("|")[1:7]] == [
        search_quality.STOPPING,
        "1",
        "1 of 3",
        "1",
        spent,
        "0%",
    ]
    assert f"| {2 * quarter:,} ({quarter:,} to {table.epochs:,}) |" in lines[-2]
    assert len(lines) == 4


def test_plain_optuna_repeats_by_its_seed(table: Trainings) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    first, again, other = (
        replay_optuna(table, TPESampler(seed=seed), None, 500, 4).points for seed in (0, 0, 1)
    )
    assert first == again != other


@NEEDS_SYNE_TUNE
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_syne_tune_repeats_by_its_seed_and_keeps_to_its_epochs(table: Trainings, scheduler: str) -> None:
    first, again, other = (
        replay_syne_tune(table, scheduler, seed, 400, 4, first_rung=3).points for seed in (7, 7, 8)
    )
    assert first == again != other
    assert 400 - EPOCHS < first[-1][0] <= 400 + 4, "at most one more epoch of each worker"
    assert first[-1][2] >= table.ranked()[0][0]


@pytest.mark.slow
def test_histories_are_judged_and_drawn_again_without_a_replay(
    made_rows: list[Training],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, histories = tmp_path / "table.parquet", tmp_path / "histories.json"
    write_table(made_rows, file)
    table = Trainings(read_table(file))
    common = ["search_quality", "--table", str(file), "--json", str(histories), "--seeds", "2"]
    options = ["--workers", "1", "4", "--features", str(tmp_path / "features")]
    monkeypatch.setattr(sys, "argv", [*common, *options, "--only", "random search"])
    main()
    first = read_histories(histories, table, 2)
    assert first.keys() == {("random search", 1), ("random search", 4)}
    picture = histories.with_suffix(".svg").read_bytes()
    monkeypatch.setattr(sys, "argv", [*common, *options[3:], "--workers", "1", "--only", "Optuna"])
    main()
    both = read_histories(histories, table, 2)
    assert both == first | {("Optuna", 1): both["Optuna", 1]}, "others keep theirs"
    assert histories.with_suffix(".svg").read_bytes() != picture
    capsys.readouterr()
    tables, page = [], histories.with_suffix(".html")
    for _ in range(2):
        page.unlink()
        picture = histories.with_suffix(".svg").read_bytes()
        monkeypatch.setattr(sys, "argv", [*common, "--redraw"])
        main()
        tables.append(capsys.readouterr().out)
        assert histories.with_suffix(".svg").read_bytes() == picture
        assert re.findall("<h2>(.*)</h2>", page.read_text()) == ["1 worker", "4 workers"]
    assert tables[0] == tables[1]
    assert "| Optuna | 1 |" in tables[0]
    assert all(
        math.isfinite(each)
        for s in json.loads(histories.read_text())["searches"]
        for each in s["arrived"]
        if each
    )
    constant = dataclasses.replace(made_rows[0].cell, schedule="constant")
    write_table([*made_rows, dataclasses.replace(made_rows[0], cell=constant)], file)
    assert read_histories(histories, Trainings(read_table(file)), 2) == both, "no replay reads it"
    assert read_histories(histories, table, 3) == {}, "of other seeds"
    write_table(made_rows[1:], file)
    assert read_histories(histories, Trainings(read_table(file)), 2) == {}, "of another table"


def test_every_search_has_the_same_limit(table: Trainings) -> None:
    assert limit(table) == math.ceil(0.05 * table.epochs)
    assert {"anitune", "Optuna", "random search", "Syne Tune, CQR"} <= searches().keys()
    assert Cell(*table.ranked()[0][1])
