"""Homes with odd names, and homes that are renamed or copied: a study is at home in each."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from select import select
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from search.cli.main import app
from storage.settings import ARTIFACTS_VARIABLE, STORAGE_VARIABLE, TRACKING_VARIABLE

# MLflow uses what is deprecated elsewhere; our own warnings stay errors.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")]

ROOT = Path(__file__).resolve().parents[2]
ODD = "a %41 ? [b] #c 'd' é;$(x)"
STUDY = """
name: tiny
data: {files: [molecules.h5]}
training: {epochs: 2, hidden: [8], device: cpu}
pruner: {kind: none}
limits: {trials: 1}
"""


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANITUNE_")}
    return {**kept, "ANITUNE_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def anitune(home: Path, *arguments: object, code: int = 0) -> Result:
    """Run a command in this process, in the folder that the home is in."""
    with contextlib.chdir(home.parent):
        places = dict.fromkeys((STORAGE_VARIABLE, TRACKING_VARIABLE, ARTIFACTS_VARIABLE))
        runner = CliRunner(env={**places, "ANITUNE_HOME": str(home)})
        result = runner.invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


def anitune_process(home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command that trains as a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "search.cli.main", *map(str, arguments)],
        env=environment(home),
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended


def best(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(anitune(home, "study", "best", "tiny", "--json").stdout)
    return found


def addresses_in_mlflow(home: Path) -> set[str]:
    with sqlite3.connect(f"{(home / 'mlflow.db').as_uri()}?mode=ro", uri=True) as database:
        rows = database.execute(
            "SELECT artifact_location FROM experiments WHERE name = 'tiny'"
            " UNION SELECT artifact_uri FROM runs"
        ).fetchall()
    return {address for (address,) in rows}


def content(folder: Path) -> dict[str, bytes]:
    """All files, but for those that opening a database touches."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(("-shm", "-wal", ".lock"))
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, data_file: Path) -> Path:
    """A folder of an odd name with a study file, its data and a home, in which the study was run."""
    project = tmp_path_factory.mktemp("odd") / ODD
    project.mkdir()
    shutil.copy(data_file, project)
    (project / "study.yaml").write_text(STUDY)
    ran = anitune_process(project / "home", "study", "run", project / "study.yaml")
    assert f"Report              {project}/home/reports/tiny.html\n" in ran.stdout
    assert f"Plots               {project}/home/trials/tiny/00000/attempt-1/plots\n" in ran.stdout
    log, deadline = project / "home" / "logs" / "relay-tiny.log", time.monotonic() + 120
    while "relay ends" not in log.read_text():  # else it writes there while tests compare
        assert time.monotonic() < deadline, "the relay does not end"
        time.sleep(0.2)
    return project


@pytest.fixture
def moved(project: Path, tmp_path: Path) -> Iterator[Path]:
    """The project somewhere else, and the first one not there: as after a rename."""
    moved = tmp_path / "moved [1]" / "project"
    shutil.copytree(project, moved)
    away = project.with_name("away")
    project.rename(away)
    yield moved
    assert not project.exists(), "the old place was made anew"
    away.rename(project)


def test_a_home_of_an_odd_name_has_all_of_its_files_in_it(project: Path) -> None:
    home = project / "home"
    assert {path.name for path in project.parent.iterdir()} == {ODD}
    assert {path.name for path in project.iterdir()} == {"home", "molecules.h5", "study.yaml"}
    assert {path.name for path in home.glob("*.db")} == {"anitune.db", "mlflow.db"}
    assert "agree; 1 of 1 trials" in anitune(home, "study", "verify", "tiny").stdout
    report = project.parent / "r [b]%41 #.html"
    assert anitune(home, "report", "tiny", "--out", report).stdout == f"{report}\n"
    assert report.exists()
    report.unlink()


