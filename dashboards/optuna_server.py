"""Serves our first page, and the Optuna dashboard, of the storage that the environment names.

Started as a process of its own. The storage's URL, which may hold a password, comes from the environment,
where a list of processes does not show it. Requests are served by threads (:mod:`dashboards.wsgi_server`):
``optuna_dashboard.run_server`` answers one at a time. Ours are ``/``, the pages below ``/anitune``
(:mod:`dashboards.page.app`), and ``/mlflow``, which leads to the MLflow server: notes link to runs by it, and
so stay right when that server has another port tomorrow.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import optuna_dashboard

from dashboards import links
from dashboards.optuna_images import TrialImages
from dashboards.page.app import make_app
from dashboards.printable import PrintableFormatter
from dashboards.safe_answers import with_safe_answers
from dashboards.servers import is_loopback
from dashboards.wsgi_server import WSGIServer, listen
from storage.database import open_database
from storage.settings import load_settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def with_pages(app: WSGIApplication, pages: WSGIApplication) -> WSGIApplication:
    """Answer what is below ``/anitune`` by ``pages``, and lead there from ``/``; the rest is ``app``'s."""

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path in ("", "/", links.PAGE):
            start_response("302 Found", [("Location", links.first_page("")), ("Cache-Control", "no-store")])
            return [b""]
        return (pages if path.startswith(f"{links.PAGE}/") else app)(environ, start_response)

    return serve


def with_mlflow(app: WSGIApplication, mlflow: str) -> WSGIApplication:
    """Answer ``/mlflow`` with a redirection to the server ``mlflow``; the rest is ``app``'s.

    ``mlflow`` is a URL, or the port of a server on this machine, which the browser then reaches by the host
    name that it has used for this one. It keeps the part of the address after ``#``, which names the page.
    """

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"].rstrip("/") != "/mlflow":
            return app(environ, start_response)
        location = mlflow if "://" in mlflow else f"http://{_hostname(environ)}:{mlflow}/"
        start_response("302 Found", [("Location", location), ("Cache-Control", "no-store")])
        return [b""]

    return serve


def only_for_this_machine(app: WSGIApplication) -> WSGIApplication:
    """Answer those alone who call this machine by a name of its own.

    A page of another site may have its own name lead to this machine, and would then be taken for ours.
    """

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if is_loopback(urlsplit(f"//{environ.get('HTTP_HOST', '')}").hostname or ""):
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"Call this dashboard by localhost.\n"]

    return serve


def _hostname(environ: WSGIEnvironment) -> str:
    name = urlsplit(f"//{environ['HTTP_HOST']}").hostname or "localhost"
    return f"[{name}]" if ":" in name else name


def _log_with_time() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--mlflow", required=True, help="URL of the MLflow server, or its port on this machine"
    )
    arguments = parser.parse_args()
    database = open_database(load_settings())
    optuna = optuna_dashboard.wsgi(database.optuna, artifact_store=TrialImages(database))
    app = with_mlflow(with_pages(optuna, make_app(database).wsgi_app), arguments.mlflow)
    if is_loopback(arguments.host):
        app = only_for_this_machine(app)
    _log_with_time()
    with listen(arguments.host, arguments.port) as listener:
        WSGIServer(with_safe_answers(app)).run([listener])


if __name__ == "__main__":
    main()
