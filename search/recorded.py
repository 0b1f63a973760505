"""The configuration of a study that has a record: from the record alone, or from its file and the record."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.study import StudyConfig, StudyFile, study_from_record
from storage.database import Database
from storage.errors import StudyNotFoundError
from storage.studies import Study, differences, open_study
from trainer.config import dump_config
from trainer.data.found import find_again

logger = logging.getLogger("anitune")


def recorded_config(study: Study) -> StudyConfig:
    """Return the recorded configuration of a study, after looking for moved data files."""
    config = study_from_record(study.config, study.name)
    home = study.database.settings.home
    files = find_again(config.data.files, (home, home.parent, Path.cwd()))
    data = dataclasses.replace(config.data, files=files)
    reference = config.reference and dataclasses.replace(config.reference, data=data)
    return dataclasses.replace(config, data=data, reference=reference)


def config_of_file(database: Database, file: StudyFile) -> StudyConfig:
    """Return the configuration of a study file; what it leaves open is as in the record of the study, if any.

    Log what differs from a new study with this file, because defaults change and lines are removed.

    Raises
    ------
    StudyFileError, ConfigError
        with one line that says what is wrong with the file, or with the record.
    """
    config = file.config(lambda name: record_of(database, name))
    new, found = dump_config(file.config()), dump_config(config)
    if kept := [
        f"{key}: {json.dumps(value)}" for key, _, value in differences(new, found) if value is not None
    ]:
        logger.info("%s exists, and keeps what its file leaves open: %s", config.name, ", ".join(kept))
    return config


def record_of(database: Database, name: str) -> Mapping[str, Any] | None:
    """Return the record of the study of that name; None if there is no such study.

    Raises
    ------
    ConfigError
        if the record is damaged.
    """
    try:
        record = open_study(database, name).config
    except StudyNotFoundError:
        return None
    study_from_record(record, name)
    return record


def with_reference(study: Study) -> list[tuple[Study, StudyConfig]]:
    """Return a study and, before it, its reference study, if it has one."""
    config = recorded_config(study)
    if config.reference is None:
        return [(study, config)]
    return [(open_study(study.database, config.reference.name), config.reference), (study, config)]
