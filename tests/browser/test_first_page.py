"""What a person sees first: our own page of a study, and where its links lead."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Page, expect

if TYPE_CHECKING:
    from conftest import Shown

ROWS = "#leaderboard tbody tr"
POINTS = ".scatterlayer .point"


def wait_for_plots(page: Page) -> None:
    for plot in page.locator(".plot").all():
        plot.locator(".main-svg").first.wait_for()


def test_the_study_is_listed_and_leads_to_its_leaderboard(
    page: Page, shown: Shown, screenshots: Path
) -> None:
    page.goto(shown.links["page"])
    row = page.locator("#studies tbody tr").filter(has_text=shown.name).first
    expect(row).to_contain_text(f"{shown.complete[0]['val_mae_kcalmol']:.3f}")
    page.screenshot(path=screenshots / "page-studies.png")
    row.get_by_role("link", name=shown.name, exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(shown.name)
    assert page.url == shown.address("study")


def test_every_trial_is_there_and_sorting_by_error_puts_the_best_first(page: Page, shown: Shown) -> None:
    page.goto(shown.links["study"])
    own = page.locator(f"{ROWS}[id]")
    expect(own).to_have_count(len(shown.trials))
    best = shown.complete[0]
    expect(page.locator(ROWS).filter(has=page.locator("td:text-is('1')")).first).to_be_visible()

    page.get_by_role("button", name="parameters").click()
    page.get_by_role("button", name="parameters").click()
    parameters = [
        float(cell.get_attribute("data-v") or 0) for cell in page.locator(f"{ROWS} td:nth-child(7)").all()
    ]
    known = [value for value in parameters if value]
    assert known == sorted(known, reverse=True)
    page.get_by_role("button", name="MAE", exact=True).click()
    first = page.locator(f"{ROWS}[id]").filter(has_text="complete").first
    expect(first).to_contain_text(f"{best['val_mae_kcalmol']:.3f}")
    expect(first).to_contain_text(best["architecture"])
    expect(page.get_by_role("columnheader", name="MAE", exact=True)).to_have_attribute(
        "aria-sort", "ascending"
    )


def test_plots_have_a_point_for_each_trial(page: Page, shown: Shown) -> None:
    page.goto(shown.links["study"])
    wait_for_plots(page)
    ended = [trial for trial in shown.trials if trial["val_mae_kcalmol"] is not None]
    expect(page.locator(f"#history {POINTS}")).to_have_count(len(ended))
    assert page.locator(f"#cost {POINTS}").count() > len(shown.complete)  # and those of the front
    for plot in page.locator(".plot").all():
        assert len(plot.get_attribute("aria-label") or "") > 20


def test_a_trial_leads_to_its_run_in_mlflow_and_from_there_back(page: Page, shown: Shown) -> None:
    best = shown.complete[0]
    page.goto(shown.links["study"])
    page.locator(f"#trial-{best['trial']}").get_by_role("link", name="MLflow").click()
    expect(page.get_by_role("heading", name=f"trial {best['trial']}")).to_be_visible()
    assert page.url == shown.address("mlflow_best")
    back = page.get_by_role("link", name=f"trial {best['trial']} in Optuna")
    with page.context.expect_page() as opened:
        back.click()
    optuna = opened.value
    expect(optuna.get_by_role("heading", name=re.compile(rf"^Trial {best['trial']} "))).to_be_visible()
    expect(optuna.get_by_role("heading", name=best["architecture"])).to_be_visible()


def test_on_a_phone_the_number_of_a_trial_leads_to_it(page: Page, shown: Shown) -> None:
    number = shown.complete[0]["trial"]
    page.set_viewport_size({"width": 400, "height": 900})
    page.goto(shown.links["study"])
    page.locator(f"#trial-{number}").get_by_role("link", name=str(number), exact=True).click()
    expect(page.get_by_role("heading", name=re.compile(rf"^Trial {number} "))).to_be_visible()


def test_plots_that_news_replace_are_let_go(page: Page, shown: Shown) -> None:
    page.goto(shown.links["study"])
    wait_for_plots(page)
    # A plot has its layout until it is purged.
    replaced = page.evaluate(
        "async () => { const old = document.querySelector('.plot'); const before = '_fullLayout' in old;"
        " version = 'of old'; await refresh(); return [before, old.isConnected, '_fullLayout' in old]; }"
    )
    assert replaced == [True, False, False]
    wait_for_plots(page)


def test_optunas_note_of_a_study_leads_to_the_leaderboard(page: Page, shown: Shown) -> None:
    page.goto(shown.links["optuna_ranking"])
    page.get_by_role("link", name="Leaderboard", exact=True).click()
    expect(page.locator(ROWS).first).to_be_visible()
    assert page.url == shown.address("study")


@pytest.mark.parametrize("colors", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_can_be_read(
    page: Page,
    shown: Shown,
    faults: Callable[[Page], list[str]],
    screenshots: Path,
    width: int,
    colors: str,
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=colors)  # type: ignore[arg-type]
    page.goto(shown.links["study"])
    wait_for_plots(page)
    assert faults(page) == []
    page.screenshot(path=screenshots / f"page-study-{width}-{colors}.png", full_page=True)
