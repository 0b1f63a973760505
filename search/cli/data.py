"""``anitune data``: inspect, compute or download data files, and prepare their features."""

from __future__ import annotations

import functools
import inspect
import json
import os
import shlex
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from search.cli.options import Json
from search.cli.output import make_console
from search.cli.progress import progress_bar
from search.cli.terminal import echo
from storage.settings import load_settings
from trainer.config import DataConfig
from trainer.data.convert import refuse_existing, write_ani1
from trainer.data.dataset import Dataset
from trainer.data.fetch import fetch_ani1
from trainer.data.readers import read_data
from trainer.data.sample import SHIPPED_COUNTS, SHIPPED_SEED, generate_sample, sample_plan
from trainer.data.summary import DatasetSummary, summarize

Files = Annotated[
    list[str],
    typer.Argument(
        help="Extended XYZ, HDF5, npz, ASE databases or trajectories, or sample: the shipped sample."
    ),
]
HighEnergy = Annotated[bool, typer.Option("--high-energy", help="Include the high-energy structures.")]
LinksOutside = Annotated[
    bool,
    typer.Option("--links-outside", help="Follow links to HDF5 files outside the folder of a data file."),
]


class Duplicates(StrEnum):
    """How to treat duplicate structures."""

    REFUSE = "refuse"
    DROP = "drop"
    KEEP = "keep"


SecondTimes = Annotated[
    Duplicates,
    typer.Option(help="Whether duplicate structures are an error, left out except for the first, or kept."),
]


class Unusual(StrEnum):
    """How to treat structures with unusual values."""

    REFUSE = "refuse"
    KEEP = "keep"


class SelfEnergies(StrEnum):
    """Where self-energies can come from, other than a fit."""

    ISOLATED_ATOMS = "isolated_atoms"


class EnergyUnit(StrEnum):
    """Units of energies in files."""

    HARTREE = "hartree"
    EV = "eV"
    KCALMOL = "kcal/mol"
    KJMOL = "kJ/mol"


class LengthUnit(StrEnum):
    """Units of coordinates in files."""

    ANGSTROM = "angstrom"
    BOHR = "bohr"


class Unusable(StrEnum):
    """Kinds of structures that can be left out."""

    WITHOUT_ENERGY = "without_energy"
    PERIODIC = "periodic"
    CHARGED = "charged"
    OPEN_SHELL = "open_shell"


Energy = Annotated[
    str | None, typer.Option(metavar="KEY", help="Key of the energies. Default: the format's usual key.")
]
InUnit = Annotated[
    EnergyUnit | None,
    typer.Option(
        help="Unit of the energies. Default: eV in files that ASE reads, hartree in HDF5, the stated unit in"
        " npz."
    ),
]
InLengthUnit = Annotated[
    LengthUnit | None,
    typer.Option(
        help="Unit of the coordinates. Default: bohr in SPICE, the stated unit in npz, else angstrom."
    ),
]
MoleculeKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="Key of the frames that names their molecule. Default: molecules are determined from bonds.",
    ),
]
LeaveOut = Annotated[
    list[Unusable] | None, typer.Option(help="Kind of structures to leave out. May be repeated.")
]
DropOutliers = Annotated[
    bool,
    typer.Option("--drop-outliers", help="Leave out energies far from all others of their molecule."),
]
UnusualValues = Annotated[
    Unusual,
    typer.Option(
        help="Whether values that suggest another unit or energy zero, charged structures and open-shell "
        "structures are an error or kept."
    ),
]

SelfEnergiesOf = Annotated[
    SelfEnergies | None,
    typer.Option(
        help="isolated_atoms: use the energies of structures of one atom as self-energies, and do not train "
        "on these structures. Default: self-energies are fitted, and all structures are trained on."
    ),
]


class Archive(StrEnum):
    """Data sets that can be downloaded."""

    ANI1 = "ani1"


def _data_config(
    files: Files,
    high_energy: HighEnergy = False,
    self_energies: SelfEnergiesOf = None,
    duplicates: SecondTimes = Duplicates.DROP,
    links_outside: LinksOutside = False,
    energy: Energy = None,
    unit: InUnit = None,
    length_unit: InLengthUnit = None,
    molecule: MoleculeKey = None,
    leave_out: LeaveOut = None,
    drop_outliers: DropOutliers = False,
    unusual: UnusualValues = Unusual.REFUSE,
) -> DataConfig:
    """Build the data configuration from the options of a command."""
    values: dict[str, Any] = {
        "high_energy": high_energy,
        "self_energies": None if self_energies is None else self_energies.value,
        "duplicates": duplicates.value,
        "links_outside": links_outside,
        "energy": energy,
        "unit": None if unit is None else unit.value,
        "length_unit": None if length_unit is None else length_unit.value,
        "molecule": molecule,
        "leave_out": tuple(each.value for each in leave_out or ()),
        "drop_outliers": drop_outliers,
        "unusual": unusual.value,
    }
    return DataConfig(tuple(files), **values)


def reads_data(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter ``data`` of a command by the files and options of :func:`_data_config`."""
    given = _parameters(_data_config)
    own = {name: each for name, each in _parameters(command).items() if name != "data"}

    @functools.wraps(command)
    def run(**values: Any) -> None:
        data = _data_config(**{name: values.pop(name) for name in given if name in values})
        command(data=data, **values)

    parameters = sorted(
        [*given.values(), *own.values()], key=lambda each: each.default is not inspect.Parameter.empty
    )
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function as keyword-only, with their annotations resolved to types."""
    types = get_type_hints(function, include_extras=True)
    return {
        name: each.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=types[name])
        for name, each in inspect.signature(function).parameters.items()
    }


