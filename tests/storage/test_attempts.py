from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import IntDistribution, distribution_to_json
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Engine, delete, event, select, update

from storage.database import Database
from storage.errors import BlobWriteError, DatabaseError, LeaseLostError, TrialClosedError
from storage.records.tables import artifacts, attempts, metrics, outbox, rungs, trials
from storage.settings import Settings
from storage.studies import Study
from storage.tracking.outbox import MetricRow, MetricsMessage, TrialStartMessage, read_message
from storage.trials import finalize
from storage.trials.attempts import Attempt
from storage.trials.heartbeat import Heartbeat
from storage.trials.queue import Claim, WorkerInfo, claim_trial
from storage.trials.views import metric_history, trial_row, trial_rows
from tests.leases import let_leases_run_out

MakeStudy = Callable[..., Study]
AwayDatabase = Callable[[Database], AbstractContextManager[None]]


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    return make_study(trials=3)


@pytest.fixture
def claim(database: Database, study: Study, worker: WorkerInfo) -> Claim:
    claimed = claim_trial(database, study, worker)
    assert claimed is not None
    return claimed


@pytest.fixture
def attempt(database: Database, study: Study, claim: Claim) -> Attempt:
    return Attempt(database, study, claim)


@pytest.fixture
def plot(tmp_path: Path) -> Path:
    file = tmp_path / "loss.png"
    file.write_bytes(b"\x89PNG of a loss curve")
    return file


def take_over(database: Database, study: Study, worker: WorkerInfo, token: str) -> Claim:
    """Another worker claims the trial, as after the silence of its first worker."""
    let_leases_run_out(database, token)
    claimed = claim_trial(database, study, replace(worker, name="w2"))
    assert claimed is not None
    return claimed


def losses(*epochs: int, value: float = 0.5) -> list[MetricRow]:
    return [MetricRow("val/loss", epoch, value, 1_000 * epoch) for epoch in epochs]


def messages(database: Database, study: Study) -> list[Any]:
    query = select(outbox.c.kind, outbox.c.payload).where(
        outbox.c.study_id == study.id, outbox.c.number.is_not(None)
    )
    with database.reading() as connection:
        return [read_message(*row) for row in connection.execute(query.order_by(outbox.c.id))]


def contents(database: Database) -> dict[str, list[Any]]:
    """Every row about trials."""
    with database.reading() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(select(table))))
            for table in (trials, attempts, metrics, rungs, artifacts, outbox)
        }


def test_what_was_proposed_is_kept_and_delivered_once(
    database: Database, study: Study, attempt: Attempt
) -> None:
    study.set_facts({"data fingerprint": "abc"})
    for _ in range(2):
        attempt.record_config(
            {"hidden": [64, 32]}, {"layers": 2}, planned_epochs=10, tags={"arch": "384-64-32-1 celu"}
        )

    assert messages(database, study) == [
        TrialStartMessage(
            params={"layers": 2},
            tags={
                "arch": "384-64-32-1 celu",
                "data fingerprint": "abc",
                "attempt": "1",
                "worker": "w1",
                "host": "alpha",
                "device": "cpu",
                "version.torch": "2.13.0",
            },
        )
    ]


def test_of_a_metric_recorded_twice_the_first_value_stays_and_is_delivered_once(
    database: Database, study: Study, worker: WorkerInfo, claim: Claim, attempt: Attempt
) -> None:
    attempt.record_metrics(losses(1, 2))
    second = Attempt(database, study, take_over(database, study, worker, claim.token))
    second.record_metrics(losses(2, 3, value=0.25))

    history = metric_history(database, study, 0)["val/loss"]
    assert [(row.step, row.value) for row in history] == [(1, 0.5), (2, 0.5), (3, 0.25)]
    delivered = [row for m in messages(database, study) if isinstance(m, MetricsMessage) for row in m.rows]
    assert delivered == list(history)


def test_thousands_of_metrics_at_once_come_in_batches(
    database: Database, study: Study, attempt: Attempt
) -> None:
    rows = losses(*range(1, 2_502))
    attempt.record_metrics(rows)

    told = messages(database, study)
    assert [len(message.rows) for message in told] == [1_000, 1_000, 501]
    assert list(metric_history(database, study, 0)["val/loss"]) == rows


def test_values_that_are_no_numbers_survive(database: Database, study: Study, attempt: Attempt) -> None:
    attempt.record_metrics(
        [MetricRow("a", 1, math.nan, 1), MetricRow("b", 1, math.inf, 1), MetricRow("c", 1, -math.inf, 1)]
    )

    history = metric_history(database, study, 0)
    assert [history[key][0].value for key in "bc"] == [math.inf, -math.inf]
    assert math.isnan(history["a"][0].value)
    (message,) = messages(database, study)
    assert math.isnan(message.rows[0].value)
    assert message.rows[1].value == math.inf


