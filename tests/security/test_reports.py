"""Records of somebody else in what people read and paste: notes, reports, figures and commands."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from dashboards import figures, links
from dashboards.chart import figure_json
from dashboards.drawing import png
from dashboards.formatting import markdown_block, markdown_code, markdown_text
from dashboards.notes import (
    OptunaImage,
    mlflow_study_note,
    mlflow_trial_note,
    optuna_study_note,
    optuna_trial_note,
)
from dashboards.record import StudyRecord
from dashboards.report.contents import Section, Source, StudyReport, Table, make_report
from dashboards.report.data import StudyData
from dashboards.report.html import report_html
from dashboards.report.markdown import report_markdown
from dashboards.report.reproduce import commands, shell_word, study_file
from search.study import study_from_values
from storage.studies import Budget, StudySummary
from storage.trials.queue import WorkerInfo
from storage.trials.views import TrialRow
from trainer.config import TrainConfig, dump_config

WORDS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "[click](https://evil.example)",
    "![](https://evil.example/pixel.png)",
    "a | b | c",
    "`code` and ``` fences ```",
    "```\n\n# heading\n\n<script>alert(1)</script>",
    "**bold** _it_ ~~gone~~ # h",
    "a\n\n> quote\n\n- item",
    "\\[x](javascript:alert(1))",
    "<a href='javascript:alert(1)'>x</a>",
    "&lt;b&gt; $x$ $\\frac",
)
TOGETHER = (" ".join(WORDS), *WORDS[2:8:5])
"""For what takes seconds."""

SHELL = (
    *("$(touch owned)", "`touch owned`", "a; touch owned", "a\ntouch owned\n", "a' ; touch owned ; '", "-rf"),
    *(
        "a # b",
        "a && touch owned",
        "x\x15touch owned\n",
        "\x1b[201~\ntouch owned\n",
        "\u202e\x9b",
        "\udcff ' \\",
    ),
    *("plain.h5", "with blank.h5", "é.h5"),
)


def trial(number: int = 0, word: str = "384-8-1 silu", **changed: Any) -> TrialRow:
    row = TrialRow(
        number=number,
        optuna_trial_id=number,
        state="complete",
        value=1.0 + number,
        config={**dump_config(TrainConfig(hidden=(8,), activation="silu", epochs=9)), "optimizer": word},
        params={},
        tags={"arch": word},
        summary={
            "parameters": 100.0 + number,
            f"val/mae_kcalmol_elements_{word}": 1.0,
            "structures_per_second": 1.0,
        },
        reason=word,
        attempt=1,
        worker=WorkerInfo(word, word, 1, word, {"commit": word, word: word}),
        started=0.0,
        ended=1.0,
        seconds=1.0,
        epochs=9,
        trained_epochs=9,
        planned_epochs=9,
        mlflow_run_id=word,
        artifacts=(),
    )
    return replace(row, **changed)


def record(word: str, name: str = "widths", files: tuple[str, ...] = ("a.h5",)) -> StudyRecord:
    values = {
        "name": "widths",
        "training": {"hidden": [8]},
        "space": {"activation": {"choices": ["celu", "silu"]}},
    }
    config = dump_config(study_from_values({**values, "limits": {"trials": 3}}, "here"))
    trials = (trial(0, word), trial(1, word), trial(2, word, state="failed", value=None))
    states = dict.fromkeys(("running", "interrupted", "paused", "pruned"), 0) | {"complete": 2, "failed": 1}
    summary = StudySummary(
        name=name,
        state="open",
        created_at=0.0,
        budget=Budget(trials=3),
        trials=states,
        best_number=0,
        best_value=1.0,
        seconds=3.0,
        epochs=27,
        epochs_saved=0,
        mlflow_experiment_id=word,
        mlflow_run_id=word,
    )
    config["data"]["files"] = list(files)
    return StudyRecord(name, 1, config, {"data": word, "split": word}, summary, trials, (), (), (), None)


def report_of(word: str) -> StudyReport:
    shown = record(word)
    return make_report([Source(shown, {0: [(1, 1.0)], 1: [(1, 2.0)]}, StudyData(None, None, word))], "today")


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the texts of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data


def harm(markdown: str) -> list[str]:
    """What a renderer that lets HTML through, as that of Optuna does, makes of it beyond our own."""
    rendered = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)
    found = []
    for tag, attributes in Elements(rendered).found:
        address = attributes.get("href") or attributes.get("src") or ""
        ours = address.startswith(
            ("#/", "/mlflow", "/dashboard", "/anitune", "/artifacts/", "get-artifact?", "f/")
        )
        allowed = {
            "p",
            "code",
            "pre",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "strong",
            "h1",
            "h2",
            "h3",
            "hr",
            "em",
        }
        if tag not in allowed and not (tag in ("a", "img") and ours):
            found.append(f"{tag} {attributes}")
        if any(name.startswith("on") for name in attributes):
            found.append(f"{tag} {attributes}")
    return found


def rows(markdown: str) -> list[int]:
    """How many cells the rows of the first table have."""
    rendered = MarkdownIt("commonmark").enable("table").render(markdown)
    table = rendered.split("<table>")[1].split("</table>")[0]
    return [row.count("<td") + row.count("<th>") + row.count("<th ") for row in table.split("<tr>")[1:]]


@pytest.mark.parametrize("word", WORDS)
def test_notes_show_the_words_of_others_as_text(word: str) -> None:
    shown = record(word)
    images = [OptunaImage("loss.png", word)]
    notes = [
        mlflow_study_note(shown.summary, shown.trials),
        optuna_study_note(1, shown.summary, shown.trials),
    ]
    notes += [mlflow_trial_note(each) for each in shown.trials]
    notes += [optuna_trial_note(1, word, each, images) for each in shown.trials]
    for note in notes:
        assert harm(note) == [], note
        assert len(set(rows(note))) == 1 if "| ---" in note else True, note


@pytest.mark.parametrize("word", TOGETHER)
def test_a_report_in_markdown_shows_them_as_text(word: str) -> None:
    text = report_markdown(report_of(word), "f").text
    assert harm(text) == []
    table = Table("t", (word, "b"), ((word, "1"), ("x", word)))
    hostile = StudyReport(word, "made today", (Section(word, (word,), table, copied=(word,)),))
    text = report_markdown(hostile, "f").text
    assert harm(text) == []
    assert set(rows(text)) == {2}
    assert MarkdownIt("commonmark").render(text).count("<pre>") == 1


@pytest.mark.parametrize("word", TOGETHER)
def test_a_report_in_html_has_no_element_of_theirs(word: str) -> None:
    plain, hostile = Elements(report_html(report_of("384-8-1 silu"))), Elements(report_html(report_of(word)))
    assert [tag for tag, _ in hostile.found] == [tag for tag, _ in plain.found]
    for (_, mine), (_, theirs) in zip(plain.found, hostile.found, strict=True):
        assert set(mine) == set(theirs), "no attribute of theirs"
    figures_ = [json.loads(text) for text in hostile.scripts if text.startswith('{"data"')]
    assert len(figures_) > 3
    assert hostile.scripts[-2:] == plain.scripts[-2:], "our two scripts, and no other"


@pytest.mark.parametrize("word", TOGETHER)
def test_plotly_is_given_no_links_or_tags_of_theirs(word: str) -> None:
    shown = record(word)
    charts = [make(shown) for make in figures.FIGURES.values()]
    charts.append(figures.curves(shown, {0: [(1, 1.0)]}))
    for chart in charts:
        figure = json.loads(figure_json(chart))
        del figure["layout"]["meta"]  # words for those who do not see it; plotly does not show them
        for text in strings(figure):
            assert "<" not in re.sub(r"<br>|<extra></extra>|<extra>|</extra>", "", text), text
        assert png(chart).startswith(b"\x89PNG")


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("name", SHELL)
def test_commands_that_are_pasted_run_nothing_of_theirs(tmp_path: Path, name: str) -> None:
    shown = record(name, name=name, files=(name, "second.h5"))
    text = commands(shown)
    assert all(letter.isprintable() or letter == "\n" for letter in text), "a terminal takes these for keys"
    script = "anitune() { printf '%s\\0' \"$@\"; printf '\\0'; }\ngit() { touch owned; }\n" + text
    run = subprocess.run(["bash", "-c", script], capture_output=True, cwd=tmp_path, timeout=30)
    assert not list(tmp_path.iterdir())
    said = name.encode(errors="surrogateescape")
    info, study, reproduce, _ = run.stdout.split(b"\0\0")
    assert info.split(b"\0") == [b"data", b"describe", said, b"second.h5"]
    assert study.split(b"\0") == [b"study", b"run", said + b".yaml"]
    assert reproduce.split(b"\0") == [b"reproduce", said, b"0"]


def test_the_data_is_looked_at_as_it_was_read() -> None:
    shown = record("x", files=("a.xyz",))
    shown.config["data"] |= {
        "energy": "E ref",
        "unit": "kcal/mol",
        "leave_out": ["charged"],
        "unusual": "keep",
        "self_energies": "isolated_atoms",
    }
    assert (
        "anitune data describe a.xyz --energy 'E ref' --unit kcal/mol --unusual keep"
        " --self-energies isolated_atoms --leave-out charged"
    ) in commands(shown)
    shown.config["data"]["self_energies"] = {"H": -0.5}
    assert "--self-energies" not in commands(shown)


@pytest.mark.parametrize("name", ["a", "é", "\u202e", "'\\\n", "\x15", "\udcff", "\U000e0041", "\x80"])
def test_a_word_of_a_shell_is_that_word(name: str) -> None:
    said = subprocess.run(["bash", "-c", f"printf %s {shell_word(name)}"], capture_output=True, timeout=30)
    assert said.stdout == name.encode(errors="surrogateescape")


def test_a_commit_is_printed_only_if_it_is_one() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert commands(record(commit)).startswith(f"git checkout {commit}\n")
    assert commands(record(f"{commit}-dirty")).startswith(f"git checkout {commit}\n")
    for word in ("--force", "main", "abc; touch x", "ABCDEF0", f"{commit}\ntouch x", "abc"):
        assert "git checkout" not in commands(record(word))


def test_a_study_file_that_is_pasted_has_no_characters_that_turn_text() -> None:
    shown = record("x", files=("\u202egnp.h5", "é.h5"))
    text = study_file(shown)
    assert "\u202e" not in text
    assert yaml.safe_load(text)["data"]["files"] == ["\u202egnp.h5", "é.h5"]
    assert "é.h5" in study_file(record("x", files=("é.h5",)))


def test_fences_are_longer_than_those_inside() -> None:
    assert markdown_block("x\n") == "```\nx\n```"
    assert markdown_block("a\n````\nb").split("\n") == ["`````", "a", "````", "b", "`````"]


def test_only_a_plain_word_is_code() -> None:
    assert markdown_code("384-64-1 silu") == "`384-64-1 silu`"
    assert markdown_code("a`b|c") == markdown_text("a`b|c") == "a\\`b\\|c"


def test_ids_lead_out_of_no_link() -> None:
    for url in (
        links.mlflow_run("", "7) [x](javascript:alert(1)", "a/../b)"),
        links.mlflow_leaderboard("", "a)b"),
        links.mlflow_curves("", "a)b"),
        links.optuna_image(1, 2, "../x)"),
    ):
        assert not set(url) & set("()[]<>\"' ")
