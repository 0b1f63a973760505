"""Reads README.md and the pages of docs/: blocks of commands, settings, programs and output."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes
    ----------
    page : path of its page in the repository
    line : line of its opening fence, from 1
    info : text after the opening fence
    """

    page: str
    line: int
    info: str
    text: str

    @property
    def place(self) -> str:
        """Page and line, for a message."""
        return f"{self.page}:{self.line}"

    @property
    def kind(self) -> str:
        """``commands``, ``output``, or the text after the fence."""
        if self.info == "":
            # Output begins with spaces if it is a table.
            return "output" if self.text.startswith(" ") else "commands"
        kinds = {"sh": "commands", "sh fails": "commands", "text": "output", "text output": "output"}
        return kinds.get(self.info, self.info)

    @property
    def title(self) -> str:
        """The first line, if it is a comment: the name of a file."""
        first, _, _ = self.text.partition("\n")
        return first.removeprefix("# ") if first.startswith("# ") else ""


@dataclass(frozen=True)
class Command:
    """One command of a block.

    Attributes
    ----------
    line : the line that contains it
    variables : environment variables that are set for it alone
    words : the program and its arguments
    """

    block: Block
    line: str
    variables: dict[str, str]
    words: tuple[str, ...]

    @property
    def bare(self) -> str:
        """The command without variables and comment."""
        return " ".join(self.words)


@dataclass(frozen=True)
class Page:
    """A page of documentation, with its path in the repository."""

    path: str
    text: str

    @property
    def blocks(self) -> list[Block]:
        """The fenced blocks of the page."""
        return [
            Block(self.path, self.text.count("\n", 0, found.start()) + 1, found[1], found[2])
            for found in _FENCE.finditer(self.text)
        ]

    @property
    def prose(self) -> str:
        """The text outside of blocks."""
        return _FENCE.sub("", self.text)


def pages() -> list[Page]:
    """README.md and all pages of docs/."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [Page(str(file.relative_to(ROOT)), file.read_text()) for file in files]


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block, in order."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                yield _command(block, line.strip(), words)
                words = []


def _command(block: Block, line: str, words: Sequence[str]) -> Command:
    count = next((n for n, word in enumerate(words) if not _ASSIGNMENT.fullmatch(word)), len(words))
    variables = dict(word.split("=", 1) for word in words[:count])
    program, *arguments = words[count:]
    return Command(block, line, variables, (program.removeprefix(".venv/bin/"), *arguments))
