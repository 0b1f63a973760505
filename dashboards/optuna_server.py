"""Serve our pages and the Optuna dashboard for the storage that the environment names.

It runs as a process of its own. The storage's URL, which may hold a password, comes from the environment,
where a list of processes does not show it. Threads serve the requests (:mod:`dashboards.wsgi_server`), since
``optuna_dashboard.run_server`` answers one at a time. Our own paths are ``/``, the pages below ``/anitune``
(:mod:`dashboards.page.app`), and ``/mlflow``, which redirects to the MLflow server: notes link to runs by it,
and so stay right when that server has another port tomorrow.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Container, Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import optuna_dashboard

from dashboards import links
from dashboards.access import allowed_names, with_access, with_token
from dashboards.listening import add_arguments, given_access, given_listener
from dashboards.optuna_images import TrialImages
from dashboards.page.app import make_app
from dashboards.printable import PrintableFormatter
from dashboards.safe_answers import with_safe_answers
from dashboards.wsgi_server import WSGIServer
from storage.database import open_database
from storage.settings import load_settings
from storage.tokens import is_loopback, read_token

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def with_pages(app: WSGIApplication, pages: WSGIApplication) -> WSGIApplication:
    """Let ``pages`` answer below ``/anitune``, and redirect ``/`` there; ``app`` answers the rest."""

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path in ("", "/", links.PAGE):
            start_response("302 Found", [("Location", links.first_page("")), ("Cache-Control", "no-store")])
            return [b""]
        return (pages if path.startswith(f"{links.PAGE}/") else app)(environ, start_response)

    return serve


def with_mlflow(app: WSGIApplication, mlflow: str, home: Path, own_names: Container[str]) -> WSGIApplication:
    """Answer ``/mlflow`` with a redirection to the server ``mlflow``; ``app`` answers the rest.

    ``mlflow`` is a URL, or the port of a server on this machine, which the browser then reaches by the host
    name that it used for this one. The browser keeps the part of the address after ``#``, which names the
    page. The redirection also signs in there if that server was started in the same home folder, and if the
    address certainly leads to this machine.

    Parameters
    ----------
    own_names
        Names of this machine besides loopback.
    """

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"].rstrip("/") != "/mlflow":
            return app(environ, start_response)
        name = urlsplit(f"//{environ['HTTP_HOST']}").hostname or "localhost"
        in_url = f"[{name}]" if ":" in name else name
        location = mlflow if "://" in mlflow else f"http://{in_url}:{mlflow}/"
        token = read_token(home, mlflow if "://" in mlflow else f"http://localhost:{mlflow}")
        # On another machine localhost is that machine; behind a proxy's name another port is not ours.
        leads_here = is_loopback(name) or ("://" not in mlflow and name in own_names)
        location = with_token(location, token if leads_here else None)
        start_response("302 Found", [("Location", location), ("Cache-Control", "no-store")])
        return [b""]

    return serve


def _log_with_time() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--mlflow", required=True, help="URL of the MLflow server, or its port on this machine"
    )
    arguments = parser.parse_args()
    database = open_database(load_settings())
    optuna = optuna_dashboard.wsgi(database.optuna, artifact_store=TrialImages(database))
    pages = with_mlflow(
        with_pages(optuna, make_app(database).wsgi_app),
        arguments.mlflow,
        database.settings.home,
        allowed_names(arguments.host),
    )
    # The sign-in page is not among the pages that with_safe_answers knows.
    access = given_access(arguments)
    _log_with_time()
    with given_listener(arguments) as listener:
        WSGIServer(with_access(with_safe_answers(pages), access)).run([listener])


if __name__ == "__main__":
    main()
