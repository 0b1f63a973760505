"""How our processes sign in to MLflow servers that were started on this machine.

Elsewhere MLflow's own means count: ``MLFLOW_TRACKING_TOKEN``, or ``MLFLOW_TRACKING_USERNAME`` and its
password, or ``~/.netrc``.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from storage.settings import home_folder
from storage.tokens import read_token

_NAME, _VARIABLE = "anitune", "MLFLOW_TRACKING_AUTH"


def use_tokens(tracking_uri: str) -> None:
    """Let MLflow's client of this process send the server the secret of its start, if it has one here.

    The secret is read for each request: the server may be started again. Where there is none, the client does
    as always: it would not look at a password in the address beside a sign-in of ours.
    """
    if read_token(home_folder(), tracking_uri) is not None:
        _register()
        os.environ[_VARIABLE] = _NAME
    elif os.environ.get(_VARIABLE) == _NAME:
        del os.environ[_VARIABLE]


@cache
def _register() -> None:
    from mlflow.tracking.request_auth import registry
    from mlflow.tracking.request_auth.abstract_request_auth_provider import RequestAuthProvider

    class Provider(RequestAuthProvider):
        def get_name(self) -> str:
            return _NAME

        def get_auth(self) -> object:
            return _sign_in

    # As its entry point "mlflow.request_auth_provider" would: that takes effect only where we are installed.
    registry._request_auth_provider_registry.register(Provider)  # type: ignore[no-untyped-call]


def _sign_in(request: Any) -> Any:
    """Add the secret to a request of the library requests, if it goes to a server that has one."""
    if (token := read_token(home_folder(), request.url)) is not None:
        request.headers["Authorization"] = f"Bearer {token}"
    return request
