"""Addresses of pages, and what is known of them ahead."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dashboards import links
from storage.settings import Settings


def test_a_page_of_ours_is_named_by_its_study() -> None:
    assert links.first_page("http://h:1") == "http://h:1/anitune/"
    assert links.study_page("", "my study/x") == "/anitune/studies/my%20study/x"
    assert links.study_page("", "widths", 9) == "/anitune/studies/widths#trial-9"


def test_notes_lead_back_to_this_machine_or_to_where_the_environment_says(
    home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = f"http://127.0.0.1:{links.usual_port(home)}"
    assert links.usual_address(home) == here
    assert links.usual_address(replace(home, tracking_uri="http://127.0.0.1:5000")) == here
    elsewhere = replace(home, tracking_uri="https://mlflow.example")
    assert links.usual_address(elsewhere) is None, "nobody there could follow it"
    monkeypatch.setenv(links.DASHBOARDS_VARIABLE, "https://team.example/")
    assert links.usual_address(elsewhere) == "https://team.example"


def test_the_usual_port_is_the_homes(home: Settings) -> None:
    port = links.usual_port(home)
    assert 20_000 <= port < 30_000
    assert links.usual_port(home) == port
    assert links.usual_port(replace(home, home=home.home / "other")) != port
