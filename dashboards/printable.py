"""Text of other people made safe for a terminal, or for a log that somebody shows in a terminal."""

from __future__ import annotations

import logging
import re
from typing import Final

# ASCII controls except tab and newline, C1 controls, characters that change text direction or have no width,
# unusual line separators, and lone surrogates, which cannot be written.
_CONTROLS: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """Text that is safe to send to a terminal: control characters are shown as Python escapes."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PrintableFormatter(logging.Formatter):
    """Formats a record as usual, and makes the result, its traceback included, printable."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as printable text."""
        return printable(super().format(record))
