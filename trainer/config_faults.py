"""Error messages for wrong settings, in the terms of the person who wrote the file."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

KeyPath = tuple[str | int, ...]
"""The keys and list indices that lead to a value."""

Fault = tuple[KeyPath, str]
"""The path to a wrong value, and the message."""

#: Number of faults of one file that are shown.
SHOWN: Final = 10

_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def faults_of(error: ValidationError) -> list[Fault]:
    """Return the faults that pydantic found, without those that follow from another one."""
    found = error.errors()
    return [
        (fault["loc"], _plain(fault))
        for fault in found
        # pydantic also reports a list with faulty items as too short.
        if fault["type"] != "too_short"
        or not any(other["loc"][: len(fault["loc"])] == fault["loc"] != other["loc"] for other in found)
    ]


def in_one_line(faults: Sequence[Fault], lines: Mapping[KeyPath, int]) -> str:
    """Join the first faults into one line, each with its key and its line in the file."""
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    line = "; ".join(_described(path, message, lines) for path, message in faults[:SHOWN]) + more
    # A name that somebody chose may contain a line break or a control sequence of a terminal.
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def mistaken_kinds(values: Any, found: Any, path: KeyPath = ()) -> Iterator[Fault]:
    """Yield the values where pydantic took a boolean for a number or a number for a boolean."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            inside = found.get(key) if isinstance(found, Mapping) else getattr(found, str(key), None)
            yield from mistaken_kinds(value, inside, (*path, key))
    elif isinstance(values, list | tuple) and isinstance(found, list | tuple):
        for place, (value, inside) in enumerate(zip(values, found, strict=False)):
            yield from mistaken_kinds(value, inside, (*path, place))
    elif (
        isinstance(values, int | float)
        and isinstance(found, int | float)
        and isinstance(values, bool) != isinstance(found, bool)
    ):
        wanted = "true or false" if isinstance(found, bool) else "a number"
        yield path, f"input should be {wanted} (got {_shown(values)})"


def _described(loc: KeyPath, message: str, lines: Mapping[KeyPath, int]) -> str:
    # pydantic marks the form of a union in angle brackets; no key of the file contains them.
    path = tuple(part for part in loc if not str(part).startswith("<"))
    if not path:
        return message
    key = f"{'.'.join(str(part) for part in path):.100}"
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    return f"{key}: {message}" if line is None else f"{key} (line {line}): {message}"


def _shown(value: object) -> str:
    """Return a value as a person would write it in a file, shortened to fit into a line."""
    words = {True: "true", False: "false", None: "null"}
    return words[value] if value is None or isinstance(value, bool) else _SHORT.repr(value)


#: What a value should be, where pydantic uses terms of Python.
_KINDS: Final = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
}


def _plain(fault: Any) -> str:
    kind, value = fault["type"], fault["input"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return "no such setting"
    if kind in ("missing", "missing_argument"):
        return "is missing"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if kind in ("value_error", "form"):
        return message
    single = isinstance(value, str | int | float)
    if kind == "too_short":
        message = f"a list of {fault['ctx']['min_length']} or more is needed"
    elif isinstance(value, bool) and kind.startswith(("greater_than", "less_than")):
        message = "input should be a number"
    elif kind in _KINDS:
        message = f"input should be {_KINDS[kind]}"
        if kind == "string_type" and single:
            message += ": put it in quotes"
        elif kind == "tuple_type" and single:
            message += f": write [{_shown(value)}]"
        elif value in ("None", "none"):
            message += ", or null for none"
    return f"{message[0].lower()}{message[1:]} (got {_shown(value)})"
