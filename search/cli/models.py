"""The model argument of commands: a path, or an address in MLflow's registry."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.inference.ensemble import Ensemble

if TYPE_CHECKING:
    from storage.settings import Settings

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model file, the folder of a training or an ensemble, or models:/NAME@champion.",
    ),
]


def open_model(model: str, settings: Settings | None = None) -> Ensemble:
    """Open the model at a path or at an address in the registry.

    Parameters
    ----------
    settings : where MLflow is; None: settings from the environment
    """
    if not model.startswith("models:/"):
        return Ensemble.open(model)
    # Imported only now, because most models are files, which need no database.
    from storage.settings import load_settings
    from storage.tracking.downloads import download_model

    with tempfile.TemporaryDirectory(prefix="anitune-") as folder:
        return Ensemble.open(download_model(settings or load_settings(), model, Path(folder)))
