"""NumPy arrays of one molecule in a file ``.npz``, as sGDML and rMD17 write them.

Chmiela et al., Sci. Adv. 3, e1603015 (2017); Christensen and von Lilienfeld, Mach. Learn.: Sci. Technol. 1,
045018 (2020). Files of sGDML state their units.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from trainer.config import DataConfig, EnergyUnit, LengthUnit
from trainer.data.arrays import MEMORY
from trainer.data.elements import SYMBOLS
from trainer.data.frames import Frames, readings_of
from trainer.data.layout import Reading, units_of
from trainer.data.links import printable
from trainer.errors import DataError

T = TypeVar("T")

ZIP: Final = b"PK\x03\x04"

#: Names of elements, coordinates and energies in each layout.
LAYOUTS: Final[Mapping[str, tuple[str, str, str]]] = {
    "sGDML": ("z", "R", "E"),
    "rMD17": ("nuclear_charges", "coords", "energies"),
}

#: How files write the units.
_ENERGY_UNITS: Final[Mapping[str, EnergyUnit]] = {
    "kcal/mol": "kcal/mol",
    "kj/mol": "kJ/mol",
    "ev": "eV",
    "hartree": "hartree",
    "ha": "hartree",
    "eh": "hartree",
    "a.u.": "hartree",
    "au": "hartree",
}
_LENGTH_UNITS: Final[Mapping[str, LengthUnit]] = {
    "ang": "angstrom",
    "angstrom": "angstrom",
    "a": "angstrom",
    "å": "angstrom",
    "bohr": "bohr",
    "a0": "bohr",
    "a.u.": "bohr",
    "au": "bohr",
}


def read_npz(path: Path, data: DataConfig) -> list[Reading]:
    """Read the structures of a file.

    Raises
    ------
    DataError
        if it has no known layout or two, or neither the file nor the settings say the unit of the energies.
    """
    values = _load(path, data)
    fitting = {
        name: keys for name, keys in LAYOUTS.items() if {*keys[:2], data.energy or keys[2]} <= values.keys()
    }
    if len(fitting) > 1:
        raise DataError(
            f"{path}: it matches two layouts, {' and '.join(map(_described, fitting))}; remove one"
        )
    if not fitting:
        known = "; ".join(map(_described, LAYOUTS))
        raise DataError(
            f"{path}: it holds {', '.join(map(printable, values)) or 'nothing'}, which is not a known layout"
            f" ({known}); rename its arrays, or name that of the energies with data.energy (--energy)"
        )
    ((elements, coordinates, energy),) = fitting.values()
    energy = data.energy or energy
    unit = data.unit or _stated(values, "e_unit", _ENERGY_UNITS, path, "data.unit (--unit)")
    length = data.length_unit or _stated(
        values, "r_unit", _LENGTH_UNITS, path, "data.length_unit (--length-unit)"
    )
    if unit is None:
        raise DataError(
            f"{path}: it does not state the unit of its energies: name it with data.unit (--unit); that of "
            "rMD17 is kcal/mol"
        )
    numbers, positions, energies = values[elements], values[coordinates], values[energy]
    for key in (elements, coordinates, energy):
        if values[key].dtype.kind not in ("iu" if key == elements else "fiu"):
            raise DataError(
                f"{path}: '{key}' holds {values[key].dtype}, which are not numbers of the expected kind"
            )
    energies = energies.ravel() if energies.size == max((*energies.shape, 1)) else energies
    shape = (len(energies), numbers.size, 3)
    if numbers.ndim != 1 or not numbers.size or energies.ndim != 1 or positions.shape != shape:
        raise DataError(
            f"{path}: the shapes disagree: '{elements}' {numbers.shape}, '{coordinates}' {positions.shape}, "
            f"'{energy}' {energies.shape}; they must be (atoms,), (structures, atoms, 3) and (structures,)"
        )
    if numbers.min() < 1 or numbers.max() > len(SYMBOLS):
        raise DataError(
            f"{path}: '{elements}' contains values that are not atomic numbers (1 to {len(SYMBOLS)})"
        )
    none = np.zeros(len(energies), bool)
    frames = Frames(
        numbers=np.tile(numbers.astype(np.uint8), len(energies)),
        coordinates=positions.reshape(-1, 3).astype(np.float64),
        atoms=np.full(len(energies), numbers.size),
        energies=energies.astype(np.float64),
        periodic=none,
        charged=none,
        open_shell=none,
        molecules=np.array([], np.str_),
        keys=np.array([], np.str_),
    )
    return readings_of(frames, str(path), data, units_of(data, unit, length or "angstrom"), one=True)


def _load(path: Path, data: DataConfig) -> dict[str, npt.NDArray[Any]]:
    """Load the arrays of a layout and its units, without unpickling anything."""
    wanted = {key for keys in LAYOUTS.values() for key in keys} | {"e_unit", "r_unit", data.energy}
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {each.filename.removesuffix(".npy"): each.file_size for each in archive.infolist()}
        if (size := sum(sizes[key] for key in sizes.keys() & wanted)) > MEMORY:
            raise DataError(f"{path}: its arrays take {size / 2**30:,.1f} GiB, more than this machine has")
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {key: np.asarray(file[key]) for key in sizes if key in wanted}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        cause = printable(" ".join(str(error).split()))
        raise DataError(
            f"{path}: not a readable npz file; copy or download it again ({cause:.200})"
        ) from error


def _described(name: str) -> str:
    return f"{name}: {', '.join(LAYOUTS[name])}"


def _stated(
    values: Mapping[str, Any], key: str, known: Mapping[str, T], path: Path, setting: str
) -> T | None:
    """Return the unit that a file states; None if it states none."""
    if key not in values:
        return None
    said = values[key].ravel().tolist()
    text = said[0].decode("utf-8", "replace") if said and isinstance(said[0], bytes) else str(*said[:1])
    if text.strip().lower() not in known:
        raise DataError(
            f"{path}: it states the unit '{printable(text[:40])}', which is not known; name it with {setting}"
        )
    return known[text.strip().lower()]
