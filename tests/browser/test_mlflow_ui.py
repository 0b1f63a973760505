"""What a person sees of a study in the MLflow UI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import Page, expect

from dashboards import links

if TYPE_CHECKING:
    from conftest import Shown

POINTS = ".js-plotly-plot .scatterlayer .point"


def run_place(shown: Shown) -> tuple[str, str, str]:
    """Server, experiment and run of the best trial, as functions of ``links`` want them."""
    server, _, rest = shown.address("mlflow_best").partition("/#/experiments/")
    return server, rest.split("/")[0], shown.complete[0]["mlflow_run_id"]


def sign_in(page: Page, shown: Shown) -> None:
    page.goto(shown.links["mlflow"], wait_until="commit")


def test_the_experiment_is_listed(page: Page, shown: Shown, screenshots: Path) -> None:
    page.goto(shown.links["mlflow"])
    expect(page.get_by_role("link", name=shown.name, exact=True).first).to_be_visible()
    page.screenshot(path=screenshots / "mlflow-experiments.png")


def test_the_leaderboard_has_all_runs_the_best_first(page: Page, shown: Shown, screenshots: Path) -> None:
    page.goto(shown.links["mlflow_runs"])
    for trial in shown.trials:
        expect(page.get_by_role("link", name=f"trial {trial['trial']}", exact=True)).to_be_visible()
    architectures = page.locator(".ag-center-cols-container .ag-row [col-id='tags.`arch`']")
    expect(architectures.first).to_be_visible()
    expect(page.get_by_text("final/val_mae_kcalmol").first).to_be_visible()
    page.screenshot(path=screenshots / "mlflow-leaderboard.png")
    rows = page.locator(".ag-center-cols-container .ag-row")
    found = {
        row.get_attribute("row-index"): row.locator("[col-id='tags.`arch`']").inner_text()
        for row in rows.all()
    }
    for place, trial in enumerate(shown.complete[:5]):
        assert found[str(place)].strip() == trial["architecture"]


def test_curves_of_the_study_lie_over_each_other(page: Page, shown: Shown, screenshots: Path) -> None:
    page.goto(shown.links["mlflow_curves"])
    for metric in ("val/mae_kcalmol", "val/loss", "train/loss"):
        expect(page.get_by_role("heading", name=metric, exact=True)).to_be_visible()
    page.locator(POINTS).first.wait_for()
    page.screenshot(path=screenshots / "mlflow-curves.png")
    assert page.locator(".js-plotly-plot .scatterlayer .trace").count() > len(shown.complete)


def test_a_run_begins_with_what_it_came_to(page: Page, shown: Shown, screenshots: Path) -> None:
    best = shown.complete[0]
    page.goto(shown.links["mlflow_best"])
    expect(page.get_by_text(best["architecture"]).first).to_be_visible()
    expect(page.get_by_text(f"{best['val_mae_kcalmol']:.3f} kcal/mol").first).to_be_visible()
    expect(page.get_by_text("final/val_mae_kcalmol", exact=True)).to_be_visible()
    page.screenshot(path=screenshots / "mlflow-run.png")


def test_a_run_shows_its_loss_at_every_epoch(page: Page, shown: Shown, screenshots: Path) -> None:
    sign_in(page, shown)
    page.goto(links.mlflow_run_losses(*run_place(shown)))
    page.locator(POINTS).first.wait_for()
    epochs = shown.complete[0]["epochs"]
    expect(page.locator(POINTS)).to_have_count(2 * epochs)  # of training and validation
    expect(page.get_by_text(f"(step={epochs})").first).to_be_visible()
    page.screenshot(path=screenshots / "mlflow-losses.png")


def test_a_plot_of_a_run_is_shown(page: Page, shown: Shown, screenshots: Path) -> None:
    sign_in(page, shown)
    page.goto(links.mlflow_run_file(*run_place(shown), "plots/loss.png"))
    image = page.locator("img[src^='blob:']").first
    image.wait_for()
    page.wait_for_function("image => image.complete && image.naturalWidth > 100", arg=image.element_handle())
    page.screenshot(path=screenshots / "mlflow-plot.png")
