"""A home whose path a shell would run: workers start there, and nothing of it is run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from search.errors import LaunchError
from search.launch import launcher
from search.launch.config import LaunchConfig
from search.launch.plan import LaunchPlan
from search.launch.shell import BLOCK_FUNCTION, BLOCK_SCRIPT, worker_script

NAMES = (
    "a home",
    "$(touch owned)",
    "`touch owned`",
    "a;touch owned;",
    "a&touch owned&",
    "a'; touch owned; '",
    'a"; touch owned; "',
    "a|touch owned",
    "a\ntouch owned\n",
    "a > owned",
    "*?[a]",
    "~root",
    "{x} {0} %s %j ${HOME}",
)
FAULT = 'mkdir -p "$ANITUNE_CARD_FAULTS"; echo "$ANITUNE_CARD_FAULTS"'


def plan_in(home: Path) -> LaunchPlan:
    return LaunchPlan(
        "tiny-1", gpus_per_node=0, nodes=1, home=home, config=LaunchConfig(), arguments=("tiny",)
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which a command of a name would leave its file."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_the_script_of_a_worker_runs_nothing_of_the_path(here: Path, name: str) -> None:
    faults = plan_in(here / name).card_faults
    script = worker_script(["bash", "-c", FAULT, "worker", name], faults, pinned=False)
    block = f'{BLOCK_SCRIPT}\n{BLOCK_FUNCTION} bash -c "$POOL"'
    done = subprocess.run(
        ["bash", "-c", block],
        env={"POOL": script, "PATH": "/usr/bin:/bin"},
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{faults}\n"
    assert faults.is_dir()
    assert not list(here.rglob("owned"))


def test_parsl_starts_workers_in_such_a_home(here: Path) -> None:
    """One home with all of it, because a start of Parsl takes seconds."""
    parsl = pytest.importorskip("parsl")
    home = here / "".join(name.replace("/", "") for name in NAMES)[:200]
    plan = plan_in(home)
    (log,) = plan.workers.values()
    script = worker_script(["bash", "-c", FAULT], plan.card_faults, pinned=False)
    with launcher._parsl(plan, "local") as kernel:
        run = parsl.bash_app(launcher._script, data_flow_kernel=kernel)
        run(script, stdout=(str(log), "a"), stderr=(f"{log}.err", "a")).result(timeout=120)
    assert log.read_text() == f"{plan.card_faults}\n"
    assert list((plan.folder / "parsl").rglob("*.sh")), "Parsl's files lie in the home"
    assert not list(here.rglob("owned"))


@pytest.mark.parametrize("place", ["slurm", "kubernetes"])
def test_other_machines_are_not_sent_such_a_path(here: Path, place: str) -> None:
    with (
        pytest.raises(LaunchError, match=r"choose another ANITUNE_HOME"),
        launcher._parsl_folder(plan_in(here / "$(touch owned)"), place),
    ):
        pass


def test_a_plain_home_is_used_as_it_is(here: Path) -> None:
    plan = plan_in(here / "home")
    for place in ("local", "slurm"):
        with launcher._parsl_folder(plan, place) as folder:
            assert folder == plan.folder / "parsl"
