"""A study meets a full disk: a line says so, what was recorded stays, and with room again it goes on."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from search.cli.main import app
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE

SHOW = ["study", "show", "tiny", "--json"]
STUDY = """
name: tiny
data: {{files: [{data}]}}
training: {{epochs: 2, hidden: [8], device: cpu}}
pruner: {{kind: none}}
limits: {{trials: {trials}}}
"""


@pytest.mark.proof
def test_a_full_disk_loses_nothing_that_was_recorded(tmp_path: Path, data_file: Path) -> None:
    """A limit on the size of a file stands for the disk: too little for the records, then for the weights."""
    file, home = tmp_path / "study.yaml", tmp_path / "home"

    def run(room: int = resource.RLIM_INFINITY) -> subprocess.CompletedProcess[str]:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

        return subprocess.run(
            [sys.executable, "-m", "search.cli.main", "study", "run", str(file)],
            env={**os.environ, "ANITUNE_HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=300,
            preexec_fn=limit,
        )

    def trials() -> list[dict[str, Any]]:
        places = dict.fromkeys((STORAGE_VARIABLE, TRACKING_VARIABLE))
        show = CliRunner(env={**places, "ANITUNE_HOME": str(home)}).invoke(app, SHOW)
        rows = json.loads(show.stdout)["rows"]
        return [{key: row[key] for key in ("state", "val_mae_kcalmol", "metrics")} for row in rows]

    file.write_text(STUDY.format(data=data_file, trials=1))
    assert run().returncode == 0
    before = trials()
    file.write_text(STUDY.format(data=data_file, trials=2))
    for room in (4_096, 200_000):
        full = run(room)
        assert full.returncode == 1, full.stderr
        assert [line for line in full.stderr.splitlines() if line.startswith("anitune: ")] == [
            full.stderr.splitlines()[-1]
        ]
        assert "Traceback" not in full.stderr
        assert trials()[:1] == before
        assert [path for path in home.rglob(".*") if path.name.endswith(".partial")] == []

    again = run()
    assert again.returncode == 0, again.stderr
    assert [trial["state"] for trial in trials()] == ["complete", "complete"]
    assert trials()[:1] == before
