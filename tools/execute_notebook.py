"""Runs a notebook in a Jupyter kernel, in place, and keeps the outputs of its cells.

::

    python -m tools.execute_notebook docs/notebook.ipynb

The cells run in the folder of the notebook, with an empty home folder of their own.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient


def execute(path: Path, home: Path, seconds: int = 600) -> Any:
    """Execute a notebook, and return it with the outputs of its cells.

    Parameters
    ----------
    home : home folder for the records of its studies
    seconds : time limit of a cell
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=seconds, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute(env={**os.environ, "ANITUNE_HOME": str(home)})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # holds times of this run
    return notebook


def main() -> None:
    """Execute the notebook that the first argument names."""
    path = Path(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="anitune-notebook-") as home:
        nbformat.write(execute(path, Path(home)), path)


if __name__ == "__main__":
    main()
