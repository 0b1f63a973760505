"""The command ``anitune``: joins the command groups, and turns errors into one line and an exit code."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, Any
from urllib.request import getproxies

import typer
from typer.core import TyperGroup
from typer.main import get_command

from dashboards.errors import AddressError, DashboardError
from search.cli.audit import repair, verify
from search.cli.dashboards import dashboards
from search.cli.data import data_app
from search.cli.export import export
from search.cli.gc import gc
from search.cli.init import init
from search.cli.launch import launch
from search.cli.learning_curve import learning_curve
from search.cli.lifecycle import lifecycle_commands
from search.cli.migrate import migrate
from search.cli.predict import predict
from search.cli.promote import promote
from search.cli.relay import relay, sync
from search.cli.report import report
from search.cli.reproduce import reproduce
from search.cli.study import study_app
from search.cli.terminal import StandardError, echo, printable_usage_errors, show_traceback
from search.cli.train import train
from search.cli.up import down, up
from search.cli.worker import worker
from search.cli.workers import workers
from search.errors import SearchError, StudyFileError
from storage.addresses import LOOPBACK, WithoutSecrets, has_password, without_secrets
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


class _Commands(TyperGroup):
    """A command group that prints errors as one readable line."""

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
study_app.command()(init)
study_app.command()(verify)
study_app.command()(repair)
app.add_typer(data_app, name="data")
lifecycle_commands(study_app)
app.add_typer(study_app, name="study")
app.command()(train)
app.command()(predict)
app.command()(export)
app.command()(worker)
app.command()(learning_curve)
app.command()(promote)
app.command()(reproduce)
app.command()(launch)
app.command()(workers)
app.command()(sync)
app.command()(gc)
app.command()(dashboards)
app.command()(report)
app.command()(up)
app.command()(down)
app.command()(migrate)
app.command(hidden=True)(relay)


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
        from storage.addresses import storage_address, tracking_address
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
