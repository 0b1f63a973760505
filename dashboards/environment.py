"""Environment variables of the servers that we start: no more of the person's variables than they need.

An attacker who makes a server run code would find credentials for other services in the full environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from dashboards.listening import TOKEN_VARIABLE
from dashboards.mlflow_server import BACKEND_VARIABLE, DESTINATION_VARIABLE
from storage.settings import Settings

_NAMES: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "LANG", "LANGUAGE", "OMP_NUM_THREADS"),
        *("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    }
)
_BEGINNINGS: Final = ("LC_",)
_POSTGRESQL: Final = (
    *("PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGSYSCONFDIR"),
    *("PGSSL", "PGREQUIRE", "PGCHANNELBINDING", "PGGSS", "PGKRB", "PGOPTIONS", "PGCONNECT_TIMEOUT"),
    *("PGTARGETSESSIONATTRS", "PGLOADBALANCEHOSTS", "PGMINPROTOCOLVERSION", "PGMAXPROTOCOLVERSION"),
)


def optuna_environment(settings: Settings, token: str) -> dict[str, str]:
    """Variables of our pages and the Optuna dashboard; arguments would show a password of the database."""
    return {**_needed(settings.storage_url), **settings.environment(), TOKEN_VARIABLE: token}


def mlflow_environment(settings: Settings, token: str) -> dict[str, str]:
    """Variables of MLflow's server, which keeps artifacts in the home folder."""
    return {
        **_needed(settings.tracking_uri),
        TOKEN_VARIABLE: token,
        BACKEND_VARIABLE: settings.tracking_uri,
        # As a URI: in a path MLflow would decode %41 to a letter.
        DESTINATION_VARIABLE: (settings.home / "mlartifacts").as_uri(),
    }


def _needed(database: str) -> Mapping[str, str]:
    beginnings = _BEGINNINGS + (_POSTGRESQL if database.startswith("postgresql") else ())
    return {
        name: value
        for name, value in os.environ.items()
        if name in _NAMES or name.upper().startswith(beginnings)
    }
