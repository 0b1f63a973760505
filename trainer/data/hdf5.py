"""Reads untrusted HDF5 files: their groups, including linked ones, and the arrays of each group.

A file can name other files, by external links, virtual datasets and external storage. It can also claim
arrays that are far larger than itself. h5py follows all of that. Here links are followed within the folder
of the file (:mod:`trainer.data.links`), and arrays are checked before memory is allocated
(:mod:`trainer.data.arrays`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from h5py import h5g, h5l, h5o

from trainer.data.arrays import Arrays
from trainer.data.links import DEEPEST, DanglingLinkError, LinkedFiles, Place, explain, printable
from trainer.errors import DataError

logger = logging.getLogger("anitune")


@dataclass(frozen=True, eq=False)
class Group:
    """A group and those of its datasets that a layout may read.

    Attributes
    ----------
    name : its path in the file that was opened, without the first slash
    place : its location after following links
    members : locations of its datasets after following links
    """

    source: DataFile
    name: str
    place: Place
    members: dict[str, Place]

    @property
    def file(self) -> str:
        """The file, as the user named it."""
        return str(self.source.path)

    @property
    def where(self) -> str:
        """The file and the group, for messages."""
        return f"{self.source.path}, group {printable('/' + self.name)}"

    def __contains__(self, key: str) -> bool:
        """Return whether there is a dataset of this name."""
        return key in self.members

    def read(self, key: str) -> npt.NDArray[Any]:
        """Read a whole dataset.

        Raises
        ------
        DataError
            if it does not exist, or cannot be read as it is.
        """
        if key not in self.members:
            raise DataError(f"{self.where}: there is no dataset '{key}'; add it, or leave the group out")
        return self.source.read(self.members[key], f"{self.where}: '{key}'")


@contextmanager
def open_hdf5(path: Path, keys: Sequence[str], links_outside: bool = False) -> Iterator[DataFile]:
    """Open an HDF5 file and find the datasets in it that have one of these names.

    Parameters
    ----------
    keys : names of datasets; groups that hold none of them are left out
    links_outside : follow links to files outside the folder of the file

    Raises
    ------
    DataError
        if it is not an HDF5 file, leads to forbidden places, or turns out to be damaged in the block.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; correct its name, or put it there")
    if not path.is_file():
        raise DataError(f"{path}: this is a folder; name the HDF5 files in it")
    with ExitStack() as stack:
        try:
            yield DataFile(path, frozenset(keys), links_outside, stack)
        except MemoryError as error:
            raise DataError(f"{path}: its arrays do not fit into the memory of this machine") from error
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            # The exception that h5py raises for a damaged file depends on where reading fails.
            raise DataError(explain(path, error)) from error


class DataFile:
    """An open HDF5 file with the files that it links to.

    Attributes
    ----------
    path : the file, as the user named it
    groups : the groups that hold a dataset of one of ``keys``: first its own in the order of their names,
        then those that links lead to
    """

    def __init__(self, path: Path, keys: frozenset[str], links_outside: bool, stack: ExitStack) -> None:
        self.path = path
        self._keys = keys
        self._files = LinkedFiles(path, links_outside, stack)
        self._arrays = Arrays(self._files)
        self.groups = self._find_groups()

    def read(self, place: Place, what: str) -> npt.NDArray[Any]:
        """Read a whole dataset; ``what`` is its name in messages."""
        return self._arrays.read(place, what)

    def _find_groups(self) -> list[Group]:
        found: list[Group] = []
        ahead, begun, seen = [("", self._files.root)], set[Place](), set[tuple[Path, int]]()
        while ahead:
            name, place = ahead.pop(0)
            begun.add(place)
            groups, links = self._visit(place, name)
            if name or links:  # only links can lead to a group twice
                groups = [group for group in groups if self._is_new(group.place, seen)]
            found += groups
            for link, target in links:
                # A visit follows hard links itself, so it finds what is below its start without this link.
                if self._files.kind(target) == h5o.TYPE_GROUP and not _lies_in(target, begun):
                    begun.add(target)
                    ahead.append((link, target))
        return found

    def _visit(self, place: Place, name: str) -> tuple[list[Group], list[tuple[str, Place]]]:
        """Return the groups below a place, and its soft and external links that name no known dataset."""
        links: list[tuple[bytes, int]] = []
        top = h5g.open(self._files.file(place.file), place.path)  # kept, as its links do not keep it open

        def note(path: bytes, info: Any) -> bool:
            links.append((path, info.type))
            return path.count(b"/") > DEEPEST

        if top.links.visit(note, info=True):
            raise DataError(f"{self.path}: its groups are nested more than {DEEPEST} deep")
        members: dict[bytes, dict[str, Place]] = {b"": {}}
        others = []
        root = place.path.rstrip(b"/")
        for path, kind in links:
            parent, _, key = path.rpartition(b"/")
            text = key.decode("utf-8", "surrogateescape")
            if kind == h5l.TYPE_HARD:
                members.setdefault(parent, {})
                target = Place(place.file, root + b"/" + path)
            else:
                try:
                    target = self._files.resolve(place.file, root + b"/" + path)
                except DanglingLinkError as error:
                    if text in self._keys:
                        raise
                    logger.warning("%s. Nothing is read through it", error)
                    continue
            if text in self._keys:
                members.setdefault(parent, {})[text] = target
            elif kind != h5l.TYPE_HARD:
                at = path.decode("utf-8", "surrogateescape")
                others.append((f"{name}/{at}".strip("/"), target))
        groups = []
        for parent, datasets in members.items():
            # A group may have the name of a dataset; if a path has members, it is a group.
            kept = {
                k: p for k, p in datasets.items() if (parent + b"/" + k.encode()).lstrip(b"/") not in members
            }
            if kept:
                at = parent.decode("utf-8", "surrogateescape")
                own = Place(place.file, (root + b"/" + parent).rstrip(b"/") or b"/")
                groups.append(Group(self, f"{name}/{at}".strip("/"), own, kept))
        return groups, others

    def _is_new(self, place: Place, seen: set[tuple[Path, int]]) -> bool:
        known = (place.file, self._files.address(place))
        new = known not in seen
        seen.add(known)
        return new


def _lies_in(place: Place, others: Set[Place]) -> bool:
    """Return whether ``others`` contains the place or one of its parents."""
    path = place.path.rstrip(b"/")
    while path:
        if Place(place.file, path) in others:
            return True
        path = path.rpartition(b"/")[0]
    return Place(place.file, b"/") in others
