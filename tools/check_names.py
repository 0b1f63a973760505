"""Refuse names that were replaced by the field's own words: ``python -m tools.check_names``.

The list is ``[tool.names.replaced]`` in ``pyproject.toml``: words, or words joined by underscores if each of
them alone is an ordinary word. It is compared with the words in names of definitions and modules: ``twin``
refuses ``find_twin`` and ``TwinTag``. Columns that keep an old name can still be read.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDERS: Final = ("trainer", "storage", "search", "dashboards", "benchmarks", "tools", "tests", "examples")

#: Migrations are not checked, because they must stay as databases have run them.
FROZEN: Final = ROOT / "storage" / "records" / "migrations" / "versions"

_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


def main() -> None:
    """Print every replaced name with its location; the exit code is 1 if there are any."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    found = [
        f"{file.relative_to(ROOT)}:{line}: {text}"
        for file in files
        if FROZEN not in file.parents
        for line, text in replaced_names(file.stem, file.read_text(), settings["tool"]["names"]["replaced"])
    ]
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(1 if found else 0)


def replaced_names(module: str, source: str, replaced: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Line and message for each name that uses a replaced word, of the module itself or of a definition.

    Parameters
    ----------
    replaced : new words by the replaced ones, in snake case
    """
    for line, name in [(1, module), *definitions(ast.parse(source))]:
        words = _words(name)
        for old, new in replaced.items():
            if _holds(words, old.split("_")):
                yield line, f"{name}: {old} is called {new} now"


def definitions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of the functions, classes, parameters, variables and attributes that a module defines."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.alias(asname=str(name)):
                yield node.lineno, name
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _holds(words: list[str], some: Iterable[str]) -> bool:
    some = list(some)
    return any(words[begin : begin + len(some)] == some for begin in range(len(words)))


if __name__ == "__main__":
    main()
