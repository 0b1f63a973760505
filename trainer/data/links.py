"""Other files that an HDF5 file names, and the targets of its links.

HDF5 would search several folders, one of which an environment variable names. Here a name is relative to
the folder of the file that holds it, and may not leave that folder unless this is allowed.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import h5py
from h5py import h5f, h5l, h5o

from trainer.errors import DataError

#: Greatest depth of groups: HDF5 visits them by recursion, and would overflow the stack.
DEEPEST: Final = 100

#: Number of links that may lead from one to another in a path, as in HDF5.
MOST_LINKS: Final = 16


@dataclass(frozen=True)
class Place:
    """An object, by its file and the path of hard links to it in that file."""

    file: Path
    path: bytes


def printable(text: str) -> str:
    """Return a text of a file in one line, without control sequences of a terminal."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text
    )


def explain(path: Path, error: Exception) -> str:
    """Describe why h5py cannot open or read a file, and what to do."""
    cause = printable(" ".join(str(error).split()))
    number = getattr(error, "errno", None)
    if isinstance(error, PermissionError) or "errno = 13" in cause:
        return f"{path}: no permission to read this file; ask its owner, or change its mode"
    if (
        isinstance(error, BlockingIOError)
        or number in (errno.EAGAIN, errno.ENOLCK)
        or "unable to lock" in cause
    ):
        return (
            f"{path}: another program has it open for writing; try again when that has closed it "
            "(where a file system has no locks, set HDF5_USE_FILE_LOCKING=FALSE)"
        )
    if "already open for write" in cause or "consistency flags" in cause:
        return (
            f"{path}: the program that wrote it did not close it, so the end may be missing: write it again, "
            "or if it is known to be complete clear the flag with h5clear -s"
        )
    sizes = re.search(r"truncated file: eof = (\d+).*stored_eof = (\d+)", cause)
    if sizes:
        cause = f"truncated: {int(sizes[1]):,} of {int(sizes[2]):,} bytes"
    return f"{path}: not a readable HDF5 file; copy or download it again ({cause})"


class DanglingLinkError(DataError):
    """A link has no target."""


class LinkedFiles:
    """An HDF5 file and the files that it links to, which are opened when needed.

    Parameters
    ----------
    path : the file, as the user named it
    outside : follow links to files outside its folder
    stack : closes the files
    """

    def __init__(self, path: Path, outside: bool, stack: ExitStack) -> None:
        self.path = path
        self.root = Place(path.resolve(), b"/")
        self._folder = self.root.file.parent
        self._outside = outside
        self._stack = stack
        self._open: dict[Path, h5f.FileID] = {}

    def kind(self, place: Place) -> int:
        """Return the kind of an object: one of ``h5py.h5o.TYPE_...``."""
        return int(h5o.get_info(self.file(place.file), place.path).type)

    def address(self, place: Place) -> int:
        """Return the address of an object in its file, to which several paths may lead."""
        return int(h5o.get_info(self.file(place.file), place.path).addr)

    def resolve(self, file: Path, path: bytes) -> Place:
        """Follow the links of a path to its target.

        Raises
        ------
        DanglingLinkError
            if there is no target.
        """
        link = f"{self.path}, link {printable(path.decode('utf-8', 'replace'))}"
        at, ahead, hops = b"", path.split(b"/"), 0
        while ahead:
            part = ahead.pop(0)
            if part in (b"", b"."):
                continue
            links = self.file(file).links
            try:
                kind = links.get_info(at + b"/" + part).type
            except (KeyError, RuntimeError, OSError):
                target = printable(f"{at.decode('utf-8', 'replace')}/{part.decode('utf-8', 'replace')}")
                raise DanglingLinkError(
                    f"{link}: it leads to {target} in {file.name}, where there is nothing; delete it"
                ) from None
            if kind == h5l.TYPE_HARD:
                at += b"/" + part
                if at.count(b"/") > DEEPEST:
                    raise DataError(f"{link}: it leads more than {DEEPEST} groups deep; delete it")
                continue
            hops += 1
            if hops > MOST_LINKS:
                raise DanglingLinkError(
                    f"{link}: it is one of several links that lead in a circle; delete it"
                )
            if kind == h5l.TYPE_SOFT:
                target = links.get_val(at + b"/" + part)
                at = b"" if target.startswith(b"/") else at
            elif kind == h5l.TYPE_EXTERNAL:
                name, target = links.get_val(at + b"/" + part)
                file, at = self.other(file, os.fsdecode(name), link), b""
            else:
                raise DanglingLinkError(
                    f"{link}: of a kind ({kind}) that only the program that made it can read; delete it"
                )
            ahead = target.split(b"/") + ahead
        return Place(file, at or b"/")

    def other(self, origin: Path, name: str, what: str) -> Path:
        """Return the file that another file names, relative to that file's folder."""
        if "\0" in name:
            raise DataError(f"{what}: it leads to {printable(name)}, which is not a name of a file")
        target = (origin.parent / name).resolve()
        if not self._outside and not target.is_relative_to(self._folder):
            raise DataError(
                f"{what}: it leads to {printable(name)}, outside the folder of the file: put that file"
                " there, or allow it with data.links_outside: true (--links-outside)"
            )
        if not target.is_file():
            raise DanglingLinkError(
                f"{what}: it leads to {printable(name)}, which is missing; put that file there, or delete"
                " the link"
            )
        return target

    def file(self, path: Path) -> h5f.FileID:
        if path not in self._open:
            try:
                self._open[path] = self._stack.enter_context(h5py.File(path, "r")).id
            except OSError as error:
                named = self.path if path == self.root.file else path
                raise DataError(explain(named, error)) from error
        return self._open[path]
