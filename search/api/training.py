"""One training without a search: ``anitune train`` as a function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from search.api.models import Model, open_model
from search.api.stopping import said_if_stopped
from search.api.studies import plain_settings
from search.cli.train import (
    own_folder,
    read_training,
    result_text,
    train_network,
    training_from_settings,
)
from storage.settings import load_settings
from trainer.errors import ConfigError
from trainer.run import TrainingResult


def train(
    name: str | Path,
    /,
    *,
    out: str | Path | None = None,
    warm_start: str | Path | None = None,
    **settings: Any,
) -> TrainedNetwork:
    """Train one network, and write its metrics, plots and weights into a folder.

    After an interrupt, another call continues from the last checkpoint.

    Parameters
    ----------
    name
        A file of settings (YAML), or a name for the folder of the results.
    out
        Folder of the results; None: ``trainings/NAME`` in the home folder.
    warm_start
        A model file that provides the initial weights.
    **settings
        The keys ``data``, ``split``, ``features``, ``training``, ``fold`` and ``train_share``; ``data`` may
        be one or several paths.

    Examples
    --------
    >>> network = anitune.train("water", data="water.extxyz", training={"hidden": [64], "epochs": 50})
    >>> network.model.predict(atoms)

    Raises
    ------
    ConfigError, DataError
        with a line that says what is wrong.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        run = training_from_settings(plain_settings(settings), f"training {str(name)!r}", Path.cwd())
    elif settings:
        raise ConfigError(f"{path}: give either a file, or a name with settings")
    else:
        run = read_training(path)
    folder = Path(out) if out is not None else own_folder(load_settings().home / "trainings", path)
    with said_if_stopped(raises=True):
        result = train_network(run, folder, Path(warm_start) if warm_start is not None else None)
    return TrainedNetwork(result, folder)


class TrainedNetwork:
    """The result of a training.

    Attributes
    ----------
    result
        Epochs, metrics and files.
    folder
        Folder of the files.
    """

    def __init__(self, result: TrainingResult, folder: Path) -> None:
        self.result = result
        self.folder = folder

    def __repr__(self) -> str:
        return result_text(self.result, self.folder)

    @property
    def model(self) -> Model:
        """The network, which predicts energies of structures."""
        return open_model(self.folder)
