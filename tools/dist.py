"""Builds the wheel, and tries it as a user who installs it: ``make dist``.

It is installed into a fresh environment and used from an empty folder, by the command line and from Python.
The environment that this runs in lends it the dependencies, so that this takes seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
SOURCES = (
    "anitune.py", "trainer", "storage", "search", "dashboards", "pyproject.toml", "README.md", "LICENSE",
)  # fmt: skip

PROGRAM = """
import anitune
from ase.build import molecule

settings = {"training": {"epochs": 1, "hidden": [8], "device": "cpu"}, "pruner": {"kind": "none"}}
settings["space"] = {"batch_size": {"choices": [512]}}
study = anitune.run("tried", data="sample", trials=1, pack=1, **settings)
print(study)
print(study.leaderboard())
print(study.figure("history"))
print(study.best.model.predict(molecule("H2O"), unit="eV"))
"""
"""Program that uses the wheel as a notebook would."""

COMMANDS = (
    ("data", "describe", "sample"),
    ("study", "init", "sample", "--out", "begin.yaml"),
    ("study", "show", "tried"),
    ("report", "tried"),
    ("study", "verify", "tried"),
)
"""Commands run after the program. They need files that a wheel may lack: data, templates, migrations."""


def build(folder: Path) -> Path:
    """Build the wheel into a folder, and return its path."""
    with tempfile.TemporaryDirectory(prefix="anitune-build-") as copied:
        # From a copy: setuptools would include files that an earlier build left in build/.
        for name in SOURCES:
            source, target = ROOT / name, Path(copied) / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), copied)
    return max(folder.glob("anitune-*.whl"), key=lambda wheel: wheel.stat().st_mtime)


def install(wheel: Path, environment: Path) -> Path:
    """Create an environment with the wheel in it, and return the folder of its programs."""
    venv.create(environment, symlinks=True)
    programs = environment / "bin"
    python = str(programs / "python")
    options = ("--python", python, "install", "--quiet", "--no-deps", "--no-index")
    _run(sys.executable, "-m", "pip", *options, str(wheel))
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    lent = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "lent.pth").write_text("\n".join(lent) + "\n")
    return programs


def try_it(programs: Path, folder: Path) -> str:
    """Use the installed wheel from an empty folder, and return all output."""
    said = _run(str(programs / "python"), "-c", PROGRAM, folder=folder)
    return said + "".join(_run(str(programs / "anitune"), *words, folder=folder) for words in COMMANDS)


def _run(*words: str, folder: Path = ROOT) -> str:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("ANITUNE_", "PYTHONPATH"))
    }
    ended = subprocess.run(
        words, cwd=folder, env=kept, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    if ended.returncode:
        raise SystemExit(f"{' '.join(words)[:200]} ended with {ended.returncode}:\n{ended.stdout}")
    return ended.stdout


def main() -> None:
    """Build, install and try the wheel."""
    wheel = build(DIST)
    with tempfile.TemporaryDirectory(prefix="anitune-dist-") as folder:
        programs = install(wheel, Path(folder) / "environment")
        (empty := Path(folder) / "empty").mkdir()
        print(try_it(programs, empty))
    print(f"{wheel.relative_to(ROOT)}: installed and tested")


if __name__ == "__main__":
    main()
