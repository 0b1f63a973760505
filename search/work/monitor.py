"""An optional HTTP server of a worker or relay: ``/metrics`` for Prometheus, and ``/health``."""

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
"""Maximum number of requests that are answered at once."""

WAITING_SECONDS: Final = 10.0
"""How long a client may pause while it sends a request, s."""


@dataclass(frozen=True)
class Health:
    """Whether a process is healthy, and the times (s) from which that was determined."""

    well: bool
    seconds: Mapping[str, float]


@contextmanager
def serve(host: str, port: int, registry: CollectorRegistry, health: Callable[[], Health]) -> Iterator[None]:
    """Serve the metrics of a registry during the block; ``/health`` answers 503 if the process is unhealthy.

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
    """A server that slow clients, few or many, cannot block, as trainings run in this process."""

    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._free = threading.Semaphore(THREADS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a new thread, or close the connection if there are too many already."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and release the thread's place for another request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Write the traceback, unless the client was slow or has disconnected."""
        if not isinstance(sys.exception(), TimeoutError | ConnectionError):
            super().handle_error(request, client_address)


class _Quiet(WSGIRequestHandler):
    """A request handler that logs no requests and has a timeout."""

    timeout = WAITING_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        pass
