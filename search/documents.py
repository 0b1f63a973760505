"""YAML files that people write, read with the line number of each key for error messages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from search.errors import StudyFileError
from trainer.config_faults import KeyPath

#: Maximum numbers of bytes and of values in a file. An alias (*) counts as all values that it stands for.
MOST_BYTES: Final = 2**21
MOST_VALUES: Final = 20_000

#: Maximum nesting depth of mappings and lists.
MOST_DEPTH: Final = 50

#: Maximum number of digits of an integer.
MOST_DIGITS: Final = 100


@dataclass(frozen=True)
class Document:
    """A YAML mapping with line numbers.

    Attributes
    ----------
    path : the file
    values : plain values by key
    lines : line number, from 1, of each key and list item, by its path
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
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise StudyFileError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise StudyFileError(f"{path}: has more than {MOST_BYTES >> 20} MiB: it is not a file of settings")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise StudyFileError(f"{path}: is not a text file in UTF-8") from None
    try:
        values, lines = _read(text)
    except _Fault as fault:
        raise StudyFileError(f"{path}{fault.place}: {fault}") from None
    if not isinstance(values, dict):
        raise StudyFileError(
            f"{path}: contains no settings; write one per line as key: value, with a space after the colon"
        )
    return Document(path, values, lines)


def read_value(text: str) -> Any:
    """Parse a text as the value of a key in a file.

    Raises
    ------
    StudyFileError
        if the text is not YAML.
    """
    try:
        return _read(text)[0]
    except _Fault as fault:
        raise StudyFileError(f"{text[:80]!r} is not a value: {fault}") from None


def write_document(values: Mapping[str, Any], ascii_only: bool = False) -> str:
    """Write settings as YAML that :func:`read_document` and readers of YAML 1.1 read alike."""
    text: str = yaml.dump(
        dict(values),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=not ascii_only,
        width=100,
        default_flow_style=None,
    )
    return text


def resolve_path(text: str, folder: Path) -> Path:
    """Return the absolute path that a file of settings names.

    Relative paths start from the folder of the file. ``~`` is expanded, and so are ``$VARIABLES``, unless a
    file exists whose name really contains the ``$``.
    """
    # The functions of os.path do not raise, whatever the text is.
    text = os.path.expanduser(text)  # noqa: PTH111
    written = (folder / text).absolute()
    return written if os.path.exists(written) else (folder / os.path.expandvars(text)).absolute()  # noqa: PTH110


class _Fault(Exception):  # noqa: N818  (becomes a StudyFileError that names the file)
    """An error in a text, with its line number, from 1."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.place = f", line {line}" if line is not None else ""


def _read(text: str) -> tuple[Any, dict[KeyPath, int]]:
    """Return the plain values of a text and the line numbers of their keys."""
    reader = _Reader()
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise _Fault(_said(error), error.problem_mark.line + 1 if error.problem_mark else None) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _Fault(f"the character {chr(int(error.character))!a} is not allowed", line) from None
    return (reader.value(root, ()) if root is not None else None), reader.lines


#: Clearer messages for the commonest errors, by PyYAML's message.
_CLEARER: Final = {
    "mapping values are not allowed here": (
        "unexpected colon: align the keys of a mapping, and quote a text that contains a colon and a space"
    ),
    "found character '\\t' that cannot start any token": "a tab: indent with spaces",
}


def _said(error: yaml.MarkedYAMLError) -> str:
    problem, begun = str(error.problem or error.context), error.context_mark
    if problem in _CLEARER:
        return _CLEARER[problem]
    if problem.startswith("but "):
        return f"{error.context}, {problem}"
    if begun is None or error.problem_mark is None or begun.line == error.problem_mark.line:
        return problem
    return f"{problem} ({error.context} that starts in line {begun.line + 1})"


class _Loader(yaml.SafeLoader):
    """A loader with the core schema of YAML 1.2, because YAML 1.1 reads some words as other values.

    In YAML 1.1, 1:30 is 90, 010 is 8, yes and on are true, 2026-11-29 is a date, and 1e-3 is a text.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (as in the parent)
    depth = nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        self.nodes += 1
        if self.depth > MOST_DEPTH or self.nodes > MOST_VALUES:
            deep = f"more than {MOST_DEPTH} levels of nested lists or mappings"
            many = f"more than {MOST_VALUES:,} values"
            raise yaml.composer.ComposerError(
                problem=deep if self.depth > MOST_DEPTH else many, problem_mark=self.get_mark()
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


_TAG: Final = "tag:yaml.org,2002:"
_MERGE: Final = f"{_TAG}merge"

#: Scalars of YAML 1.2.2, section 10.3.2, and the merge key of YAML 1.1, which is still in use.
_SCALARS: Final = {
    f"{_TAG}null": r"null|Null|NULL|~|",
    f"{_TAG}bool": r"true|True|TRUE|false|False|FALSE",
    f"{_TAG}int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    f"{_TAG}float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
    _MERGE: r"<<",
}


class _Dumper(yaml.SafeDumper):
    """Quotes texts that YAML 1.1 or 1.2 would read as another type."""


for _tag, _scalar_pattern in _SCALARS.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_tag, re.compile(rf"(?:{_scalar_pattern})\Z"), None)


