"""A real browser on our pages and both dashboards of a real study: a tiny one, or that of ``--study``."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from select import select
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, Response, expect, sync_playwright

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "build" / "screenshots"
SIZE = {"width": 1600, "height": 1000}  # pixels
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)

#: Neither a sandbox (in a container it has no rights to make one) nor anything that calls home.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

#: What is no fault, and whose: a part of the text, and of the address if there is one.
KNOWN_NOISE = (
    # MLflow asks who is signed in; a server without sign-in has no such page.
    ("404", "/ajax-api/2.0/mlflow/users/current"),
    # It asks for its assistant, too, which we refuse.
    ("403", "/ajax-api/3.0/mlflow/assistant/"),
    # Chromium says so when a page needs two steps to lay itself out.
    ("ResizeObserver loop completed with undelivered notifications", ""),
)

#: MLflow's assistant takes a quarter of the page on the first visit only.
ASSISTANT_WAS_CLOSED = """
if (location.protocol === 'http:')
    localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')
"""

SMALLEST = 11.0  # pixels: text below this is not read

#: Text that stands on a page but is too small, or beyond its right edge and cannot be scrolled to.
FAULTS = """smallest => {
    const faults = [];
    if (document.documentElement.scrollWidth > innerWidth)
        faults.push(`the page is ${document.documentElement.scrollWidth} wide`);
    const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const parent = node.parentElement;
        const shown = parent.offsetParent && !parent.closest('script, .js-plotly-plot');
        if (!shown || !node.textContent.trim()) continue;
        const size = parseFloat(getComputedStyle(parent).fontSize);
        if (size < smallest) faults.push(`${size} px: ${node.textContent.trim()}`);
    }
    for (const plot of document.querySelectorAll('.js-plotly-plot .main-svg'))
        if (plot.getBoundingClientRect().right > innerWidth + 1) faults.push('a plot is cut off');
    return faults;
}"""

STUDY = """
name: widths
data: {{files: [{data}]}}
training: {{epochs: {epochs}, device: cpu}}
space:
  layers: {{low: 1, high: 2}}
  width: {{low: 8, high: 16, step: 8}}
  activation: {{choices: [celu, silu]}}
  learning_rate: {{low: 1.0e-4, high: 0.3, log: true}}
  batch_size: {{choices: [16, 32]}}
sampler: {{kind: random}}
pruner: {{kind: asha, min_epochs: 2}}
limits: {{trials: {trials}}}
seed: 2
"""
EPOCHS, TRIALS = 8, 6


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--study", help="look at this study of ANITUNE_HOME instead of training a tiny one")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@dataclass(frozen=True)
class Shown:
    """A study whose dashboards run: their links, and what ``anitune study show`` says of it."""

    name: str
    links: dict[str, str]
    trials: list[dict[str, Any]]

    def address(self, page: str) -> str:
        """Where a link leads to: it signs in, and is seen without the secret."""
        return re.sub(r"[?&]token=[^&#]+", "", self.links[page])

    @property
    def complete(self) -> list[dict[str, Any]]:
        """The complete trials, the best first."""
        complete = [trial for trial in self.trials if trial["state"] == "complete"]
        return sorted(complete, key=lambda trial: trial["val_mae_kcalmol"])


@dataclass
class Complaints:
    """What a browser had to complain of, and where else than to the dashboards it went."""

    ours: set[str]
    found: list[str] = field(default_factory=list)

    def listen(self, context: BrowserContext) -> None:
        context.on("console", lambda said: self._add(said.text, said.location["url"], said.type == "error"))
        context.on("weberror", lambda error: self._add(str(error.error), "", True))
        context.on("response", self._response)
        context.on("request", self._request)

    def _add(self, text: str, url: str, fault: bool) -> None:
        if fault and not any(words in text and place in url for words, place in KNOWN_NOISE):
            self.found.append(f"{text} {url}".strip())

    def _response(self, response: Response) -> None:
        self._add(str(response.status), response.url, response.status >= 400)

    def _request(self, request: Request) -> None:
        address = urlsplit(request.url)
        foreign = address.scheme not in ("data", "blob", "file") and address.netloc not in self.ours
        self._add("a request to elsewhere", request.url, foreign)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        reason = "needs Chromium: apt-get install chromium"
        if os.environ.get("ANITUNE_REQUIRE_SYSTEM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def environment(
    browser: Browser,  # first, so that nothing is trained where there is no browser
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """Variables of the commands: of the home folder with the study to look at."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if request.config.getoption("--study", default=None) is None:
        folder = tmp_path_factory.mktemp("browser")
        environment["ANITUNE_HOME"] = str(folder / "home")
        file = folder / "study.yaml"
        data = request.getfixturevalue("data_file")
        file.write_text(STUDY.format(data=data, epochs=EPOCHS, trials=TRIALS))
        _anitune(environment, "study", "run", str(file))
    return environment


@pytest.fixture(scope="session")
def shown(environment: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Shown]:
    name = request.config.getoption("--study", default=None) or "widths"
    trials = json.loads(_anitune(environment, "study", "show", name, "--json"))["rows"]
    process = subprocess.Popen(
        [sys.executable, "-m", "search.cli.main", "dashboards", "--study", name, "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert select([process.stdout], [], [], 120)[0], "the dashboards print no links"
    line = process.stdout.readline()
    assert line, process.communicate(timeout=60)
    yield Shown(name, json.loads(line), trials)
    process.send_signal(signal.SIGTERM)
    _, complained = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in complained) == (0, False)


@pytest.fixture(scope="session")
def report(environment: dict[str, str], shown: Shown, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of the study."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    _anitune(environment, "report", shown.name, "--out", str(path))
    return path


@pytest.fixture
def page(browser: Browser, shown: Shown) -> Iterator[Page]:
    """An empty page; at the end nothing may have been complained of, and nothing have left the machine."""
    complaints = Complaints({urlsplit(shown.links[server]).netloc for server in ("mlflow", "optuna")})
    with browser.new_context(viewport=SIZE) as context:  # type: ignore[arg-type]
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(ASSISTANT_WAS_CLOSED)
        complaints.listen(context)
        yield context.new_page()
    assert complaints.found == []


@pytest.fixture
def faults() -> Callable[[Page], list[str]]:
    """What on a page cannot be read: text that is too small, and what is beyond its right edge."""
    return lambda page: page.evaluate(FAULTS, SMALLEST)


@pytest.fixture
def screenshots() -> Path:
    """Where pictures are kept for people to look at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS


def _anitune(environment: dict[str, str], *arguments: str) -> str:
    answer = subprocess.run(
        [sys.executable, "-m", "search.cli.main", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout
