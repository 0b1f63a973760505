"""Opening the home folder with its database, and studies in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from search.study import StudyConfig
from storage.database import Database, open_database
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE, Settings, load_settings
from storage.studies import Study, open_study


def open_home(settings: Settings | None = None) -> Database:
    """Open the database.

    Parameters
    ----------
    settings : where it is; None: settings from the environment
    """
    return open_database(settings or load_settings())


@contextmanager
def opened_study(name: str, settings: Settings | None = None) -> Iterator[Study]:
    """Open the database and a study in it."""
    with open_home(settings) as database:
        yield open_study(database, name)


def load_settings_for(config: StudyConfig) -> Settings:
    """Load addresses from the command line or the environment, else the study file, else the defaults."""
    return load_settings(
        storage_url=None if os.environ.get(STORAGE_VARIABLE) else config.storage,
        tracking_uri=None if os.environ.get(TRACKING_VARIABLE) else config.tracking,
    )
