"""What a worker tells a monitor: ``/metrics`` for Prometheus, and ``/health``."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, make_wsgi_app

from search.errors import SearchError
from storage.trials.queue import LEASE_SECONDS

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from search.work.worker import TrialNews, Watcher
    from storage.studies import StudyProgress
    from storage.workers import SignOfLife

ENDS = ("complete", "pruned", "failed", "interrupted", "lost")


class Counting:
    """A watcher that counts what it is told, and passes it on."""

    def __init__(self, watcher: Watcher, sign: SignOfLife) -> None:
        self.registry = CollectorRegistry()
        self._watcher = watcher
        self._reached: dict[int, int] = {}
        self._in_hand = Gauge("anitune_trials_in_hand", "Trials in training.", registry=self.registry)
        self._epochs = Counter("anitune_epochs", "Epochs trained.", registry=self.registry)
        self._trials = Counter(
            "anitune_trials", "Trials that left this worker, by how.", ["state"], registry=self.registry
        )
        for state in ENDS:
            self._trials.labels(state)  # zero is a number, too
        silent = Gauge(
            "anitune_silent_seconds", "Since the last sign of life in SQL.", registry=self.registry
        )
        silent.set_function(lambda: sign.silent)
        self._in_hand.set_function(lambda: len(self._reached))

    def begun(self, news: TrialNews, progress: StudyProgress) -> None:
        """See :class:`search.work.worker.Watcher`."""
        self._reached[news.number] = 0
        self._watcher.begun(news, progress)

    def epoch(self, number: int, done: int) -> None:
        """See :class:`search.work.worker.Watcher`."""
        # A trial that goes on has epochs of earlier attempts: the first news of it counts as one.
        before = self._reached[number] or done - 1
        self._epochs.inc(max(0, done - before))
        self._reached[number] = done
        self._watcher.epoch(number, done)

    def ended(self, news: TrialNews, progress: StudyProgress) -> None:
        """See :class:`search.work.worker.Watcher`."""
        self._reached.pop(news.number, None)
        self._trials.labels(news.state).inc()
        self._watcher.ended(news, progress)


@contextmanager
def serve_metrics(host: str, port: int, watcher: Watcher, sign: SignOfLife) -> Iterator[Counting]:
    """Serve what the worker in the block does; gives the watcher that it must tell.

    ``/health`` answers 503 when the worker's last sign of life is older than a lease: others may have its
    trials by now.

    Raises
    ------
    SearchError
        if the port is taken.
    """
    counting = Counting(watcher, sign)
    metrics = make_wsgi_app(counting.registry)

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            found: Iterable[bytes] = metrics(environ, start)
            return found
        if path != "/health":
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/metrics or /health\n"]
        well = sign.silent < LEASE_SECONDS
        start("200 OK" if well else "503 Service Unavailable", [("Content-Type", "application/json")])
        return [json.dumps({"well": well, "silent_seconds": round(sign.silent, 1)}).encode()]

    try:
        server = make_server(host, port, answer, _Server, _Quiet)
    except OSError as error:
        raise SearchError(f"--metrics-port {port}: cannot listen on {host}: {error.strerror}") from None
    with server:
        thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        try:
            yield counting
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
