"""Reports: one file that says all, and says nothing that is not known."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from dashboards.record import StudyRecord, read_study
from dashboards.report.contents import Source, make_report
from dashboards.report.data import StudyData
from dashboards.report.html import report_html
from dashboards.report.reproduce import study_file
from dashboards.report.write import write_report
from search.study import load_study
from storage.database import Database
from storage.errors import StudyNotFoundError
from storage.evaluations import record_evaluation, record_test_error
from storage.promotions import begin_promotion, end_promotion, record_choice, record_test
from storage.studies import Study, create_study
from storage.trials.queue import WorkerInfo
from storage.trials.views import TrialRow
from trainer.config import dump_config

WORKER = WorkerInfo("w1", "alpha", 1, "cpu", {})
TEST = {"mae_kcalmol": 0.9, "rmse_kcalmol": 1.4, "mean_member_mae_kcalmol": 1.0, "structures": 541}

MakeTrial = Callable[..., TrialRow]
MakeRecord = Callable[..., StudyRecord]

SECTIONS = [
    "Summary",
    "Data and split",
    "Leaderboard",
    "Progress of the search",
    "Effect of the settings",
    "Error against cost",
    "Loss curves",
    "Error by kind of molecule",
    "Savings by pruning",
    "Machines",
    "Failures",
    "How to reproduce the study",
]


class Page(HTMLParser):
    """Headings, texts of figures, their JSON, and whatever a page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.alts: list[str] = []
        self.figures: list[str] = []
        self.loaded: list[str] = []
        self._inside: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loaded += [str(given[name]) for name in ("src", "href") if name in given]
        if given.get("class") == "plot":
            self.alts.append(str(given["aria-label"]))
        if tag in ("h2", "h3"):
            self._inside = self.headings
        elif given.get("type") == "application/json":
            self._inside = self.figures

    def handle_data(self, data: str) -> None:
        if self._inside is not None:
            self._inside.append(data)
            self._inside = None


def read(path: Path) -> tuple[str, Page]:
    text = path.read_text()
    return text, Page(text)


def test_a_report_is_one_page_that_loads_nothing(database: Database, study: Study) -> None:
    path = write_report(database, ["widths"])
    assert path == database.settings.home / "reports" / "widths.html"
    text, page = read(path)
    assert page.headings == SECTIONS
    assert page.loaded == ["data:,"]
    assert "default-src 'none'" in text.replace("&#39;", "'")
    assert text.count("plotly.js v") == 1, "plotly is in it once"
    assert len(page.figures) == len(page.alts) == 9
    for figure in page.figures:
        assert json.loads(figure)["data"]
    assert all(len(alt) > 20 for alt in page.alts)
    assert [file.name for file in path.parent.iterdir()] == ["widths.html"]


def test_a_report_says_what_was_found_and_how_sure_that_is(database: Database, study: Study) -> None:
    text, _ = read(write_report(database, ["widths"]))
    assert "384-64-32-1 silu (trial 1), with a validation MAE of 0.800 ± 0.075 kcal/mol" in text
    assert "3 trials are within that noise of the best. The cheapest of them is 384-32-1 silu" in text
    assert "row 2 (384-200-1 silu), reaches 0.900 kcal/mol" in text
    assert "4,328 to train on, 541 to validate, 541 to test" in text
    assert "0.725 to 0.875" in text
    assert "With 4 complete trials only, much of it is chance" in text
    assert "6 of 48 epochs were not trained (12%)" in text
    assert "torch 2.13.0" in text
    assert "loss &lt;/script&gt;" in text
    assert "<script>alert" not in text


def test_data_that_changed_since_is_not_described(database: Database, study: Study) -> None:
    study.set_facts({"data": "0" * 64})
    text, _ = read(write_report(database, ["widths"]))
    assert "The data files were changed since the study was trained on them." in text
    assert "4,328" not in text


