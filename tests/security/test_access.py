"""Who is let in to the servers that we start, judged request by request; no server runs."""

from __future__ import annotations

import argparse
import base64
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from dashboards.access import (
    HEADERS,
    Access,
    Answer,
    Request,
    allowed_names,
    with_access,
    with_token,
)
from dashboards.errors import AccessError
from dashboards.listening import add_arguments, arguments_for, given_access, listen_for, port_of
from dashboards.optuna_server import with_mlflow
from storage.tokens import make_token, read_token, remove_token, token_file
from storage.tracking.credentials import _sign_in

TOKEN = "a-secret-of-one-start"
HOST = "127.0.0.1:5000"
access = Access(TOKEN, allowed_names("127.0.0.1"))


def ask(path: str = "/", method: str = "GET", query: str = "", **headers: str) -> Answer | None:
    sent = {"host": HOST} | {name.replace("_", "-"): value for name, value in headers.items()}
    return access.judge(Request(method, path, query, sent))


def status(*arguments: Any, **headers: Any) -> int:
    """As the answer has it; 200 where the application answers."""
    answer = ask(*arguments, **headers)
    return 200 if answer is None else answer.status


BEARER = {"authorization": f"Bearer {TOKEN}"}


def cookie() -> str:
    answer = ask(query=f"token={TOKEN}")
    assert answer is not None
    return dict(answer.headers)["Set-Cookie"].partition(";")[0]


def basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def test_nobody_is_let_in_without_the_secret() -> None:
    assert status() == 401
    for wrong in (
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        "Bearer",
        f"Token {TOKEN}",
        TOKEN,
        basic(TOKEN, ""),
        basic("anitune", "wrong"),
        "Basic %%%",
        "Basic ü",
        "Bearer ü",
    ):
        assert status(authorization=wrong) == 401, wrong
    for wrong in ("", f"token={TOKEN}", cookie()[:-1], f"x{cookie()}", f"{cookie()}x"):
        assert status(cookie=wrong) == 401, wrong
    for wrong in ("token=", "token=wrong", f"t={TOKEN}", f"xtoken={TOKEN}"):
        assert status("/", "GET", wrong) == 401, wrong


def test_the_secret_lets_in_programs_and_browsers() -> None:
    assert status(authorization=f"Bearer {TOKEN}") == 200
    assert status(authorization=f"bearer {TOKEN}") == 200
    assert status(authorization=basic("anybody", TOKEN)) == 200
    assert status(cookie=f"other=1; {cookie()}; last=2") == 200


def test_everybody_may_know_that_the_server_answers_and_nothing_else() -> None:
    answer = ask("/health", host="anything")
    assert answer == Answer.line(200, "OK")
    for path in ("/health/", "//health", "/version", "/api/meta", "/health/../"):
        assert status(path) == 401
    assert status("/health", "POST") == 401


def test_the_link_becomes_a_cookie_of_this_site_alone_and_its_address_goes() -> None:
    answer = ask("/dashboard/studies/1", query=f"best=true&token={TOKEN}&x=%2F")
    assert answer is not None
    headers = dict(answer.headers)
    assert (answer.status, headers["Location"]) == (303, "/dashboard/studies/1?best=true&x=%2F")
    name, value, *flags = headers["Set-Cookie"].replace("=", "; ", 1).split("; ")
    assert (value, set(flags)) == (TOKEN, {"Path=/", "HttpOnly", "SameSite=Strict"})
    assert TOKEN not in name
    assert headers["Cache-Control"] == "no-store"
    assert HEADERS["Referrer-Policy"] == "no-referrer"


def test_a_link_on_another_site_leads_on_by_the_page_itself() -> None:
    # The cookie is withheld from what a page of another site leads to, redirections included.
    answer = ask(
        query=f"token={TOKEN}",
        sec_fetch_site="cross-site",
        sec_fetch_mode="navigate",
        sec_fetch_dest="document",
    )
    assert answer is not None
    assert (answer.status, "Location" in dict(answer.headers)) == (200, False)
    assert b"location.replace" in answer.content
    assert TOKEN.encode() not in answer.content


@pytest.mark.parametrize("path", ["//evil.example/x", "/\\evil.example", "/x\r\nSet-Cookie: a=b", "///evil"])
def test_the_link_leads_to_no_other_server(path: str) -> None:
    answer = ask(path, query=f"token={TOKEN}")
    assert answer is not None
    location = dict(answer.headers)["Location"]
    assert location.startswith("/")
    assert not location.startswith("//")
    assert not {"\\", "\r", "\n"} & set(location)


def test_an_old_link_does_no_harm_to_who_is_signed_in() -> None:
    assert status("/", "GET", "token=of-yesterday", cookie=cookie()) == 303
    assert status("/", "GET", "token=of-yesterday", **BEARER) == 200


