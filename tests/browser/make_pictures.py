"""Makes the pictures of the README and the docs, of a study that is there.

Not collected by itself. After ``make run``::

    .venv/bin/python -m pytest tests/browser/make_pictures.py --study quickstart

writes ``docs/images/*.png`` from the dashboards of the study ``quickstart`` in ``$ANITUNE_HOME``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Page

if TYPE_CHECKING:
    from conftest import Shown

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SIZE = {"width": 1400, "height": 860}  # pixels

PICTURES = {
    "first-page": ("study", ".plot .scatterlayer .point"),
    "optuna-ranking": ("optuna_ranking", "table tbody tr"),
    "optuna-trial": ("optuna_best", "p img[src^='/artifacts/']"),
    "optuna-study": ("optuna_study", ".js-plotly-plot .scatterlayer .point"),
    "mlflow-leaderboard": ("mlflow_runs", ".ag-center-cols-container .ag-row"),
    "mlflow-curves": ("mlflow_curves", ".js-plotly-plot .scatterlayer .trace"),
}
"""By file name: the page, and what is there when it is complete."""


@pytest.mark.parametrize("name", PICTURES)
def test_make_picture(page: Page, shown: Shown, name: str) -> None:
    link, content = PICTURES[name]
    page.set_viewport_size(SIZE)  # type: ignore[arg-type]
    page.goto(shown.links[link])
    page.locator(content).last.wait_for()
    if link in ("mlflow_runs", "mlflow_curves"):
        page.get_by_role("button", name="Hide banner").click()
    page.wait_for_timeout(3000)  # curves and images are drawn one after the other
    IMAGES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=IMAGES / f"{name}.png")
