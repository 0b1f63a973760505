"""Serves our first page, and the Optuna dashboard, of the storage that the environment names.

Started as a process of its own. The storage's URL, which may hold a password, comes from the environment,
where a list of processes does not show it. Requests are served by threads: ``optuna_dashboard.run_server``
answers one at a time. Ours are ``/``, the pages below ``/anitune`` (:mod:`dashboards.page.app`), and
``/mlflow``, which leads to the MLflow server: notes link to runs by it, and so stay right when that server
has another port tomorrow.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna_dashboard

from dashboards import links
from dashboards.access import read_access, with_access, with_token
from dashboards.optuna_images import TrialImages
from dashboards.page.app import make_app
from storage.database import open_database
from storage.settings import load_settings
from storage.tokens import read_token

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _ServerIPv6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    """The page asks for news every few seconds: successes are not logged. Nor is the secret in a link."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        if not str(code).startswith(("2", "3")):
            self.log_message('"%s %s" %s', self.command, self.path.partition("?")[0], str(code))


def with_pages(app: WSGIApplication, pages: WSGIApplication) -> WSGIApplication:
    """Answer what is below ``/anitune`` by ``pages``, and lead there from ``/``; the rest is ``app``'s."""

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path in ("", "/", links.PAGE):
            start_response("302 Found", [("Location", links.first_page("")), ("Cache-Control", "no-store")])
            return [b""]
        return (pages if path.startswith(f"{links.PAGE}/") else app)(environ, start_response)

    return serve


def with_mlflow(app: WSGIApplication, mlflow: str, home: Path) -> WSGIApplication:
    """Answer ``/mlflow`` with a redirection to the server ``mlflow``; the rest is ``app``'s.

    ``mlflow`` is a URL, or the port of a server on this machine, which the browser then reaches by the host
    name that it has used for this one. It keeps the part of the address after ``#``, which names the page.
    Who is let in here is signed in there, too, if that server was started in the same home folder.
    """

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"].rstrip("/") != "/mlflow":
            return app(environ, start_response)
        if "://" in mlflow:
            location = with_token(mlflow, read_token(home, mlflow))
        else:
            token = read_token(home, f"http://localhost:{mlflow}")
            location = with_token(f"http://{_hostname(environ)}:{mlflow}/", token)
        start_response("302 Found", [("Location", location), ("Cache-Control", "no-store")])
        return [b""]

    return serve


def _hostname(environ: WSGIEnvironment) -> str:
    name = urlsplit(f"//{environ['HTTP_HOST']}").hostname or "localhost"
    return f"[{name}]" if ":" in name else name


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--mlflow", required=True, help="URL of the MLflow server, or its port on this machine"
    )
    parser.add_argument("--token-file", type=Path, required=True, help="holds the secret of this start")
    parser.add_argument("--allowed-host", action="append", default=[], help="another name of this server")
    arguments = parser.parse_args()
    database = open_database(load_settings())
    optuna = optuna_dashboard.wsgi(database.optuna, artifact_store=TrialImages(database))
    pages = with_pages(optuna, make_app(database).wsgi_app)
    app = with_access(
        with_mlflow(pages, arguments.mlflow, database.settings.home),
        read_access(arguments.token_file, arguments.host, arguments.allowed_host),
    )
    kind = _ServerIPv6 if ":" in arguments.host else _Server
    with make_server(
        arguments.host,
        arguments.port,
        app,
        server_class=kind,
        handler_class=_Quiet,
    ) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
