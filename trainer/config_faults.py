"""What is wrong with settings, in the words of whoever wrote the file."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

KeyPath = tuple[str | int, ...]
"""The keys and places in lists that lead to a value."""

Fault = tuple[KeyPath, str]
"""Where it is, and what."""

#: Faults of one file that are told.
SHOWN: Final = 10

_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def faults_of(error: ValidationError) -> list[Fault]:
    """What pydantic found, without what follows from another fault."""
    found = error.errors()
    return [
        (fault["loc"], _plain(fault))
        for fault in found
        # A list whose items are at fault is called too short, too.
        if fault["type"] != "too_short"
        or not any(other["loc"][: len(fault["loc"])] == fault["loc"] != other["loc"] for other in found)
    ]


def in_one_line(faults: Sequence[Fault], lines: Mapping[KeyPath, int]) -> str:
    """The first of some faults, each with its key and its line in the file."""
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    line = "; ".join(_described(path, message, lines) for path, message in faults[:SHOWN]) + more
    # A name that somebody chose may hold an end of line, or what a terminal obeys.
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def mistaken_kinds(values: Any, found: Any, path: KeyPath = ()) -> Iterator[Fault]:
    """Where a number was taken for true or false, or one of these for a number, as Python does."""
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
    # Names in angle brackets tell which of several forms a value has; no key of the file has them.
    path = tuple(part for part in loc if not str(part).startswith("<"))
    if not path:
        return message
    key = f"{'.'.join(str(part) for part in path):.100}"
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    return f"{key}: {message}" if line is None else f"{key} (line {line}): {message}"


def _shown(value: object) -> str:
    """A value as one would write it in a file, and no more of it than fits into a line."""
    words = {True: "true", False: "false", None: "null"}
    return words[value] if value is None or isinstance(value, bool) else _SHORT.repr(value)


#: What a value should be, where pydantic has Python's words.
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
        message = f"a list of {fault['ctx']['min_length']} or more is due"
    elif isinstance(value, bool) and kind.startswith(("greater_than", "less_than")):
        message = "input should be a number"
    elif kind in _KINDS:
        message = f"input should be {_KINDS[kind]}"
        if kind == "string_type" and single:
            message += ": put it in quotes"
        elif kind == "tuple_type" and single:
            message += f": write [{_shown(value)}]"
        elif value in ("None", "none"):
            message += ", or null where there may be none"
    return f"{message[0].lower()}{message[1:]} (got {_shown(value)})"
