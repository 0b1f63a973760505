"""What must hold of the repository as a whole."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("trainer", "storage", "search", "dashboards")


def test_init_files_are_empty() -> None:
    # Importing a package must cost nothing.
    assert [str(f) for p in PACKAGES for f in (ROOT / p).rglob("__init__.py") if f.read_text()] == []


def test_packages_nest_one_level_at_most() -> None:
    deep = [
        str(f.relative_to(ROOT))
        for p in PACKAGES
        for f in (ROOT / p).rglob("*.py")
        if len(f.relative_to(ROOT).parts) > 3 and "migrations" not in f.parts
    ]
    assert deep == []


def test_lock_pins_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: each for name, each in project["optional-dependencies"].items() if name != "peers"}
    wanted = project["dependencies"] + [dependency for extra in extras.values() for dependency in extra]
    names = {d.split(">")[0].split("[")[0].strip().lower() for d in wanted}
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    # torch's builds for GPUs pin their own version of Triton.
    assert names - {line.split("==")[0].lower() for line in lock} == {"triton"}
    assert "torch==2.13.0" in lock


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    code = (
        f"import {package}, sys; "
        "print([m for m in ('torch', 'torchani', 'optuna', 'mlflow', 'sqlalchemy') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=300
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("target", ["test-browser", "test-slurm", "test-compose"])
def test_a_missing_program_of_the_system_is_a_failure(target: str) -> None:
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", target]
    lines = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300
    ).stdout.splitlines()
    assert lines[-1].startswith("ANITUNE_REQUIRE_SYSTEM=1 ")


def test_every_wait_of_a_test_has_a_bound() -> None:
    unbounded = [
        f"{file.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call.func)}"
        for file in sorted((ROOT / "tests").rglob("*.py"))
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and waits_for_ever(call)
    ]
    assert unbounded == [], "give it a time-out: a wait that never ends does not say what it waits for"


def waits_for_ever(call: ast.Call) -> bool:
    """Whether a call waits for a process, a thread or a barrier without a time-out."""
    assert isinstance(call.func, ast.Attribute)
    bounded = "timeout" in {keyword.arg for keyword in call.keywords}
    if ast.unparse(call.func) in ("subprocess.run", "subprocess.check_call", "subprocess.check_output"):
        return not bounded
    return call.func.attr in ("wait", "join", "communicate") and not call.args and not bounded
