"""Pages that many people open at once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dashboards.page import app as page
from dashboards.page.app import make_app
from dashboards.page.coalescing import Coalescing
from dashboards.record import StudyRecord
from storage.database import Database
from storage.studies import Study

PEOPLE = 20


def test_those_who_come_during_a_computation_share_the_next() -> None:
    shared: Coalescing[int] = Coalescing()
    state, count = 0, 0
    begun, go_on = threading.Event(), threading.Event()

    def compute() -> int:
        nonlocal count
        count += 1
        seen = state
        begun.set()
        assert go_on.wait(30)
        return seen

    with ThreadPoolExecutor(PEOPLE) as people:
        first = people.submit(shared, "page", compute)
        assert begun.wait(30)
        state = 1
        rest = [people.submit(shared, "page", compute) for _ in range(PEOPLE - 1)]
        time.sleep(0.2)
        go_on.set()
        assert first.result(30) == 0
        assert [each.result(30) for each in rest] == [1] * (PEOPLE - 1), "they see what happened since"
    assert count == 2
    state = 2
    assert shared("page", compute) == 2, "nothing is kept"
    assert count == 3


def test_pages_do_not_wait_for_each_other() -> None:
    shared: Coalescing[str] = Coalescing()
    with ThreadPoolExecutor(1) as people:
        held = threading.Event()
        slow = people.submit(shared, "slow", lambda: str(held.wait(30)))
        assert shared("quick", lambda: "done") == "done"
        held.set()
        assert slow.result(30) == "True"


def test_an_error_is_shared_but_not_kept() -> None:
    shared: Coalescing[int] = Coalescing()

    def fail() -> int:
        time.sleep(0.1)
        raise ValueError("away")

    with ThreadPoolExecutor(PEOPLE) as people:
        failed = [people.submit(shared, "page", fail) for _ in range(PEOPLE)]
        assert all(isinstance(each.exception(30), ValueError) for each in failed)
    assert shared("page", lambda: 1) == 1


def test_a_page_that_many_open_at_once_is_made_twice_at_most(
    database: Database, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, count = page.read_study, 0

    def slow(database: Database, name: str) -> StudyRecord:
        nonlocal count
        count += 1
        time.sleep(1.0)
        return read(database, name)

    monkeypatch.setattr(page, "read_study", slow)
    client = make_app(database).test_client
    with ThreadPoolExecutor(PEOPLE) as people:
        answers = list(people.map(lambda _: client().get("/anitune/studies/widths"), range(PEOPLE)))
    assert {answer.status_code for answer in answers} == {200}
    assert all("384-64-32-1 silu" in answer.text for answer in answers)
    assert count <= 2
