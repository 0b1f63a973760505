"""``anitune train``: train one network without a search."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from search.cli.interrupted import exit_if_stopped
from search.cli.progress import progress_bar
from search.cli.terminal import echo
from search.documents import read_document
from search.study import with_absolute_paths
from search.work.stopping import StopRequest, stop_on_signals
from storage.settings import load_settings
from trainer.config import RunConfig, load_config
from trainer.config_faults import KeyPath
from trainer.reporting import SilentReporter
from trainer.run import TrainingResult, run_training
from trainer.task import prepare_task


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Settings of the training.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of the results. Default: trainings/CONFIG in the home folder."
        ),
    ] = None,
    warm_start: Annotated[
        Path | None,
        typer.Option(metavar="MODEL.safetensors", help="Start from the weights of this model file."),
    ] = None,
) -> None:
    """Train one network, and write its metrics, plots and weights into a folder.

    A training that was stopped or killed continues from its last checkpoint when it is started again.
    """
    run = read_training(config)
    folder = out or own_folder(load_settings().home / "trainings", config)
    options = {"--out": out, "--warm-start": warm_start}
    given = [str(word) for name, path in options.items() if path is not None for word in (name, path)]
    with exit_if_stopped(shlex.join(["anitune", "train", str(config), *given])):
        result = train_network(run, folder, warm_start)
    echo(result_text(result, folder))


def result_text(result: TrainingResult, folder: Path) -> str:
    """Describe the result of a training in lines of text."""
    return (
        f"validation MAE  {result.best_val_mae:.3f} kcal/mol\n"
        f"best epoch      {result.best_epoch} of {result.epochs}\n"
        f"results         {folder}"
    )


def train_network(run: RunConfig, folder: Path, warm_start: Path | None = None) -> TrainingResult:
    """Train one network in a folder, or continue its training there.

    Raises
    ------
    Stopped, KeyboardInterrupt
        if a signal stopped the training; the next call with this folder continues from the last checkpoint.
    """
    cache = load_settings().features
    with progress_bar() as progress:
        task = prepare_task(run, cache, progress)
        with stop_on_signals() as stop:
            result = run_training(
                task, run.training, folder, _Stoppable(stop), warm_start=warm_start, progress=progress
            )
    if result.outcome == "stopped":
        stop.raise_if_signalled(f"after epoch {result.epochs} of {run.training.epochs}")
    return result


def own_folder(trainings: Path, config: Path) -> Path:
    """Return the folder that is named after a configuration file."""
    if not config.stem.strip("."):  # such as a file named ...yaml
        raise typer.BadParameter(
            f"{config.name} gives no name for a folder: choose one with --out", param_hint="--out"
        )
    return trainings / config.stem


class _Stoppable(SilentReporter):
    """Stops the training after an epoch if a signal has come."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop

    def should_stop(self) -> bool:
        return self._stop.asked


def read_training(path: Path) -> RunConfig:
    """Read the settings of a training; relative paths of data files start from the folder of the file."""
    document = read_document(path)
    return training_from_settings(document.values, str(path), path.parent, document.lines)


def training_from_settings(
    settings: Mapping[str, Any], where: str, folder: Path, lines: Mapping[KeyPath, int] | None = None
) -> RunConfig:
    """Check the settings of a training.

    Parameters
    ----------
    where : the file that they come from, for messages
    folder : where relative paths of data files start
    """
    run = load_config(RunConfig, settings, where, lines)
    return dataclasses.replace(run, data=with_absolute_paths(run.data, folder))
