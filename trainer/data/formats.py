"""Detection of a file's format from its content, and the readers of formats other than HDF5."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Final

from trainer.config import DataConfig
from trainer.data.ase_files import SQLITE, ase_format, read_database, read_trajectory
from trainer.data.frame_cache import cached_frames
from trainer.data.frames import Frames, readings_of
from trainer.data.layout import Reading, units_of
from trainer.data.npz import ZIP, read_npz
from trainer.data.xyz import GZIP, looks_like_xyz, read_xyz
from trainer.errors import DataError
from trainer.progress import Progress

HDF5: Final = "HDF5"
NPZ: Final = "npz"
XYZ: Final = "extended XYZ"
DATABASE: Final = "db"
JSON_DATABASE: Final = "json"

_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
_SUFFIXES: Final = (".h5", ".hdf5")

#: Number of bytes at the beginning of a file that are inspected.
_BEGIN: Final = 4096


def find_format(path: Path) -> str:
    """Return the format of a file: one of the names above, or ASE's name.

    Raises
    ------
    DataError
        if the file does not exist, or is in no known format.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; correct its name, or put it there")
    if not path.is_file():
        raise DataError(f"{path}: this is a folder; name the data files in it")
    try:
        begin = _begin(path)
    except PermissionError:
        raise DataError(
            f"{path}: no permission to read this file; ask its owner, or change its mode"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a readable file; copy or download it again ({error})") from error
    if not begin and path.suffix.lower() not in _SUFFIXES:
        raise DataError(f"{path}: the file is empty; copy or download it again")
    for signature, found in ((_SIGNATURE, HDF5), (ZIP, NPZ), (SQLITE, DATABASE)):
        if begin.startswith(signature):
            return found
    if begin.lstrip().startswith(b"{") and path.suffix == ".json":
        return JSON_DATABASE
    if looks_like_xyz(begin):
        return XYZ
    if path.suffix.lower() in _SUFFIXES:
        return HDF5  # its reader reports what is wrong with the file
    found_by_ase = ase_format(path)
    if found_by_ase in ("extxyz", "xyz"):
        return XYZ
    if found_by_ase is None:
        raise DataError(
            f"{path}: in no known format; known formats are HDF5 (ANI-1, ANI-1x, torchani, SPICE), extended"
            " XYZ, npz "
            "(sGDML, rMD17), databases of ASE, and what ase.io reads"
        )
    return found_by_ase


def read_other(
    path: Path, format_of_file: str, data: DataConfig, progress: Progress, cache: Path | None
) -> list[Reading]:
    """Read the molecules of a file that is not HDF5."""
    if format_of_file == NPZ:
        if data.molecule is not None:
            raise DataError(f"{path}: data.molecule is for files without groups; leave it out")
        return read_npz(path, data)

    def read() -> Frames:
        if format_of_file == XYZ:
            return read_xyz(path, data.energy, data.molecule, progress)
        if format_of_file in (DATABASE, JSON_DATABASE):
            return read_database(path, format_of_file, data.energy, data.molecule, progress)
        return read_trajectory(path, format_of_file, data.energy, data.molecule, progress)

    settings = [format_of_file, data.energy, data.molecule]
    frames = cached_frames(path, settings, cache, progress, read)
    return readings_of(frames, str(path), data, units_of(data, "eV"))


def _begin(path: Path) -> bytes:
    with path.open("rb") as file:
        begin = file.read(_BEGIN)
    if not begin.startswith(GZIP):
        return begin
    with gzip.open(path) as unpacked:
        return unpacked.read(_BEGIN)
