"""Serve a WSGI application over HTTP: uvicorn reads and writes, and a few threads run the application.

A request gets a thread once it has arrived as a whole, and gives it back when its answer is complete. So
clients that are slow, or that send half of a request and wait, keep nobody else from the pages.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote_to_bytes

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope

logger = logging.getLogger("anitune")

THREADS: Final = 12
"""Requests answered at a time; each may use a connection of the database's pool, which has 15."""

WAITING_SECONDS: Final = 30.0
"""Time within which a request must arrive, or a part of an answer be taken."""

BODY_BYTES: Final = 128 * 2**20
"""Largest body of a request: as much as the Optuna dashboard accepts."""

_HEADER_BYTES: Final = 2**16
"""Maximum size of the headers; the address of a table of trials names each of them."""

_MEMORY_BYTES: Final = 2**20
"""Larger bodies are written to a temporary file."""

_Answer = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers and content."""

_TOO_LARGE: Final[_Answer] = (
    413,
    [(b"content-type", b"text/plain"), (b"connection", b"close")],
    b"The request is too large.\n",
)


class WSGIServer(uvicorn.Server):
    """Serves ``app`` on ``listener`` by :meth:`run`, until the process is asked to end."""

    def __init__(self, app: WSGIApplication) -> None:
        super().__init__(
            uvicorn.Config(
                _Threaded(app),
                http=_Impatient,
                loop="asyncio",
                ws="none",
                lifespan="off",
                interface="asgi3",
                workers=1,
                log_config=None,
                h11_max_incomplete_event_size=_HEADER_BYTES,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )


class _Impatient(H11Protocol):
    """Ends a connection if a request does not arrive, or its answer is not taken, in time.

    Uvicorn itself ends only connections on which nothing has arrived since the last answer.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            self._wait()
        else:
            self._stop_waiting()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(WAITING_SECONDS, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Threaded:
    """Adapts a WSGI application to ASGI."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="request")

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        assert scope["type"] == "http"
        with SpooledTemporaryFile(_MEMORY_BYTES) as body:
            size, more = 0, True
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    return  # the client has gone
                size, more = size + len(message["body"]), message["more_body"]
                if size > BODY_BYTES:
                    status, headers, content = _TOO_LARGE
                    break
                body.write(message["body"])
            else:
                body.seek(0)
                environ = _environ(scope, cast(IO[bytes], body), size)
                loop = asyncio.get_running_loop()
                status, headers, content = await loop.run_in_executor(self._threads, self._answer, environ)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content, "more_body": False})

    def _answer(self, environ: WSGIEnvironment) -> _Answer:
        begun: list[tuple[str, list[tuple[str, str]]]] = []
        pieces: list[bytes] = []

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
            begun.append((status, headers))
            return pieces.append

        answer = self._app(environ, start)
        try:
            pieces.extend(answer)
        finally:
            if hasattr(answer, "close"):
                answer.close()
        status, headers = begun[-1]
        if int(status[:3]) >= 400:  # a page polls every few seconds, so successes are not logged
            logger.warning("%s %s: %s", environ["REQUEST_METHOD"], environ["PATH_INFO"], status)
        kept = [(name.lower(), value) for name, value in headers if name.lower() != "date"]  # uvicorn's own
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in kept]
        return int(status[:3]), encoded, b"".join(pieces)


def _environ(scope: HTTPScope, body: IO[bytes], size: int) -> WSGIEnvironment:
    """The request as a WSGI environ; path and headers are Latin-1 text, one character for each byte."""
    host, port = scope["server"] or ("localhost", None)
    environ: WSGIEnvironment = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(scope["raw_path"]).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": scope["client"][0] if scope["client"] is not None else "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": body,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1").upper()
        if "_" in name:  # WSGI cannot tell X_Y from X-Y
            continue
        key = f"HTTP_{name.replace('-', '_')}"
        before = f"{environ[key]}{'; ' if name == 'COOKIE' else ','}" if key in environ else ""
        environ[key] = before + value.decode("latin-1")
    if (kind := environ.pop("HTTP_CONTENT_TYPE", None)) is not None:
        environ["CONTENT_TYPE"] = kind
    environ.pop("HTTP_TRANSFER_ENCODING", None)  # the body has arrived as a whole
    if environ.pop("HTTP_CONTENT_LENGTH", None) is not None or size:
        environ["CONTENT_LENGTH"] = str(size)
    return environ
