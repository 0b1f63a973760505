"""ASE databases, and other files that ASE reads as structures with energies: trajectories, outputs.

ASE takes half a second to import, so the functions that need it do so.
"""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from trainer.data.elements import SYMBOLS
from trainer.data.frames import Frames
from trainer.data.links import printable
from trainer.data.xyz import CHARGES, ENERGY, SPINS, UNPAIRED
from trainer.errors import DataError
from trainer.progress import Progress

#: Signature of a SQLite database.
SQLITE: Final = b"SQLite format 3\0"

#: Formats of ASE that are not files, or that need a separate program.
NOT_FILES: Final = frozenset({"bundletrajectory", "postgresql", "mysql", "eon", "gpw"})


@dataclass(frozen=True)
class _Frame:
    """A structure as ASE returns it."""

    numbers: Any
    positions: Any
    energy: Any
    pbc: Any
    charges: Any
    moments: Any
    values: Mapping[str, Any]


def read_database(
    path: Path, kind: str, energy: str | None, molecule: str | None, progress: Progress
) -> Frames:
    """Read all rows of an ASE database.

    Parameters
    ----------
    kind : db (SQLite) or json
    energy, molecule : keys of the rows
    """

    def rows() -> Iterator[_Frame]:
        from ase.db import connect

        if kind == "db":
            _refuse_other_database(path)
        with connect(path, type=kind, serial=True, use_lock_file=False) as database:
            total = max(1, len(database))
            for number, row in enumerate(database.select(), start=1):
                if number % 1024 == 0 or number == total:
                    progress(f"reading {path.name}", number, total)
                yield _Frame(
                    row.numbers,
                    row.positions,
                    row.get(ENERGY),
                    row.pbc,
                    row.get("initial_charges"),
                    row.get("initial_magmoms"),
                    row.key_value_pairs,
                )

    return _frames(rows(), path, energy, molecule)


def _refuse_other_database(path: Path) -> None:
    """Refuse databases of other programs: ASE would create its tables in them."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE name = 'systems'").fetchall()
    if not tables:
        raise DataError(f"{path}: a SQLite database that ASE did not write; name a data file")


def ase_format(path: Path) -> str | None:
    """Return ASE's name of the file's format; None if it is unknown or ASE cannot read structures from it."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    try:
        found = ioformats.get(filetype(str(path.absolute())))
    except (UnknownFileTypeError, OSError, UnicodeError, EOFError):
        return None
    return found.name if found is not None and found.can_read and found.name not in NOT_FILES else None


def read_trajectory(
    path: Path, kind: str, energy: str | None, molecule: str | None, progress: Progress
) -> Frames:
    """Read all structures of a file that ASE reads.

    Parameters
    ----------
    kind : ASE's name of the format
    energy, molecule : keys of the ``info`` of the structures
    """

    def images() -> Iterator[_Frame]:
        from ase.io import iread

        stage = f"reading {path.name}"
        for number, atoms in enumerate(iread(str(path.absolute()), index=":", format=kind), start=1):
            if number % 256 == 0:
                progress(stage, number, number + 1)
            results = {} if atoms.calc is None else atoms.calc.results  # this computes nothing
            yield _Frame(
                atoms.numbers,
                atoms.positions,
                results.get(ENERGY),
                atoms.pbc,
                atoms.arrays.get("initial_charges"),
                atoms.arrays.get("initial_magmoms"),
                {**results, **atoms.info},
            )
        progress(stage, 1, 1)

    return _frames(images(), path, energy, molecule)


def _frames(frames: Iterator[_Frame], path: Path, energy: str | None, molecule: str | None) -> Frames:
    """Collect structures as arrays, and describe any error of ASE in one line."""
    found: list[_Frame] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about parts of a file that ASE ignores
            found += frames
    except DataError:
        raise
    except Exception as error:
        cause = printable(" ".join(str(error).split()) or type(error).__name__)
        raise DataError(
            f"{path}: ASE cannot read structure {len(found)} (from 0) in it ({cause:.200}); is the file"
            " complete?"
        ) from error
    numbers = np.concatenate([np.empty(0, np.int64), *(frame.numbers for frame in found)])
    if len(numbers) and not 0 < numbers.min() <= numbers.max() <= len(SYMBOLS):
        raise DataError(f"{path}: an atom has no element (X, or the number 0); leave that structure out")
    chosen = energy or ENERGY
    energies = [frame.energy if energy in (None, ENERGY) else frame.values.get(chosen) for frame in found]
    keys = {
        key: None
        for frame, value in zip(found, energies, strict=True)
        if value is None
        for key in frame.values
    }
    labels = []
    if molecule is not None:
        for number, frame in enumerate(found):
            if molecule not in frame.values:
                raise DataError(
                    f"{path}, structure {number} (from 0): there is no key '{molecule}', which data.molecule "
                    "names; add it"
                )
            labels.append(str(frame.values[molecule]))
    return Frames(
        numbers=numbers.astype(np.uint8),
        coordinates=np.concatenate([np.empty((0, 3)), *(frame.positions for frame in found)]),
        atoms=np.array([len(frame.numbers) for frame in found], np.int64),
        energies=np.array([_number(path, n, chosen, e) for n, e in enumerate(energies)], np.float64),
        periodic=np.array([bool(np.any(frame.pbc)) for frame in found], bool),
        charged=np.array([_differs(frame, CHARGES, frame.charges) for frame in found], bool),
        open_shell=np.array([_differs(frame, SPINS, frame.moments) for frame in found], bool),
        molecules=np.array(labels, np.str_),
        keys=np.array([printable(key) for key in keys], np.str_),
    )


def _number(path: Path, number: int, key: str, value: Any) -> float:
    try:
        return np.nan if value is None else float(value)
    except (TypeError, ValueError):
        raise DataError(f"{path}, structure {number} (from 0): {key} is not a number; correct it") from None


def _differs(frame: _Frame, keys: Mapping[str, tuple[float, ...]], of_atoms: Any) -> bool:
    """Return whether a structure is marked as charged, or as having unpaired electrons."""
    said = [frame.values[key] not in fine for key, fine in keys.items() if key in frame.values]
    return any(said) or (of_atoms is not None and bool(abs(np.sum(of_atoms)) > UNPAIRED))
