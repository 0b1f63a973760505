"""The private parts of MLflow's client that anitune relies on, as they are in MLflow 3.17.2.

Other modules import them from here. ``tests/storage/test_private_parts.py`` fails first when they change.
This module imports MLflow, which takes seconds: import it where it is used, in a process that does not train.

- The store behind a client, and its request for a metric of many runs at once.
- The registry of providers of authentication.
- The stores of files (``mlflow.store.artifact``), and the migration of the tables (``mlflow.db``).

The format of saved views is in :mod:`storage.tracking.saved_view`, and what a server needs is in
``dashboards/mlflow_server.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.db import upgrade
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.tracking.request_auth import registry
from mlflow.tracking.request_auth.abstract_request_auth_provider import RequestAuthProvider
from mlflow.utils.rest_utils import http_request, verify_rest_response

__all__ = [
    "ArtifactRepository",
    "LocalArtifactRepository",
    "MlflowArtifactsRepository",
    "metric_points",
    "sign_requests",
    "upgrade",
]

_BULK: Final = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"


def metric_points(
    client: MlflowClient, runs: Sequence[str], metric: str, most: int
) -> list[Mapping[str, Any]]:
    """Request a metric of many runs at once, since MLflow's client asks run by run.

    Parameters
    ----------
    most : number of points after which the answer ends
    """
    store: Any = client._tracking_client.store
    if hasattr(store, "get_metric_history_bulk"):  # a database
        return [point.to_dict() for point in store.get_metric_history_bulk(runs, metric, most)]
    asked = {"run_id": runs, "metric_key": metric, "max_results": most}
    answer = http_request(store.get_host_creds(), _BULK, "GET", params=asked)  # type: ignore[no-untyped-call]
    points: list[Mapping[str, Any]] = verify_rest_response(answer, _BULK).json()["metrics"]
    return points


def sign_requests(name: str, sign: Callable[[Any], Any]) -> None:
    """Register a way to authenticate requests, which ``MLFLOW_TRACKING_AUTH`` selects by its name.

    The entry point "mlflow.request_auth_provider" does the same, but only if the package is installed.
    """

    class Provider(RequestAuthProvider):
        def get_name(self) -> str:
            return name

        def get_auth(self) -> object:
            return sign

    registry._request_auth_provider_registry.register(Provider)  # type: ignore[no-untyped-call]
