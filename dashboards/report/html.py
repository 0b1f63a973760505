"""A report as a single page that needs no other file and no network."""

from __future__ import annotations

import itertools
from functools import cache
from importlib.resources import files
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from dashboards.chart import figure_json
from dashboards.report.contents import StudyReport

_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
"""The browser must fetch nothing, since the page contains all that it needs."""


def report_html(report: StudyReport) -> str:
    """Render the page, with plotly included once."""
    template = _environment().get_template("report.html")
    return template.render(
        report=report,
        policy=_POLICY,
        style=_asset("style.css"),
        script=_asset("page.js"),
        plotly=files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8"),
        ids=itertools.count(1).__next__,
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dashboards.report"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure_json
    return environment


def _asset(name: str) -> str:
    return files("dashboards").joinpath("assets", name).read_text(encoding="utf-8")
