"""``anitune train``: one training without a search."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.cli.progress import progress_bar
from search.cli.terminal import echo
from trainer.reporting import SilentReporter

if TYPE_CHECKING:
    from search.work.stopping import StopRequest
    from trainer.config import RunConfig


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
        typer.Option(metavar="MODEL.safetensors", help="Begin with the weights of this model file."),
    ] = None,
) -> None:
    """Train one network, and write its numbers, plots and weights into a folder.

    A training that was stopped or killed goes on at its last checkpoint when it is started again.
    """
    from search.work.stopping import stop_on_signals
    from storage.settings import load_settings
    from trainer.run import run_training
    from trainer.task import prepare_task

    run = _read(config)
    settings = load_settings()
    folder = out or _own_folder(settings.home / "trainings", config)
    options = {"--out": out, "--warm-start": warm_start}
    given = [str(word) for name, path in options.items() if path is not None for word in (name, path)]
    again = f"go on with: {shlex.join(['anitune', 'train', str(config), *given])}"
    try:
        with progress_bar() as progress:
            task = prepare_task(run.data, run.split, run.features, settings.features, progress, run.fold)
            with stop_on_signals() as stop:
                result = run_training(
                    task,
                    run.training,
                    folder,
                    _Stoppable(stop),
                    warm_start=warm_start,
                    progress=progress,
                )
    except KeyboardInterrupt:
        echo(f"\nStopped at once; {again}", err=True)
        raise typer.Exit(130) from None
    if result.outcome == "stopped" and stop.signal is not None:
        echo(f"Stopped after epoch {result.epochs} of {run.training.epochs}; {again}", err=True)
        raise typer.Exit(128 + stop.signal)
    echo(
        f"validation MAE  {result.best_val_mae:.3f} kcal/mol\n"
        f"best epoch      {result.best_epoch} of {result.epochs}\n"
        f"results         {folder}"
    )


def _own_folder(trainings: Path, config: Path) -> Path:
    """The folder that has the name of a configuration file."""
    if not config.stem.strip("."):  # as of a file called ...yaml
        raise typer.BadParameter(f"{config.name} gives no name to a folder: say one", param_hint="--out")
    return trainings / config.stem


class _Stoppable(SilentReporter):
    """Lets a signal end the training after an epoch."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop

    def should_stop(self) -> bool:
        return self._stop.asked


def _read(path: Path) -> RunConfig:
    """The settings in a file, whose folder is where relative paths of data files start."""
    from search.documents import read_document
    from search.study import with_absolute_paths
    from trainer.config import RunConfig, load_config

    document = read_document(path)
    run = load_config(RunConfig, document.values, str(path), document.lines)
    return dataclasses.replace(run, data=with_absolute_paths(run.data, path.parent))
