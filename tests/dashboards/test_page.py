"""Our first page, as a browser is sent it."""

from __future__ import annotations

import re

import pytest
from flask.testing import FlaskClient

from dashboards.page.app import make_app
from storage.database import Database
from storage.settings import Settings
from storage.studies import Study
from storage.trials.queue import WorkerInfo
from storage.workers import WorkerHeartbeat


@pytest.fixture
def client(database: Database, study: Study) -> FlaskClient:
    return make_app(database).test_client()


def rows_of(page: str, table: str) -> list[list[str]]:
    """The cells of a table's body, as text."""
    body = page.split(f'id="{table}"')[1].split("<tbody>")[1].split("</tbody>")[0]
    cells = re.compile(r"<t[dh][^>]*>(.*?)</t[dh]>", re.DOTALL)
    return [
        [" ".join(re.sub("<[^>]+>", "", cell).split()) for cell in cells.findall(row)]
        for row in body.split("</tr>")[:-1]
    ]


def test_studies_are_listed_with_their_state_and_best(client: FlaskClient) -> None:
    page = client.get("/anitune/").text
    widths, rows = rows_of(page, "studies")
    assert widths[:6] == ["widths", "running", "0.800", "6 of 8", "4", "1"]
    assert rows[:4] == ["widths-rows", "waiting for workers", "0.900", "2"]
    assert 'href="/anitune/studies/widths"' in page


def test_a_leaderboard_has_all_trials_and_the_rows_in_their_places(client: FlaskClient, study: Study) -> None:
    page = client.get("/anitune/studies/widths").text
    rows = rows_of(page, "leaderboard")
    assert [(row[0], row[1], row[2], row[3]) for row in rows] == [
        ("1", "1", "384-64-32-1 silu", "0.800"),
        ("", "row 2", "384-200-1 silu ≈", "0.900"),
        ("2", "2", "384-32-1 silu ≈", "1.000"),
        ("3", "3", "384-32-1 silu ≈", "1.020"),
        ("4", "0", "384-64-1 silu", "1.500"),
        ("", "row 1", "384-128-1 silu", "1.600"),
        ("", "4", "384-8-1 silu", "3.000"),
        ("", "6", "384-24-1 silu", ""),
        ("", "5", "384-16-1 silu", ""),
    ]
    assert rows[2][5] == "1.010 ± 0.014 (2)"
    assert rows[0][6:8] == ["147,840", "1,000"]
    assert "3 trials are within the noise of the best" in page
    link = f'<a href="/dashboard/studies/{study.optuna_study_id}/trials?numbers=1">1</a>'
    assert f'<td class="num" data-v="1">{link}</td>' in page, "narrow pages have this link alone"
    assert "promoted" not in page


def test_the_promoted_model_is_at_the_head(client: FlaskClient, promoted: Study) -> None:
    page = client.get("/anitune/studies/widths").text
    assert '<a href="#trial-2">trial 2</a> as widths version 1, test MAE 0.950 kcal/mol' in page
    assert rows_of(page, "leaderboard")[2][5] == "1.015 ± 0.013 (4)", "two trials, and two members"


def test_a_winner_that_is_not_smooth_is_flagged(client: FlaskClient, kinked: Study) -> None:
    page = client.get("/anitune/studies/widths").text
    assert "Not for molecular dynamics: trial 1 has the activation relu, whose derivative jumps" in page


def test_a_smooth_winner_is_not_flagged(client: FlaskClient, promoted: Study, kinked: Study) -> None:
    assert "molecular dynamics" not in client.get("/anitune/studies/widths").text, "trial 2 was promoted"


def test_what_others_wrote_is_text(client: FlaskClient) -> None:
    page = client.get("/anitune/studies/widths").text
    assert "loss &lt;/script&gt;&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert client.get("/anitune/studies/%3Cscript%3E").text.count("<script>") == 0


def test_a_browser_may_load_nothing_from_elsewhere(client: FlaskClient) -> None:
    for path in ("/anitune/", "/anitune/studies/widths", "/anitune/studies/no", "/anitune/nothing"):
        answer = client.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe-eval" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(r"""(src|href)=["']?(https?:)?//""", answer.text)


def test_a_page_that_is_still_the_same_is_not_sent_again(client: FlaskClient) -> None:
    page = "/anitune/studies/widths-rows"  # nothing of it runs
    first = client.get(page)
    again = client.get(page, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_what_is_not_there_is_said(client: FlaskClient, home: Settings) -> None:
    answer = client.get("/anitune/studies/nosuch")
    assert answer.status_code == 404
    assert "there is no study &#39;nosuch&#39;" in answer.text
    assert client.get("/anitune/static/../app.py").status_code == 404
    assert client.post("/anitune/").status_code == 405


def test_workers_that_live_are_shown_with_what_they_train(
    client: FlaskClient, database: Database, study: Study
) -> None:
    assert "No workers are running" in client.get("/anitune/").text
    worker = WorkerInfo("node7-17", "node7", 17, "cpu", {})  # it has trial 6 in hand
    with WorkerHeartbeat(database, worker, "widths"):
        for path in ("/anitune/", "/anitune/studies/widths"):
            page = client.get(path).text
            assert "node7-17" in page
            assert re.search(r"trial 6 <span[^>]*>epoch 2 of 9", page)
    assert "node7-17" not in client.get("/anitune/").text


def test_plotly_is_sent_by_ourselves(client: FlaskClient) -> None:
    answer = client.get("/anitune/static/plotly.min.js")
    assert answer.headers["Content-Encoding"] == "gzip"
    assert len(answer.data) > 1_000_000
    with client.get("/anitune/static/style.css") as style:
        assert style.mimetype == "text/css"