def test_the_study_file_of_a_report_is_the_study(database: Database, study: Study, tmp_path: Path) -> None:
    for name in ("widths", "widths-rows"):
        record = read_study(database, name)
        file = tmp_path / f"{name}.yaml"
        file.write_text(study_file(record))
        assert dump_config(load_study(file)) == record.config
    assert yaml.safe_load((tmp_path / "widths.yaml").read_text())["limits"] == {"trials": 8}


def test_markdown_shows_pictures_that_are_there(database: Database, study: Study, tmp_path: Path) -> None:
    path = write_report(database, ["widths"], "md", tmp_path / "supplement 1.md")
    text = path.read_text()
    pictures = re.findall(r"^!\[(.+)\]\((.+)\)$", text, re.MULTILINE)
    assert len(pictures) == 9
    for _, place in pictures:
        assert place.startswith("supplement%201_files/")
        picture = tmp_path / place.replace("%20", " ")
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert "|  | row 2 | 384-200-1 silu ≈ | 0.900 |" in text
    assert r"loss \</script\>\<script\>alert(1)" in text


def test_a_table_has_every_trial(database: Database, study: Study) -> None:
    path = write_report(database, ["widths"], "csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["study"], row["trial"], row["rank"]) for row in rows][:3] == [
        ("widths", "1", "1"),
        ("widths-rows", "1", ""),
        ("widths", "2", "2"),
    ]
    assert len(rows) == 9
    assert float(rows[0]["val_mae_kcalmol"]) == 0.8
    assert rows[0]["config.hidden"] == "64-32"
    assert rows[-1]["reason"].startswith("loss </script>")


def test_studies_are_compared_and_told_apart(database: Database, study: Study) -> None:
    path = write_report(database, ["widths", "widths-rows"])
    assert path.name == "widths-and-1-more.html"
    text, page = read(path)
    assert page.headings[:3] == ["Comparison", "widths", "Summary"]
    assert "the studies differ in their split" in text
    assert "differ in their data" not in text


def test_times_are_sorted_as_times(make_trial: MakeTrial, make_record: MakeRecord) -> None:
    machines = (replace(WORKER, host=host) for host in "ab")
    long, short = (
        make_trial(n, 1.0, worker=machine, seconds=seconds)
        for n, (machine, seconds) in enumerate(zip(machines, (7_204.5, 40.25), strict=True))
    )
    sources = [Source(make_record(long, short, name=name), {}, StudyData(None, None)) for name in "xy"]
    text = report_html(make_report(sources, "now"))
    assert '<td class=num data-v="7204.5">2 h 0 min</td>' in text
    assert '<td class=num data-v="40.25">40 s</td>' in text
    assert text.count('<td class=num data-v="40.0">40 s</td>') == 2, "of both studies in the comparison"
    assert text.count('data-sort="num">time<') == 3


@pytest.mark.parametrize(
    ("given", "fact", "said"),
    [
        (None, "fitted", "fitted on the training set."),
        ({"H": -0.5}, "beef", "those of the study file."),
        (
            "isolated_atoms",
            "beef",
            "those of the isolated atoms in the data files",
        ),
    ],
)
def test_it_says_where_self_energies_come_from(
    given: object, fact: str, said: str, make_record: MakeRecord
) -> None:
    record = make_record()
    record.config["data"] = {**record.config["data"], "self_energies": given}
    record = replace(record, facts={**record.facts, "self_energies": fact})
    text = report_html(make_report([Source(record, {}, StudyData(None, None))], "now"))
    assert f"Self-energies are {said}" in text


