"""Tables as comma-separated values that a spreadsheet opens without computing anything."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Final

# What begins a formula, also behind a semicolon: where that divides the cells, it begins one, too.
_FORMULA: Final = re.compile(r"(^|;)(?=[=+\-@\t\n＝＋－＠])")

# The csv module does not quote a carriage return, which ends a row for some readers.
_RETURN: Final = re.compile(r"\r\n?")


def csv_text(rows: Sequence[Mapping[str, object]], columns: Sequence[str] = ()) -> str:
    """The rows under a head line; cells of text that a spreadsheet would take for formulas begin with ``'``.

    Parameters
    ----------
    columns
        Of a table without rows; others have those of their first row.
    """
    names = list(rows[0]) if rows else columns
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(plain_cell, names))
    writer.writerows([plain_cell(row[name]) for name in names] for row in rows)
    return text.getvalue()


def plain_cell(value: object) -> object:
    """The value; of text that begins a formula, and is no number, such that it does not."""
    if not isinstance(value, str) or _is_number(value):
        return value
    return _FORMULA.sub(r"\1'", _RETURN.sub("\n", value))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()
