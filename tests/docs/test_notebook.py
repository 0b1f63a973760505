"""The notebook of docs/ is executed in a kernel; and a cell that is interrupted."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel

from tools.execute_notebook import execute
from tools.pages import ROOT

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
LIMIT = 500
"""Seconds that anything here may take."""


def shown(cell: Any) -> list[set[str]]:
    """The kinds of what a cell shows."""
    return [set(output.get("data", {output.get("name"): ""})) for output in cell.outputs]


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_showed(tmp_path: Path) -> None:
    kept = nbformat.read(NOTEBOOK, as_version=4)
    notebook = execute(NOTEBOOK, tmp_path, LIMIT)
    assert [shown(cell) for cell in notebook.cells if cell.cell_type == "code"] == [
        shown(cell) for cell in kept.cells if cell.cell_type == "code"
    ]
    texts = "\n".join(
        output["data"]["text/plain"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "data" in output
    )
    assert "small-molecules 8/8" in texts, "the progress of the first cell, when it was over"
    assert "H2O (atoms, 0)" in texts


class Kernel:
    """A kernel of Jupyter, with the home folder of a person."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "ANITUNE_HOME": str(folder / "home")}
        self._manager, self._client = start_new_kernel(
            startup_timeout=LIMIT, env=environment, cwd=str(folder)
        )

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    def begin(self, code: str) -> None:
        self._client.execute(code)

    def wait_for(self, pattern: str) -> None:
        """Until an output has text that matches the pattern."""
        self._read(lambda text, ended: re.search(pattern, text))

    def rest(self) -> str:
        """All that the cell still shows."""
        return self._read(lambda text, ended: ended)

    def run(self, code: str) -> str:
        self.begin(code)
        return self.rest()

    def interrupt(self) -> None:
        self._manager.interrupt_kernel()

    def _read(self, enough: Any) -> str:
        text, until = "", time.monotonic() + LIMIT
        while time.monotonic() < until:
            message = self._client.get_iopub_msg(timeout=LIMIT)
            content = message["content"]
            text += content.get("text", "") + content.get("data", {}).get("text/plain", "")
            text += "\n".join(content.get("traceback", ()))
            ended = message["msg_type"] == "status" and content["execution_state"] == "idle"
            if enough(text, ended):
                return text
        raise AssertionError(f"not within {LIMIT} s; it showed {text[-500:]}")


@pytest.fixture
def kernel(tmp_path: Path) -> Any:
    kernel = Kernel(tmp_path)
    yield kernel
    kernel.close()


@pytest.mark.slow
def test_an_interrupted_cell_hands_its_trial_back_and_goes_on_when_it_is_run_again(kernel: Kernel) -> None:
    cell = (
        "import anitune\n"
        f"study = anitune.run('long', data={str(ROOT / 'examples' / 'small-molecules.extxyz')!r}, trials=1,"
        " training={'epochs': 300, 'hidden': [8], 'device': 'cpu'}, space={'batch_size': {'choices': [16]}},"
        " pruner={'kind': 'none'})"
    )
    kernel.begin(cell)
    kernel.wait_for(r"\b[1-9]\d*/300 epochs")  # not each epoch is shown
    kernel.interrupt()
    text = kernel.rest()
    assert "Finished work is kept: run this again to continue." in text
    assert "Traceback" not in text
    assert "study long: 1 interrupted" in kernel.run("study")
    assert "complete after 300 of 300 epochs" in kernel.run(cell)
    assert kernel.run("int(study.frame()['attempts'].iloc[0])") == "2"
