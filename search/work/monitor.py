"""A port for a monitor: ``/metrics`` for Prometheus, and ``/health``; if a worker or relay is asked to."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from search.errors import SearchError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

THREADS: Final = 8
"""Requests that are answered at a time."""

WAITING_SECONDS: Final = 10.0
"""How long a client may send nothing of a request."""


@dataclass(frozen=True)
class Health:
    """Whether a process does what it is for, and the times (s) by which that was judged."""

    well: bool
    seconds: Mapping[str, float]


@contextmanager
def serve(host: str, port: int, registry: CollectorRegistry, health: Callable[[], Health]) -> Iterator[None]:
    """Serve the metrics of a registry during the block; ``/health`` answers 503 where all is not well.

    Raises
    ------
    SearchError
        if the port is taken.
    """
    metrics = make_wsgi_app(registry)

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            found: Iterable[bytes] = metrics(environ, start)
            return found
        if path != "/health":
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/metrics or /health\n"]
        found_health = health()
        status = "200 OK" if found_health.well else "503 Service Unavailable"
        start(status, [("Content-Type", "application/json")])
        rounded = {name: round(seconds, 1) for name, seconds in found_health.seconds.items()}
        return [json.dumps({"well": found_health.well, **rounded}).encode()]

    try:
        server = make_server(host, port, answer, _Server, _Quiet)
    except OSError as error:
        raise SearchError(f"--metrics-port {port}: cannot listen on {host}: {error.strerror}") from None
    with server:
        thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    """One that slow clients hold up neither alone nor by their number: a training runs in this process."""

    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._free = threading.Semaphore(THREADS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own; where there are too many already, not at all."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and be free for another one."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Write the traceback, unless it is the client that was slow or has gone."""
        if not isinstance(sys.exception(), TimeoutError | ConnectionError):
            super().handle_error(request, client_address)


class _Quiet(WSGIRequestHandler):
    """One that does not write a line for each request, nor wait for one for long."""

    timeout = WAITING_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        pass
