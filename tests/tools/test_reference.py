"""The reference pages say what the schema and the command line are now."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any

import pytest
import typer.main
from pydantic import Field
from pydantic.dataclasses import dataclass

from search.cli.lazy import LazyCommand
from search.cli.main import app
from search.study import StudyConfig
from tools.commands_page import commands_page
from tools.markdown import paragraphs
from tools.reference import PAGES, ROOT
from tools.study_file_page import SECTIONS, study_file_page


@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_what_would_be_made_now(page: str) -> None:
    assert (ROOT / page).read_text() == PAGES[page](), (
        f"{page} is out of date; make it anew: python -m tools.reference"
    )


def test_every_setting_has_its_row() -> None:
    page = study_file_page()
    for kind in (StudyConfig, *SECTIONS.values()):
        for field in fields(kind):  # type: ignore[arg-type]
            assert f"\n| `{field.name}` | " in page


WIDTHS = "list of whole numbers from 1 to 4096, 1 to 8 of them"


@pytest.mark.parametrize(
    ("setting", "cells"),
    [
        ("hidden", [f"{WIDTHS}, or mapping of text to {WIDTHS}", "`[128]`", "neurons"]),
        ("dropout", ["number from 0, below 1", "`0`", ""]),
        ("patience", ["whole number from 1 on, or `null`", "`null`", "epochs"]),
        ("self_energies", ["mapping of text to number, or `isolated_atoms`, or `null`", "`null`", "hartree"]),
        ("name", ["text of 100 characters at most", "required", ""]),
        ("layers", ["`{low: 1, high: 4, step: 1}`", ""]),
    ],
)
def test_a_row_tells_range_default_and_unit(setting: str, cells: list[str]) -> None:
    assert f"\n| `{setting}` | {' | '.join(cells)} | " in study_file_page()


def test_a_setting_without_a_meaning_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Silent:
        quiet: Annotated[int, Field(ge=1)] = 1

    monkeypatch.setattr("tools.study_file_page.SECTIONS", {**SECTIONS, "silent": Silent})
    with pytest.raises(ValueError, match=r"silent\.quiet has no description"):
        study_file_page()


def test_every_command_has_its_section_and_hidden_ones_have_none() -> None:
    page = commands_page()
    for path, command in shown_commands():
        assert f"\n## `{path}`\n" in page
        for parameter in command.params:
            assert all(f"`{name}" in page for name in parameter.opts if name.startswith("-"))
    assert "anitune relay" not in page
    assert "| `--on local\\|slurm\\|kubernetes` | Where the workers run. Required. |" in page
    assert "| `--nodes M` | Number of nodes. Default: 1. |" in page
    assert "\n`anitune worker [OPTIONS] [STUDY]`\n" in page


def shown_commands() -> list[tuple[str, Any]]:
    def below(group: Any, path: str) -> list[tuple[str, Any]]:
        return [
            each
            for name, command in group.commands.items()
            if not command.hidden
            for each in (
                below(command, f"{path} {name}")
                if hasattr(command, "commands")
                else [(f"{path} {name}", command.load())]
            )
        ]

    return below(typer.main.get_command(app), "anitune")


def test_a_list_of_commands_shows_the_first_paragraph_of_their_help() -> None:
    main: Any = typer.main.get_command(app)
    for group in (main, *main.commands.values()):
        for command in getattr(group, "commands", {}).values():
            if isinstance(command, LazyCommand) and not command.hidden:
                (first, *_) = paragraphs(command.load().help)
                assert command.help == first, f"{command.name}: copy this paragraph to search/cli/main.py"
