"""Clients that send half of a request, or take nothing of an answer, hold no thread, and not for long."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import httpx
import pytest
from prometheus_client import CollectorRegistry

from dashboards import wsgi_server
from dashboards.listening import listen
from dashboards.wsgi_server import THREADS, WSGIServer
from search.work import monitor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Serve = Callable[["WSGIApplication"], tuple[str, int]]

HALVES = (
    b"",
    b"GET / HT",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET /again HT",
)


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as running:

        def start(app: WSGIApplication) -> tuple[str, int]:
            listener = running.enter_context(listen("127.0.0.1", 0))
            server = WSGIServer(app)
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            running.callback(thread.join, 30)
            running.callback(setattr, server, "should_exit", True)
            return "127.0.0.1", listener.getsockname()[1]

        yield start


def echo(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["wsgi.input"].read()]


def get(address: tuple[str, int], path: str = "/", **headers: str) -> httpx.Response:
    url = f"http://{address[0]}:{address[1]}{path}"
    return httpx.get(url, headers=headers, timeout=10, trust_env=False)


def test_half_requests_hold_no_thread_and_keep_nobody_waiting(serve: Serve) -> None:
    address = serve(echo)
    before = threading.active_count()
    with ExitStack() as held:
        for number in range(300):
            client = held.enter_context(socket.create_connection(address, timeout=10))
            client.sendall(HALVES[number % len(HALVES)])
        begun = time.monotonic()
        assert get(address).status_code == 200
        assert time.monotonic() - begun < 5
        assert threading.active_count() <= before + THREADS


@pytest.mark.parametrize("half", HALVES)
def test_half_a_request_is_given_up(serve: Serve, half: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsgi_server, "WAITING_SECONDS", 0.5)
    with socket.create_connection(serve(echo), timeout=10) as client:
        client.sendall(half)
        assert_ended(client)


def test_a_byte_now_and_then_does_not_prolong_it(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsgi_server, "WAITING_SECONDS", 1.0)
    with socket.create_connection(serve(echo), timeout=0.1) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        deadline = time.monotonic() + 20
        with suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() < deadline:
                client.sendall(b"x")
                time.sleep(0.1)
        assert time.monotonic() < deadline, "the connection stays open"


def test_an_answer_that_is_not_taken_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsgi_server, "WAITING_SECONDS", 0.5)

    def large(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [b"x" * 2**26]

    with socket.create_connection(serve(large), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(2)
        assert_ended(client, at_most=2**26 - 1)


def test_requests_beyond_the_threads_wait_for_one(serve: Serve) -> None:
    at_once, most, lock = 0, 0, threading.Lock()

    def slow(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with lock:
            at_once -= 1
        start_response("200 OK", [])
        return [b"done"]

    address = serve(slow)
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(get(address).text)) for _ in range(3 * THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert answers == ["done"] * 3 * THREADS
    assert most <= THREADS


def test_a_body_that_is_too_large_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsgi_server, "BODY_BYTES", 2**20)
    host, port = serve(echo)
    answer = httpx.post(f"http://{host}:{port}/", content=b"x" * 2**20, timeout=10, trust_env=False)
    assert (answer.status_code, len(answer.content)) == (200, 2**20)
    with socket.create_connection((host, port), timeout=10) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n" + b"x" * (2**20 + 1))
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_the_application_is_told_what_was_asked(serve: Serve) -> None:
    seen: list[WSGIEnvironment] = []

    def note(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        seen.append(environ)
        start_response("204 No Content", [("Date", "once"), ("X-Two", "1"), ("X-Two", "2")])
        return []

    address = serve(note)
    answer = get(address, "/a%20%C3%A9%2F?q=%20", Cookie="a=1; b=2", X_Token="forged")
    assert answer.headers.get_list("X-Two") == ["1", "2"]
    assert len(answer.headers.get_list("Date")) == 1
    (environ,) = seen
    assert environ["PATH_INFO"].encode("latin-1").decode() == "/a é/"
    assert environ["QUERY_STRING"] == "q=%20"
    assert environ["HTTP_COOKIE"] == "a=1; b=2"
    assert environ["HTTP_HOST"] == f"{address[0]}:{address[1]}"
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert not [name for name in environ if "TOKEN" in name], "X_Token may not pass for X-Token"


def test_an_application_that_fails_is_an_error_500(serve: Serve) -> None:
    def broken(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raise RuntimeError("broken")

    assert get(serve(broken)).status_code == 500


def test_a_monitor_is_not_held_up_and_holds_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor._Quiet, "timeout", 1.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()
    before = threading.active_count()
    with (
        monitor.serve(*address, CollectorRegistry(), lambda: monitor.Health(True, {})),
        ExitStack() as held,
    ):
        for number in range(100):
            client = held.enter_context(socket.create_connection(address, timeout=10))
            with suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(HALVES[number % 3])
        assert threading.active_count() <= before + 1 + monitor.THREADS
        deadline = time.monotonic() + 20
        while True:
            with suppress(httpx.TransportError):
                assert get(address, "/health").status_code == 200
                break
            assert time.monotonic() < deadline, "no other client is answered"
            time.sleep(0.1)


def assert_ended(client: socket.socket, at_most: int = 1000) -> None:
    """The server closes the connection, within the time-out of the socket."""
    taken = 0
    try:
        while piece := client.recv(2**20):
            taken += len(piece)
    except ConnectionResetError:
        pass
    assert taken <= at_most
