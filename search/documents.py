"""YAML files that people write, with the line of each key, so that a message can name it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from search.errors import StudyFileError

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A YAML mapping as it was read.

    Attributes
    ----------
    path : the file
    values : plain values by key
    lines : the line (from 1) of each key and list item, by the path to it
    """

    path: Path
    values: dict[str, Any]
    lines: dict[KeyPath, int]


def read_document(path: Path) -> Document:
    """Read a file that holds one YAML mapping.

    Raises
    ------
    StudyFileError
        if the file cannot be read, is not YAML, holds no mapping, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StudyFileError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StudyFileError(f"{path}: is not a text file in UTF-8") from None
    lines: dict[KeyPath, int] = {}
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            _find_lines(root, (), lines, path, ())
            values = loader.construct_document(root) if root is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise StudyFileError(f"{path}{place}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise StudyFileError(f"{path}: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise StudyFileError(f"{path}: holds no settings; write them as key: value, a line each")
    return Document(path, values, lines)


def read_value(text: str) -> Any:
    """The value that a text stands for, as it would after a key of a file.

    Raises
    ------
    StudyFileError
        if it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise StudyFileError(f"{text!r} is no value: {str(error).splitlines()[0]}") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but 1e-3 is a number, as in YAML 1.2 and everywhere else."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


def _find_lines(
    node: yaml.Node | None,
    path: KeyPath,
    lines: dict[KeyPath, int],
    file: Path,
    around: tuple[yaml.Node, ...],
) -> None:
    if node in around:
        raise StudyFileError(f"{file}, line {lines[path]}: an alias (*) stands within its own anchor (&)")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise StudyFileError(f"{file}, line {line}: a key must be a single word")
            here = (*path, key.value)
            if here in lines:
                raise StudyFileError(f"{file}, line {line}: {key.value} is already set in line {lines[here]}")
            lines[here] = line
            _find_lines(value, here, lines, file, (*around, node))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*path, index] = item.start_mark.line + 1
            _find_lines(item, (*path, index), lines, file, (*around, node))
