"""Text from files, databases and servers that would steer a terminal: nothing that is shown may hold it."""

from __future__ import annotations

import ast
import io
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.table import Table
from typer.testing import CliRunner

from dashboards.printable import PrintableFormatter, printable
from search.cli.main import app
from search.cli.output import make_console
from search.cli.promote import _result_lines
from search.cli.terminal import echo

ROOT = Path(__file__).parents[2]
COMMANDS = ROOT / "search" / "cli"

CLEAR, TITLE, C1, BIDI = "\x1b[2J", "\x1b]0;owned\x07", "\x9b2J", "\u202egnp.exe"
HOSTILE = f"a{CLEAR}b{TITLE}c{C1}d{BIDI}e\rf\x08g\x7fh\u2066i\u200bj"
SHOWN = r"a\x1b[2Jb\x1b]0;owned\x07c\x9b2Jd\u202egnp.exee\rf\x08g\x7fh\u2066i\u200bj"


def steers(text: str) -> bool:
    """Whether anything in it is more to a terminal than a letter, a line or a column."""
    return any(not letter.isprintable() and letter not in "\n\t" for letter in text)


def test_controls_are_shown_as_text() -> None:
    assert steers(HOSTILE)
    assert printable(HOSTILE) == SHOWN
    assert printable(printable(HOSTILE)) == SHOWN
    assert printable("Å ± ≈ é 日本語\n\tx") == "Å ± ≈ é 日本語\n\tx"
    assert printable(os.fsdecode(b"\xff")) == r"\udcff", "a name of a file that is not UTF-8"


def test_a_command_says_nothing_that_steers(capsys: pytest.CaptureFixture[str]) -> None:
    echo(HOSTILE)
    echo(HOSTILE, err=True)
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{SHOWN}\n", f"{SHOWN}\n")


def test_a_table_keeps_its_own_styles_and_no_others() -> None:
    console = make_console()
    console.file = io.StringIO()
    console._force_terminal = True
    console._color_system = None
    table = Table(title=HOSTILE, caption=HOSTILE)
    table.add_column("name", no_wrap=True)
    table.add_row(HOSTILE, style="bold")
    console.width = 200
    console.print(table)
    console.print(HOSTILE, markup=False)
    text = console.file.getvalue()
    assert r"\x1b[2Jb\x1b]0;owned" in text
    assert not steers(text)


def test_a_log_says_nothing_that_steers() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PrintableFormatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("hostile")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("said %s", HOSTILE)
    assert "ValueError: a\\x1b[2J" in stream.getvalue()
    assert not steers(stream.getvalue())


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_neither_an_error_nor_a_traceback_steers(tmp_path: Path, debug: list[str]) -> None:
    """The message of a broken file repeats what the file holds, and its name."""
    file = tmp_path / f"{CLEAR}{BIDI}.yaml"
    file.write_text('name: x\n"\\e[2J\\u202E": 1\n')
    run = subprocess.run(
        [sys.executable, "-P", "-m", "search.cli.main", *debug, "study", "create", str(file)],
        capture_output=True,
        text=True,
        env={**os.environ, "ANITUNE_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert run.returncode != 0
    assert ("Traceback" in run.stderr) == bool(debug)
    assert r"\x1b[2J" in run.stderr
    assert not steers(run.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        [HOSTILE],
        ["study", HOSTILE],
        ["study", "show", HOSTILE],
        [f"--{HOSTILE}"],
        ["worker", "--pack", HOSTILE],
    ],
)
def test_a_wrong_argument_is_repeated_as_text(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANITUNE_HOME", str(tmp_path))
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 2
    assert r"\x1b[2J" in answer.output
    assert not steers(answer.output)


def test_all_that_commands_say_goes_that_way() -> None:
    """Else only constants and JSON, which is ASCII, are written; and nobody makes a console of his own."""
    elsewhere = []
    for path in sorted(COMMANDS.glob("*.py")):
        if path.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in ("Console", "typer.secho", "sys.stdout.write", "sys.stderr.write"):
                elsewhere.append(f"{path.name}:{node.lineno}")
            if called in ("typer.echo", "print") and not _is_safe(node.args[0]):
                elsewhere.append(f"{path.name}:{node.lineno}")
    assert elsewhere == []


def _is_safe(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_safe(node.body) and _is_safe(node.orelse)
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) == "json.dumps" and "ensure_ascii" not in ast.unparse(node)
    return isinstance(node, ast.Constant)


def test_words_of_others_are_no_markup() -> None:
    """Rich reads [link=...] and fails at [/x]: what is put between markup of ours is escaped, or a number."""
    raw = []
    for path in sorted(COMMANDS.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not ast.unparse(node.func).endswith("onsole.print"):
                continue
            if any(keyword.arg == "markup" for keyword in node.keywords):
                continue
            raw += [
                f"{path.name}:{part.lineno} {ast.unparse(part.value)}"
                for part in ast.walk(node.args[0])
                if isinstance(part, ast.FormattedValue)
                if part.format_spec is None
                and not ast.unparse(part.value).startswith("escape(")
                and not ast.unparse(part.value).endswith(".number")
            ]
    assert raw == []


def test_what_a_promotion_found_is_no_markup() -> None:
    test = {"mae_kcalmol": 1.0, "mean_member_mae_kcalmol": 1.0, "structures": 9}
    word = "[/x] [link=https://evil.example]a[/link]"
    promotion: Any = SimpleNamespace(test=test, reason=word, model_name=word, model_version=word)
    opened: Any = [word]
    console = make_console()
    console.file = io.StringIO()
    for line in _result_lines(promotion, opened, "http://host", "silu"):
        console.print(line, soft_wrap=True)
    assert console.file.getvalue().count(word) == 5