WRITES: dict[str, Callable[[Attempt, Path], object]] = {
    "renew": lambda attempt, plot: attempt.renew(),
    "config": lambda attempt, plot: attempt.record_config({}, {}, planned_epochs=1),
    "device": lambda attempt, plot: attempt.record_device("cpu", "float32"),
    "metrics": lambda attempt, plot: attempt.record_metrics(losses(1)),
    "rung": lambda attempt, plot: attempt.rung(1, 2.0, losses(1), lambda trial: True),
    "artifact": lambda attempt, plot: attempt.record_artifacts({"plots/loss.png": plot}),
    "finish": lambda attempt, plot: attempt.finish("complete", value=1.0),
    "hand_back": lambda attempt, plot: attempt.hand_back("stopped"),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_worker_that_lost_its_lease_writes_nothing(
    database: Database,
    study: Study,
    worker: WorkerInfo,
    claim: Claim,
    attempt: Attempt,
    plot: Path,
    write: str,
) -> None:
    take_over(database, study, worker, claim.token)
    before = contents(database)

    with pytest.raises(LeaseLostError):
        WRITES[write](attempt, plot)
    assert contents(database) == before
    (trial,) = study.optuna.get_trials()
    assert trial.state is TrialState.RUNNING
    assert trial.intermediate_values == {}


def test_optuna_refuses_a_proposal_of_a_worker_that_lost_its_lease(
    database: Database, study: Study, worker: WorkerInfo, claim: Claim, attempt: Attempt
) -> None:
    with attempt.fenced():
        trial = study.optuna_trial(claim.optuna_trial_id)
        trial.suggest_float("x", 0, 1)
    take_over(database, study, worker, claim.token)

    with pytest.raises(LeaseLostError), attempt.fenced():
        trial.suggest_float("y", 0, 1)
    assert list(study.optuna.get_trials()[0].params) == ["x"]


def test_a_worker_that_loses_its_lease_while_it_asks_the_pruner_decides_nothing(
    database: Database, study: Study, worker: WorkerInfo, claim: Claim, attempt: Attempt
) -> None:
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)

    def stopped_meanwhile(trial: FrozenTrial) -> bool:
        take_over(database, study, worker, claim.token)
        return pruner.prune(study.optuna, trial)

    with pytest.raises(LeaseLostError):
        attempt.rung(1, 2.0, losses(1), stopped_meanwhile)
    assert study.optuna.get_trials()[0].system_attrs == {}
    with database.reading() as connection:
        assert connection.execute(select(rungs.c.stop)).scalars().all() == [None]


def test_a_decision_is_made_once(
    database: Database, study: Study, worker: WorkerInfo, claim: Claim, attempt: Attempt
) -> None:
    assert attempt.rung(3, 2.0, losses(1, 2, 3), lambda trial: trial.intermediate_values == {3: 2.0})
    second = Attempt(database, study, take_over(database, study, worker, claim.token))

    def must_not_be_asked(trial: FrozenTrial) -> bool:
        raise AssertionError

    assert second.rung(3, 2.0, losses(3), must_not_be_asked)


def test_a_crash_while_the_pruner_answers_lets_no_trial_escape(
    database: Database, study: Study, worker: WorkerInfo
) -> None:
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)

    def ask(trial: FrozenTrial) -> bool:
        return pruner.prune(study.optuna, trial)

    def ask_and_die(trial: FrozenTrial) -> bool:
        assert ask(trial)
        raise KeyboardInterrupt

    good, bad = claim_trial(database, study, worker), claim_trial(database, study, worker)
    assert good is not None
    assert bad is not None
    assert not Attempt(database, study, good).rung(1, 1.0, losses(1), ask)
    assert not Attempt(database, study, good).rung(2, 1.0, losses(2), ask)
    with pytest.raises(KeyboardInterrupt):
        Attempt(database, study, bad).rung(1, 5.0, losses(1), ask_and_die)
    again = Attempt(database, study, take_over(database, study, worker, bad.token))

    assert again.rung(1, 5.0, losses(1), ask)


