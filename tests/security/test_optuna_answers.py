"""What the Optuna dashboard serves, and what a hostile attachment or a page of another site makes of it."""

from __future__ import annotations

import base64
import csv
import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import optuna
import optuna_dashboard
import pytest

from dashboards.listening import listen
from dashboards.optuna_images import TrialImages
from dashboards.optuna_server import with_pages
from dashboards.page.app import make_app
from dashboards.safe_answers import with_safe_answers
from dashboards.wsgi_server import WSGIServer
from storage.database import Database, open_database
from storage.settings import Settings
from storage.studies import Budget, Study, create_study

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PAGE = b"<script>fetch('/api/studies/1', {method: 'DELETE'})</script>"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    home = tmp_path_factory.mktemp("answers")
    settings = Settings(home, f"sqlite:///{home / 'anitune.db'}", f"sqlite:///{home / 'mlflow.db'}")
    with open_database(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
def study(database: Database) -> Study:
    return create_study(database, "widths", {}, Budget(trials=1))


@pytest.fixture(scope="module")
def server(database: Database, study: Study) -> Iterator[str]:
    """Where the dashboard answers."""
    optuna = optuna_dashboard.wsgi(database.optuna, artifact_store=TrialImages(database))
    with listen("127.0.0.1", 0) as listener:
        running = WSGIServer(with_safe_answers(with_pages(optuna, make_app(database).wsgi_app)))
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        running.should_exit = True
        thread.join(timeout=30)


def get(url: str) -> httpx.Response:
    return httpx.get(url, headers={"Origin": "http://evil.example"}, timeout=30, trust_env=False)


def attach(database: Database, study: Study, content: bytes, kind: str, name: str = "x") -> str:
    """Attach a file to the study, as a worker may, and answer its path."""
    artifact = str(uuid.uuid4())
    (Path(database.settings.optuna_artifacts) / artifact).write_bytes(content)
    meta = {"artifact_id": artifact, "filename": name, "mimetype": kind, "encoding": "gzip"}
    database.optuna.set_study_system_attr(study.optuna_study_id, f"artifacts:{artifact}", json.dumps(meta))
    return f"/artifacts/{study.optuna_study_id}/{artifact}"


PATHS = (
    *(
        "/",
        "/anitune/",
        "/anitune/studies/widths",
        "/anitune/none",
        "/dashboard",
        "/api/studies",
        "/api/none",
    ),
    *(
        "/api/meta",
        "/static/bundle.js",
        "/static/none",
        "/csv/1",
        "/artifacts/1/abc",
        "/none",
        "/favicon.ico",
    ),
)
ACTIVE = (
    *("text/html", "TEXT/HTML; charset=utf-8", "image/svg+xml", "application/xhtml+xml", "text/xml", "", "x"),
    *("text/javascript", "application/pdf", "text/css", "image/png, text/html", "image/pngx", "text/plain"),
)


@pytest.mark.parametrize("path", PATHS)
def test_nobody_frames_or_reads_any_answer(server: str, path: str) -> None:
    answer = get(server + path)
    policy = answer.headers["Content-Security-Policy"]
    assert "frame-ancestors 'self'" in policy
    assert ("frame-ancestors 'none'" in policy) == path.startswith("/anitune/")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["Referrer-Policy"] in ("same-origin", "no-referrer")
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert "attachment" not in answer.headers.get("Content-Disposition", "") or path == "/csv/1"


def test_the_policy_of_the_dashboard_stays(server: str) -> None:
    assert "script-src 'self'" in get(f"{server}/dashboard").headers["Content-Security-Policy"]


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "image/gif", "image/webp"])
def test_a_raster_image_is_shown(server: str, database: Database, study: Study, kind: str) -> None:
    answer = get(server + attach(database, study, PNG, kind, "loss.png"))
    assert (answer.content, answer.headers["Content-Type"]) == (PNG, kind)
    assert "Content-Disposition" not in answer.headers
    assert "sandbox; default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("kind", ACTIVE)
@pytest.mark.parametrize("way", ["{0}", "/artif%FF{1}", "/%ff{1}"])
def test_all_else_is_a_file_to_be_saved(
    server: str, database: Database, study: Study, kind: str, way: str
) -> None:
    path = attach(database, study, PAGE, kind, "x.html")
    beginning = "/artif" if "artif" in way else "/"
    answer = get(server + way.format(path, path.removeprefix(beginning)))
    assert (answer.status_code, answer.content) == (200, PAGE)
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"] == "attachment"
    assert "sandbox; default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert not [name for name in answer.headers if name.startswith(("access-control", "content-encod"))]


def test_what_is_uploaded_to_the_dashboard_is_kept_and_served_as_a_file(server: str, study: Study) -> None:
    upload = {
        "file": f"data:text/html;base64,{base64.b64encode(PAGE * 40_000).decode()}",
        "filename": "x.html",
    }
    url = f"{server}/api/artifacts/{study.optuna_study_id}"
    answer = httpx.post(url, json=upload, timeout=30, trust_env=False)
    assert answer.status_code == 201
    served = get(f"{server}/artifacts/{study.optuna_study_id}/{answer.json()['artifact_id']}")
    assert served.content == PAGE * 40_000, "larger than what is held in memory"
    assert served.headers["Content-Disposition"] == "attachment"


def test_the_table_of_trials_holds_no_formulas(server: str, database: Database, study: Study) -> None:
    number = optuna.load_study(study_name="widths", storage=database.optuna).ask()
    number.suggest_float("x", -2.0, -1.0)
    number.set_user_attr("worker", '=cmd|" /C calc"!A0')
    number.set_user_attr("+header", "a;=1+1")
    number.set_user_attr("long", "x" * 200_000)
    answer = get(f"{server}/csv/{study.optuna_study_id}")
    csv.field_size_limit(10**6)
    head, row = csv.reader(answer.text.splitlines())
    assert "'=cmd" in row[-1]
    assert row[-2] == "x" * 200_000
    assert row[-3] == "a;'=1+1"
    assert "UserAttribute +header" in head
    assert -2 <= float(row[3]) <= -1, "numbers stay numbers"
    assert answer.headers["Content-Disposition"] == "attachment; filename=widths.csv"
    assert "study_id=99 is not found" in get(f"{server}/csv/99").json()["reason"]
