from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks import __main__ as command_line
from benchmarks.__main__ import ON_REQUEST, TOPICS, main
from benchmarks.figures import Goal, Samples, cost_ratio, plain, rate_ratio
from benchmarks.full import figures_of, run_full
from benchmarks.machine import describe_machine
from benchmarks.made_sets import made_set
from benchmarks.plan import BenchmarkPlan
from benchmarks.report import BenchmarkReport, write_json, write_page
from benchmarks.sides import take_turns
from benchmarks.study import study_of_rows
from benchmarks.tracker_time import Stopwatch
from benchmarks.training import CONFIG, _streamed_figure, fit_capped
from search.study import load_study
from trainer.config import TrainConfig


@pytest.fixture
def report() -> BenchmarkReport:
    fast, slow = Samples("structures/s", (90.0, 100.0, 500.0)), Samples("structures/s", (10.0, 5.0, 20.0))
    figures = [
        rate_ratio("training", "a net", fast, slow, Goal("at least", 20)),
        cost_ratio("loading", "a file", Samples("s", (2.0,)), Samples("s", (12.0,)), Goal("at least", 5)),
        plain("training", "start", "s", [0.5], Goal("below", 1)),
    ]
    return BenchmarkReport("2026-01-01T00:00+00:00", 60.0, describe_machine("cpu"), BenchmarkPlan(), figures)


def test_ratios_are_of_the_medians(report: BenchmarkReport) -> None:
    assert [figure.value for figure in report.figures] == [10.0, 6.0, 0.5]
    reached = [figure.goal.reached(figure.value) for figure in report.figures if figure.goal and figure.value]
    assert reached == [False, True, True]


def test_json_holds_all_samples(report: BenchmarkReport, tmp_path: Path) -> None:
    write_json(report, tmp_path / "benchmarks.json")
    values: dict[str, Any] = json.loads((tmp_path / "benchmarks.json").read_text())
    assert next(iter(values)) == "figures"
    assert values["figures"][0]["ours"] == {
        "unit": "structures/s",
        "values": [90.0, 100.0, 500.0],
        "median": 100.0,
    }
    assert values["figures"][0]["goal"] == {"kind": "at least", "value": 20, "reached": False}
    assert values["machine"]["cores"] >= 1
    assert values["plan"]["repeats"] == BenchmarkPlan().repeats


def test_page_keeps_what_people_wrote(report: BenchmarkReport, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "benchmarks.md"
    write_page(report, "cpu", page)
    page.write_text(page.read_text() + "\nWhat stands in the way.\n")
    write_page(dataclasses.replace(report, measured_at="2027-01-01T00:00+00:00"), "cpu", page)
    text = page.read_text()
    assert "What stands in the way." in text
    assert "2027" in text
    assert "2026" not in text
    assert text.count("training: a net") == 1


def test_tables_stand_side_by_side(report: BenchmarkReport, tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    for name in ("cpu", "full, cpu", "cpu"):
        write_page(report, name, page)
    assert page.read_text().count("training: a net") == 2


def test_the_full_set_is_measured_on_request(
    monkeypatch: pytest.MonkeyPatch, report: BenchmarkReport, tmp_path: Path
) -> None:
    measured: list[list[str]] = []
    monkeypatch.setattr(
        command_line, "_measure", lambda plan, topics, folder: measured.append(topics) or report
    )
    written: list[str] = []
    monkeypatch.setattr(command_line, "write_page", lambda report, name: written.append(name))
    for topics in ([], ["--topics", "full"]):
        options = ["--json", str(tmp_path / "b.json"), "--write-docs", *topics]
        monkeypatch.setattr(sys, "argv", ["benchmarks", *options])
        main()
    assert measured == [[topic for topic in TOPICS if topic not in ON_REQUEST], ["full"]]
    assert written == ["cpu", "full, cpu"]


def test_the_full_set_in_small(tmp_path: Path) -> None:
    config = TrainConfig(hidden=(8,), batch_size=128, epochs=2, device="cpu")
    run = run_full(made_set(tmp_path, 400), tmp_path, config)
    assert (run.structures, run.train, len(run.epoch_seconds)) == (400, 320, 2)
    # The columns that are there, of up to 384, as float32: at least those of CH4.
    assert run.store > 400 * 5 * 4 * 64
    assert run.memory > run.store
    assert run.fit_seconds > sum(run.epoch_seconds)
    assert not (tmp_path / "features").exists()
    figures = {figure.name: figure for figure in figures_of(run, config)}
    assert figures["building their store"].value == 400 / run.build_seconds
    told = figures["pages swapped out meanwhile, on the whole machine"]
    assert told.value == run.swapped_out
    silent = figures_of(dataclasses.replace(run, swapped_out=None), config)[-1]
    assert silent.value is None
    assert silent.name == told.name


def test_turns_are_taken() -> None:
    # In a process of its own, with the threads that are asked for.
    assert take_turns({"a": torch.get_num_threads}, repeats=1, threads=2) == {"a": [2]}


def test_stopwatch_counts_nested_calls_once() -> None:
    class Tracker:
        def outer(self) -> str:
            return self.inner()

        def inner(self) -> str:
            return "logged"

    stopwatch = Stopwatch()
    stopwatch.watch(Tracker, ("outer", "inner"))
    assert Tracker().outer() == "logged"
    assert stopwatch.seconds > 0


def test_rows_are_a_study_of_ours(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study_of_rows(trials=3, epochs=2)))
    config = load_study(tmp_path / "study.yaml")
    assert config.epochs == 2
    assert len({json.dumps(row.training, default=str) for row in config.rows or ()}) == 3


def test_help_names_every_size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--help"])
    with pytest.raises(SystemExit):
        main()
    text = capsys.readouterr().out
    for field in dataclasses.fields(BenchmarkPlan):
        assert f"--{field.name.replace('_', '-')}" in text


def test_nothing_is_streamed_where_it_fits(tmp_path: Path) -> None:
    found = fit_capped(made_set(tmp_path, 200), tmp_path, CONFIG, gib=1.0)
    assert isinstance(found, str)
    assert "fit into 1 GiB" in found
    figure = _streamed_figure([found], [], 1.0)
    assert figure.value is None
    assert figure.note == found