@pytest.mark.parametrize("deed", ["ended", "deleted"])
def test_a_trial_that_a_person_closed_in_the_dashboard_is_said_so(
    database: Database, study: Study, claim: Claim, attempt: Attempt, deed: str
) -> None:
    if deed == "ended":
        study.optuna.tell(claim.number, state=TrialState.FAIL)
    else:
        database.optuna.delete_study(study.optuna_study_id)

    with pytest.raises(TrialClosedError, match="dashboard"):
        attempt.record_config({}, {}, planned_epochs=1)
    with pytest.raises(TrialClosedError, match="dashboard"):
        attempt.rung(1, 2.0, losses(1), lambda trial: False)
    attempt.finish("failed", reason="closed in the dashboard")
    with database.reading() as connection:
        assert connection.execute(select(trials.c.state, trials.c.told)).one() == ("failed", True)


def test_optuna_gets_the_end_with_what_is_worth_a_column_and_the_images(
    settings: Settings, study: Study, attempt: Attempt, plot: Path, tmp_path: Path
) -> None:
    parity = tmp_path / "parity.png"
    parity.write_bytes(b"\x89PNG of true and predicted energies")
    config = tmp_path / "config.json"
    config.write_text("{}")
    attempt.record_config({}, {}, planned_epochs=9, tags={"arch": "384-64-1 celu"})
    attempt.record_metrics(losses(1, 2, 3))
    attempt.record_artifacts({"plots/parity.png": parity})
    attempt.record_artifacts({"config.json": config})
    attempt.record_artifacts({"plots/loss.png": plot})
    attempt.finish(
        "pruned", value=2.5, reason="pruned at epoch 3", summary={"parameters": 98.0}, tags={"host": "alpha"}
    )

    (trial,) = study.optuna.get_trials()
    assert (trial.state, trial.value) == (TrialState.PRUNED, 2.5)
    assert trial.user_attrs.pop("seconds") >= 0
    assert trial.user_attrs == {
        "arch": "384-64-1 celu",
        "host": "alpha",
        "parameters": 98.0,
        "epochs": 3,
        "attempt": 1,
        "stopped_because": "pruned at epoch 3",
    }
    shown = optuna.artifacts.get_all_artifact_meta(trial, storage=study.database.optuna)
    shown.sort(key=lambda meta: meta.artifact_id)
    assert [meta.filename for meta in shown] == ["parity.png", "loss.png"]
    store = optuna.artifacts.FileSystemArtifactStore(settings.optuna_artifacts)
    with store.open_reader(shown[1].artifact_id) as stored:
        assert stored.read() == plot.read_bytes()


def test_time_on_a_gpu_is_worth_a_column_of_its_own(database: Database, study: Study) -> None:
    worker = WorkerInfo("w2", "beta", 18, "cuda:0 NVIDIA H100", {})
    claim = claim_trial(database, study, worker)
    assert claim is not None
    Attempt(database, study, claim).finish("complete", value=1.0)
    (trial,) = (trial for trial in study.optuna.get_trials() if trial.number == claim.number)
    assert trial.user_attrs["gpu_seconds"] == trial.user_attrs["seconds"]


def test_each_attempt_has_its_own_device_and_precision(database: Database, study: Study) -> None:
    words = ("cuda:0 NVIDIA H100", "tf32"), ("cpu", "float32")
    for number, (device, precision) in enumerate(words, 1):
        claim = claim_trial(database, study, WorkerInfo(f"w{number}", "beta", number, "not known yet", {}))
        assert claim is not None
        assert claim.ran_on == words[: number - 1]
        attempt = Attempt(database, study, claim)
        if number == 1:
            attempt.record_config({"a": 1}, {"a": 1}, planned_epochs=3, ran_on=(device, precision))
        else:
            attempt.record_device(device, precision)
        attempt.record_metrics([MetricRow("loss", number, 1.0, number)])
        attempt.hand_back("for the other one")
    trial = trial_row(database, study, claim.number)
    assert [(each.attempt, each.device, each.precision) for each in trial.attempts] == [
        (1, *words[0]),
        (2, *words[1]),
    ]
    assert (trial.worker.device, trial.worker.precision) == words[1]
    # One that trained nothing is none of them.
    assert claim_trial(database, study, WorkerInfo("w3", "beta", 3, "cuda:1", {})) is not None
    assert trial_rows(database, study)[claim.number].attempts == trial.attempts
    with database.reading() as connection:
        told = connection.execute(select(outbox.c.payload).order_by(outbox.c.id)).scalars().all()
    shown = [
        (tags["device"], tags["precision"]) for row in told if "precision" in (tags := row.get("tags", {}))
    ]
    assert list(dict.fromkeys(shown)) == list(words)


