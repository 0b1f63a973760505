"""What a person sees of a study of error and parameters, on our page and in the Optuna dashboard."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Page, expect

if TYPE_CHECKING:
    from conftest import Shown

STUDY = """
name: front
data: {{files: [{data}]}}
objectives: [val_mae, parameters]
constraints: {{parameters: {{at_most: 100000}}}}
training: {{epochs: 4, device: cpu}}
space:
  layers: {{low: 1, high: 2}}
  width: {{low: 8, high: 64, step: 8}}
  activation: {{choices: [celu, silu]}}
  batch_size: 16
sampler: {{kind: tpe, startup_trials: 4}}
limits: {{trials: 8}}
"""


@pytest.fixture(scope="module")
def front(
    environment: dict[str, str], data_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What ``anitune study show`` says of a second study in the home that the servers show."""

    def anitune(*arguments: str) -> str:
        command = [sys.executable, "-m", "search.cli.main", *arguments]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    file = tmp_path_factory.mktemp("front") / "study.yaml"
    file.write_text(STUDY.format(data=data_file))
    anitune("study", "run", str(file), "--pack", "1")
    shown: dict[str, Any] = json.loads(anitune("study", "show", "front", "--json"))
    return shown


def test_our_page_shows_the_front_and_its_knee(
    page: Page,
    shown: Shown,
    front: dict[str, Any],
    faults: Callable[[Page], list[str]],
    screenshots: Path,
) -> None:
    page.goto(shown.links["page"])
    page.get_by_role("link", name="front", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("front")
    expect(page.locator("dl.facts")).to_contain_text(f"trial {front['knee']}")
    expect(page.get_by_text(f"its knee is trial {front['knee']}")).to_be_visible()
    rows = page.locator("#leaderboard tbody tr")
    marks = {
        int((row.get_attribute("id") or "").removeprefix("trial-")): row.locator("td").nth(-2).inner_text()
        for row in rows.all()
    }
    assert {number for number, mark in marks.items() if mark} == set(front["front"])
    assert [number for number, mark in marks.items() if mark == "knee"] == [front["knee"]]
    page.locator("#cost .main-svg").first.wait_for()  # the scripts of the page run by now
    page.get_by_role("button", name="front", exact=True).click()
    expect(page.get_by_role("columnheader", name="front", exact=True)).to_have_attribute(
        "aria-sort", "ascending"
    )
    sorted_marks = [row.locator("td").nth(-2).inner_text() for row in rows.all()]
    assert all(sorted_marks[: len(front["front"])]), "trials on the front come first"
    expect(page.locator("#cost .legend")).to_contain_text("knee")
    page.screenshot(path=screenshots / "page-front.png", full_page=True)
    assert faults(page) == []


def test_the_optuna_dashboard_shows_both_objectives_and_our_note(
    page: Page, shown: Shown, front: dict[str, Any], screenshots: Path
) -> None:
    page.goto(shown.links["optuna"].split("/studies/")[0])  # the list of studies
    page.get_by_text(re.compile(r"^\d+\. front$")).first.click()
    for heading in ("Pareto Front", "val MAE, kcal/mol"):
        expect(page.get_by_text(heading).first).to_be_visible()
    page.locator(".js-plotly-plot .scatterlayer .point").first.wait_for()
    page.screenshot(path=screenshots / "optuna-front.png", full_page=True)
    study = page.url.split("/studies/")[1].split("/")[0].split("?")[0]
    page.goto(page.url.split("/studies/")[0] + f"/studies/{study}/note")
    expect(page.get_by_text(f"its knee is trial {front['knee']}")).to_be_visible()
    expect(page.get_by_role("cell", name="knee", exact=True)).to_be_visible()
    page.screenshot(path=screenshots / "optuna-front-note.png")
