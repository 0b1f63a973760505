"""``anitune export``: write a model for users without this package."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from search.cli.models import Model, open_model
from search.cli.terminal import echo
from trainer.errors import ConfigError
from trainer.inference.export import LOADER, export_model, sample_structures
from trainer.inference.files import read_structures


class ExportFormat(StrEnum):
    """Formats of exported models."""

    TORCHANI = "torchani"
    TORCH_EXPORT = "torch-export"


_ENDINGS = {ExportFormat.TORCHANI: ".safetensors", ExportFormat.TORCH_EXPORT: ".pt2"}


def export(
    model: Model,
    to: Annotated[ExportFormat, typer.Option(help="A torchani model, or a torch.export program.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="FILE.safetensors for torchani, else FILE.pt2.")],
    check: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File of structures to compare energies on. Default: the sample."),
    ] = None,
) -> None:
    """Write a model as a file for torchani or torch.export, after checking that its energies are the same.

    For torchani, load_torchani.py is written next to the file; it loads the model without anitune.
    """
    if out.suffix != _ENDINGS[to]:
        raise ConfigError(f"--out {out}: for {to.value} the name must end in {_ENDINGS[to]}")

    ensemble = open_model(model)
    structures = read_structures(check) if check else sample_structures(ensemble)
    difference = export_model(ensemble, to.value, out, structures)
    echo(f"{out}: differs by {difference:.1e} kcal/mol at most ({len(structures)} structures)")
    if to is ExportFormat.TORCHANI:
        echo(f"{out.with_name(LOADER)}: Python module that loads it")