def test_promotions_and_every_evaluation_on_the_test_set_are_shown(database: Database, study: Study) -> None:
    text, page = read(write_report(database, ["widths"]))
    assert "Evaluations on the test set" not in page.headings
    folds = {"values": [0.9, 1.1], "mean": 1.0, "spread": 0.141, "difference": None, "told_apart": False}
    apart = {"mean": 0.2, "low": -0.05, "high": 0.45}
    results = [
        {
            "trial": number,
            "architecture": f"384-{number}-1 silu",
            "val_mae": 0.8,
            "parameters": 9_000,
            "structures_per_second": 1e4,
            "folds": {"structure": {**folds, "difference": difference}},
            "failed": None,
        }
        for number, difference in ((1, None), (2, apart))
    ]
    study.set_facts({"data": "da7a"})
    for again in (False, True):
        promotion = begin_promotion(database, study, {"again": again}, WORKER).id
        record_choice(database, promotion, results, 2, "it has the fewest parameters")
        record_evaluation(database, study, promotion, 2, {}, "e", again=again)
        record_test_error(database, study, promotion, 0.95 + again)
    text, page = read(write_report(database, ["widths"]))
    assert [word for word in page.headings if word.startswith(("Promotion", "Evaluations"))] == [
        "Promotion 1",
        "Promotion 2",
        "Evaluations on the test set",
    ]
    assert "Chosen: trial 2, since it has the fewest parameters." in text
    assert "-0.050 to +0.450, cannot be told apart" in text
    assert "The test set was used 2 times. Only the error of the first evaluation is unbiased" in text
    assert "for trial 2 of widths, test MAE 0.950 kcal/mol" in text
    assert "for trial 2 of widths, test MAE 1.950 kcal/mol" in text


def test_after_a_promotion_the_answer_is_the_registered_model(database: Database, promoted: Study) -> None:
    text, _ = read(write_report(database, ["widths"]))
    answer = "Answer: 384-32-1 silu (trial 2), promoted: an ensemble of 2, registered as widths, version 1."
    assert re.search(
        rf"{re.escape(answer)} On the test set, evaluated on 20\d\d-\d\d-\d\d: MAE 0.950 kcal/mol\.", text
    )
    best = "Best of the search: 384-64-32-1 silu (trial 1), with a validation MAE of 0.800"
    assert text.index(answer) < text.index(best)


def test_a_second_look_at_the_test_set_is_told_in_the_answer(database: Database, promoted: Study) -> None:
    again = begin_promotion(database, promoted, {"ensemble": 3}, WORKER).id
    record_choice(database, again, [], 1, "it was wanted")
    record_evaluation(database, promoted, again, 1, {}, "e2", again=True)
    text, _ = read(write_report(database, ["widths"]))
    assert "an ensemble of 2" in text, "the second one has not come to a model"
    record_test(database, again, TEST)
    end_promotion(database, again, "widths", "2")
    text, _ = read(write_report(database, ["widths"]))
    assert re.search(
        r"version 2\. On the test set, evaluated on [-\d]+, not for the first time: MAE 0.900", text
    )


def test_a_winner_that_is_not_smooth_is_flagged(database: Database, kinked: Study) -> None:
    text, _ = read(write_report(database, ["widths"]))
    assert "Not for molecular dynamics: trial 1 has the activation relu, whose derivative jumps" in text


def test_an_empty_study_has_a_report(database: Database, study: Study) -> None:
    create_study(database, "new", {**study.config, "name": "new", "reference": None}, study.budget)
    text, page = read(write_report(database, ["new"]))
    assert "No trial is complete yet: there is no answer." in text
    assert "Error against cost" not in page.headings


def test_a_study_that_is_not_there_leaves_no_file(database: Database, study: Study) -> None:
    with pytest.raises(StudyNotFoundError):
        write_report(database, ["widths", "nosuch"])
    assert not (database.settings.home / "reports").exists()


def anitune(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "search.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_prints_the_path(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "all.csv"
    answer = anitune("report", "widths", "--out", str(out), "--json")
    assert (answer.returncode, json.loads(answer.stdout)) == (0, {"report": str(out)})
    assert out.read_text().startswith("study,trial,")
    answer = anitune("report", "nosuch")
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[-1].startswith("anitune: there is no study 'nosuch'")
