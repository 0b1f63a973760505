"""Generate the reference pages from the code that they describe: ``python -m tools.reference``.

A test compares the pages with the output of this module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.commands_page import commands_page
from tools.study_file_page import study_file_page

ROOT = Path(__file__).resolve().parent.parent

PAGES: Mapping[str, Callable[[], str]] = {
    "docs/study-file.md": study_file_page,
    "docs/commands.md": commands_page,
}
"""Every generated page, by its path in the repository."""


def main() -> None:
    """Write all pages."""
    for path, make in PAGES.items():
        (ROOT / path).write_text(make())
        print(f"{path} was generated", file=sys.stderr)


if __name__ == "__main__":
    main()
