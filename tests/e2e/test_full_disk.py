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

STUDY = """
name: tiny
data: {{files: [{data}]}}
training: {{epochs: 2, hidden: [8], device: cpu}}
pruner: {{kind: none}}
limits: {{trials: {trials}}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("room", [4_096, 200_000])
def test_a_full_disk_loses_nothing_that_was_recorded(room: int, tmp_path: Path, data_file: Path) -> None:
    """A limit on the size of a file stands for the disk: too little for the records, or for the weights."""
    file, home = tmp_path / "study.yaml", tmp_path / "home"

    def anitune(*arguments: str, room: int = resource.RLIM_INFINITY) -> subprocess.CompletedProcess[str]:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

        return subprocess.run(
            [sys.executable, "-m", "search.cli.main", *arguments],
            env={**os.environ, "ANITUNE_HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=300,
            preexec_fn=limit,
        )

    def trials() -> list[dict[str, Any]]:
        shown = json.loads(anitune("study", "show", "tiny", "--json").stdout)
        return [{key: row[key] for key in ("state", "val_mae_kcalmol", "metrics")} for row in shown["rows"]]

    file.write_text(STUDY.format(data=data_file, trials=1))
    assert anitune("study", "run", str(file)).returncode == 0
    before = trials()
    file.write_text(STUDY.format(data=data_file, trials=2))
    full = anitune("study", "run", str(file), room=room)
    assert full.returncode == 1, full.stderr
    assert [line for line in full.stderr.splitlines() if line.startswith("anitune: ")] == [
        full.stderr.splitlines()[-1]
    ]
    assert "Traceback" not in full.stderr
    assert trials()[:1] == before
    assert [path for path in home.rglob(".*") if path.name.endswith(".partial")] == []

    again = anitune("study", "run", str(file))
    assert again.returncode == 0, again.stderr
    assert [trial["state"] for trial in trials()] == ["complete", "complete"]
    assert trials()[:1] == before
