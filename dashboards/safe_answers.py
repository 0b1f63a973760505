"""Headers that keep the pages of the Optuna dashboard from being used against whoever opens them.

Two clicks on its pages delete a study, so no other site may frame them. What people and workers attach to
trials is served from the same address, so a browser must never take it for a page or a script of ours.
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
"""Types of attachments that a browser may show. SVG is none of them: it may hold scripts."""

_TABLES: Final = "/csv/"
"""Trials of a study as comma-separated values are served below this address."""

_PAGES: Final = (
    "/anitune/",
    "/api/",
    _TABLES,
    "/dashboard",
    "/favicon.ico",
    "/incompatible-rdb-schema",
    "/static/",
)
"""Addresses below which no attachment is served; what is not listed counts as one.

The other way round a path such as ``/artif%FFacts`` would get by: Bottle drops the bytes that it cannot read.
"""

# A browser enforces this policy besides the one that a page may have of its own.
_POLICY: Final = ("Content-Security-Policy", "frame-ancestors 'self'; base-uri 'none'; form-action 'self'")
_ATTACHMENT_POLICY: Final = ("Content-Security-Policy", "sandbox; default-src 'none'")
_DEFAULTS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def with_safe_answers(app: WSGIApplication) -> WSGIApplication:
    """Add the headers to every answer of ``app``, and serve attachments as files to be saved.

    Only raster images keep their type and are shown. No answer may be read by pages of other sites.
    Tables hold no formulas (:mod:`trainer.csv_text`).
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
    """The table of trials as Optuna writes it, without text that a spreadsheet takes for a formula."""
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
