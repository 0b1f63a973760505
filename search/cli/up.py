"""``anitune up`` and ``anitune down``: the servers that several workers of one machine share."""

from __future__ import annotations

import json
import logging
import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from dashboards.local_servers import LocalServers, start_servers, stop_servers
from search.cli.opening import open_home
from search.cli.options import Json
from search.cli.output import make_console, working
from storage.errors import StorageError
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE, embedded, home_folder, read_addresses
from storage.studies import list_studies

logger = logging.getLogger("anitune")


def up(
    mlflow_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            metavar="PORT",
            help="Port of MLflow. Default: that of the last start, else any free one.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Start PostgreSQL and MLflow on this machine, for all later commands with this home folder.

    They run until `anitune down`. If they run already, their addresses are shown. The link to MLflow holds
    a secret of this start. Without it, nobody gets in.
    """
    home = home_folder()
    first = read_addresses(home / "servers") is None
    with working("starting PostgreSQL and MLflow"):
        servers, began = start_servers(home, mlflow_port)
    if as_json:
        typer.echo(json.dumps({"started": began, **_values(servers)}))
    else:
        _print(home, servers, began)
    for variable in (STORAGE_VARIABLE, TRACKING_VARIABLE):
        if os.environ.get(variable):
            logger.warning(
                "%s is set, and takes precedence over these servers: unset it to use them", variable
            )
    if first:
        _explain_sqlite(home)


def down() -> None:
    """Stop the servers of `anitune up`. Their data is kept for the next `anitune up`."""
    with working("stopping MLflow and PostgreSQL"):
        stopped = stop_servers(home_folder())
    typer.echo("Stopped. Start them again with: anitune up" if stopped else "No servers are running.")


def _values(servers: LocalServers) -> dict[str, object]:
    return {
        "storage_url": servers.addresses.storage_url,
        "tracking_uri": servers.addresses.tracking_uri,
        "postgresql_pid": servers.postgresql,
        "mlflow_pid": servers.mlflow,
        "tools": str(servers.tools),
        "mlflow_link": servers.link,
        "mlflow_token_file": str(servers.token_file),
    }


def _print(home: Path, servers: LocalServers, began: bool) -> None:
    console = make_console()
    lines = {
        "PostgreSQL": f"{servers.addresses.storage_url}  (process {servers.postgresql})",
        "MLflow": f"{servers.link}  (process {servers.mlflow})",
        "home": f"{home}  (data in servers, logs in logs)",
        "tools": f"{servers.tools}  (psql, pg_dump, ...)",
    }
    console.print("Started." if began else "Already running.")
    for what, value in lines.items():
        console.print(f"{what:<11}{value}", soft_wrap=True, markup=False)
    console.print("Every anitune command with this home finds them; anitune down stops them.")
    console.print("Your own programs can use MLflow after")
    console.print(
        f"  export MLFLOW_TRACKING_URI={servers.addresses.tracking_uri}"
        f' MLFLOW_TRACKING_TOKEN="$(cat {shlex.quote(str(servers.token_file))})"',
        soft_wrap=True,
        markup=False,
    )


def _explain_sqlite(home: Path) -> None:
    settings = embedded(home)
    if not (home / "anitune.db").exists():
        return
    try:
        with open_home(settings) as database:
            if not list_studies(database):
                return
    except StorageError:
        pass  # studies that cannot be read now are not moved either
    logger.warning(
        "the studies that this home has in SQLite stay there and are not moved; to use them:"
        " anitune --storage %s --tracking %s study list",
        shlex.quote(settings.storage_url),
        shlex.quote(settings.tracking_uri),
    )
