"""Strict reader for JSON from untrusted files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

from pydantic_core import from_json

#: The largest file that is read; anitune's own files have some kB.
MOST_BYTES: Final = 2**24


def read_json(path: Path) -> Any:
    """Return the plain values in a file; see :func:`parse_json`.

    Raises
    ------
    OSError
        if it cannot be read.
    ValueError
        with one line, if it is not such a file, or larger than ``MOST_BYTES``.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
    return parse_json(content)


def parse_json(text: str | bytes) -> Any:
    """Return the plain values of a JSON text.

    Raises
    ------
    ValueError
        with one line, if it is not JSON, or has what Python's own reader accepts or fails on: NaN, an
        infinite number, a key that occurs twice in an object, or values nested deeper than 200.
    """
    # This parser bounds the depth. Python's raises a RecursionError, or leaves that to the code that prints
    # or compares the values.
    from_json(text, allow_inf_nan=False)
    return json.loads(text, object_pairs_hook=_object, parse_float=_number)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise ValueError(f"the key {twice[:40]!r} occurs twice")
    return values


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number
