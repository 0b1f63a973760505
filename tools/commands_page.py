"""Generates the page about the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main

from search.cli.main import BAD_INPUT, DONE, FAILED, app
from storage.settings import HOME_VARIABLE, STORAGE_VARIABLE, TRACKING_VARIABLE
from tools.markdown import anchor, as_yaml, paragraphs, table

INTRODUCTION = """\
# Commands

Made by `python -m tools.reference` from the command line. `anitune COMMAND --help` says the same."""

EXIT_CODES = (
    (f"{DONE}", "done"),
    (
        f"{FAILED}",
        "failed, with one line on standard error: what, and what to do; also where `anitune study verify`"
        " found differences, or a question was answered with no",
    ),
    (
        f"{BAD_INPUT}",
        "wrong usage or bad input, with one line: what is wrong, where (file, group, key, line), what to do",
    ),
    ("130, 143", "ended by Ctrl-C or SIGTERM; the same command goes on where it was"),
)

OF_ANITUNE_UP = "the one of `anitune up`, else a file of SQLite in that folder"
VARIABLES = (
    (f"`{HOME_VARIABLE}`", "folder of everything that is a file", "`./anitune-data`"),
    (f"`{STORAGE_VARIABLE}`", "database of the records and of Optuna", OF_ANITUNE_UP),
    (f"`{TRACKING_VARIABLE}`", "MLflow server, or database of MLflow", OF_ANITUNE_UP),
)


def commands_page() -> str:
    """Generate the page about the command line."""
    command: Any = typer.main.get_command(app)
    commands = list(_commands(command, "anitune"))
    contents = [(f"[`{path}`](#{anchor(path)})", paragraphs(each.help)[0]) for path, each in commands]
    parts = [
        INTRODUCTION,
        table(("command", "what it does"), contents),
        "## Exit codes",
        table(("code", "meaning"), EXIT_CODES),
        "## Environment",
        table(("variable", "meaning", "default"), VARIABLES),
        "## Options before the command",
        "As in `anitune --storage sqlite:///studies.db study list`.",
        _parameters_table(command),
    ]
    for path, each in commands:
        parts += [f"## `{path}`", f"`{' '.join([path, *_usage(each)])}`", *paragraphs(each.help)]
        if _parameters(each):
            parts.append(_parameters_table(each))
    return "\n\n".join(parts) + "\n"


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """All commands with the words that call them, those in groups first."""
    shown = {name: each for name, each in group.commands.items() if not each.hidden}
    groups = [name for name, each in shown.items() if hasattr(each, "commands")]
    for name in groups:
        yield from _commands(shown[name], f"{path} {name}")
    yield from ((f"{path} {name}", each) for name, each in shown.items() if name not in groups)


def _usage(command: Any) -> Iterator[str]:
    if any(_is_option(each) for each in _parameters(command)):
        yield "[OPTIONS]"
    yield from (_written(each) for each in _parameters(command) if not _is_option(each))


def _parameters(command: Any) -> list[Any]:
    return [each for each in command.params if not each.hidden]


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _written(parameter: Any) -> str:
    value = parameter.metavar or parameter.name.upper()
    if _is_option(parameter):
        names = ", ".join([*parameter.opts, *parameter.secondary_opts])
        return names if parameter.is_flag else f"{names} {value}"
    value = value.strip("[]") + ("..." if parameter.nargs == -1 else "")
    return value if parameter.required else f"[{value}]"


def _parameters_table(command: Any) -> str:
    rows = [(f"`{_written(each)}`", _meaning(command, each)) for each in _parameters(command)]
    return table(("argument or option", "meaning"), rows)


def _meaning(command: Any, parameter: Any) -> str:
    if not parameter.help:
        raise ValueError(f"{command.name}: say in its help what {parameter.name} means")
    (words,) = paragraphs(parameter.help)
    if not _is_option(parameter) or parameter.is_flag:
        return words
    if parameter.required:
        words += " Must be given."
    elif parameter.default is not None:
        words += f" Default: {as_yaml(parameter.default)}."
    if parameter.multiple and "repeated" not in words:
        words += " May be repeated."
    return words
