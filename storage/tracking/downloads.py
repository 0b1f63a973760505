"""Downloads of registered models from MLflow's registry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from storage.errors import ModelNotFoundError, TrackingRefusedError
from storage.settings import Settings
from storage.tracking.mlflow_runs import open_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient

SCHEME = "models:/"
"""Prefix of the address of a registered model."""

_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")
_RECORD = "ensemble.json"
"""Name of the file that marks the folder of networks among a model's files."""


def download_model(settings: Settings, address: str, into: Path) -> Path:
    """Download a registered model, and return the folder of its networks.

    Parameters
    ----------
    address
        models:/NAME@ALIAS or models:/NAME/VERSION
    into
        A folder for its files.

    Raises
    ------
    ModelNotFoundError
        if the address is not valid, there is no such model, or it is not one of anitune's.
    TrackingUnavailableError
        if MLflow does not answer.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise ModelNotFoundError(f"{address}: write models:/NAME@champion, or models:/NAME/VERSION")

    def find(client: MlflowClient) -> tuple[str, str]:
        name, alias = parts["name"], parts["alias"]
        found = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, parts["version"])
        )
        # Use the run, not the address of the files, which perhaps only the server can reach.
        run = client.get_run(str(found.run_id)).info
        return run.run_id, str(found.source).removeprefix(str(run.artifact_uri)).strip("/")

    try:
        runs = open_runs(settings)
        runs.fetch(*runs.ask(find), into)
    except TrackingRefusedError as error:
        raise ModelNotFoundError(f"{address}: {error}; `anitune promote` registers models") from None
    for record in into.rglob(_RECORD):
        return record.parent
    raise ModelNotFoundError(f"{address}: not a model of anitune")
