"""Names of artifacts: paths within a run, which never lead out of the folder that they are put into."""

from __future__ import annotations

import re
from typing import Final

from storage.errors import ArtifactNameError

LONGEST: Final = 200
"""Characters: less than a file system, a bucket and MLflow allow."""

# No percent sign: a server that decodes a path once more would find another one. No word begins with a dot.
_WORD = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_NAME = re.compile(rf"{_WORD}(/{_WORD})*")


def checked_name(path: str) -> str:
    """The path itself, as ``plots/loss.png``.

    Raises
    ------
    ArtifactNameError
        if it is absolute, too long, or has anything but letters, digits, underscores, dashes and dots.
    """
    if len(path) > LONGEST or not _NAME.fullmatch(path):
        shown = path if len(path) <= LONGEST else f"{path[:LONGEST]}..."
        raise ArtifactNameError(
            f"{shown!r} cannot name an artifact: write at most {LONGEST} letters, digits, underscores, dashes"
            " and dots, in folders divided by slashes; no word begins with a dot or a dash"
        )
    return path
