"""``anitune study init``: write a study file that suits the data."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from search.cli.data import read_files, reads_data
from search.cli.terminal import echo
from search.template import study_name, study_template
from trainer.config import DataConfig
from trainer.data.convert import refuse_existing
from trainer.data.shipped import SAMPLE
from trainer.files import write_by_rename


@reads_data
def init(
    data: DataConfig,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the study. Default: the name of the first file.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.yaml", help="The file to write. Default: NAME.yaml.")
    ] = None,
) -> None:
    """Write a study file that suits the data, with the reason for each setting."""
    called = name or study_name(data.files[0])
    path = out or Path(f"{called}.yaml")
    refuse_existing(path)
    dataset = read_files(data)
    files = tuple(_path_in(file, path.absolute().parent) for file in data.files)
    write_by_rename(path, study_template(dataset, replace(data, files=files), called).encode())
    echo(f"{path}: review it, then run: {shlex.join(['anitune', 'study', 'run', str(path)])}")


def _path_in(file: str, folder: Path) -> str:
    """Return the path of a data file as a study file in that folder names it."""
    if file == SAMPLE:
        return file
    absolute = Path(file).absolute()
    return str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)
