"""Workers in jobs of a real Slurm."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from typing import Any

import pytest

pytestmark = pytest.mark.slurm


def jobs(variables: dict[str, str]) -> list[str]:
    """The jobs that run."""
    command = ["squeue", "--noheader", "--states=RUNNING", "--format=%i"]
    answer = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, timeout=300)
    return answer.stdout.split()


def test_two_pinned_workers_of_a_job_finish_a_study(
    slurm: dict[str, str], make_place: Callable[..., Any]
) -> None:
    place = make_place(slurm, trials=4, epochs=100)

    launcher = place.launch("--on", "slurm", "--gpus-per-node", "2")
    pinned: dict[str | None, str] = {}

    def both_train() -> bool:
        pinned.update({worker.gpu: worker.name for worker in place.workers() if worker.trials})
        return len(pinned) == 2

    place.until(both_train, launcher)
    _, said = launcher.communicate(timeout=300)

    assert launcher.returncode == 0, (said, place.logs())
    assert set(pinned) == {"0", "1"}
    assert len(set(pinned.values())) == 2
    assert [trial.state for trial in place.trials()] == ["complete"] * 4
    assert place.workers() == []
    (script,) = place.home.glob("launches/*/parsl/*/submit_scripts/*.block-0.*[0-9]")
    assert "#SBATCH --signal=B:TERM@60\n" in script.read_text()


@pytest.mark.parametrize(
    "scancel", [["scancel"], ["scancel", "--batch", "--signal=TERM"]], ids=["cancelled", "at its walltime"]
)
def test_a_job_that_ends_in_the_middle_loses_nothing(
    slurm: dict[str, str],
    make_place: Callable[..., Any],
    scancel: list[str],
    print_report: Callable[[Iterable[str]], None],
) -> None:
    asked, epochs = 3, 600
    place = make_place(slurm, trials=asked, epochs=epochs)

    launcher = place.launch("--on", "slurm", "--gpus-per-node", "1", "--nodes", "2")
    gpus: list[str | None] = []

    def both_train() -> bool:
        training = [worker for worker in place.workers() if sum(t.epoch for t in worker.trials)]
        gpus[:] = [worker.gpu for worker in training]
        return len(training) == 2

    place.until(both_train, launcher)
    assert set(gpus) == {"0", "1"}  # each job has one of them
    first, _ = jobs(slurm)
    subprocess.run([*scancel, first], env=slurm, check=True, timeout=300)
    place.until(lambda: first not in jobs(slurm), launcher)
    _, said = launcher.communicate(timeout=300)

    trials = place.trials()
    complete = sum(trial.state == "complete" for trial in trials)
    trained = sum(trial.trained_epochs for trial in trials)
    print_report(
        [
            f"Slurm, 2 jobs with a worker each: 1 ended in the middle ({' '.join(scancel)})",
            f"{asked:>6}  trials asked for",
            f"{complete:>6}  complete",
            f"{asked - complete:>6}  lost",
            f"{len(trials) - asked:>6}  too many",
            f"{trained - asked * epochs:>6}  epochs trained twice",
        ]
    )
    assert launcher.returncode == 0, (said, place.logs())
    assert [trial.state for trial in trials] == ["complete"] * asked
    assert sorted(trial.attempt for trial in trials) == [1, 1, 2]
    assert "will continue from there" in place.logs()  # handed back, not lost
    # No epoch was lost: a second attempt goes on where the first one stopped.
    assert trained == asked * epochs


def test_a_job_at_its_walltime_is_replaced_by_another(
    slurm: dict[str, str], make_place: Callable[..., Any]
) -> None:
    place = make_place(slurm, trials=1, epochs=600)

    launcher = place.launch("--on", "slurm")
    place.until(lambda: any(worker.trials for worker in place.workers()), launcher)
    (job,) = jobs(slurm)
    subprocess.run(["scancel", "--batch", "--signal=TERM", job], env=slurm, check=True, timeout=300)
    place.until(lambda: place.trials()[0].state == "interrupted", launcher)
    _, said = launcher.communicate(timeout=400)

    assert launcher.returncode == 0, (said, place.logs())
    (trial,) = place.trials()
    assert (trial.state, trial.attempt, trial.epochs) == ("complete", 2, 600)
    assert trial.trained_epochs == 600
