"""Serve MLflow's tracking server behind our rules for access, routes and artifact locations.

It runs as a process of its own. The locations come from the environment, as for ``mlflow server``:
MLFLOW_BACKEND_STORE_URI, which may hold a password, and MLFLOW_ARTIFACTS_DESTINATION. MLflow's own checks of
Host and Origin are off, because they match patterns and trust every page of localhost.

``mlflow server`` starts MLflow's application with private parts of ``mlflow.server``. This module does the
same, as they are in MLflow 3.17.2. ``tests/dashboards/test_private_parts.py`` fails first when they change.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from dashboards.access import Access, Answer, Request, completed
from dashboards.listening import add_arguments, given_access, given_listener
from dashboards.mlflow_routes import judged

BACKEND_VARIABLE: Final = "MLFLOW_BACKEND_STORE_URI"
DESTINATION_VARIABLE: Final = "MLFLOW_ARTIFACTS_DESTINATION"

_PROXIED: Final = "mlflow-artifacts"
_PLACES: Final = re.compile(
    r"/(?:ajax-)?api/2\.0/mlflow/(?:(?P<experiment>experiments)|(?P<version>model-versions))/create"
)
_LONGEST_PLACE: Final = 2048
_UNQUOTED: Final = 5
"""How many times a location may be percent-encoded."""

_LONGEST_BODY: Final = 2**20  # bytes, of a request that names a place
_ARTIFACTS: Final = re.compile(
    r"(?:/model-versions)?/get-artifact|/(?:ajax-)?api/2\.0/(?:mlflow-artifacts/artifacts|mlflow/logged-models)/.+"
)
_ENDPOINTS: Final = ("GET", "/ajax-api/2.0/mlflow/gateway-proxy")
"""MLflow's page of runs asks which models a gateway has. The answer is none, as it would show a refusal."""

_SHUTDOWN_SECONDS: Final = 3
"""Time for answers that are under way when the server stops."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Guard:
    """MLflow's ASGI application behind the access rules.

    Parameters
    ----------
    app
        MLflow's own application.
    access
        The access rules.
    destination
        Where the server keeps artifacts: a folder or a URL.
    """

    def __init__(self, app: App, access: Access, destination: str) -> None:
        self._app = app
        self._access = access
        self._destination = destination

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        request = _request(scope)
        answer = self._access.judge(request) or _refuse_route(request)
        if answer is None and (names := _PLACES.fullmatch(request.path)) is not None:
            checked = self._checked(
                await _body(receive), "artifact_location" if names["experiment"] else "source"
            )
            if isinstance(checked, Answer):
                answer = checked
            else:
                scope, receive = _with_body(scope, checked, receive)
        if answer is not None:
            return await _send_answer(answer, request, send)

        async def finish(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _finished(message["headers"], request.path)
            await send(message)

        return await self._app(scope, receive, finish)

    def _checked(self, body: bytes, field: str) -> Answer | bytes:
        """Refuse a foreign location, or serialize the body again so that MLflow reads what was checked."""
        if len(body) > _LONGEST_BODY:
            return Answer.line(413, "The request is too long.")
        try:
            content = json.loads(body or b"{}")
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            return Answer.line(400, "The request is not a JSON object.")
        first, _, second = field.partition("_")
        for name in {field, f"{first}{second.title()}"}:  # protobuf accepts both spellings
            place = content.get(name)
            if place and not (isinstance(place, str) and self.is_ours(place, of_model=field == "source")):
                return _error(f"{field} is not in the folder where this server stores artifacts")
        return json.dumps(content).encode()

    def is_ours(self, place: str, of_model: bool = False) -> bool:
        """Whether a location is below the server's artifacts, or names one of its runs or models."""
        if len(place) > _LONGEST_PLACE:
            return False
        try:
            address, path = urlsplit(place), place
        except ValueError:
            return False
        for _ in range(_UNQUOTED):
            path = unquote(path)
        if unquote(path) != path or not path.isprintable():  # urlsplit skips tabs and newlines
            return False
        if address.query or address.fragment or {".", ".."} & set(re.split(r"[/\\:]", path)):
            return False
        if address.scheme == _PROXIED or (of_model and address.scheme in ("runs", "models")):
            return not address.netloc and address.path.startswith("/")
        kept = urlsplit(self._destination)
        if kept.scheme in ("", "file"):
            here = not address.netloc and address.scheme in ("", "file") and address.path.startswith("/")
            root = Path(unquote(kept.path)).resolve()
            return here and Path(unquote(address.path)).resolve().is_relative_to(root)
        return place.startswith(f"{self._destination.rstrip('/')}/")