def test_what_is_worth_a_column_costs_no_transaction_each(study: Study, attempt: Attempt) -> None:
    with killed_before_commit(10):
        attempt.finish("complete", value=1.0, summary={f"metric_{number}": 0.5 for number in range(50)})
    assert study.optuna.get_trials()[0].user_attrs["metric_49"] == 0.5


def test_the_reason_of_a_failure_is_on_the_trial(study: Study, attempt: Attempt) -> None:
    attempt.finish("failed", reason="the loss was not finite at epoch 4")

    (trial,) = study.optuna.get_trials()
    assert trial.state is TrialState.FAIL
    assert trial.user_attrs["fail_reason"] == "the loss was not finite at epoch 4"


class Killed(BaseException):
    """The process dies here."""


@contextmanager
def killed_before_commit(number: int) -> Iterator[None]:
    """Die before the given commit, counted from 1, of any transaction in the block."""
    left = number

    def count(connection: Connection) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            connection.connection.rollback()
            raise Killed

    event.listen(Engine, "commit", count)
    try:
        yield
    finally:
        event.remove(Engine, "commit", count)


def crashes_so_far(database: Database, study: Study) -> int:
    """Attempts at trials of the study, so that each proposes something else."""
    with database.reading() as connection:
        tried = select(attempts.c.number).where(attempts.c.study_id == study.id)
        return len(connection.execute(tried).all())


def run_trial(database: Database, study: Study, worker: WorkerInfo, plot: Path) -> bool:
    """All that a worker does with a trial; whether there was one."""
    claim = claim_trial(database, study, worker)
    if claim is None:
        return False
    attempt = Attempt(database, study, claim)
    if claim.config is None:
        width = 32 + crashes_so_far(database, study)
        proposed = {"width": (width, distribution_to_json(IntDistribution(32, 64)))}
        attempt.record_config({"hidden": [width]}, {"width": width}, planned_epochs=2, proposed=proposed)
    attempt.rung(1, 2.0, losses(1), lambda trial: False)
    attempt.record_metrics(losses(2))
    attempt.record_artifacts({"plots/loss.png": plot})
    attempt.finish("complete", value=1.5, summary={"parameters": 98.0})
    return True


def test_a_worker_may_die_between_any_two_writes(
    database: Database, make_study: MakeStudy, worker: WorkerInfo, plot: Path
) -> None:
    crashes = 0
    while True:
        study = make_study(f"death-{crashes}", trials=1)
        try:
            with killed_before_commit(crashes + 1):
                run_trial(database, study, worker, plot)
            break
        except Killed:
            crashes += 1
        let_leases_run_out(database)
        while run_trial(database, study, worker, plot):
            pass

        (trial,) = study.optuna.get_trials()
        assert (trial.number, trial.state, trial.value) == (0, TrialState.COMPLETE, 1.5)
        assert trial.user_attrs["parameters"] == 98.0
        assert trial.datetime_complete is not None
        assert abs(trial.datetime_complete - datetime.now()) < timedelta(minutes=1)
        assert trial.intermediate_values == {1: 2.0}
        assert len([key for key in trial.system_attrs if key.startswith("artifacts:")]) == 1
        told = messages(database, study)
        assert Counter(m.kind for m in told if m.kind != "trial_tags") == {
            "trial_start": 1,
            "metrics": 2,
            "artifact": 1,
            "trial_end": 1,
        }
        assert told[0].kind == "trial_start"
        assert told[-1].kind == "trial_end"
        with database.reading() as connection:
            recorded = connection.execute(select(trials).where(trials.c.study_id == study.id)).one()
            assert json.loads(json.dumps(recorded.config)) == {"hidden": [trial.params["width"]]}
    assert crashes > 8


def test_an_end_whose_acknowledgement_was_lost_can_be_finished_again(
    database: Database, study: Study, attempt: Attempt
) -> None:
    for _ in range(2):
        attempt.finish("complete", value=1.0)

    assert [message.kind for message in messages(database, study)] == ["trial_start", "trial_end"]
    with pytest.raises(LeaseLostError):
        attempt.finish("failed", reason="another end")


def wait_for(condition: Callable[[], bool], heartbeat: Heartbeat) -> None:
    for _ in range(400):
        if condition():
            return
        heartbeat.lost.wait(0.05)
    pytest.fail("waited too long")


def renewals(database: Database) -> float:
    with database.reading() as connection:
        return float(connection.execute(select(attempts.c.renewed_at)).scalars().first() or 0)


