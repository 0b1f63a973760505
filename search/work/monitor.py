"""A port for a monitor: ``/metrics`` for Prometheus, and ``/health``; if a worker or relay is asked to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from search.errors import SearchError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


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
    """One that a slow client does not hold up."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """One that does not write a line for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        pass