def test_a_person_without_the_link_reads_what_to_do() -> None:
    page = ask(accept="text/html,application/xhtml+xml")
    assert page is not None
    assert b"Open the link that the command printed" in page.content
    line = ask(accept="*/*")
    assert line is not None
    assert b"MLFLOW_TRACKING_TOKEN" in line.content
    assert "<" not in line.content.decode()


@pytest.mark.parametrize("host", [HOST, "localhost", "LOCALHOST:1", "127.0.0.1:7", "[::1]:5000", "127.1.2.3"])
def test_it_is_called_by_names_of_loopback(host: str) -> None:
    assert status(**BEARER, host=host) == 200


FOREIGN = [
    "",
    "evil.example",
    "10.evil.com",
    "10.0.0.1",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "localhost.",
    "a@localhost",
    "localhost:5000@evil.example",
    "localhost/evil",
    "localhost, evil.example",
    "[::1].evil.example",
    "127.1",
    "0.0.0.0:5000",
    "[fd00::1]:5000",
]


@pytest.mark.parametrize("host", FOREIGN)
def test_it_is_called_by_no_other_name_even_with_the_secret(host: str) -> None:
    assert status(**BEARER, host=host) == 403


def test_open_to_all_it_is_called_by_this_machines_own_addresses_and_those_that_are_given() -> None:
    open_ = Access(TOKEN, allowed_names("0.0.0.0", ["Widths.example"]))

    def code(host: str) -> int:
        answer = open_.judge(Request("GET", "/", "", {"host": host, **BEARER}))
        return 200 if answer is None else answer.status

    own = socket.gethostbyname(socket.gethostname())
    for host in (own, f"{own}:80", socket.gethostname(), "widths.example:443", "localhost:3"):
        assert code(host) == 200, host
    for host in (*FOREIGN[1:], "192.168.evil.com", "172.16.evil.com", "fd.evil.com", "192.0.2.1"):
        assert code(host) == (200 if host == own else 403), host


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "",
        "http://127.0.0.1:9999",
        "http://localhost:5000",
        "http://10.evil.com",
        "http://127.0.0.1:5000.evil.example",
        "ftp://127.0.0.1:5000",
        "127.0.0.1:5000",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
def test_pages_of_another_origin_are_refused_even_with_the_secret(origin: str, method: str) -> None:
    assert status("/", method, **BEARER, origin=origin) == 403
    assert status("/", method, cookie=cookie(), origin=origin) == 403


def test_its_own_pages_may_ask() -> None:
    assert status("/", "POST", cookie=cookie(), origin=f"http://{HOST}", sec_fetch_site="same-origin") == 200
    assert status("/", "POST", cookie=cookie(), origin=f"https://{HOST}") == 200  # a gateway adds TLS


@pytest.mark.parametrize("site", ["cross-site", "same-site", "made-up"])
@pytest.mark.parametrize(
    ("method", "mode", "destination"),
    [
        ("GET", "no-cors", "image"),
        ("GET", "no-cors", "script"),
        ("GET", "cors", "empty"),
        ("GET", "navigate", "iframe"),
        ("GET", "navigate", "object"),
        ("POST", "navigate", "document"),
    ],
)
def test_a_page_at_another_port_of_this_machine_gets_nothing(
    site: str, method: str, mode: str, destination: str
) -> None:
    # Cookies ignore ports: the browser sends ours along.
    said = {"sec_fetch_site": site, "sec_fetch_mode": mode, "sec_fetch_dest": destination}
    assert status("/", method, cookie=cookie(), **said) == 403


def test_a_link_from_there_opens_a_page_and_no_more() -> None:
    said = {"sec_fetch_site": "same-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert status(cookie=cookie(), **said) == 200


def test_our_own_server_asks_before_anything_is_answered() -> None:
    asked: list[str] = []

    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        asked.append(environ["PATH_INFO"])
        start("200 OK", [("Content-Type", "text/html"), ("X-Frame-Options", "DENY")])
        return [b"page"]

    answers: list[tuple[str, dict[str, str]]] = []
    served = with_access(app, access)

    def answered(**headers: str) -> bytes:
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/x",
            "QUERY_STRING": "",
            "HTTP_HOST": HOST,
            **headers,
        }
        return b"".join(served(environ, lambda status, given, *_: answers.append((status, dict(given)))))

    assert b"page" not in answered()
    assert answers[-1][0] == "401 Unauthorized"
    assert answers[-1][1].items() >= HEADERS.items()
    assert asked == []
    assert answered(HTTP_AUTHORIZATION=f"Bearer {TOKEN}") == b"page"
    assert answers[-1][1]["X-Frame-Options"] == "DENY"
    assert answers[-1][1]["Referrer-Policy"] == "no-referrer"


