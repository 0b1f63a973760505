"""Headers that protect people who open the pages of the Optuna dashboard.

Two clicks on its pages delete a study, so no other site may frame them. Attachments of trials, by people and
workers, are served from the same address, so a browser must never treat one as a page or script of ours.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from trainer.csv_text import plain_cell

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

RASTER_IMAGES: Final = frozenset({"image/gif", "image/jpeg", "image/png", "image/webp"})
"""Types of attachments that a browser may show. SVG is not among them, because it may hold scripts."""

_TABLES: Final = "/csv/"
"""Path below which the trials of a study are served as comma-separated values."""

_PAGES: Final = (
    "/anitune/",
    "/api/",
    _TABLES,
    "/dashboard",
    "/favicon.ico",
    "/incompatible-rdb-schema",
    "/static/",
)
"""Paths below which no attachment is served; all other paths count as attachments.

A list of attachment paths would let ``/artif%FFacts`` through: Bottle drops the bytes that it cannot read.
"""

# A browser enforces this policy in addition to any that a page has of its own.
_POLICY: Final = ("Content-Security-Policy", "frame-ancestors 'self'; base-uri 'none'; form-action 'self'")
_ATTACHMENT_POLICY: Final = ("Content-Security-Policy", "sandbox; default-src 'none'")
_DEFAULTS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def with_safe_answers(app: WSGIApplication) -> WSGIApplication:
    """Wrap ``app``: add the headers to every answer, and serve attachments as downloads.

    Only raster images keep their type and are shown. Pages of other sites can read no answer. Tables hold no
    formulas (:mod:`trainer.csv_text`).
    """

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path: str = environ["PATH_INFO"]
        table = False

        def start(
            status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
        ) -> Callable[[bytes], object]:
            nonlocal table
            found = status.startswith("2")
            headers = (
                _for_pages(headers) if path.startswith(_PAGES) or not found else _for_attachments(headers)
            )
            if table := found and path.startswith(_TABLES):  # its length changes
                headers = [item for item in headers if item[0].lower() != "content-length"]
            return start_response(status, headers, exc_info)

        answer = app(environ, start)
        return [_plain_table(b"".join(answer))] if table else answer

    return serve


def _plain_table(content: bytes) -> bytes:
    """The table of trials that Optuna wrote, without text that a spreadsheet takes for a formula."""
    csv.field_size_limit(max(csv.field_size_limit(), len(content)))
    rows = list(csv.reader(io.StringIO(content.decode(errors="replace"), newline="")))
    text = io.StringIO(newline="")
    csv.writer(text).writerows(map(plain_cell, row) for row in rows)
    return text.getvalue().encode()


def _for_pages(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    kept = [(name, value) for name, value in headers if not name.lower().startswith("access-control-")]
    given = {name.lower() for name, _ in kept}
    return [*kept, _POLICY, *(item for item in _DEFAULTS.items() if item[0].lower() not in given)]


def _for_attachments(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    given = {name.lower(): value for name, value in headers}
    kind = given.get("content-type", "").partition(";")[0].strip().lower()
    shown = kind in RASTER_IMAGES
    return [
        ("Content-Type", kind if shown else "application/octet-stream"),
        *([] if shown else [("Content-Disposition", "attachment")]),
        _POLICY,
        _ATTACHMENT_POLICY,
        *_DEFAULTS.items(),
    ]
