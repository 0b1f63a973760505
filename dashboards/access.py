"""Access rules of the local servers: who may send requests, and by which host names.

Neither a page of another site, through a person's browser, nor another account of this machine, through the
ports, may reach the servers. So a request needs the secret that each start creates: programs send it as a
bearer token or a password, and browsers as a cookie, which the printed link sets. Cookies ignore ports, and
an attacker can point a host name at this machine (DNS rebinding): hence the rules about Host, Origin and
Sec-Fetch-Site.

:class:`dashboards.mlflow_server.Guard` and :func:`with_access` ask :class:`Access` for each request.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import psutil

from storage.tokens import is_loopback

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HEALTH: Final = "/health"
"""Path that tells everybody that the server answers, and nothing else."""

ANY_ADDRESS: Final = ("0.0.0.0", "::")

_PARAMETER: Final = "token"
_HOST: Final = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_BROWSERS_OWN: Final = ("", "none", "same-origin")
"""Values of Sec-Fetch-Site: no or an old browser, a person's own navigation, our own pages."""

_SCRIPT: Final = (
    f'const here = new URL(location); here.searchParams.delete("{_PARAMETER}"); location.replace(here);'
)
_SCRIPT_HASH: Final = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>anitune</title>
<style>body {{ font: 1rem/1.5 sans-serif; max-width: 40rem; margin: 15vh auto; padding: 0 1rem }}
@media (prefers-color-scheme: dark) {{ body {{ background: #14171c; color: #e6e8eb }} }}</style>
<main>{content}</main>
</html>
"""
_SIGN_IN_LINE: Final = (
    "Open the link that `anitune dashboards` or `anitune up` printed. A program needs the secret of the"
    " server in MLFLOW_TRACKING_TOKEN; `anitune up` prints how to set it."
)
_SIGN_IN_PAGE: Final = _PAGE.format(
    content="""<h1>Open the link that the command printed</h1>
<p>These pages need a secret that every start of the server creates. It is part of the links that
<code>anitune dashboards</code> and <code>anitune up</code> print. While the servers of
<code>anitune up</code> are running, that command prints its link again.</p>"""
)
_SIGNED_IN_PAGE: Final = _PAGE.format(content=f"<p>Signing in …</p><script>{_SCRIPT}</script>")
_HTML: Final = (
    ("Content-Type", "text/html; charset=utf-8"),
    (
        "Content-Security-Policy",
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_SCRIPT_HASH}';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)

HEADERS: Final = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every answer, so that no other site learns an address, holds a window, or shows an answer."""


@dataclass(frozen=True)
class Request:
    """Parts of a request that the rules need; header names in lower case, repeated ones joined by a comma."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """An answer that replaces the application's."""

    status: int
    content: bytes
    headers: tuple[tuple[str, str], ...]

    @classmethod
    def line(cls, status: int, line: str) -> Answer:
        """Make an answer from a line of plain text."""
        return cls(status, f"{line}\n".encode(), (("Content-Type", "text/plain; charset=utf-8"),))


def allowed_names(host: str, given: Iterable[str] = ()) -> frozenset[str]:
    """The names and addresses, besides those of loopback, by which a server on ``host`` may be called."""
    names = set(given)
    if not is_loopback(host):
        names.add(socket.gethostname())
    if host in ANY_ADDRESS:
        names.add(socket.getfqdn())
        for addresses in psutil.net_if_addrs().values():
            families = (socket.AF_INET, socket.AF_INET6)
            names |= {each.address.partition("%")[0] for each in addresses if each.family in families}
    else:
        names.add(host)
    return frozenset(_normal(name) for name in names)


def with_token(url: str, token: str | None) -> str:
    """The address of a page of a server, with the secret added so that the link also signs in."""
    if token is None:
        return url
    scheme, place, path, query, fragment = urlsplit(url)
    return urlunsplit((scheme, place, path or "/", f"{query}&" * bool(query) + f"token={token}", fragment))


class Access:
    """The rules of one server.

    Parameters
    ----------
    token
        The secret of this start of the server.
    names
        See :func:`allowed_names`.
    """

    def __init__(self, token: str, names: frozenset[str]) -> None:
        self._token = token.encode()
        self._names = names
        # A name for each start: browsers send a cookie to all servers of a machine, whatever their ports.
        self._cookie = f"anitune-{hashlib.sha256(self._token).hexdigest()[:12]}"

    def judge(self, request: Request) -> Answer | None:
        """The refusal or redirection to answer with; None: the application answers."""
        if request.path == HEALTH and request.method in ("GET", "HEAD"):
            return Answer.line(200, "OK")
        host = request.headers.get("host", "").lower()
        if not self._is_ours(host):
            return Answer.line(403, "This server does not answer to that host name: see --allowed-host.")
        if not (_same_origin(request.headers.get("origin"), host) and _is_asked_here(request)):
            return Answer.line(403, "This server refuses requests from pages of other sites.")
        if self._is_signed_in(request.headers.get("authorization", "")):
            return None
        remembered = self._is_remembered(request.headers.get("cookie", ""))
        offered = _offered(request.query) if request.method == "GET" else None
        if offered is not None and (self._is_token(offered) or remembered):
            return self._sign_in(request)
        return None if remembered else _refusal(request)

    def _is_ours(self, host: str) -> bool:
        parts = _HOST.fullmatch(host)
        if parts is None:
            return False
        name = _normal(parts["name"].strip("[]"))
        return is_loopback(name) or name in self._names

    def _is_token(self, offered: str) -> bool:
        return hmac.compare_digest(offered.encode(), self._token)

    def _is_signed_in(self, authorization: str) -> bool:
        kind, _, value = authorization.partition(" ")
        if kind.lower() == "bearer":
            return self._is_token(value.strip())
        if kind.lower() != "basic":
            return False
        try:
            password = base64.b64decode(value, validate=True).partition(b":")[2]
        except ValueError:  # also raised for text outside ASCII
            return False
        return hmac.compare_digest(password, self._token)

    def _is_remembered(self, cookies: str) -> bool:
        pairs = (cookie.strip().partition("=") for cookie in cookies.split(";"))
        return any(name == self._cookie and self._is_token(value) for name, _, value in pairs)

    def _sign_in(self, request: Request) -> Answer:
        """Set the cookie, and redirect to the same page by its address without the secret."""
        rest = "&".join(pair for pair in request.query.split("&") if not pair.startswith(f"{_PARAMETER}="))
        # One slash: two would name another server.
        location = quote(f"/{request.path.lstrip('/')}", safe="/:@!$'()*+,;=-._~") + f"?{rest}" * bool(rest)
        cookie = f"{self._cookie}={self._token.decode()}; Path=/; HttpOnly; SameSite=Strict"
        headers = (*_HTML, ("Cache-Control", "no-store"), ("Set-Cookie", cookie))
        # A browser that follows a link of another site withholds the cookie from the redirection, too.
        if request.headers.get("sec-fetch-site", "") in _BROWSERS_OWN:
            return Answer(303, _SIGNED_IN_PAGE.encode(), (*headers, ("Location", location)))
        return Answer(200, _SIGNED_IN_PAGE.encode(), headers)


def _normal(name: str) -> str:
    try:
        return str(ip_address(name))
    except ValueError:
        return name.lower()


def _same_origin(origin: str | None, host: str) -> bool:
    return origin is None or origin.lower() in (f"http://{host}", f"https://{host}")


def _is_asked_here(request: Request) -> bool:
    """Whether the request comes from our own pages, or from a link, a bookmark or the address bar."""
    if request.headers.get("sec-fetch-site", "") in _BROWSERS_OWN:
        return True
    kind = request.headers.get("sec-fetch-mode"), request.headers.get("sec-fetch-dest")
    return request.method == "GET" and kind == ("navigate", "document")


def _offered(query: str) -> str | None:
    pairs = (pair.partition("=") for pair in query.split("&"))
    return next((unquote(value) for name, _, value in pairs if name == _PARAMETER), None)


def _refusal(request: Request) -> Answer:
    if "text/html" in request.headers.get("accept", ""):
        return Answer(401, _SIGN_IN_PAGE.encode(), (*_HTML, ("Cache-Control", "no-store")))
    return Answer.line(401, _SIGN_IN_LINE)


def with_access(app: WSGIApplication, access: Access) -> WSGIApplication:
    """Wrap ``app`` so that it answers only requests that pass the access rules."""

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        answer = access.judge(_request(environ))
        if answer is None:
            return app(environ, _finishing(start_response))
        start_response(
            f"{answer.status} {HTTPStatus(answer.status).phrase}",
            [*answer.headers, *HEADERS.items(), ("Content-Length", str(len(answer.content)))],
        )
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else answer.content]

    return serve


def _request(environ: WSGIEnvironment) -> Request:
    return Request(
        environ["REQUEST_METHOD"],
        environ["PATH_INFO"].encode("latin-1").decode(errors="replace"),
        environ.get("QUERY_STRING", ""),
        {
            name.removeprefix("HTTP_").replace("_", "-").lower(): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        },
    )


def _finishing(start_response: StartResponse) -> Callable[..., Any]:
    def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
        return start_response(status, completed(headers), *error)

    return start


def completed(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers of an answer, completed with those of :data:`HEADERS` that it lacks."""
    there = {name.lower() for name, _ in headers}
    return headers + [(name, value) for name, value in HEADERS.items() if name.lower() not in there]
