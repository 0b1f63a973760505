"""The command ``anitune``: joins the command groups, and turns errors into one line and an exit code."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.request import getproxies

import typer
from typer.core import TyperGroup
from typer.main import get_command

from dashboards.errors import AddressError, DashboardError
from search.cli.lazy import LazyCommand
from search.cli.terminal import StandardError, echo, printable_usage_errors, show_traceback
from search.errors import SearchError, StudyFileError
from storage.addresses import (
    LOOPBACK,
    WithoutSecrets,
    has_password,
    storage_address,
    tracking_address,
    without_secrets,
)
from storage.errors import (
    AlreadyEvaluatedError,
    FactsChangedError,
    ModelNotFoundError,
    SettingsError,
    StorageError,
    StudyExistsError,
    StudyNotFoundError,
    StudyStateError,
)
from trainer.errors import ConfigError, DataError, ModelFileError, TrainerError

DONE, FAILED, BAD_INPUT = 0, 1, 2
"""Exit codes. A command that a signal ended exits with 128 plus the number of the signal."""

_OURS = (TrainerError, StorageError, SearchError, DashboardError)
_CAUSED_BY_INPUT = (
    ConfigError,
    DataError,
    ModelFileError,
    StudyFileError,
    SettingsError,
    StudyExistsError,
    StudyNotFoundError,
    StudyStateError,
    FactsChangedError,
    AlreadyEvaluatedError,
    ModelNotFoundError,
    AddressError,
)


COMMANDS = {
    "train:train": "Train one network, and write its metrics, plots and weights into a folder.",
    "predict:predict": (
        "Predict the total energies of structures, with an uncertainty if the model is an ensemble."
    ),
    "export:export": (
        "Write a model as a file for torchani or torch.export, after checking that its energies are the same."
    ),
    "worker:worker": "Train trials of a study until it is done, or of all open studies by priority and age.",
    "learning_curve:learning_curve": (
        "Train the best configurations on shares of the data, to tell what more data or a larger network"
        " gives."
    ),
    "promote:promote": (
        "Compare the best configurations on folds, choose one, test it once, and register an ensemble of it."
    ),
    "reproduce:reproduce": "Train a trial again from its record alone, and compare the losses of all epochs.",
    "launch:launch": "Start workers for a study, each pinned to a GPU, and wait until the study is done.",
    "workers:workers": (
        "List the running workers: host, GPU, trials, epochs, speed, time since the last heartbeat."
    ),
    "relay:sync": "Deliver to MLflow now everything about a study that it does not have yet.",
    "gc:gc": (
        "Delete checkpoints, artifacts and feature stores that no study needs. Workers may keep running."
    ),
    "dashboards:dashboards": (
        "Serve a page with leaderboards, the MLflow UI and the Optuna dashboard until Ctrl-C."
    ),
    "report:report": (
        "Write a report of one study, or a comparison of several, as one page that needs no network."
    ),
    "up:up": "Start PostgreSQL and MLflow on this machine, for all later commands with this home folder.",
    "up:down": "Stop the servers of `anitune up`. Their data is kept for the next `anitune up`.",
    "migrate:migrate": "Migrate the tables of anitune, Optuna and MLflow after an upgrade.",
}
DATA_COMMANDS = {
    "data:describe": "Count molecules, structures and atoms, and show the range of the energies.",
    "data:convert": "Write data files of any format as one HDF5 file in the layout of ANI-1.",
    "data:sample": "Compute structures and omegaB97X/6-31G(d) energies of small molecules (extra: dft).",
    "data:fetch": (
        "Download an official archive (ani1: about 4.6 GB) and check it; resume a partial download."
    ),
    "features:features": (
        "Compute the atomic environment vectors of data files once for all trials, or check stored ones."
    ),
}
STUDY_COMMANDS = {
    "create:create": "Create a study, so that workers can train its trials.",
    "run:run": "Create or continue a study, train all its trials in this process, and report the results.",
    "study:list_": "Show all studies that are not archived.",
    "study:show": (
        "Show the state of a study: trials by state, the best one, time spent, epochs saved by pruning."
    ),
    "study:best": "Show the best trial of a study: its settings, validation MAE, MLflow run and weights.",
    "init:init": "Write a study file that suits the data, with the reason for each setting.",
    "audit:verify": "Check that SQL, Optuna and MLflow agree about a study, and list every difference.",
    "audit:repair": (
        "Repair what verify lists. The record in SQL wins, also over changes made in a dashboard."
    ),
    "lifecycle:enqueue": (
        "Enqueue a configuration as the next trial. The sampler proposes the settings that it leaves open."
    ),
    "lifecycle:extend": "Raise the limits of a study.",
    "lifecycle:pause": "Begin no new trials. Running trials continue, and the workers wait.",
    "lifecycle:resume": "Begin trials again after pause or stop.",
    "lifecycle:stop": "Stop the workers: they hand their trials back at the end of an epoch and exit.",
    "lifecycle:archive": "Stop a study, and hide it from lists.",
    "lifecycle:delete": (
        "Delete a study with its reference rows: records, MLflow runs, checkpoints and artifacts."
    ),
}
"""Each command: the name of its file and of its function, and the first paragraph of the docstring there."""


def _commands(summaries: Mapping[str, str]) -> list[LazyCommand]:
    return [LazyCommand(f"search.cli.{function}", summary) for function, summary in summaries.items()]


class _Commands(TyperGroup):
    """The group of all commands, which prints errors as one readable line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        data = TyperGroup(
            name="data",
            help="Inspect, compute or download data files, and prepare their features.",
            commands=[
                *_commands(DATA_COMMANDS),
                LazyCommand("search.cli.data:describe", name="info", hidden=True),  # its earlier name
            ],
            rich_markup_mode=self.rich_markup_mode,
        )
        study = TyperGroup(
            name="study",
            help="Create and run studies, and show their results.",
            commands=_commands(STUDY_COMMANDS),
            no_args_is_help=True,
            rich_markup_mode=self.rich_markup_mode,
        )
        for command in (
            *_commands(COMMANDS),
            LazyCommand("search.cli.relay:relay", hidden=True),
            data,
            study,
        ):
            self.add_command(command)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with printable_usage_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        try:
            with printable_usage_errors():
                return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (*_OURS, OSError) as error:
            if ctx.params["debug"]:
                raise
            echo(f"anitune: {_error_text(error)}", err=True)
            raise typer.Exit(BAD_INPUT if isinstance(error, _CAUSED_BY_INPUT) else FAILED) from None


