"""Signature of the registered model: a table of structures as input, a table of energies as output.

An input row holds a structure (``symbols``, ``coordinates``) or names a file of structures (``file``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from trainer.errors import DataError
from trainer.inference.ensemble import Ensemble
from trainer.inference.files import read_structures
from trainer.inference.structures import Structure, make_structure

_NUMBERS: Final = {"type": "array", "items": {"type": "array", "items": {"type": "double"}}}

#: Columns of the input table, in MLflow's schema. Coordinates are in Å.
INPUTS: Final[list[dict[str, Any]]] = [
    {"name": "symbols", "type": "array", "items": {"type": "string"}, "required": False},
    {"name": "coordinates", **_NUMBERS, "required": False},
    {"name": "file", "type": "string", "required": False},
]

#: Columns of the output table, which has one row per structure. Energies are in hartree. ``row`` is the row
#: of the input table, ``structure`` the index in a file, from 0. A ``novelty`` above 1 means that the
#: structure has an environment far from the training data.
OUTPUTS: Final[list[dict[str, Any]]] = [
    {"name": "row", "type": "long", "required": True},
    {"name": "structure", "type": "long", "required": True},
    {"name": "energy_hartree", "type": "double", "required": True},
    {"name": "spread_hartree", "type": "double", "required": True},
    {"name": "novelty", "type": "double", "required": True},
]


def predict_table(ensemble: Ensemble, table: pd.DataFrame) -> pd.DataFrame:
    """Predict energies and their spreads over the members, hartree, and the novelty: one row per structure.

    Raises
    ------
    DataError
        if a row neither holds a structure nor names a file that can be read.
    """
    places, structures = [], []
    for row, values in enumerate(table.to_dict("records")):
        for number, structure in enumerate(_structures(row, values)):
            places.append((row, number))
            structures.append(structure)
    predictions = ensemble.predict(structures)
    return pd.DataFrame(
        {
            "row": [row for row, _ in places],
            "structure": [number for _, number in places],
            "energy_hartree": predictions.energies,
            "spread_hartree": predictions.spread,
            "novelty": predictions.novelty,
        }
    )


def _structures(row: int, values: dict[str, Any]) -> Iterator[Structure]:
    file, symbols, coordinates = (values.get(name) for name in ("file", "symbols", "coordinates"))
    if isinstance(file, str):
        yield from read_structures(Path(file))
    elif isinstance(symbols, Collection) and isinstance(coordinates, Collection | np.ndarray):
        yield make_structure(symbols, coordinates, f"row {row}")
    else:  # a missing value is NaN or None
        raise DataError(f"row {row}: give symbols and coordinates, or a file")