@dataclass
class _Reader:
    """Converts the nodes of a text to plain values."""

    lines: dict[KeyPath, int] = field(default_factory=dict)
    count: int = 0

    def value(self, node: yaml.Node, path: KeyPath, around: tuple[yaml.Node, ...] = ()) -> Any:
        line = self.lines.get(path, node.start_mark.line + 1)
        if node in around:
            raise _Fault("an alias (*) is inside its own anchor (&)", line)
        self.count += 1
        if self.count > MOST_VALUES or len(around) > MOST_DEPTH:
            raise _Fault(
                f"its aliases (*) expand to more than {MOST_VALUES:,} values, or refer to each other", line
            )
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if node.tag == f"{_TAG}map":
            return self._mapping(node, path, (*around, node))
        if node.tag == f"{_TAG}seq":
            values = []
            for place, item in enumerate(node.value):
                self.lines[*path, place] = item.start_mark.line + 1
                values.append(self.value(item, (*path, place), (*around, node)))
            return values
        raise _unknown(node)

    def _mapping(self, node: yaml.Node, path: KeyPath, around: tuple[yaml.Node, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for source in _merged(node):
            if not isinstance(found := self.value(source, path, around), dict):
                raise _Fault("<< takes a mapping, or a list of them", source.start_mark.line + 1)
            values |= found
        set_in: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or not key.value:
                raise _Fault("a key must be a single word", line)
            name = _text(key)
            if name in set_in:
                raise _Fault(f"{name:.80} is already set in line {set_in[name]}", line)
            set_in[name] = line
            if key.tag != _MERGE:
                self.lines[*path, name] = line
                values[name] = self.value(value, (*path, name), around)
        return values


def _merged(node: yaml.Node) -> Iterator[yaml.Node]:
    """Yield the mappings that << merges into this one, the ones that take precedence last."""
    for key, value in node.value:
        if key.tag == _MERGE:
            yield from reversed(value.value) if isinstance(value, yaml.SequenceNode) else (value,)


def _scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    text, kind = str(node.value), node.tag
    if kind in (f"{_TAG}str", _MERGE):
        return _text(node)
    if kind not in _SCALARS:
        raise _unknown(node)
    if not re.fullmatch(_SCALARS[kind], text):  # such as !!int abc
        raise _Fault(f"{text[:80]!r} is not a valid {kind.removeprefix(_TAG)}", node.start_mark.line + 1)
    if kind == f"{_TAG}null":
        return None
    if kind == f"{_TAG}bool":
        return text.lower() == "true"
    if kind == f"{_TAG}float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if len(text) > MOST_DIGITS:
        raise _Fault(f"a number of {len(text)} digits", node.start_mark.line + 1)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _text(node: yaml.ScalarNode) -> str:
    line = node.start_mark.line + 1
    try:
        # JSON writes some characters as a surrogate pair of UTF-16; half a pair is no character.
        text = str(node.value).encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _Fault("a text contains half a character (\\ud800 to \\udfff)", line) from None
    if "\0" in text:  # neither databases nor file names allow it
        raise _Fault("a text contains the character \\0", line)
    return text


def _unknown(node: yaml.Node) -> _Fault:
    return _Fault(f"the tag {node.tag[:80]!r} is not supported in settings", node.start_mark.line + 1)
