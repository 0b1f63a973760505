"""What a page of another site, or a hostile attachment, gets out of a browser that shows the dashboard."""

from __future__ import annotations

import base64
import http.server
import json
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import optuna
import optuna_dashboard
import pytest
from playwright.sync_api import Browser, expect

from dashboards.listening import listen
from dashboards.optuna_images import TrialImages
from dashboards.safe_answers import with_safe_answers
from dashboards.wsgi_server import WSGIServer
from storage.database import open_database
from storage.settings import Settings

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SCRIPT = b"<h1>attached</h1><script>document.title = 'it ran'; localStorage.setItem('ran', '1')</script>"
PATIENCE_MS = 30_000


@dataclass(frozen=True)
class Dashboard:
    """Where it answers, and of a study with attachments its note and the attachments' addresses."""

    url: str
    note: str
    page: str
    script: str


@pytest.fixture(scope="module")
def dashboard(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    home = tmp_path_factory.mktemp("frames")
    settings = Settings(home, f"sqlite:///{home / 'anitune.db'}", f"sqlite:///{home / 'mlflow.db'}")
    with open_database(settings) as database, listen("127.0.0.1", 0) as listener:
        app = optuna_dashboard.wsgi(database.optuna, artifact_store=TrialImages(database))
        study = optuna.create_study(storage=database.optuna, study_name="widths")

        def attach(content: bytes, kind: str) -> str:
            artifact = str(uuid.uuid4())
            (settings.optuna_artifacts / artifact).write_bytes(content)
            meta = {"artifact_id": artifact, "filename": "x", "mimetype": kind, "encoding": None}
            database.optuna.set_study_system_attr(study._study_id, f"artifacts:{artifact}", json.dumps(meta))
            return f"/artifacts/{study._study_id}/{artifact}"

        image, script = (
            attach(PNG, "image/png"),
            attach(b"localStorage.setItem('ran', '1')", "text/javascript"),
        )
        optuna_dashboard.save_note(
            study, f"![loss]({image})\n\n<iframe src='{attach(SCRIPT, 'text/html')}'></iframe>"
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = WSGIServer(with_safe_answers(app))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        page = attach(SCRIPT, "text/html")
        yield Dashboard(url, f"{url}/dashboard/studies/{study._study_id}/note", url + page, url + script)
        server.should_exit = True
        thread.join(timeout=30)


@pytest.fixture
def elsewhere(dashboard: Dashboard, tmp_path: Path) -> Iterator[str]:
    """A page of another site, with the dashboard in a frame."""
    (tmp_path / "index.html").write_text(
        f"<h1>Win a prize</h1><iframe src='{dashboard.url}/dashboard'></iframe>"
        f"<script src='{dashboard.script}'></script>"
    )
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()
        thread.join(timeout=30)


def test_images_of_a_note_are_shown_and_attached_pages_are_not(
    browser: Browser, dashboard: Dashboard
) -> None:
    with browser.new_context() as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(dashboard.note)
        image = page.locator("p img[src^='/artifacts/']")
        expect(image).to_have_count(1)
        page.wait_for_function("image => image.complete", arg=image.element_handle())
        assert image.evaluate("image => image.naturalWidth") == 1
        assert [frame.url for frame in page.frames if frame.get_by_text("attached").count()] == []
        assert page.evaluate("localStorage.getItem('ran')") is None


def test_a_page_that_was_attached_is_saved_and_not_opened(browser: Browser, dashboard: Dashboard) -> None:
    with browser.new_context() as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(f"{dashboard.url}/dashboard")
        with page.expect_download() as download:
            page.evaluate("url => { location.href = url }", dashboard.page)
        assert Path(download.value.path()).read_bytes() == SCRIPT
        assert page.title() != "it ran"
        page.evaluate(
            "url => document.head.append(Object.assign(document.createElement('script'), {src: url}))",
            dashboard.script,
        )
        page.wait_for_timeout(500)
        assert page.evaluate("localStorage.getItem('ran')") is None, "nor is it a script of the dashboard"


def test_another_site_may_not_frame_the_dashboard(
    browser: Browser, dashboard: Dashboard, elsewhere: str
) -> None:
    with browser.new_context() as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        refused: list[str] = []
        page.on("console", lambda said: refused.append(said.text))
        page.goto(elsewhere, wait_until="load")
        (frame,) = page.frames[1:]
        assert frame.get_by_text("Optuna").count() == 0
        assert frame.url.startswith("chrome-error:"), frame.url
        assert any("frame-ancestors" in text for text in refused), refused
        read = "url => fetch(url).then(() => 'read', () => 'refused')"
        assert page.evaluate(read, dashboard.page) == "refused"
