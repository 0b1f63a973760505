"""Reads arrays of HDF5 files; refuses arrays larger than their file can hold and those never written.

The low-level interface of h5py is used, which reads many small arrays several times faster.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5d, h5o, h5p, h5s, h5t, h5z

from trainer.data.links import MOST_LINKS, LinkedFiles, Place, printable
from trainer.errors import DataError

#: Largest ratio of an array's size to its size in the file: zlib cannot compress better than 1,032 to 1.
MOST_COMPRESSED: Final = 1_100

#: An array may have this many bytes whatever the size of its file.
SMALL: Final = 2**20

#: Bytes of memory of this machine.
MEMORY: Final = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

#: Filters that are not part of HDF5, by their registered number.
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


class Arrays:
    """Reads whole datasets of a file and of the files that it links to."""

    def __init__(self, files: LinkedFiles) -> None:
        self._files = files
        self._allocated = 0
        self._filters: dict[int, bool] = {}
        self._file_types: list[tuple[h5t.TypeID, np.dtype[Any]]] = []
        self._memory_types: dict[np.dtype[Any], h5t.TypeID] = {}
        # Each array is read once, so a few slots for chunks suffice; many would slow down every opening.
        self._access = h5p.create(h5p.DATASET_ACCESS)
        self._access.set_chunk_cache(521, 2**23, 1.0)

    def read(self, place: Place, what: str, hops: int = 0) -> npt.NDArray[Any]:
        """Read a whole dataset; ``what`` is its name in messages."""
        dataset = self._open(place, what)
        # Contiguous values in this very file are neither compressed nor elsewhere, and this check is fast.
        made = dataset.get_create_plist() if dataset.get_offset() is None else None
        if made is not None:
            self._refuse_unreadable(made, what)
            if made.get_layout() == h5d.VIRTUAL:
                return self._read_virtual(place, dataset, made, what, hops)
        space, dtype = dataset.get_space(), self._type_of(dataset, what)
        if space.get_simple_extent_type() == h5s.NULL:
            raise DataError(f"{what} contains no values")
        shape = space.get_simple_extent_dims()
        self._check_size(place.file, dataset, made, shape, dtype, what)
        if dtype.kind == "V" or (dtype.hasobject and h5py.check_string_dtype(dtype) is None):
            raise DataError(f"{what} holds neither numbers nor text ({dtype})")
        if dtype.hasobject:
            return np.asarray(h5py.Dataset(dataset)[()])
        values = np.empty(shape, dtype)
        if dtype not in self._memory_types:
            self._memory_types[dtype] = h5t.py_create(np.dtype(dtype.str))  # enumerations become integers
        dataset.read(h5s.ALL, h5s.ALL, values, self._memory_types[dtype])
        return values

    def _open(self, place: Place, what: str) -> h5d.DatasetID:
        try:
            return h5d.open(self._files.file(place.file), place.path, self._access)
        except (KeyError, ValueError, TypeError) as error:
            if self._files.kind(place) == h5o.TYPE_DATASET:
                raise
            raise DataError(f"{what} is not a dataset; rename that group") from error

    def _type_of(self, dataset: h5d.DatasetID, what: str) -> np.dtype[Any]:
        """Return the type in NumPy's terms; cached, as a file has few types and comparing them is faster."""
        kind = dataset.get_type()
        for known, as_numpy in self._file_types:
            if known == kind:
                return as_numpy
        try:
            dtype: np.dtype[Any] = kind.dtype
        except TypeError as error:
            raise DataError(
                f"{what} holds a type that NumPy does not have ({printable(str(error))})"
            ) from error
        self._file_types = [(kind, dtype), *self._file_types[:7]]
        return dtype

    def _refuse_unreadable(self, made: Any, what: str) -> None:
        """Raise an error if the values are in another file, or their filters are not installed."""
        if made.get_external_count():
            name = os.fsdecode(made.get_external(0)[0])
            raise DataError(
                f"{what} has its values in another file, {printable(name)}, which is not read: copy it "
                "into the HDF5 "
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
                    "HDF5_PLUGIN_PATH to its folder (that of the package hdf5plugin, say), or have the "
                    "file written "
                    "with gzip (h5repack -f GZIP=4)"
                )

    def _check_size(
        self, file: Path, dataset: h5d.DatasetID, made: Any, shape: tuple[int, ...], dtype: Any, what: str
    ) -> None:
        """Refuse arrays that were not written, and those that cannot be as large as they claim.

        A chunk is decompressed as a whole, so the bytes of all chunks are counted.
        """
        size = math.prod(shape) * dtype.itemsize
        if size == 0:
            return
        stored = dataset.get_storage_size()
        filters = 0 if made is None else made.get_nfilters()
        if made is not None and made.get_layout() == h5d.CHUNKED:
            chunk = made.get_chunk()
            chunks = math.prod(-(-length // part) for length, part in zip(shape, chunk, strict=True))
            size = chunks * math.prod(chunk) * dtype.itemsize
            whole = dataset.get_num_chunks() == chunks
        else:
            whole = stored > 0
        if size > SMALL:
            most = min(stored, file.stat().st_size) * (MOST_COMPRESSED if filters else 1)
            if whole and size > most:
                raise DataError(
                    f"{what} claims {size:,} bytes, more than its file of {file.stat().st_size:,} bytes "
                    "can hold; "
                    "the file is damaged or malicious"
                )
            if not whole and size > MOST_COMPRESSED * file.stat().st_size:
                raise DataError(f"{what} claims {size:,} bytes, of which only {stored:,} were written")
        if not whole and not (made is not None and _fills_with_nan(made, dtype)):
            raise DataError(
                f"{what} was not written, or only partly, and missing values would be read as the fill"
                " value; write it again, or leave the group out"
            )
        self._allocate(size)

    def _allocate(self, size: int) -> None:
        self._allocated += size
        if self._allocated > MEMORY:
            raise DataError(
                f"{self._files.path}: its arrays take more than {self._allocated / 2**30:,.1f} GiB; "
                "this machine has "
                f"{MEMORY / 2**30:,.1f} GiB of memory"
            )

    def _read_virtual(
        self, place: Place, dataset: h5d.DatasetID, made: Any, what: str, hops: int
    ) -> npt.NDArray[Any]:
        """Assemble a virtual dataset from its sources. HDF5 itself gives zeros where a source is missing."""
        if hops == MOST_LINKS:
            raise DataError(f"{what} is virtual, and its sources refer to each other in a circle")
        dtype, shape = self._type_of(dataset, what), dataset.shape
        if dtype.hasobject:
            raise DataError(f"{what} is virtual and contains text of varying length; copy it into the file")
        sources = [
            (made.get_virtual_filename(n), made.get_virtual_dsetname(n))
            for n in range(made.get_virtual_count())
        ]
        if any("%" in name + path for name, path in sources):
            raise DataError(f"{what} is virtual in a way that is not supported; copy it into the file")
        files = [
            place.file if name == "." else self._files.other(place.file, name, what) for name, _ in sources
        ]
        size, held = math.prod(shape) * dtype.itemsize, sum(file.stat().st_size for file in set(files))
        if size > max(SMALL, MOST_COMPRESSED * held):
            raise DataError(f"{what} claims {size:,} bytes, more than its sources of {held:,} bytes can hold")
        self._allocate(size)
        values, written = np.empty(shape, dtype), np.zeros(shape, bool)
        for number, (file, (_, path)) in enumerate(zip(files, sources, strict=True)):
            at = f"{printable(path)} in {printable(file.name)}"
            source = self.read(self._files.resolve(file, path.encode()), f"{what}, source {at}", hops + 1)
            to = _selected(made.get_virtual_vspace(number), shape)
            of = _selected(made.get_virtual_srcspace(number), source.shape)
            if to is None or of is None or math.prod(map(len, of)) != math.prod(map(len, to)):
                raise DataError(f"{what} is virtual, and {at} has other values than it needs")
            values[np.ix_(*to)] = source[np.ix_(*of)].reshape([len(indices) for indices in to])
            written[np.ix_(*to)] = True
        if not written.all():
            raise DataError(
                f"{what} is virtual, and its sources give {written.sum():,} of its {written.size:,} "
                "values; the others would be read as the fill value"
            )
        return values


def _selected(space: h5s.SpaceID, shape: tuple[int, ...]) -> list[npt.NDArray[np.int64]] | None:
    """Return the indices of a selection along each axis; None if it is not regular or exceeds the shape."""
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
    """Return whether gaps are read as NaN, which cannot be mistaken for a value."""
    if dtype.kind != "f" or made.fill_value_defined() != h5d.FILL_VALUE_USER_DEFINED:
        return False
    value = np.zeros((), dtype)
    made.get_fill_value(value)
    return bool(np.isnan(value))
