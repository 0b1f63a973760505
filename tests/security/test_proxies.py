"""A proxy in the environment never comes to see what is said to the servers of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest
import requests.utils
from typer.testing import CliRunner

from search.cli.main import app


@pytest.mark.parametrize("before", ["", "intranet,localhost", "*"])
def test_servers_of_this_machine_are_reached_directly(
    before: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, before)
    monkeypatch.setenv("ANITUNE_HOME", str(tmp_path))
    assert CliRunner().invoke(app, ["study", "list"]).exit_code == 0

    for host in ("localhost", "127.0.0.1", "[::1]"):
        url = f"http://{host}:5000/health"
        assert requests.utils.get_environ_proxies(url) == {}
        with httpx.Client() as client:
            direct = client._transport_for_url(httpx.URL(url))
            assert direct is client._transport
    if before != "*":
        assert requests.utils.get_environ_proxies("http://mlflow:5000")["http"] == "http://proxy:3128"
        assert "intranet" in os.environ["NO_PROXY"].split(",") or not before
