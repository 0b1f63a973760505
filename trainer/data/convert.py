"""Export of a data set as one file in the layout of the ANI-1 release."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import h5py
import numpy as np

from trainer.data.ani1 import ANI1
from trainer.data.dataset import Dataset
from trainer.data.elements import SYMBOLS
from trainer.data.links import printable
from trainer.errors import OutputError
from trainer.files import replacing
from trainer.progress import Progress

_RESERVED: Final = {"", ".", "..", *ANI1.keys}


def write_ani1(path: Path, dataset: Dataset, progress: Progress) -> None:
    """Write a group for each molecule, in their order, so that a split divides the file like the data set.

    Isolated atoms that are self-energies come last.

    Groups have the names of the molecules if HDF5, which sorts names, keeps that order; else numbers.

    Raises
    ------
    OutputError
        if there is a file at ``path``, or it cannot be written.
    """
    refuse_existing(path)
    molecules = (*dataset.molecules, *dataset.isolated_atoms)
    names = _names([molecule.name for molecule in molecules])
    with replacing(path) as partial, h5py.File(partial, "w") as file:
        for number, (name, molecule) in enumerate(zip(names, molecules, strict=True), start=1):
            group = file.create_group(name)
            group["species"] = np.array([SYMBOLS[n - 1] for n in molecule.atomic_numbers], "S2")
            group["coordinates"], group["energies"] = molecule.coordinates, molecule.energies
            if molecule.smiles:
                group["smiles"] = molecule.smiles
            if number % 256 == 0 or number == len(names):
                progress(f"writing {path.name}", number, len(names))


def refuse_existing(path: Path) -> None:
    """Raise OutputError if the file exists, as it may be one of the files that are read."""
    if path.exists():
        raise OutputError(f"{path}: this file exists; delete it, or choose another name")


def _names(names: Sequence[str]) -> list[str]:
    paths = [[part.encode() for part in name.split("/")] for name in names]
    ascending = all(one < other for one, other in pairwise(paths))
    if ascending and not any(part in _RESERVED for name in names for part in name.split("/")):
        return list(names)
    digits = len(str(len(names)))
    return [f"{number:0{digits}d} {printable(name).replace('/', ' ')}" for number, name in enumerate(names)]
