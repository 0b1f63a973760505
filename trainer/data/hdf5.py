"""HDF5 files that may come from anybody: which groups and arrays they hold, and the arrays themselves.

A file can name other files: by external links, virtual data sets and external storage. It can also claim arrays
that are far larger than itself. h5py follows all of that. Here links are resolved by our own code, within the
folder of the file; external storage is refused; sizes are compared with those of the files before memory is
allocated; and an array that was not written, which HDF5 would fill with zeros, is an error.

The low-level interface of h5py is used since it opens many small groups several times faster.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5d, h5f, h5g, h5l, h5o, h5p, h5s, h5z

from trainer.errors import DataError

#: Bytes of an array over its bytes in the file: zlib cannot compress better than 1,032 to 1.
MOST_COMPRESSED: Final = 1_100

#: An array may have as many bytes whatever the size of its file.
SMALL: Final = 2**20

#: Bytes of memory of this machine.
MEMORY: Final = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

#: Links that lead from one to another before a path is given up, as in HDF5.
MOST_LINKS: Final = 16

#: Filters that are not part of HDF5, by the number that is registered for them.
PLUGINS: Final = {
    305: "lzo",
    307: "bzip2",
    32000: "lzf",
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32013: "zfp",
    32015: "zstd",
    32017: "sz",
    32019: "fcidecomp",
    32026: "blosc2",
}


@dataclass(frozen=True)
class _Place:
    """An object by its file and the path of hard links that leads to it there."""

    file: Path
    path: bytes


@dataclass(frozen=True, eq=False)
class Group:
    """A group and those of its datasets that a layout may read.

    Attributes
    ----------
    name : its path in the file that was opened, without the first slash
    where : the file and the group, for messages
    """

    source: DataFile
    name: str
    members: dict[str, _Place]

    @property
    def where(self) -> str:
        """The file and the group, for messages."""
        return f"{self.source.path}, group {printable('/' + self.name)}"

    def __contains__(self, key: str) -> bool:
        """Whether there is a dataset of this name."""
        return key in self.members

    def read(self, key: str) -> npt.NDArray[Any]:
        """All of a dataset.

        Raises
        ------
        DataError
            if there is none, or it cannot be read as it is.
        """
        if key not in self.members:
            raise DataError(f"{self.where}: there is no dataset '{key}'; add it, or leave the group out")
        return self.source.read(self.members[key], f"{self.where}: '{key}'")


def printable(text: str) -> str:
    """A text of a file in one line, without sequences that a terminal would obey."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text
    )


