"""Signing in by a printed link, and what pages of other sites get, in a real browser."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from dashboards.servers import DashboardAddresses, Dashboards

if TYPE_CHECKING:
    from conftest import Shown

SIGN_IN = "Open the link that the command printed"

#: What a page tries to reach: as a picture, a script and a frame, by asking, and by sending.
ATTACK = """async urls => {
    const tried = {};
    const load = (tag, url) => new Promise(done => {
        const element = document.createElement(tag);
        element.onload = () => done('loaded'); element.onerror = () => done('refused');
        element.src = url; document.body.append(element);
    });
    for (const url of urls) {
        tried[`img ${url}`] = await load('img', url);
        tried[`script ${url}`] = await load('script', url);
        tried[`fetch ${url}`] = await fetch(url, {credentials: 'include'})
            .then(answer => answer.text(), () => 'refused');
        await fetch(url, {credentials: 'include', method: 'POST', mode: 'no-cors', body: '{"name": "evil"}'})
            .catch(() => null);
    }
    return tried;
}"""


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context() as context:
        yield context


@pytest.fixture
def neighbour() -> Iterator[str]:
    """A server that another account of the machine might run, at another port; it keeps what it is sent."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<title>neighbour</title><body><a id=link>link</a></body>")

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("link", ["page", "study", "mlflow_best", "optuna_best"])
def test_one_click_opens_each_link_and_the_secret_leaves_the_address(
    context: BrowserContext, shown: Shown, link: str
) -> None:
    page = context.new_page()
    page.goto(shown.address(link))
    expect(page.get_by_role("heading", name=SIGN_IN)).to_be_visible()
    page.goto(shown.links[link])
    expect(page.get_by_text(shown.name).first).to_be_visible()
    assert page.url == shown.address(link)
    assert page.evaluate("document.cookie") == ""
    (cookie,) = context.cookies(page.url)
    assert (cookie["sameSite"], cookie["httpOnly"], cookie["expires"]) == ("Strict", True, -1)


@pytest.mark.parametrize("link", ["study", "mlflow_best"])
@pytest.mark.parametrize("site", ["127.0.0.1", "localhost"])
def test_a_link_on_another_page_opens_in_one_click(
    context: BrowserContext, shown: Shown, neighbour: str, link: str, site: str
) -> None:
    # As in a chat or a notebook: the browser withholds cookies from where such a link redirects to.
    page = context.new_page()
    page.goto(neighbour.replace("127.0.0.1", site))
    page.evaluate("url => document.getElementById('link').href = url", shown.links[link])
    page.get_by_role("link", name="link").click()
    expect(page.get_by_text(shown.name).first).to_be_visible()
    assert page.url == shown.address(link)


def test_the_page_that_the_command_opens_leads_on(
    context: BrowserContext, shown: Shown, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        opened: list[str] = []
        patch.setattr("webbrowser.open", opened.append)
        Dashboards(DashboardAddresses("", "", None, ""), (), tmp_path / "1.html").open(
            shown.links["mlflow_best"]
        )
    page = context.new_page()
    page.goto(opened[0])
    expect(page.get_by_text(shown.name).first).to_be_visible()
    assert page.url == shown.address("mlflow_best")


def test_pages_of_another_port_reach_nothing_though_they_have_the_cookie(
    context: BrowserContext, shown: Shown, neighbour: str
) -> None:
    page = context.new_page()
    page.goto(shown.links["mlflow"])
    page.goto(shown.links["optuna"])
    mlflow, optuna = (f"http://{urlsplit(shown.links[server]).netloc}" for server in ("mlflow", "optuna"))
    page.goto(neighbour)
    assert page.title() == "neighbour"
    urls = [
        f"{mlflow}/ajax-api/3.0/mlflow/assistant/config",
        f"{mlflow}/ajax-api/2.0/mlflow/experiments/create",
        f"{mlflow}/ajax-api/2.0/mlflow/experiments/search?max_results=9",
        f"{mlflow}/static-files/favicon.ico",
        f"{optuna}/api/studies",
        f"{optuna}/anitune/static/page.js",
    ]
    tried = page.evaluate(ATTACK, urls)
    assert set(tried.values()) == {"refused"}, tried
    assert "evil" not in experiments(context, mlflow)


def test_they_cannot_show_ours_in_a_frame(context: BrowserContext, shown: Shown, neighbour: str) -> None:
    page = context.new_page()
    page.goto(shown.links["page"])
    page.goto(neighbour)
    page.evaluate(
        "url => { const frame = document.createElement('iframe'); frame.src = url;"
        " document.body.append(frame) }",
        shown.address("page"),
    )
    page.wait_for_timeout(2000)
    (frame,) = page.frames[1:]
    assert shown.name not in frame.content()


def experiments(context: BrowserContext, server: str) -> list[str]:
    page = context.new_page()
    page.goto(f"{server}/version")
    url = f"{server}/ajax-api/2.0/mlflow/experiments/search?max_results=99"
    found = json.loads(page.evaluate("url => fetch(url).then(answer => answer.text())", url))
    return [each["name"] for each in found["experiments"]]