def test_only_its_user_reads_the_secret_and_each_start_has_another(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        first = make_token(tmp_path, 5000, 5001)
        second = make_token(tmp_path, 5000)
    finally:
        os.umask(before)
    file = token_file(tmp_path, 5000)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len({first, second}) == 2
    assert min(len(first), len(second)) >= 32
    assert read_token(tmp_path, "http://127.0.0.1:5000") == second
    assert read_token(tmp_path, "http://localhost:5001/") == first
    remove_token(tmp_path, 5000)
    assert read_token(tmp_path, "http://127.0.0.1:5000") is None
    assert sorted(path.name for path in file.parent.iterdir()) == ["5001"]


@pytest.mark.parametrize("content", ["", "\n", "short"])
def test_a_file_without_a_secret_lets_nobody_in(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = parser.parse_args(["--port", "5000", "--token-file", str(file)])
    with pytest.raises(AccessError, match="must contain a secret of at least 20 characters"):
        given_access(arguments)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_secret_that_somebody_else_wrote_is_not_believed(tmp_path: Path) -> None:
    file = token_file(tmp_path, 5000)
    token = make_token(tmp_path, 5000)
    assert read_token(tmp_path, "http://127.0.0.1:5000") == token
    os.chown(file, 65534, 65534)
    assert read_token(tmp_path, "http://127.0.0.1:5000") is None
    os.chown(file, 0, 0)
    file.chmod(0o640)
    assert read_token(tmp_path, "http://127.0.0.1:5000") is None
    file.unlink()
    (tmp_path / "planted").write_text(token)
    file.symlink_to(tmp_path / "planted")
    assert read_token(tmp_path, "http://127.0.0.1:5000") is None


def test_machines_that_share_a_home_have_secrets_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = make_token(tmp_path, 5000)
    monkeypatch.setattr("socket.gethostname", lambda: "another-node")
    assert read_token(tmp_path, "http://127.0.0.1:5000") is None
    make_token(tmp_path, 5000)
    remove_token(tmp_path, 5000)
    monkeypatch.undo()
    assert read_token(tmp_path, "http://127.0.0.1:5000") == token


def test_nobody_can_take_the_port_of_a_server_that_is_being_started() -> None:
    with listen_for("--mlflow-port", "127.0.0.1", None) as listener:
        with socket.socket() as another:
            another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                another.bind(("127.0.0.1", port_of(listener)))
        assert "--fd" in arguments_for("127.0.0.1", listener)


@pytest.mark.parametrize(
    ("host", "mlflow", "signed_in"),
    [
        ("localhost:7", "5000", True),
        ("node.example:7", "5000", True),  # of this machine
        ("proxy.example", "5000", False),  # there another port is not ours
        ("127.0.0.1:7", "http://127.0.0.1:5000", True),
        ("node.example:7", "http://127.0.0.1:5000", False),  # there that is the visitor's own machine
    ],
)
def test_mlflow_is_told_the_secret_where_the_address_leads_to_this_machine(
    tmp_path: Path, host: str, mlflow: str, signed_in: bool
) -> None:
    token = make_token(tmp_path, 5000)
    answers: list[str] = []
    app = with_mlflow(lambda environ, start: [], mlflow, tmp_path, {"node.example"})
    environ = {"PATH_INFO": "/mlflow", "HTTP_HOST": host}
    app(environ, lambda status, headers, *_: answers.append(dict(headers)["Location"]))  # type: ignore[arg-type, return-value]
    assert (token in answers[0]) == signed_in


def test_a_file_that_was_there_does_not_stay_open_to_others(tmp_path: Path) -> None:
    file = token_file(tmp_path, 5000)
    file.parent.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    file.symlink_to(elsewhere)
    make_token(tmp_path, 5000)
    assert elsewhere.read_text() == "mine"
    assert not file.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


class Prepared:
    """As much of a request of the library requests as signing in looks at."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.headers: dict[str, str] = {}


def test_the_secret_is_sent_to_the_server_of_that_start_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANITUNE_HOME", str(tmp_path))
    token = make_token(tmp_path, 5000)

    def sent(url: str) -> str | None:
        return _sign_in(Prepared(url)).headers.get("Authorization")

    assert sent("http://127.0.0.1:5000/api/2.0/mlflow/runs/search") == f"Bearer {token}"
    for elsewhere in (
        "http://127.0.0.1:5001/",
        "http://mlflow.example:5000/",
        "https://127.0.0.1:5000/",
        "http://127.0.0.1.evil.example:5000/",
        "http://127.0.0.1:5000@evil.example/",
        "http://127.0.0.1/",
    ):
        assert sent(elsewhere) is None, elsewhere
    again = make_token(tmp_path, 5000)
    assert sent("http://127.0.0.1:5000/") == f"Bearer {again}", "of the new start, in a process that runs on"


def test_links_sign_in_and_keep_their_place() -> None:
    assert with_token("http://a:1", "t") == "http://a:1/?token=t"
    assert with_token("http://a:1/#/experiments?x=1", "t") == "http://a:1/?token=t#/experiments?x=1"
    assert with_token("http://a:1/dashboard?best=true", "t") == "http://a:1/dashboard?best=true&token=t"
    assert with_token("https://elsewhere/x", None) == "https://elsewhere/x"
