"""Every command and every program of docs/using-the-model.md, in their order."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("ase")

from search.cli.main import app
from trainer.config import TrainConfig
from trainer.inference.domain import training_domain
from trainer.inference.ensemble import Ensemble
from trainer.networks.files import SavedModel
from trainer.networks.model import ElementNetworks
from trainer.task import Task

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "using-the-model.md").read_text()
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
WATER = "3\n\nO 0 0 0.12\nH 0 0.76 -0.47\nH 0 -0.76 -0.47\n"


# The model has learned too little for its minima to be within its data.
@pytest.mark.filterwarnings("ignore:an environment is far")
@pytest.mark.slow
def test_what_the_page_says_works(
    task: Task, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = TrainConfig(hidden=(4,), activation="celu", precision="float32")
    model = ElementNetworks(config, task.aev.elements, task.features.length).eval()
    Ensemble([SavedModel(model, task.aev, task.self_energies)], training_domain(task)).save(Path("champion"))
    Path("molecules.xyz").write_text(WATER * 2)
    shutil.copy(data_file, "more.h5")
    assert len(BLOCKS) == 8
    for kind, text in BLOCKS:
        if kind == "python":
            exec(compile(text, "docs/using-the-model.md", "exec"), {})
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            if program == "anitune":
                result = CliRunner().invoke(app, arguments)
                assert result.exit_code == 0, f"{line}: {result.stderr}"
            else:
                assert program == "python"
                arguments = [str(ROOT / arguments[0]), *arguments[1:], "--picoseconds", "0.01"]
                done = subprocess.run(
                    [sys.executable, *arguments], capture_output=True, text=True, timeout=120
                )
                assert done.returncode == 0, done.stderr
    written = {path.name for path in tmp_path.iterdir()}
    assert {"energies.csv", "energies.extxyz", "champion.safetensors", "champion.pt2"} <= written
