"""What the commands that compare and repair print, and how they exit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from typer.testing import CliRunner

from search.cli.main import app
from storage.database import open_database
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE, Settings, load_settings
from storage.studies import Budget, create_study
from storage.trials.attempts import Attempt
from storage.trials.queue import WorkerInfo, claim_trial

# MLflow uses what is deprecated elsewhere; our own warnings stay errors.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")]


def test_verify_and_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_home: Callable[[Path], Settings]
) -> None:
    make_home(tmp_path)
    monkeypatch.setenv("ANITUNE_HOME", str(tmp_path))
    for variable in (STORAGE_VARIABLE, TRACKING_VARIABLE):
        monkeypatch.delenv(variable, raising=False)

    def anitune(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["study", *arguments])

    with open_database(load_settings()) as database:
        study = create_study(database, "tiny", {}, Budget(trials=1))
        claim = claim_trial(database, study, WorkerInfo("w1", "h", 1, "cpu", {}))
        assert claim is not None
        attempt = Attempt(database, study, claim)
        attempt.record_config({}, {}, planned_epochs=1, tags={"arch": "384-8-1 silu"})
        attempt.finish("complete", 1.0)
        assert anitune("repair", "tiny").exit_code == 0  # delivers what MLflow was not told yet

        clean = anitune("verify", "tiny")
        assert clean.exit_code == 0
        assert clean.stdout == (
            "tiny: SQL, Optuna and MLflow agree;"
            " 1 of 1 trials (1 complete), 1 runs, 1 metric values, 0 artifacts compared\n"
        )
        with database.writing() as connection:
            from storage.trials.optuna_rows import set_state

            set_state(connection, claim.optuna_trial_id, TrialState.FAIL)

        wrong = anitune("verify", "tiny")
        assert wrong.exit_code == 1
        assert wrong.stdout.splitlines()[0] == "trial 0: it is FAIL in Optuna, COMPLETE in the record"
        assert "differences: 1" in wrong.stdout
        shown = json.loads(anitune("verify", "tiny", "--json").stdout)
        assert shown["agree"] is False
        assert shown["differences"] == [
            {"trial": 0, "difference": "it is FAIL in Optuna, COMPLETE in the record", "repair": "finalize"}
        ]

        repaired = anitune("repair", "tiny")
        assert repaired.exit_code == 0
        assert repaired.stdout.splitlines() == [
            "repaired: trial 0: it is FAIL in Optuna, COMPLETE in the record",
            "tiny: 1 differences repaired, 0 left",
        ]
        assert anitune("verify", "tiny").exit_code == 0
    missing = anitune("verify", "another")
    assert missing.exit_code == 2