def test_a_lease_is_kept_while_the_block_lasts(database: Database, study: Study, worker: WorkerInfo) -> None:
    claim = claim_trial(database, study, worker, lease_seconds=2)
    assert claim is not None
    begun = renewals(database)
    with Heartbeat(Attempt(database, study, claim)) as heartbeat:
        wait_for(lambda: renewals(database) > begun + 2, heartbeat)
        other = claim_trial(database, study, worker)
        assert other is not None
        assert other.number == 1
        assert not heartbeat.lost.is_set()


def test_a_worker_learns_that_its_lease_is_lost(database: Database, study: Study, worker: WorkerInfo) -> None:
    claim = claim_trial(database, study, worker, lease_seconds=2)
    assert claim is not None
    with Heartbeat(Attempt(database, study, claim)) as heartbeat:
        take_over(database, study, worker, claim.token)
        wait_for(heartbeat.lost.is_set, heartbeat)


def test_a_lease_outlives_whatever_the_database_says(
    database: Database, study: Study, worker: WorkerInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = claim_trial(database, study, worker, lease_seconds=2)
    assert claim is not None
    attempt = Attempt(database, study, claim)
    renew, refusals = attempt.renew, iter(range(3))

    def renew_later() -> str:
        for _ in refusals:
            raise DatabaseError("cannot execute UPDATE in a read-only transaction")
        return renew()

    monkeypatch.setattr(attempt, "renew", renew_later)
    begun = renewals(database)
    with Heartbeat(attempt) as heartbeat:
        wait_for(lambda: renewals(database) > begun, heartbeat)
        assert not heartbeat.lost.is_set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lease_that_nobody_keeps_is_lost(
    attempt: Attempt, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt.claim = replace(claim, lease_seconds=1)
    monkeypatch.setattr(attempt, "renew", lambda: 1 / 0)
    with Heartbeat(attempt) as heartbeat:
        assert heartbeat.lost.wait(10)


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
def test_a_training_outlives_a_database_that_is_away(
    database: Database, study: Study, worker: WorkerInfo, database_away: AwayDatabase
) -> None:
    claim = claim_trial(database, study, worker, lease_seconds=1)
    assert claim is not None
    attempt = Attempt(database, study, claim)
    with Heartbeat(attempt) as heartbeat:
        begun = renewals(database)
        with database_away(database):
            # Longer than the lease: nobody can take the trial from us without a database either.
            assert not heartbeat.lost.wait(1.5)
        attempt.record_metrics(losses(1))
        wait_for(lambda: renewals(database) > begun + 1.5, heartbeat)
        assert not heartbeat.lost.is_set()
    assert len(metric_history(database, study, 0)["val/loss"]) == 1


def test_an_image_that_the_dashboard_cannot_get_is_told_and_given_later(
    database: Database, study: Study, attempt: Attempt, worker: WorkerInfo, plot: Path
) -> None:
    attempt.record_artifacts({"plots/loss.png": plot})
    place = database.settings.optuna_artifacts
    place.write_text("in the way of the folder")
    with pytest.raises(BlobWriteError, match=r"cannot be written: .*; free some space") as error:
        attempt.finish("complete", 1.25)
    assert str(place) in str(error.value)
    # What a worker then does: there is nothing left to give back, and nobody to blame.
    attempt.hand_back(str(error.value))
    with database.reading() as connection:
        assert connection.execute(select(trials.c.state, trials.c.told)).one() == ("complete", False)

    place.unlink()
    claim_trial(database, study, worker)
    assert [path.read_bytes() for path in place.iterdir()] == [plot.read_bytes()]
    with database.reading() as connection:
        assert connection.execute(select(trials.c.told).where(trials.c.number == 0)).scalar_one()
    assert study.optuna.get_trials()[0].value == 1.25


def test_two_processes_may_sync_an_end_at_once(
    database: Database, settings: Settings, study: Study, attempt: Attempt, claim: Claim
) -> None:
    folder = settings.attempt_folder(study.name, claim.number, claim.attempt)
    folder.mkdir(parents=True)
    (folder / f"{folder.name}.log").write_text("it ended")
    attempt.finish("complete", value=1.0)
    with database.writing() as connection:  # as if it had died before it told Optuna
        connection.execute(update(trials).values(told=False))
        connection.execute(delete(artifacts))

    meeting = threading.Barrier(4, timeout=60)

    def sync_to_optuna(_: int) -> None:
        meeting.wait(60)
        finalize.sync_to_optuna(database, study, claim.number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(sync_to_optuna, range(4)))
    with database.reading() as connection:
        assert connection.execute(select(artifacts.c.path)).scalars().all() == [f"logs/{folder.name}.log"]
