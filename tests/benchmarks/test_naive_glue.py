from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml

from benchmarks.study import study_of_rows

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "naive_glue.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.slow
def test_trains_a_configuration_of_the_list(data_file: Path, tmp_path: Path) -> None:
    study = study_of_rows(trials=1, epochs=1)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    folder = tmp_path / "naive"
    options = {"configurations": tmp_path / "study.yaml", "data": data_file, "epochs": 1, "folder": folder}
    done = run(*(f"--{name}={value}" for name, value in options.items()))
    assert done.returncode == 0, done.stderr
    assert "best validation MAE" in done.stdout
    (trial,) = optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'optuna.db'}").trials
    row = study["rows"][0]["training"]
    assert trial.params["width_1"] == row["hidden"][0]
    assert {name: trial.params[name] for name in ("activation", "learning_rate", "batch_size")} == {
        name: row[name] for name in ("activation", "learning_rate", "batch_size")
    }
    files = {path.name for path in folder.rglob("artifacts/*") if path.is_file()}
    assert files == {"model.pt", "loss.png", "parity.png", "errors.png"}