def _request(scope: Message) -> Request:
    headers: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1").lower()
        text = value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    return Request(scope["method"], scope["path"], scope["query_string"].decode("latin-1"), headers)


def _refuse_route(request: Request) -> Answer | None:
    verdict = judged(request.method, request.path)
    if verdict == "allowed":
        return None
    if (request.method, request.path) == _ENDPOINTS:
        return _json(200, {"endpoints": []})
    if verdict == "refused":
        return _error(
            "this server only tracks trainings: requests that run programs or fetch data are disabled", 403
        )
    return Answer.line(404, "There is no such page.")


def _error(message: str, status: int = 400) -> Answer:
    """A refusal in the form that MLflow's client reads."""
    code = "INVALID_PARAMETER_VALUE" if status == 400 else "PERMISSION_DENIED"
    return _json(status, {"error_code": code, "message": message})


def _json(status: int, content: object) -> Answer:
    return Answer(status, json.dumps(content).encode(), (("Content-Type", "application/json"),))


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while len(body) <= _LONGEST_BODY:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return bytes(body)


def _with_body(scope: Message, body: bytes, receive: Receive) -> tuple[Message, Receive]:
    framing = (b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in framing]
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> Message:
        return next(parts, None) or await receive()

    return {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}, again


async def _send_answer(answer: Answer, request: Request, send: Send) -> None:
    headers = [*completed([*answer.headers]), ("Content-Length", str(len(answer.content)))]
    await send({"type": "http.response.start", "status": answer.status, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else answer.content})


def _finished(raw: Iterable[tuple[bytes, bytes]], path: str) -> list[tuple[bytes, bytes]]:
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw]
    if _ARTIFACTS.fullmatch(path):
        # Anybody may have written an artifact: as a page it runs nothing, and has an opaque origin.
        headers.append(("Content-Security-Policy", "sandbox"))
    return _encoded(completed(headers))


def _encoded(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def command(host: str, port: int, token_file: Path) -> list[str]:
    """Arguments of ``python -m`` for a server that opens its own socket."""
    return [__name__, "--host", host, "--port", str(port), "--token-file", str(token_file)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()


def _prepare_mlflow() -> None:
    """Set the variables that ``mlflow server`` sets for its workers, before MLflow is imported."""
    from mlflow.server import constants

    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: os.environ[BACKEND_VARIABLE],
        constants.REGISTRY_STORE_URI_ENV_VAR: os.environ[BACKEND_VARIABLE],
        constants.ARTIFACT_ROOT_ENV_VAR: f"{_PROXIED}:/",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: os.environ[DESTINATION_VARIABLE],
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
    }


def make_app() -> Guard:
    """Make the application from the arguments and the environment of the process."""
    arguments = _arguments()
    from mlflow.server.fastapi_app import app

    return Guard(app, given_access(arguments), os.environ[DESTINATION_VARIABLE])


def main() -> None:
    """Serve until the process is stopped."""
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    arguments = _arguments()
    os.environ |= {
        "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true",
        # Evaluation jobs of language models would need two more processes.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    _prepare_mlflow()
    from mlflow.server.handlers import initialize_backend_stores

    store = os.environ[BACKEND_VARIABLE]
    initialize_backend_stores(store, store, f"{_PROXIED}:/")
    config = uvicorn.Config(
        "dashboards.mlflow_server:make_app",
        factory=True,
        workers=arguments.workers,
        access_log=False,  # addresses may hold the secret
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    with given_listener(arguments) as listener:
        if config.workers > 1:
            Multiprocess(config, [listener]).run()
        else:
            uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