def test_a_model_of_a_home_of_an_odd_name_is_exported(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "model %41 [b].safetensors"
    weights = best(project / "home")["weights"]
    anitune(project / "home", "export", weights, "--to", "torchani", "--out", out)
    assert out.exists()


def test_postgresql_refuses_such_a_home_in_a_line(project: Path) -> None:
    line = anitune(project / "home", "up", code=2).stderr.splitlines()[-1]
    assert line.startswith(f"anitune: {project}/home/servers/postgresql: PostgreSQL cannot work in a folder")
    shutil.rmtree(project / "home" / "servers")


def test_a_renamed_home_goes_on_where_it_is(moved: Path) -> None:
    home = moved / "home"
    assert "agree; 1 of 1 trials" in anitune(home, "study", "verify", "tiny").stdout
    assert "0 differences repaired, 0 left" in anitune(home, "study", "repair", "tiny").stdout
    inside = f"{(home / 'mlartifacts').as_uri()}/tiny"
    assert all(address.startswith(inside) for address in addresses_in_mlflow(home))
    assert Path(best(home)["weights"]).is_relative_to(home)

    # The data moved along, and another trial goes where the first ones are.
    anitune(home, "study", "extend", "tiny", "--trials", "1")
    worked = anitune_process(home, "worker", "tiny")
    assert f"{moved}/molecules.h5 is read instead, if it has the same content" in worked.stderr
    anitune(home, "sync", "tiny")
    verified = json.loads(anitune(home, "study", "verify", "tiny", "--json").stdout)
    assert (verified["agree"], verified["runs"]) == (True, 2)


def test_a_moved_study_file_names_the_data_again(moved: Path) -> None:
    home = moved / "home"
    (moved / "elsewhere").mkdir()
    (moved / "molecules.h5").rename(moved / "elsewhere" / "other-name.h5")
    line = anitune(home, "reproduce", "tiny", "0", code=2).stderr.splitlines()[-1]
    assert "molecules.h5: no such file" in line

    file = moved / "study.yaml"
    file.write_text(STUDY.replace("molecules.h5", "elsewhere/other-name.h5"))
    anitune(home, "study", "create", file)
    assert "reproduced, bit for bit" in anitune(home, "reproduce", "tiny", "0").stdout


def test_other_data_under_the_name_of_the_first_is_refused(moved: Path) -> None:
    import h5py

    with h5py.File(moved / "molecules.h5", "a") as data:
        data["molecules/molecules-0/energies"][0] += 0.01
    line = anitune(moved / "home", "study", "create", moved / "study.yaml", code=2).stderr.splitlines()[-1]
    assert "molecules.h5 contains other data than the study was started with" in line
    line = anitune(moved / "home", "reproduce", "tiny", "0", code=2).stderr.splitlines()[-1]
    assert "study 'tiny': the data was " in line


def test_a_copy_writes_nothing_into_the_first_home(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    before = content(project)
    home = copy / "home"
    anitune(home, "study", "extend", "tiny", "--trials", "1")
    anitune_process(home, "worker", "tiny")
    anitune(home, "sync", "tiny")
    verified = json.loads(anitune(home, "study", "verify", "tiny", "--json").stdout)
    assert (verified["agree"], verified["runs"]) == (True, 2)
    assert content(project) == before


@pytest.fixture
def read_only(project: Path, tmp_path: Path) -> Iterator[Path]:
    """The home, on a file system that cannot be written."""
    home = tmp_path / "read-only"
    if os.geteuid() == 0:  # who may write whatever the rights say
        home.mkdir()
        for options in (["--bind", project / "home", home], ["-o", "remount,bind,ro", home]):
            if (
                subprocess.run(["mount", *map(str, options)], capture_output=True, timeout=300).returncode
                != 0
            ):
                pytest.skip("this machine lets nobody mount")
        yield home
        subprocess.run(["umount", str(home)], check=True, timeout=300)
        return
    shutil.copytree(project / "home", home)
    folders = [home, *(path for path in home.rglob("*") if path.is_dir())]
    for path in home.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    home.chmod(0o555)
    yield home
    for folder in folders:
        folder.chmod(0o755)


def test_a_study_of_a_home_that_cannot_be_written_is_looked_at(read_only: Path, tmp_path: Path) -> None:
    before = content(read_only)
    names = set(read_only.rglob("*"))
    assert "tiny" in anitune(read_only, "study", "list").stdout
    assert "1 complete" in anitune(read_only, "study", "show", "tiny").stdout
    assert Path(best(read_only)["weights"]).is_file()
    anitune(read_only, "report", "tiny", "--out", tmp_path / "report.html")
    (tmp_path / "study.yaml").write_text("name: another\nlimits: {trials: 1}\n")
    for command in (
        ("study", "extend", "tiny", "--trials", "1"),
        ("study", "create", tmp_path / "study.yaml"),
        ("worker", "tiny"),
        ("sync", "tiny"),
    ):
        line = anitune(read_only, *command, code=1).stderr.splitlines()[-1]
        assert line.startswith("anitune: ")
        assert "it can be read, but not written here" in line
    assert set(read_only.rglob("*")) == names
    assert content(read_only) == before


@pytest.mark.parametrize("place", ["odd", "read-only"])
def test_dashboards_show_such_a_home(place: str, project: Path, request: pytest.FixtureRequest) -> None:
    import httpx

    home = project / "home" if place == "odd" else request.getfixturevalue("read_only")
    with subprocess.Popen(
        [sys.executable, "-m", "search.cli.main", "dashboards", "--study", "tiny", "--json"],
        env=environment(home),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert select([process.stdout], [], [], 120)[0], "the dashboards print no links"
            pages = json.loads(process.stdout.readline())
            with httpx.Client(follow_redirects=True, trust_env=False, timeout=60) as browser:
                page = browser.get(pages["study"])
            assert page.status_code == 200
            assert "tiny" in page.text
            assert "#/experiments/" in pages["mlflow_best"]
        finally:
            process.terminate()
            process.wait(60)
    assert {path.name for path in project.iterdir()} == {"home", "molecules.h5", "study.yaml"}