@contextmanager
def open_hdf5(path: Path, keys: Sequence[str], links_outside: bool = False) -> Iterator[DataFile]:
    """An HDF5 file and the datasets in it that have one of these names.

    Parameters
    ----------
    keys : names of datasets; groups that hold none of them are left out
    links_outside : follow links to files outside the folder of the file

    Raises
    ------
    DataError
        if it is none, leads to places that it may not, or turns out to be damaged in the block.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; correct its name, or bring it there")
    if not path.is_file():
        raise DataError(f"{path}: this is a folder; name the HDF5 files in it")
    with ExitStack() as stack:
        try:
            yield DataFile(path, frozenset(keys), links_outside, stack)
        except MemoryError as error:
            raise DataError(f"{path}: its arrays do not fit into the memory of this machine") from error
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            # What h5py raises for a damaged file depends on where it stumbles.
            raise DataError(explain(path, error)) from error


def explain(path: Path, error: Exception) -> str:
    """What is wrong with a file that h5py does not open or read, and what to do."""
    cause = printable(" ".join(str(error).split()))
    number = getattr(error, "errno", None)
    if isinstance(error, PermissionError) or "errno = 13" in cause:
        return f"{path}: you may not read this file; ask its owner, or change its mode"
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
            "or if it is known to be whole clear the mark with h5clear -s"
        )
    sizes = re.search(r"truncated file: eof = (\d+).*stored_eof = (\d+)", cause)
    if sizes:
        cause = f"truncated: {int(sizes[1]):,} of {int(sizes[2]):,} bytes"
    return f"{path}: not a readable HDF5 file; copy or download it anew ({cause})"


@dataclass(eq=False)
class DataFile:
    """An open HDF5 file with the files that it links to.

    Attributes
    ----------
    path : the file, as it was named
    groups : the groups that hold a dataset of one of ``keys``: first its own in the order of their names, then
        those that links lead to
    """

    path: Path
    keys: frozenset[str]
    links_outside: bool
    stack: ExitStack
    groups: list[Group] = field(init=False)
    _files: dict[Path, h5f.FileID] = field(init=False, default_factory=dict)
    _allocated: int = field(init=False, default=0)
    _filters: dict[int, bool] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        real = self.path.resolve()
        self._folder = real.parent
        # Each array is read once and whole: a cache of chunks for every one that is opened costs, and is of no use.
        self._access = h5p.create(h5p.DATASET_ACCESS)
        self._access.set_chunk_cache(1, 0, 1.0)
        self.groups = self._find_groups(real)

    # Links.

    def _find_groups(self, real: Path) -> list[Group]:
        found: list[Group] = []
        mounts, seen = [("", _Place(real, b"/"))], set[tuple[Path, int]]()
        while mounts:
            name, place = mounts.pop(0)
            groups, links = self._visit(place, name)
            if name or links:  # only links can lead to a group a second time
                groups = [group for group in groups if self._is_new(group, seen)]
            found += groups
            for link, target in links:
                if self._kind(target) == h5o.TYPE_GROUP and not self._below(target, place):
                    mounts.append((link, target))
                    if len(mounts) > MOST_LINKS * 10_000:
                        raise DataError(f"{self.path}: its links lead to ever more groups")
        return found

    def _visit(self, place: _Place, name: str) -> tuple[list[Group], list[tuple[str, _Place]]]:
        """The groups below a place, and the links there that are no hard ones and name no dataset of a layout."""
        links: list[tuple[bytes, int]] = []
        top = h5g.open(self._file(place.file), place.path)  # its links do not keep it open
        top.links.visit(lambda path, info: links.append((path, info.type)), info=True)
        members: dict[bytes, dict[str, _Place]] = {b"": {}}
        others = []
        root = place.path.rstrip(b"/")
        for path, kind in links:
            parent, _, key = path.rpartition(b"/")
            if kind == h5l.TYPE_HARD:
                members.setdefault(parent, {})
                target = _Place(place.file, root + b"/" + path)
            else:
                target = self._resolve(place.file, root + b"/" + path)
            if (text := key.decode("utf-8", "surrogateescape")) in self.keys:
                members.setdefault(parent, {})[text] = target
            elif kind != h5l.TYPE_HARD:
                at = path.decode("utf-8", "surrogateescape")
                others.append((f"{name}/{at}".strip("/"), target))
        groups = []
        for parent, datasets in members.items():
            # A group may have the name of a dataset; what lies below a path shows that it is one.
            kept = {
                k: p for k, p in datasets.items() if (parent + b"/" + k.encode()).lstrip(b"/") not in members
            }
            if kept:
                at = parent.decode("utf-8", "surrogateescape")
                groups.append(Group(self, f"{name}/{at}".strip("/"), kept))
        return groups, others

    def _is_new(self, group: Group, seen: set[tuple[Path, int]]) -> bool:
        place = next(iter(group.members.values()))
        parent = place.path.rpartition(b"/")[0] or b"/"
        key = (place.file, h5o.get_info(self._file(place.file), parent).addr)
        new = key not in seen
        seen.add(key)
        return new

    def _kind(self, place: _Place) -> int:
        return int(h5o.get_info(self._file(place.file), place.path).type)

    def _below(self, target: _Place, place: _Place) -> bool:
        """Whether hard links lead from a place to a target, whose groups are then found without the link."""
        return target.file == place.file and (target.path + b"/").startswith(place.path.rstrip(b"/") + b"/")

    def _resolve(self, file: Path, path: bytes) -> _Place:
        """Follow the links of a path to the place where it ends."""
        link = f"{self.path}, link {printable(path.decode('utf-8', 'replace'))}"
        at, ahead, hops = b"", path.split(b"/"), 0
        while ahead:
            part = ahead.pop(0)
            if part in (b"", b"."):
                continue
            links = self._file(file).links
            try:
                kind = links.get_info(at + b"/" + part).type
            except (KeyError, RuntimeError, OSError):
                target = printable(f"{at.decode('utf-8', 'replace')}/{part.decode('utf-8', 'replace')}")
                raise DataError(
                    f"{link}: it leads to {target} in {file.name}, where nothing is; delete it"
                ) from None
            if kind == h5l.TYPE_HARD:
                at += b"/" + part
                continue
            hops += 1
            if hops > MOST_LINKS:
                raise DataError(f"{link}: it leads from link to link without an end; delete it")
            if kind == h5l.TYPE_SOFT:
                target = links.get_val(at + b"/" + part)
                at = b"" if target.startswith(b"/") else at
            elif kind == h5l.TYPE_EXTERNAL:
                name, target = links.get_val(at + b"/" + part)
                file, at = self._other(file, os.fsdecode(name), link), b""
            else:
                raise DataError(
                    f"{link}: of a kind ({kind}) that only the program knows that made it; delete it"
                )
            ahead = target.split(b"/") + ahead
        return _Place(file, at or b"/")

    def _other(self, origin: Path, name: str, what: str) -> Path:
        """The file that another one names, relative to its folder."""
        if "\0" in name:
            raise DataError(f"{what}: it leads to {printable(name)}, which is no name of a file")
        target = (origin.parent / name).resolve()
        if not self.links_outside and not target.is_relative_to(self._folder):
            raise DataError(
                f"{what}: it leads to {printable(name)}, outside the folder of the file: bring that file there, "
                "or allow it with data.links_outside: true (--links-outside)"
            )
        if not target.is_file():
            raise DataError(
                f"{what}: it leads to {printable(name)}, which is not there; bring that file, or delete the link"
            )
        return target

    def _file(self, path: Path) -> h5f.FileID:
        if path not in self._files:
            try:
                self._files[path] = self.stack.enter_context(h5py.File(path, "r")).id
            except OSError as error:
                named = self.path if path == self.path.resolve() else path
                raise DataError(explain(named, error)) from error
        return self._files[path]

    # Arrays.

    def read(self, place: _Place, what: str, hops: int = 0) -> npt.NDArray[Any]:
        """All of a dataset, which messages call ``what``."""
        dataset, made = self._dataset(place, what)
        if made.get_layout() == h5d.VIRTUAL:
            return self._read_virtual(place, dataset, made, what, hops)
        space, dtype = dataset.get_space(), dataset.dtype
        if space.get_simple_extent_type() == h5s.NULL:
            raise DataError(f"{what} holds no value at all")
        shape = space.get_simple_extent_dims()
        self._check_size(place.file, dataset, made, shape, dtype, what)
        if dtype.hasobject:
            if h5py.check_string_dtype(dtype) is None:
                raise DataError(f"{what} holds neither numbers nor text ({dtype})")
            return np.asarray(h5py.Dataset(dataset)[()])
        values = np.empty(shape, dtype)
        dataset.read(h5s.ALL, h5s.ALL, values)
        return values

    def _dataset(self, place: _Place, what: str) -> tuple[h5d.DatasetID, Any]:
        """An open dataset and how it was made, once it is certain that it can be read."""
        try:
            dataset = h5d.open(self._file(place.file), place.path, self._access)
        except (KeyError, ValueError, TypeError) as error:
            if self._kind(place) == h5o.TYPE_DATASET:
                raise
            raise DataError(f"{what} is no dataset; rename that group") from error
        made = dataset.get_create_plist()
        if made.get_external_count():
            name = os.fsdecode(made.get_external(0)[0])
            raise DataError(
                f"{what} has its values in another file, {printable(name)}, which is not read: copy it into the HDF5 "
                "file (h5repack does)"
            )
        for number in range(made.get_nfilters()):
            code, _, _, name = made.get_filter(number)
            if code not in self._filters:
                self._filters[code] = bool(h5z.filter_avail(code))
            if not self._filters[code]:
                known = PLUGINS.get(code, printable(name.decode("utf-8", "replace"))[:40] or "unnamed")
                raise DataError(
                    f"{what} is compressed by the filter {known} ({code}), which is not installed here: set "
                    "HDF5_PLUGIN_PATH to its folder (that of the package hdf5plugin, say), or have the file written "
                    "with gzip (h5repack -f GZIP=4)"
                )
        return dataset, made

    def _check_size(
        self, file: Path, dataset: h5d.DatasetID, made: Any, shape: tuple[int, ...], dtype: Any, what: str
    ) -> None:
        """Refuse arrays that were not written, and those that cannot be as large as they claim.

        A chunk is decompressed whole: counted are all bytes of all chunks.
        """
        size = math.prod(shape) * dtype.itemsize
        if size == 0:
            return
        stored = dataset.get_storage_size()
        if made.get_layout() == h5d.CHUNKED:
            chunk = made.get_chunk()
            chunks = math.prod(-(-length // part) for length, part in zip(shape, chunk, strict=True))
            size = chunks * math.prod(chunk) * dtype.itemsize
            whole = dataset.get_num_chunks() == chunks
        else:
            whole = stored > 0
        if size > SMALL:
            most = min(stored, file.stat().st_size) * (MOST_COMPRESSED if made.get_nfilters() else 1)
            if whole and size > most:
                raise DataError(
                    f"{what} claims {size:,} bytes, more than its file of {file.stat().st_size:,} bytes can hold; "
                    "the file is damaged, or made to do harm"
                )
            if not whole and size > MOST_COMPRESSED * file.stat().st_size:
                raise DataError(f"{what} claims {size:,} bytes, of which only {stored:,} were written")
        if not whole and not _fills_with_nan(made, dtype):
            raise DataError(
                f"{what} was not written, or in part only, and what is missing would be read as the value that fills "
                "gaps; write it again, or leave the group out"
            )
        self._allocated += size
        if self._allocated > MEMORY:
            raise DataError(
                f"{self.path}: its arrays take more than {self._allocated / 2**30:,.1f} GiB; this machine has "
                f"{MEMORY / 2**30:,.1f} GiB of memory"
            )

    def _read_virtual(
        self, place: _Place, dataset: h5d.DatasetID, made: Any, what: str, hops: int
    ) -> npt.NDArray[Any]:
        """Put a virtual dataset together from its sources. HDF5 itself leaves zeros where one is missing."""
        if hops == MOST_LINKS:
            raise DataError(f"{what} is virtual, and its sources lead from one to another without an end")
        dtype, shape = dataset.dtype, dataset.shape
        if dtype.hasobject:
            raise DataError(f"{what} is virtual and of text of varying length; copy it into the file")
        values, covered = np.empty(shape, dtype), 0
        for number in range(made.get_virtual_count()):
            name, path = made.get_virtual_filename(number), made.get_virtual_dsetname(number)
            to = _selected(made.get_virtual_vspace(number), shape)
            if to is None or "%" in name + path:
                raise DataError(f"{what} is virtual in a way that is not read here; copy it into the file")
            file = place.file if name == "." else self._other(place.file, name, what)
            source = self.read(
                self._resolve(file, path.encode()),
                f"{what}, source {printable(path)} in {file.name}",
                hops + 1,
            )
            of = _selected(made.get_virtual_srcspace(number), source.shape)
            if of is None or math.prod(map(len, of)) != math.prod(map(len, to)):
                raise DataError(
                    f"{what} is virtual, and {printable(path)} in {file.name} has other values than it needs"
                )
            values[np.ix_(*to)] = source[np.ix_(*of)].reshape([len(indices) for indices in to])
            covered += math.prod(map(len, to))
        if covered != math.prod(shape):
            raise DataError(
                f"{what} is virtual, and its sources give {covered:,} of its {math.prod(shape):,} values; the others "
                "would be read as the value that fills gaps"
            )
        return values


def _selected(space: h5s.SpaceID, shape: tuple[int, ...]) -> list[npt.NDArray[np.int64]] | None:
    """The indices of a selection along each axis; None: it is no regular one, or reaches out of the shape."""
    if space.get_select_type() == h5s.SEL_ALL:
        return [np.arange(length) for length in shape]
    if space.get_select_type() != h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab():
        return None
    found = []
    for start, stride, count, block, length in zip(*space.get_regular_hyperslab(), shape, strict=True):
        if count == 0 or start + stride * (count - 1) + block > length:
            return None
        found.append((start + stride * np.arange(count)[:, None] + np.arange(block)).ravel())
    return found


def _fills_with_nan(made: Any, dtype: np.dtype[Any]) -> bool:
    """Whether gaps are read as NaN, which is no value that could be taken for one."""
    if dtype.kind != "f" or made.fill_value_defined() != h5d.FILL_VALUE_USER_DEFINED:
        return False
    value = np.zeros((), dtype)
    made.get_fill_value(value)
    return bool(np.isnan(value))
