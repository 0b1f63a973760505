"""Opens a home folder that cannot be written, by means of a temporary folder."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from storage.addresses import sqlite_file, sqlite_url
from storage.settings import Settings

_OWN = ("logs", "mlartifacts", "servers", "tokens")
"""Folders that are not linked, because servers write into them."""


def looked_at(settings: Settings, folder: Path) -> Settings:
    """Settings with which servers show a home that cannot be written; they write into ``folder`` instead.

    The folder holds links to the files. MLflow's database is a copy, since MLflow writes into it on opening.
    """
    home = folder / "home"
    artifacts = settings.home / "mlartifacts"
    (home / artifacts.name).mkdir(parents=True)
    shown = [path for path in settings.home.iterdir() if path.is_dir() and path.name not in _OWN]
    shown += [path for path in artifacts.iterdir() if path.suffix != ".lock"] if artifacts.exists() else []
    for path in shown:
        (home / path.relative_to(settings.home)).symlink_to(path)
    tracking = sqlite_file(settings.tracking_uri)
    if tracking is None:
        return replace(settings, home=home)
    for ending in ("", "-wal"):
        file = tracking.with_name(f"{tracking.name}{ending}")
        if file.exists():
            shutil.copyfile(file, home / file.name)
    return replace(settings, home=home, tracking_uri=sqlite_url(home / tracking.name))
