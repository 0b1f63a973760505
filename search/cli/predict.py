"""``anitune predict``: predict energies of structures in files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from search.cli.data import LinksOutside
from search.cli.models import Model, open_model
from search.cli.options import Json
from search.cli.progress import progress_bar
from search.cli.terminal import echo
from trainer.csv_text import csv_text
from trainer.data.dataset import formula_of
from trainer.errors import ConfigError
from trainer.evaluation.units import HARTREE_TO_EV, HARTREE_TO_KCALMOL
from trainer.files import write_by_rename
from trainer.inference.ensemble import Ensemble, Predictions
from trainer.inference.files import read_structures
from trainer.inference.structures import Structure
from trainer.progress import Progress

if TYPE_CHECKING:
    import pandas as pd


class Unit(StrEnum):
    """Units of energies."""

    HARTREE = "hartree"
    KCALMOL = "kcal/mol"
    EV = "eV"


_UNIT_NAMES = {Unit.HARTREE: "hartree", Unit.KCALMOL: "kcalmol", Unit.EV: "eV"}
"""Names of the units in column names."""

SHOWN = 20
"""Number of warnings that are printed; the rest is counted."""


def predict(
    model: Model,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="xyz, extended xyz or HDF5 files.")],
    unit: Annotated[Unit, typer.Option(help="Unit of the energies.")] = Unit.HARTREE,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv|FILE.extxyz", help="Write a table, or the structures with energies."),
    ] = None,
    any_composition: Annotated[
        bool,
        typer.Option(
            "--any-composition", help="Also predict compositions that the training data do not determine."
        ),
    ] = False,
    links_outside: LinksOutside = False,
    as_json: Json = False,
) -> None:
    """Predict the total energies of structures, with an uncertainty if the model is an ensemble.

    The uncertainty is the standard deviation of the members. Warnings list structures with an environment
    unlike all of the training data, and structures that get no energy because the training data do not
    determine the energy of an element or of the composition.
    """
    if out is not None and out.suffix not in (".csv", ".extxyz"):
        raise ConfigError(f"--out {out}: the name must end in .csv or .extxyz")
    ensemble = open_model(model)
    structures: list[Structure] = []
    places: list[Place] = []
    for file in files:
        read = read_structures(file, links_outside)
        structures += read
        places += [Place(str(file), number) for number in range(len(read))]
    table = predict_energies(ensemble, structures, places, unit, any_composition)
    if out is not None:
        write_by_rename(out, (table.csv() if out.suffix == ".csv" else table.extxyz()).encode())
        echo(f"{len(structures)} structures: {out}", err=as_json)
    if as_json:
        typer.echo(json.dumps(table.values(), indent=2))
    elif out is None:
        echo(table.text())


def predict_energies(
    ensemble: Ensemble,
    structures: Sequence[Structure],
    places: Sequence[Place],
    unit: Unit,
    any_composition: bool,
) -> PredictedEnergies:
    """Predict energies, and warn of structures without one and of structures far from the training data.

    Parameters
    ----------
    places : where the structures come from
    any_composition : also predict compositions that the training data do not determine
    """
    with progress_bar() as progress:
        predictions = _predict(ensemble, structures, any_composition, progress)
    table = PredictedEnergies(ensemble, structures, places, predictions, unit, any_composition)
    table.warn()
    return table


def _predict(
    ensemble: Ensemble, structures: Sequence[Structure], any_composition: bool, progress: Progress
) -> Predictions:
    """Predict all structures; NaN for those whose energies the training data do not determine."""
    known = [s for s, structure in enumerate(structures) if not ensemble.unknown(structure, any_composition)]
    some = ensemble.predict([structures[s] for s in known], progress, any_composition=any_composition)

    def all_of(values: Any, missing: float = math.nan) -> Any:
        whole = np.full((*values.shape[:-1], len(structures)), missing, values.dtype)
        whole[..., known] = values
        return whole

    return Predictions(
        energies=all_of(some.energies),
        spread=all_of(some.spread),
        members=all_of(some.members),
        novelty=all_of(some.novelty),
        largest_novelty_atom=all_of(some.largest_novelty_atom, 0),
    )


@dataclass(frozen=True)
class Place:
    """Where a structure comes from.

    Attributes
    ----------
    number : index in the file, from 0
    """

    file: str
    number: int


@dataclass(frozen=True, eq=False, repr=False)
class PredictedEnergies:
    """Predicted energies, in formats for people and programs."""

    ensemble: Ensemble
    structures: Sequence[Structure]
    places: Sequence[Place]
    predictions: Predictions
    unit: Unit
    any_composition: bool

    def warn(self) -> None:
        """List on standard error the structures without energy and those far from the training data."""
        self._list(
            [
                (s, f"no energy: {unknown}")
                for s, structure in enumerate(self.structures)
                if (unknown := self.ensemble.unknown(structure, self.any_composition))
            ],
            "have no energy",
        )
        if self.ensemble.domain is None:
            echo(
                "warning: this model has no record of its training data (a promoted one has): structures far"
                " from it cannot be detected",
                err=True,
            )
        p = self.predictions
        self._list(
            [
                (
                    s,
                    f"far from the training data (atom {atom}, {self.structures[s].symbols[atom]}: novelty"
                    f" {p.novelty[s]:.2g}, far is above 1)",
                )
                for s in p.far.nonzero()[0].tolist()
                for atom in [int(p.largest_novelty_atom[s])]
            ],
            "are far from the training data",
        )

    def _list(self, warnings: Sequence[tuple[int, str]], what: str) -> None:
        for s, warning in warnings[:SHOWN]:
            place = self.places[s]
            echo(f"warning: {place.file}, structure {place.number}: {warning}", err=True)
        if len(warnings) > SHOWN:
            echo(f"warning: {len(warnings) - SHOWN} more {what}", err=True)

    def __repr__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        html: str = self.frame().to_html(max_rows=SHOWN)
        return html

    @property
    def energies(self) -> npt.NDArray[np.float64]:
        """Total energies of the S structures, (S,), in the chosen unit; NaN where there is no energy."""
        return self.predictions.energies * _factor(self.unit)

    @property
    def uncertainties(self) -> npt.NDArray[np.float64]:
        """Standard deviations of the members, (S,), in the chosen unit; NaN for a single network."""
        return self.predictions.spread * _factor(self.unit)

    def frame(self) -> pd.DataFrame:
        """Return one row per structure; the names of the energy columns contain the unit."""
        import pandas as pd  # 0.4 s, which the command does not need

        return pd.DataFrame(self._named_rows())

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per structure; unknown values are None."""
        factor = _factor(self.unit)
        p = self.predictions
        return [
            {
                "file": place.file,
                "structure": place.number,
                "formula": formula_of(structure.symbols),
                "energy": _known(energy * factor),
                "uncertainty": _known(spread * factor),
                "novelty": _known(novelty),
                "far": bool(far),
            }
            for place, structure, energy, spread, novelty, far in zip(
                self.places,
                self.structures,
                p.energies.tolist(),
                p.spread.tolist(),
                p.novelty.tolist(),
                p.far,
                strict=True,
            )
        ]

    def values(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"unit": self.unit.value, "members": len(self.ensemble.members), "structures": self.rows()}

    def text(self) -> str:
        """Format a table for people: aligned columns."""
        digits = 6 if self.unit is Unit.HARTREE else 4
        lines = [f"{'energy':>16}  {'uncertainty':>12}     structure   [{self.unit.value}]"]
        for row in self.rows():
            energy, spread = (
                "-" if row[name] is None else f"{row[name]:.{digits}f}" for name in ("energy", "uncertainty")
            )
            mark = "far" if row["far"] else ""
            lines.append(
                f"{energy:>16}  {spread:>12} {mark:3} {row['formula']} ({row['file']}, {row['structure']})"
            )
        return "\n".join(lines)

    def csv(self) -> str:
        """Format the rows as CSV with all digits; the names of the energy columns contain the unit."""
        return csv_text(self._named_rows())

    def _named_rows(self) -> list[dict[str, Any]]:
        renamed = {
            "energy": f"energy_{_UNIT_NAMES[self.unit]}",
            "uncertainty": f"uncertainty_{_UNIT_NAMES[self.unit]}",
        }
        return [{renamed.get(key, key): value for key, value in row.items()} for row in self.rows()]

    def extxyz(self) -> str:
        """Format structures and energies as extended XYZ.

        Readers take ``energy`` for eV, so the key of another unit has a suffix, such as ``energy_hartree``.
        """
        suffix = "" if self.unit is Unit.EV else f"_{_UNIT_NAMES[self.unit]}"
        lines = []
        for structure, row in zip(self.structures, self.rows(), strict=True):
            facts = {
                f"energy{suffix}": row["energy"],
                f"uncertainty{suffix}": row["uncertainty"],
                "novelty": row["novelty"],
            }
            known = " ".join(f"{name}={value!r}" for name, value in facts.items() if value is not None)
            far = "T" if row["far"] else "F"
            lines.append(str(len(structure.symbols)))
            lines.append(f'Properties=species:S:1:pos:R:3 {known} far={far} pbc="F F F"')
            for symbol, position in zip(structure.symbols, structure.coordinates.tolist(), strict=True):
                lines.append(f"{symbol:2} " + " ".join(f"{x:.8f}" for x in position))
        return "\n".join(lines) + "\n"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _factor(unit: Unit) -> float:
    return {Unit.HARTREE: 1.0, Unit.KCALMOL: HARTREE_TO_KCALMOL, Unit.EV: HARTREE_TO_EV}[unit]