@reads_data
def describe(data: DataConfig, as_json: Json = False) -> None:
    """Count molecules, structures and atoms, and show the range of the energies."""
    dataset = read_files(data)
    summary = summarize(dataset)
    if as_json:
        typer.echo(json.dumps(asdict(summary), indent=2))
        return

    console = make_console()
    console.print(
        f"[bold]{summary.molecules:,}[/] molecules, [bold]{summary.structures:,}[/] structures, "
        f"{summary.atoms:,} atoms ({summary.atoms_per_structure:.1f} a structure), "
        f"elements {escape(' '.join(summary.elements))}"
    )
    console.print(_by_heavy_atoms(summary))
    for line in (
        *_duplicate_lines(summary.duplicates),
        *_outlier_lines(summary),
        *_isolated_atom_lines(summary),
    ):
        echo(line)
    if summary.balances:
        console.print(
            f"In all molecules {escape(' and '.join(summary.balances))}: the energies of these elements"
            " cannot be separated, and no other composition can be predicted."
        )


OUTLIERS = 10
"""Number of structures with an unusual energy that are listed."""


def _duplicate_lines(count: int) -> list[str]:
    if not count:
        return []
    structures = "1 duplicate structure is" if count == 1 else f"{count:,} duplicate structures are"
    return [f"{structures} left out and not counted (see --duplicates)"]


def _outlier_lines(summary: DatasetSummary) -> list[str]:
    found = summary.outliers
    if not found:
        return []
    lines = [
        f"{len(found):,} energies are far from the others of their molecule (see --drop-outliers):",
        *(
            f"  {each.molecule}, structure {each.structure} (from 0): {each.energy_hartree:.6f} hartree,"
            f" {each.deviations:.0f} robust standard deviations from the median"
            for each in found[:OUTLIERS]
        ),
    ]
    return lines if len(found) <= OUTLIERS else [*lines, f"  {len(found) - OUTLIERS:,} more: see --json"]


def _isolated_atom_lines(summary: DatasetSummary) -> list[str]:
    if energies := summary.self_energies_hartree:
        listed = ", ".join(f"{element} {energy:.6f}" for element, energy in energies.items())
        return [f"Self-energies are those of the isolated atoms, which are not trained on: {listed} hartree"]
    if not (found := summary.isolated_atoms):
        return []
    listed = ", ".join(f"{element} {count}" for element, count in found.items())
    return [
        f"Isolated atoms are trained on like other structures ({listed}); --self-energies isolated_atoms "
        "uses their energies as self-energies instead"
    ]


def read_files(data: DataConfig) -> Dataset:
    """Read data files with a progress bar."""
    with progress_bar() as progress:
        return read_data(data, progress, load_settings().features)


def _by_heavy_atoms(summary: DatasetSummary) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="energies in hartree; span: the largest within one molecule, in kcal/mol",
    )
    for heading in ("heavy\natoms", "molecules", "structures", "atoms", "lowest", "highest", "span"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary.by_heavy_atoms:
        table.add_row(
            str(row.heavy_atoms),
            f"{row.molecules:,}",
            f"{row.structures:,}",
            f"{row.atoms_min} to {row.atoms_max}",
            f"{row.energy_min_hartree:.4f}",
            f"{row.energy_max_hartree:.4f}",
            f"{row.widest_kcalmol:.1f}",
        )
    return table


@reads_data
def convert(
    data: DataConfig,
    out: Annotated[Path, typer.Option("--out", metavar="OUT.h5", help="The file to write.")],
) -> None:
    """Write data files of any format as one HDF5 file in the layout of ANI-1."""
    refuse_existing(out)
    dataset = read_files(data)
    with progress_bar() as progress:
        write_ani1(out, dataset, progress)
    echo(f"{out}: {len(dataset.molecules):,} molecules, {dataset.structures:,} structures")


def sample(
    output: Annotated[Path, typer.Argument(metavar="OUT.h5", help="The file to write.")],
    structures: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HEAVY=COUNT",
            help="Number of structures of each molecule with HEAVY heavy atoms. May be repeated. "
            "Default: as in the shipped sample.",
        ),
    ] = None,
    molecule: Annotated[
        list[str] | None,
        typer.Option(metavar="SMILES", help="Only this molecule of the list. May be repeated."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Seed. Default: that of the shipped sample.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of processes. Default: one per core.")
    ] = None,
) -> None:
    """Compute structures and omegaB97X/6-31G(d) energies of small molecules (extra: dft).

    To continue a stopped run, start it again with the same options.
    """
    counts = SHIPPED_COUNTS if not structures else dict(_count(text) for text in structures)
    plan = sample_plan(counts, SHIPPED_SEED if seed is None else seed, molecule)
    with progress_bar() as progress:
        done = generate_sample(output, plan, workers or os.cpu_count() or 1, progress)
    echo(
        f"{output}: {done.molecules} molecules, {done.structures} structures, {done.high_energy} above "
        f"275 kcal/mol, {done.unconverged} unconverged and left out"
    )


def _count(text: str) -> tuple[int, int]:
    heavy, _, count = text.partition("=")
    try:
        return int(heavy), int(count)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not HEAVY=COUNT, like 2=100", param_hint="--structures"
        ) from None


def fetch(
    archive: Annotated[Archive, typer.Argument(metavar="ani1", help="The data set.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to download into.")],
) -> None:
    """Download an official archive (ani1: about 4.6 GB) and check it; resume a partial download."""
    with progress_bar("bytes") as progress:
        file = fetch_ani1(to, progress)
    unpack = shlex.join(["tar", "-xzf", str(file), "-C", str(to)])
    echo(f"{file}: complete and checked; unpack it with: {unpack}")
