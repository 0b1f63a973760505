"""What a person sees of a study in the Optuna dashboard."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import Locator, Page, expect

if TYPE_CHECKING:
    from conftest import Shown


def assert_loaded(images: Locator) -> None:
    """Every image has come, and is one."""
    for image in images.all():
        image.page.wait_for_function("image => image.complete", arg=image.element_handle())
        assert image.evaluate("image => image.naturalWidth") > 100, image.get_attribute("src")


def test_the_study_is_listed(page: Page, shown: Shown, screenshots: Path) -> None:
    page.goto(shown.links["optuna"])
    expect(page.get_by_text(shown.name).first).to_be_visible()
    page.screenshot(path=screenshots / "optuna-studies.png")


def test_the_study_shows_its_history(page: Page, shown: Shown, screenshots: Path) -> None:
    page.goto(shown.links["optuna_study"])
    expect(page.get_by_text("val MAE, kcal/mol").first).to_be_visible()
    page.locator(".js-plotly-plot .scatterlayer .point").first.wait_for()
    page.screenshot(path=screenshots / "optuna-study.png")


def test_every_trial_is_in_the_list(page: Page, shown: Shown, screenshots: Path) -> None:
    page.goto(shown.links["optuna_study"].replace("?", "/trials?"))
    for trial in shown.trials:
        expect(page.get_by_text(f"Trial {trial['trial']}", exact=True).first).to_be_visible()
    page.screenshot(path=screenshots / "optuna-trials.png")


def test_a_trial_shows_its_numbers_and_plots(page: Page, shown: Shown, screenshots: Path) -> None:
    best = shown.complete[0]
    page.goto(shown.links["optuna_best"])
    expect(page.get_by_role("heading", name=best["architecture"])).to_be_visible()
    expect(page.get_by_text(f"{best['val_mae_kcalmol']:.3f} kcal/mol")).to_be_visible()
    in_note = page.locator("p img[src^='/artifacts/']")
    expect(in_note).to_have_count(2)
    assert_loaded(page.locator("img[src^='/artifacts/']"))
    page.screenshot(path=screenshots / "optuna-trial.png")


def test_a_trial_leads_to_its_run_in_mlflow(page: Page, shown: Shown) -> None:
    page.goto(shown.links["optuna_best"])
    page.get_by_role("link", name="Run in MLflow").click()
    expect(page.get_by_role("heading", name=f"trial {shown.complete[0]['trial']}")).to_be_visible()
    assert page.url == shown.address("mlflow_best")


def test_the_ranking_leads_to_trials(page: Page, shown: Shown, screenshots: Path) -> None:
    page.goto(shown.links["optuna_ranking"])
    rows = page.locator("table tbody tr")
    expect(rows).to_have_count(min(len(shown.complete), 20))
    for row, trial in zip(rows.all(), shown.complete, strict=False):
        expect(row).to_contain_text(f"{trial['val_mae_kcalmol']:.3f}")
        expect(row).to_contain_text(trial["architecture"])
    page.screenshot(path=screenshots / "optuna-ranking.png")

    worst = shown.complete[: rows.count()][-1]
    rows.last.get_by_role("link", name=str(worst["trial"]), exact=True).click()
    expect(page.get_by_role("heading", name=re.compile(rf"^Trial {worst['trial']} "))).to_be_visible()
