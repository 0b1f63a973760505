"""What README.md and docs/ name is there: commands, options, targets, settings, files, tests."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from typer.testing import CliRunner

from search.cli.main import app
from search.launch.config import LaunchConfig, load_launch
from search.study import load_study
from tools.markdown import anchor
from tools.pages import ROOT, Block, Page, commands, pages

KINDS = ("commands", "yaml", "python", "output")
SCRIPTS = ("sh backup sqlite", "sh restore sqlite", "sh backup up", "sh restore up")
"""Whole scripts, which tests/integration/test_up_and_backup.py runs."""

CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
LAUNCH_SECTIONS = LaunchConfig.__pydantic_fields__.keys()

every_page = pytest.mark.parametrize("page", pages(), ids=lambda page: page.path)


@every_page
def test_every_block_is_of_a_kind_that_is_tried(page: Page) -> None:
    unknown = [(block.place, block.info) for block in page.blocks if block.kind not in (*KINDS, *SCRIPTS)]
    assert unknown == []


@cache
def refusal(words: tuple[str, ...]) -> str | None:
    """What ``anitune`` says if there is no such command, or it has no such option."""
    with patch.dict(os.environ):  # options of all commands are handed on by it
        answer = CliRunner().invoke(app, [*words, "--help"])
    return None if answer.exit_code == 0 else answer.stderr


@every_page
def test_shown_commands_and_options_are_there(page: Page) -> None:
    shown = [list(c.words) for b in page.blocks if b.kind == "commands" for c in commands(b)]
    # In a sentence or a table, signs of usage stand around words.
    for code in CODE.findall(page.prose.replace("\\|", "|")):
        if code.startswith("anitune ") and not code.split()[1].isupper():
            words = [word.strip("[].").partition("|")[0] for word in shlex.split(code)]
            shown.append([word for word in words if word not in ("", "OPTIONS")])
    faults = {" ".join(words): refusal(tuple(words[1:])) for words in shown if words[0] == "anitune"}
    assert {words: fault for words, fault in faults.items() if fault is not None} == {}


@every_page
def test_targets_of_make_are_there(page: Page) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", page.text, re.MULTILINE)) <= set(targets)


@every_page
def test_extras_are_there(page: Page) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    shown = {name for names in re.findall(r"'\.\[([\w,]+)\]'", page.text) for name in names.split(",")}
    assert shown <= extras.keys()


@every_page
def test_links_lead_somewhere(page: Page) -> None:
    folder = (ROOT / page.path).parent
    dead = []
    for path, place in LINK.findall(page.text):
        if "://" in path:
            continue
        target = folder / path if path else ROOT / page.path
        headings = HEADING.findall(target.read_text()) if place else []
        if not target.exists() or (place and place not in [anchor(heading) for heading in headings]):
            dead.append(f"{path}#{place}")
    assert dead == []


@every_page
def test_named_tests_are_there(page: Page) -> None:
    assert [f"{file}::{name}" for file, name in TEST.findall(page.text) if not is_a_test(file, name)] == []


def is_a_test(file: str, name: str) -> bool:
    path = ROOT / file
    return path.exists() and f"\ndef {name}(" in path.read_text()


@every_page
def test_shown_settings_are_accepted(page: Page, tmp_path: Path) -> None:
    for block in page.blocks:
        if block.kind == "yaml":
            check_settings(block, tmp_path / "shown.yaml")


def check_settings(block: Block, file: Path) -> None:
    file.write_text(block.text)
    if yaml.safe_load(block.text).keys() <= LAUNCH_SECTIONS:
        load_launch(file)
    else:
        load_study(file)


def test_a_page_of_each_kind_is_linked_from_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    missing = [path.name for path in (ROOT / "docs").glob("*.md") if f"({path.name})" not in index]
    assert missing == ["README.md"]
