"""From HDF5 files to a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from trainer.data.ani1 import ANI1
from trainer.data.ani1x import ANI1X
from trainer.data.dataset import Dataset, Molecule
from trainer.data.layout import Layout, molecule_groups
from trainer.data.shipped import SAMPLE, sample_file
from trainer.errors import DataError

READERS: dict[str, Layout] = {"ANI-1": ANI1, "ANI-1x": ANI1X}


def read_dataset(files: Sequence[Path | str], high_energy: bool = False) -> Dataset:
    """Read all molecules of some HDF5 files; the layout of each is found from what it holds.

    Parameters
    ----------
    files : paths; the string ``sample`` names the shipped file
    high_energy : include the high-energy structures of the ANI-1 layout

    Raises
    ------
    DataError
        with one line that names file and group, where a file cannot be used as it is.
    """
    paths = [sample_file() if file == SAMPLE else Path(file) for file in files]
    if not paths:
        raise DataError("no data file is given")
    seen: set[Path] = set()
    molecules: list[Molecule] = []
    origins: list[Path] = []
    for path in paths:
        if path.resolve() in seen:
            raise DataError(f"{path} is given twice: give each file once")
        seen.add(path.resolve())
        read = _read_file(path, high_energy)
        molecules += read
        origins += [path] * len(read)
    _refuse_repeated_structures(molecules, origins)
    if not molecules:
        raise DataError(f"{', '.join(map(str, paths))}: there is no structure with an energy")
    return Dataset(tuple(molecules))


@contextmanager
def open_hdf5(path: Path) -> Iterator[tuple[h5py.File, Layout]]:
    """An HDF5 file and the layout of what it holds.

    Raises
    ------
    DataError
        if it is none, holds molecules in no known layout, or turns out to be damaged in the block.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; correct its name, or bring it there")
    if not path.is_file():
        raise DataError(f"{path}: this is a folder; name the HDF5 files in it")
    try:
        with h5py.File(path, "r") as file:
            yield file, _layout_of(file)
    except (OSError, RuntimeError, KeyError) as error:
        # What h5py raises for a truncated or damaged file depends on where it stumbles.
        cause = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable HDF5 file; copy or download it anew ({cause})") from error


def _read_file(path: Path, high_energy: bool) -> list[Molecule]:
    with open_hdf5(path) as (file, layout):
        groups = list(molecule_groups(file, layout.keys))
        if high_energy and not any(layout.has_high_energy(group) for group in groups):
            raise DataError(
                f"{path}: no group has coordinatesHE and energiesHE: do not ask for high energies"
            )
        molecules = [layout.read(group, high_energy) for group in groups]
    return [molecule for molecule in molecules if molecule.structures > 0]


def _layout_of(file: h5py.File) -> Layout:
    markers = {layout.keys[0]: layout for layout in READERS.values()}
    found: Layout | None = file.visit(lambda name: markers.get(name.rpartition("/")[2]))
    if found is None:
        known = "; ".join(f"{name}: {', '.join(layout.keys)}" for name, layout in READERS.items())
        raise DataError(f"{file.filename}: no group holds a molecule in a known layout ({known})")
    return found


def _refuse_repeated_structures(molecules: Sequence[Molecule], origins: Sequence[Path]) -> None:
    """The same structure in two files, one of them a joined one say, could be in two parts of a split."""
    alike: dict[bytes, list[int]] = {}
    for index, molecule in enumerate(molecules):
        alike.setdefault(molecule.atomic_numbers.tobytes(), []).append(index)
    for group in alike.values():
        if len({origins[i] for i in group}) > 1:
            _refuse_repeats_among([(molecules[i], origins[i]) for i in group])


def _refuse_repeats_among(alike: Sequence[tuple[Molecule, Path]]) -> None:
    """Compare molecules of the same atoms: coordinates only where two energies are equal to the last bit."""
    owners = np.repeat(np.arange(len(alike)), [molecule.structures for molecule, _ in alike])
    rows = np.concatenate([np.arange(molecule.structures) for molecule, _ in alike])
    energies = np.concatenate([molecule.energies for molecule, _ in alike])
    order = np.argsort(energies, kind="stable")
    equal = np.flatnonzero(np.diff(energies[order]) == 0)
    for one, other in zip(order[equal], order[equal + 1], strict=True):
        (a, file_a), (b, file_b) = alike[owners[one]], alike[owners[other]]
        if file_a != file_b and np.array_equal(a.coordinates[rows[one]], b.coordinates[rows[other]]):
            raise DataError(
                f"{file_a} (group {a.name}) and {file_b} (group {b.name}) hold the same structures: "
                "give them once"
            )
