"""Reading a data set from files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from trainer.config import ISOLATED_ATOMS, DataConfig
from trainer.data.ani1 import ANI1, TORCHANI
from trainer.data.ani1x import ANI1X
from trainer.data.dataset import Dataset, Molecule
from trainer.data.duplicates import find_contradictions, find_duplicates
from trainer.data.formats import HDF5, find_format, read_other
from trainer.data.hdf5 import DataFile, Group, open_hdf5
from trainer.data.isolated_atoms import take_isolated_atoms
from trainer.data.layout import Layout, Reading
from trainer.data.links import printable
from trainer.data.outliers import find_outliers
from trainer.data.plausible import refuse_equal_energies, refuse_implausible
from trainer.data.shipped import SAMPLE, sample_file
from trainer.data.spice import SPICE
from trainer.data.unit_checks import refuse_other_units
from trainer.errors import DataError
from trainer.evaluation.units import HARTREE_TO_KCALMOL
from trainer.progress import Progress, no_progress

F = TypeVar("F")
K = TypeVar("K", str, tuple[str, str])

logger = logging.getLogger("anitune")

#: The layouts of HDF5 files; other formats are in :mod:`trainer.data.formats`. Of several with the same names
#: for elements and coordinates, and unit of these, a file has the first that fits: so a new one at the end
#: changes nothing for the others. Energies tell those with another unit apart.
READERS: Final[Mapping[str, Layout]] = {"ANI-1": ANI1, "ANI-1x": ANI1X, "torchani": TORCHANI, "SPICE": SPICE}

#: Energies whose type has wider steps than this, kcal/mol, cause a warning.
COARSE: Final = 1e-3


def read_dataset(
    files: Sequence[Path | str],
    high_energy: bool = False,
    *,
    progress: Progress = no_progress,
    cache: Path | None = None,
    **settings: Any,
) -> Dataset:
    """Read all molecules of some files, whose formats are detected from their content.

    Parameters
    ----------
    files : paths; the string ``sample`` means the shipped file
    high_energy : include the high-energy structures of the ANI-1 layout
    cache : folder for the arrays of large files without groups; None: they are parsed each time
    settings : other fields of :class:`trainer.config.DataConfig`

    Raises
    ------
    DataError
        with one line that names file and group, if a file cannot be used as it is.
    """
    data = DataConfig(high_energy=high_energy, **settings)
    paths = [sample_file() if file == SAMPLE else Path(file) for file in files]
    if not paths:
        raise DataError("no data file is given")
    seen: set[Path] = set()
    readings: list[Reading] = []
    for path in paths:
        if path.resolve() in seen:
            raise DataError(f"{path} is given twice: give each file once")
        seen.add(path.resolve())
        readings += _read_file(path, data, progress, cache)
    if not readings:
        raise DataError(f"{', '.join(map(str, paths))}: there is no structure with an energy")
    progress("checking structures", 0, 2)
    refuse_other_units(readings, data)
    refuse_implausible(readings)
    progress("checking structures", 1, 2)
    atoms: tuple[Molecule, ...] = ()
    if data.self_energies == ISOLATED_ATOMS:
        atoms, readings = take_isolated_atoms(readings)
    readings, duplicates = _without_duplicates(readings, data)
    readings = _without_outliers(readings, data)
    progress("checking structures", 2, 2)
    molecules = tuple(reading.molecule for reading in readings)
    return Dataset(molecules, isolated_atoms=atoms, duplicates=duplicates)


def _without_duplicates(readings: list[Reading], data: DataConfig) -> tuple[list[Reading], int]:
    """Return the readings without duplicates, unless the settings keep them, and how many are left out."""
    found = find_duplicates([reading.molecule for reading in readings])
    count = len(found.second)
    if not count:
        _warn_of_contradictions(readings)
        refuse_equal_energies(readings)
        return readings, 0
    are_duplicates = "is a duplicate" if count == 1 else "are duplicates"
    line = (
        f"{count:,} of {found.structures:,} structures {are_duplicates}: "
        f"{_place(readings, found.second[0])} has the same structure as {_place(readings, found.first[0])}"
    )
    if data.duplicates == "refuse":
        raise DataError(
            f"{line}: give them once, or leave out the later ones with data.duplicates: drop "
            "(--duplicates drop)"
        )
    kept = np.ones(found.structures, bool)
    kept[found.second] = False
    once = _those(readings, kept)
    _warn_of_contradictions(once)
    refuse_equal_energies(once)
    if data.duplicates == "keep":
        logger.warning("%s: they can be in the training and the validation set at once", line)
        return readings, 0
    logger.warning("%s: %s left out", line, "it is" if count == 1 else "the later ones are")
    return once, count


def _warn_of_contradictions(readings: list[Reading]) -> None:
    """Warn of structures with the geometry of another one and a different energy; expects no duplicates."""
    found = find_contradictions([reading.molecule for reading in readings])
    if not (count := len(found.second)):
        return
    energies = np.concatenate([reading.molecule.energies for reading in readings])
    apart = np.abs(energies[found.first] - energies[found.second]) * HARTREE_TO_KCALMOL
    largest = int(apart.argmax())
    logger.warning(
        "%s of %s structures %s the geometry of another one but a different energy: %s and %s are %.3g "
        "kcal/mol apart; all are used: remove those of another level of theory or without convergence",
        f"{count:,}",
        f"{found.structures:,}",
        "has" if count == 1 else "have",
        _place(readings, found.first[largest]),
        _place(readings, found.second[largest]),
        apart[largest],
    )


def _without_outliers(readings: list[Reading], data: DataConfig) -> list[Reading]:
    """Return the readings, without outliers of the energy if the settings ask for that."""
    if data.drop_outliers:
        far = find_outliers([reading.molecule for reading in readings])
        logger.warning(
            "%s of %s structures are left out, as their energy is far from the others of their molecule",
            f"{far.sum():,}",
            f"{len(far):,}",
        )
        readings = _those(readings, ~far)
    return readings


def _of_each(readings: Sequence[Reading], values: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.bool_]]:
    return np.split(values, np.cumsum([reading.molecule.structures for reading in readings])[:-1])


def _those(readings: Sequence[Reading], kept: npt.NDArray[np.bool_]) -> list[Reading]:
    """Return the readings with only some of their structures, (S,)."""
    once = []
    for reading, k in zip(readings, _of_each(readings, kept), strict=True):
        molecule = reading.molecule
        if not k.all():
            molecule = replace(molecule, coordinates=molecule.coordinates[k], energies=molecule.energies[k])
        if k.any():
            once.append(replace(reading, molecule=molecule, rows=reading.rows[k]))
    return once


def read_data(data: DataConfig, progress: Progress, cache: Path | None = None) -> Dataset:
    """Read the structures that a study or a training uses; see :func:`read_dataset`."""
    settings = {field.name: getattr(data, field.name) for field in fields(data)}
    return read_dataset(settings.pop("files"), progress=progress, cache=cache, **settings)


@contextmanager
def open_data_file(path: Path, links_outside: bool = False) -> Iterator[tuple[DataFile, list[Group], Layout]]:
    """Open an HDF5 file; yield it, its groups with structures (even without energies), and their layout.

    Raises
    ------
    DataError
        if it is not an HDF5 file, has no known layout, or turns out to be damaged in the block.
    """
    with open_hdf5(path, [key for layout in READERS.values() for key in layout.keys], links_outside) as file:
        fitting = {
            name: group
            for group in file.groups
            for name, layout in READERS.items()
            if layout.elements in group and (layout.coordinates in group or layout.has_high_energy(group))
        }
        if not fitting:
            raise _unknown_layout(file, None)
        usual = {name: group for name, group in fitting.items() if READERS[name].energies_of(group, None)}
        fitting = _first_of_same_structure(usual or fitting, lambda name: name)
        layout = READERS[_only(fitting)]
        yield file, [group for group in file.groups if any(key in group for key in layout.structure)], layout


def _read_file(path: Path, data: DataConfig, progress: Progress, cache: Path | None) -> list[Reading]:
    format_of_file = find_format(path)
    if format_of_file != HDF5:
        if data.high_energy:
            raise DataError(f"{path}: only HDF5 files in the layout of ANI-1 have high-energy structures")
        readings = read_other(path, format_of_file, data, progress, cache)
    elif data.molecule is not None:
        raise DataError(f"{path}: data.molecule is for files without groups; leave it out")
    else:
        readings = _read_hdf5(path, data, progress)
    step = max((reading.resolution for reading in readings), default=0.0) * HARTREE_TO_KCALMOL
    if step > COARSE:
        logger.warning(
            "%s: its energies are stored in steps of up to %.2g kcal/mol: errors cannot come below that; "
            "write them as float64",
            path,
            step,
        )
    return [reading for reading in readings if reading.molecule.structures > 0]


def _read_hdf5(path: Path, data: DataConfig, progress: Progress) -> list[Reading]:
    stage = f"reading {path.name}"
    progress(stage, 0, 1)
    keys = {key for layout in READERS.values() for key in layout.keys} | (
        {data.energy} if data.energy else set()
    )
    with open_hdf5(path, sorted(keys), data.links_outside) as file:
        layout, energy = _layout_of(file, data.energy)
        groups = [group for group in file.groups if any(key in group for key in (*layout.structure, energy))]
        if data.high_energy and not any(layout.has_high_energy(group) for group in groups):
            raise DataError(
                f"{path}: no group has coordinatesHE and energiesHE: do not ask for high energies"
            )
        readings: list[Reading] = []
        for number, group in enumerate(groups, start=1):
            readings += layout.read(group, energy, data)
            if number % 256 == 0 or number == len(groups):
                progress(stage, number, len(groups))
    return readings


def _layout_of(file: DataFile, energy: str | None) -> tuple[Layout, str]:
    """Return the only layout that groups of a file have, and the name of their energies."""
    fitting = {
        (name, key): group
        for group in file.groups
        for name, layout in READERS.items()
        for key in layout.energies_of(group, energy)
    }
    if not fitting:
        raise _unknown_layout(file, energy)
    usual = {fit: group for fit, group in fitting.items() if READERS[fit[0]].named(energy)}
    fitting = _first_of_same_structure(usual or fitting, lambda fit: fit[0])
    name, key = _only(fitting)
    return READERS[name], key


def _first_of_same_structure(fitting: Mapping[F, Group], name_of: Callable[[F], str]) -> dict[F, Group]:
    """Leave out layouts whose elements and coordinates are those of one before them that fits too."""
    first: dict[tuple[str, ...], str] = {}
    for name in sorted({name_of(fit) for fit in fitting}, key=[*READERS].index):
        first.setdefault((*READERS[name].structure, READERS[name].length_unit), name)
    return {fit: group for fit, group in fitting.items() if name_of(fit) in first.values()}


def _only(fitting: Mapping[K, Group]) -> K:
    """Return the only layout that groups of a file have: its name, or this with the name of the energies."""
    if len(fitting) > 1:
        (one, first), (other, second), *_ = fitting.items()
        at = first.where if first is second else f"{first.where}, and group {printable('/' + second.name)}"
        raise DataError(
            f"{at}: two layouts fit, {_described(one)} and {_described(other)}; name the key of the energies "
            "with data.energy (--energy), or remove one of the arrays"
        )
    return next(iter(fitting))


def _described(fit: str | tuple[str, str]) -> str:
    name, *energy = (fit,) if isinstance(fit, str) else fit
    return f"{name} ({', '.join((*READERS[name].structure, *energy))})"


def _unknown_layout(file: DataFile, energy: str | None) -> DataError:
    known = "; ".join(
        f"{name}: {', '.join(layout.structure)}, {energy or ' or '.join(layout.energies)}"
        for name, layout in READERS.items()
    )
    for group in file.groups:
        for layout in READERS.values():
            if all(key in group for key in layout.structure):
                return DataError(
                    f"{group.where}: there is no dataset '{energy or layout.energies[0]}' beside "
                    f"{' and '.join(layout.structure)}; add it, or name that of the energies with "
                    "data.energy (--energy)"
                )
    return DataError(f"{file.path}: no group contains a molecule in a known layout ({known})")


def _place(readings: Sequence[Reading], index: int) -> str:
    """Return where the structure with this index among all is, for messages."""
    offsets = np.cumsum([0, *(reading.molecule.structures for reading in readings)])
    owner = int(np.searchsorted(offsets, index, side="right")) - 1
    return readings[owner].place(index - int(offsets[owner]))
