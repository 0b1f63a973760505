"""Authentication with the MLflow servers that were started on this machine.

For other servers MLflow's own settings apply: ``MLFLOW_TRACKING_TOKEN``, or ``MLFLOW_TRACKING_USERNAME`` and
its password, or ``~/.netrc``.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from storage.settings import home_folder
from storage.tokens import read_token

_NAME, _VARIABLE = "anitune", "MLFLOW_TRACKING_AUTH"


def use_tokens(tracking_uri: str) -> None:
    """Make MLflow's client in this process send a local server its secret, if there is one.

    The secret is read for each request, since the server may be restarted. If there is none, the client stays
    as it is: with our authentication it would ignore a password in the address.
    """
    if read_token(home_folder(), tracking_uri) is not None:
        _register()
        os.environ[_VARIABLE] = _NAME
    elif os.environ.get(_VARIABLE) == _NAME:
        del os.environ[_VARIABLE]


@cache
def _register() -> None:
    from storage.tracking.mlflow_private import sign_requests  # MLflow takes seconds to import

    sign_requests(_NAME, _sign_in)


def _sign_in(request: Any) -> Any:
    """Add the secret to a request of the library requests, if its server has one."""
    if (token := read_token(home_folder(), request.url)) is not None:
        request.headers["Authorization"] = f"Bearer {token}"
    return request
