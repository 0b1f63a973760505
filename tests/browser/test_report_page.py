"""A report as somebody opens it who has nothing but the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Page, expect

if TYPE_CHECKING:
    from conftest import Shown


def open_report(page: Page, report: Path) -> None:
    page.goto(report.as_uri())
    for plot in page.locator(".plot").all():
        plot.locator(".main-svg").first.wait_for()


def test_plots_are_interactive_and_have_their_points(page: Page, shown: Shown, report: Path) -> None:
    open_report(page, report)
    ended = [trial for trial in shown.trials if trial["val_mae_kcalmol"] is not None]
    course = page.locator("section").filter(has=page.get_by_role("heading", name="Progress of the search"))
    expect(course.locator(".plot").first.locator(".scatterlayer .point")).to_have_count(len(ended))
    curves = page.locator("section").filter(has=page.get_by_role("heading", name="Loss curves"))
    expect(curves.locator(".scatterlayer .trace")).to_have_count(min(len(shown.complete), 5) + 1)


def test_the_leaderboard_is_sorted_by_a_click(page: Page, shown: Shown, report: Path) -> None:
    open_report(page, report)
    table = page.locator(f"#leaderboard-{shown.name}")
    table.get_by_role("button", name="epochs").click()
    table.get_by_role("button", name="MAE", exact=True).click()
    best = shown.complete[0]
    complete = table.locator("tbody tr").filter(has_text="complete")
    expect(complete.first).to_contain_text(f"{best['val_mae_kcalmol']:.3f}")


@pytest.mark.parametrize("colors", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_can_be_read(
    page: Page,
    report: Path,
    faults: Callable[[Page], list[str]],
    screenshots: Path,
    width: int,
    colors: str,
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=colors)  # type: ignore[arg-type]
    open_report(page, report)
    assert faults(page) == []
    page.screenshot(path=screenshots / f"report-{width}-{colors}.png", full_page=True)


def test_on_a_phone_the_error_stands_beside_the_architecture(page: Page, shown: Shown, report: Path) -> None:
    page.set_viewport_size({"width": 400, "height": 900})
    open_report(page, report)
    table = page.locator(f"#leaderboard-{shown.name}")
    box = table.get_by_role("button", name="MAE", exact=True).bounding_box()
    assert box is not None
    assert box["x"] + box["width"] < 380


def test_it_can_be_printed(page: Page, report: Path, screenshots: Path) -> None:
    open_report(page, report)
    page.pdf(path=screenshots / "report.pdf", format="A4", margin={"left": "15mm", "right": "15mm"})
    assert (screenshots / "report.pdf").read_bytes().startswith(b"%PDF")
