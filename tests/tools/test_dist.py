"""The wheel, in a fresh environment and from an empty folder."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from tools import dist


@pytest.mark.slow
def test_the_wheel_is_whole_and_works_without_the_repository(tmp_path: Path) -> None:
    wheel = dist.build(tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "anitune.py", "trainer", "storage", "search", "dashboards",
    }  # fmt: skip
    programs = dist.install(wheel, tmp_path / "environment")
    (tmp_path / "empty").mkdir()
    code = "import anitune, trainer; print(anitune.__file__); print(trainer.__file__)"
    found = subprocess.run(
        [programs / "python", "-c", code], cwd=tmp_path / "empty", capture_output=True, timeout=300
    )
    assert all(line.startswith(str(tmp_path / "environment")) for line in found.stdout.decode().split())
    said = dist.try_it(programs, tmp_path / "empty")
    assert "study tried: 1 complete" in said
    assert "SQL, Optuna and MLflow agree" in said
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == ["anitune-data", "begin.yaml"]
