"""Text of others as it may be sent to a terminal, or written to a log that somebody shows in one."""

from __future__ import annotations

import logging
import re
from typing import Final

# Controls of ASCII but tab and newline, those of C1, what turns the direction of text or has no width, the
# separators of lines that are none, and lone surrogates, which cannot be written: nothing for a terminal.
_CONTROLS: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """Text of others as a terminal may be sent it: control characters are shown as Python writes them."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PrintableFormatter(logging.Formatter):
    """Formats a record as the other formatters do, its traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        return printable(super().format(record))