def _error_text(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return (
            f"{error.filename}: {error.strerror}; check the permissions of this location, and its free space"
        )
    return without_secrets(str(error))


app = typer.Typer(
    name="anitune",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Database of the records. Default: $ANITUNE_STORAGE_URL."),
    ] = None,
    tracking: Annotated[
        str | None,
        typer.Option(metavar="URI", help="MLflow server or database. Default: $ANITUNE_TRACKING_URI."),
    ] = None,
) -> None:
    """Find the best neural-network potential of the ANI kind for a data set."""
    if storage is not None or tracking is not None:
        # Imported only now, because SQLAlchemy and pydantic would triple the time of `anitune --help`.
        from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE

        _refuse_password("--storage", storage, STORAGE_VARIABLE)
        _refuse_password("--tracking", tracking, TRACKING_VARIABLE)
        # The environment also reaches the processes that a command starts.
        if storage is not None:
            os.environ[STORAGE_VARIABLE] = storage_address(storage, "--storage")
        if tracking is not None:
            os.environ[TRACKING_VARIABLE] = tracking_address(tracking, "--tracking")
    _reach_this_machine_directly()
    logger = logging.getLogger("anitune")
    logger.setLevel(logging.INFO)
    logger.handlers = [StandardError()]
    logger.filters = [WithoutSecrets()]
    logger.propagate = False


def _reach_this_machine_directly() -> None:
    """Exclude this machine from the proxies, for this process and the processes that it starts."""
    if not getproxies():
        return
    for variable in ("no_proxy", "NO_PROXY"):
        named = [name for name in os.environ.get(variable, "").split(",") if name]
        if "*" not in named:
            os.environ[variable] = ",".join(dict.fromkeys([*named, *LOOPBACK]))


def _refuse_password(option: str, url: str | None, variable: str) -> None:
    if url is not None and has_password(url):
        raise typer.BadParameter(
            f"do not pass a password as an argument, because process lists show it: set {variable}",
            param_hint=option,
        )


def main() -> None:
    """Run the command line."""
    sys.excepthook = show_traceback
    get_command(app)()  # app() would set an exception hook of its own


if __name__ == "__main__":
    main()
