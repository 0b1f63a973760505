"""Names of artifacts: paths within a run that never lead out of the folder they are written to."""

from __future__ import annotations

import re
from typing import Final

from storage.errors import ArtifactNameError

LONGEST: Final = 200
"""Maximum number of characters, below the limits of file systems, buckets and MLflow."""

# No percent sign: a server that decodes a path twice would find another one. No word begins with a dot.
_WORD = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_NAME = re.compile(rf"{_WORD}(/{_WORD})*")


def checked_name(path: str) -> str:
    """Validate a path such as ``plots/loss.png`` and return it.

    Raises
    ------
    ArtifactNameError
        if it is absolute, too long, or has anything but letters, digits, underscores, dashes and dots.
    """
    if len(path) > LONGEST or not _NAME.fullmatch(path):
        shown = path if len(path) <= LONGEST else f"{path[:LONGEST]}..."
        raise ArtifactNameError(
            f"{shown!r} is not a valid name of an artifact: use at most {LONGEST} letters, digits,"
            " underscores, dashes and dots, with slashes between folders; no name may begin with a dot or a"
            " dash"
        )
    return path
