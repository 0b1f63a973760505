"""Comma-separated values that a spreadsheet opens without evaluating any cell."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Final

# The start of a formula, also after a semicolon, because some programs divide cells there.
_FORMULA: Final = re.compile(r"(^|;)(?=[=+\-@\t\n＝＋－＠])")

# The csv module does not quote a carriage return, which ends a row for some readers.
_RETURN: Final = re.compile(r"\r\n?")


def csv_text(rows: Sequence[Mapping[str, object]], columns: Sequence[str] = ()) -> str:
    """Return the rows under a header line; a ``'`` precedes text that a spreadsheet would take for a formula.

    Parameters
    ----------
    columns
        Columns of a table without rows; other tables have the columns of their first row.
    """
    names = list(rows[0]) if rows else columns
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(plain_cell, names))
    writer.writerows([plain_cell(row[name]) for name in names] for row in rows)
    return text.getvalue()


def plain_cell(value: object) -> object:
    """Return the value, with a ``'`` before text that starts a formula and is not a number."""
    if not isinstance(value, str) or _is_number(value):
        return value
    return _FORMULA.sub(r"\1'", _RETURN.sub("\n", value))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()
