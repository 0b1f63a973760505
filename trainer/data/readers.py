"""From HDF5 files to a data set."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import numpy as np

from trainer.config import DataConfig
from trainer.data.ani1 import ANI1
from trainer.data.ani1x import ANI1X
from trainer.data.dataset import Dataset
from trainer.data.duplicates import Duplicates, find_duplicates
from trainer.data.hdf5 import DataFile, Group, open_hdf5
from trainer.data.layout import Layout, Reading
from trainer.data.plausible import refuse_equal_energies, refuse_implausible
from trainer.data.shipped import SAMPLE, sample_file
from trainer.errors import DataError
from trainer.evaluation.units import HARTREE_TO_KCALMOL
from trainer.progress import Progress, no_progress

logger = logging.getLogger("anitune")

READERS: dict[str, Layout] = {"ANI-1": ANI1, "ANI-1x": ANI1X}

#: Energies of a type with wider steps are warned of, kcal/mol.
COARSE: Final = 1e-3


def read_dataset(
    files: Sequence[Path | str],
    high_energy: bool = False,
    *,
    links_outside: bool = False,
    duplicates: Literal["refuse", "drop", "keep"] = "refuse",
    progress: Progress = no_progress,
) -> Dataset:
    """Read all molecules of some HDF5 files; the layout of each is found from what it holds.

    Parameters
    ----------
    files : paths; the string ``sample`` names the shipped file
    high_energy : include the high-energy structures of the ANI-1 layout
    links_outside : follow links to files outside the folder of a file
    duplicates : what becomes of structures that are there a second time (see
        :func:`trainer.data.duplicates.find_duplicates`)

    Raises
    ------
    DataError
        with one line that names file and group, where a file cannot be used as it is.
    """
    paths = [sample_file() if file == SAMPLE else Path(file) for file in files]
    if not paths:
        raise DataError("no data file is given")
    seen: set[Path] = set()
    readings: list[Reading] = []
    for path in paths:
        if path.resolve() in seen:
            raise DataError(f"{path} is given twice: give each file once")
        seen.add(path.resolve())
        readings += _read_file(path, high_energy, links_outside, progress)
    if not readings:
        raise DataError(f"{', '.join(map(str, paths))}: there is no structure with an energy")
    progress("checking structures", 0, 2)
    refuse_implausible(readings)
    progress("checking structures", 1, 2)
    found = find_duplicates([reading.molecule for reading in readings])
    progress("checking structures", 2, 2)
    if not len(found.second):
        refuse_equal_energies(readings)
        return Dataset(tuple(reading.molecule for reading in readings))
    line = _told(found, readings)
    if duplicates == "refuse":
        raise DataError(
            f"{line}: give them once, or leave out the later ones with data.duplicates: drop "
            "(--duplicates drop)"
        )
    once = _without(readings, found)
    refuse_equal_energies(once)
    if duplicates == "keep":
        logger.warning("%s: they can train and validate at once", line)
        return Dataset(tuple(reading.molecule for reading in readings))
    logger.warning("%s: the later ones are left out", line)
    return Dataset(tuple(reading.molecule for reading in once))


def _without(readings: Sequence[Reading], found: Duplicates) -> list[Reading]:
    """What was read, each structure once."""
    kept = np.ones(found.structures, bool)
    kept[found.second] = False
    each = np.split(kept, np.cumsum([reading.molecule.structures for reading in readings])[:-1])
    once = []
    for reading, k in zip(readings, each, strict=True):
        molecule = reading.molecule
        if not k.all():
            molecule = replace(molecule, coordinates=molecule.coordinates[k], energies=molecule.energies[k])
        if k.any():
            once.append(replace(reading, molecule=molecule, rows=reading.rows[k]))
    return once


def read_data(data: DataConfig, progress: Progress) -> Dataset:
    """The structures that a study or a training uses; errors are those of :func:`read_dataset`."""
    return read_dataset(
        data.files,
        data.high_energy,
        links_outside=data.links_outside,
        duplicates=data.duplicates,
        progress=progress,
    )


@contextmanager
def open_data_file(path: Path, links_outside: bool = False) -> Iterator[tuple[DataFile, list[Group], Layout]]:
    """An HDF5 file, its groups that hold molecules, and their layout.

    Raises
    ------
    DataError
        if it is none, holds molecules in no known layout, or turns out to be damaged in the block.
    """
    keys = [key for layout in READERS.values() for key in (*layout.keys, *layout.optional)]
    with open_hdf5(path, keys, links_outside) as file:
        layout = _layout_of(file)
        yield file, [group for group in file.groups if any(key in group for key in layout.keys)], layout


def _read_file(path: Path, high_energy: bool, links_outside: bool, progress: Progress) -> list[Reading]:
    stage = f"reading {path.name}"
    progress(stage, 0, 1)
    with open_data_file(path, links_outside) as (_, groups, layout):
        if high_energy and not any(layout.has_high_energy(group) for group in groups):
            raise DataError(
                f"{path}: no group has coordinatesHE and energiesHE: do not ask for high energies"
            )
        readings: list[Reading] = []
        for number, group in enumerate(groups, start=1):
            readings += layout.read(group, high_energy)
            if number % 256 == 0 or number == len(groups):
                progress(stage, number, len(groups))
    step = max((reading.resolution for reading in readings), default=0.0) * HARTREE_TO_KCALMOL
    if step > COARSE:
        logger.warning(
            "%s: its energies are kept in steps of up to %.2g kcal/mol: errors cannot come below that; "
            "write them as float64",
            path,
            step,
        )
    return [reading for reading in readings if reading.molecule.structures > 0]


def _layout_of(file: DataFile) -> Layout:
    for group in file.groups:
        for key in sorted(group.members):
            for layout in READERS.values():
                if key == layout.keys[0]:
                    return layout
    known = "; ".join(f"{name}: {', '.join(layout.keys)}" for name, layout in READERS.items())
    raise DataError(f"{file.path}: no group holds a molecule in a known layout ({known})")


def _told(found: Duplicates, readings: Sequence[Reading]) -> str:
    """How many structures are there twice, and two of them."""
    offsets = np.cumsum([0, *(reading.molecule.structures for reading in readings)])

    def place(index: int) -> str:
        owner = int(np.searchsorted(offsets, index, side="right")) - 1
        return readings[owner].place(index - int(offsets[owner]))

    count = len(found.second)
    return (
        f"{count:,} of {found.structures:,} structures {'is' if count == 1 else 'are'} there a second "
        "time, as "
        f"{place(found.second[0])}, and {place(found.first[0])}, which hold the same structure"
    )
