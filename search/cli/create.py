"""``anitune study create``: record a study, so that workers can train its trials."""

from __future__ import annotations

import logging
import os
import shlex
from typing import Any

from dashboards.formatting import format_earlier
from search.cli.opening import load_settings_for, open_home
from search.cli.options import File
from search.cli.progress import progress_bar
from search.cli.terminal import echo
from search.propose.constraints import check_constraints
from search.propose.earlier import copy_of
from search.propose.samplers import trial_limit
from search.recorded import config_of_file, record_of
from search.study import StudyConfig, read_study, study_from_record
from storage.database import Database
from storage.earlier_studies import EarlierStudy
from storage.errors import StudyNotFoundError
from storage.lifecycle import add_files, has_other_files
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE
from storage.studies import (
    Budget,
    Study,
    create_study,
    is_begun,
    open_study,
    refuse_other_settings,
    with_files,
)
from trainer.config import dump_config
from trainer.errors import ConfigError
from trainer.task import TaskData, prepare_data

logger = logging.getLogger("anitune")


def create(file: File) -> None:
    """Create a study, so that workers can train its trials."""
    given = read_study(file)
    with open_home(load_settings_for(given.config())) as database:
        config = config_of_file(database, given)
        create_studies(database, config)
    echo(f"{config.name}: ready; start a worker with: {anitune_with_places(config)} worker {config.name}")


def anitune_with_places(config: StudyConfig) -> str:
    """Return the command with the addresses of the study file, which other commands do not read."""
    words = ["anitune"]
    if config.storage is not None and not os.environ.get(STORAGE_VARIABLE):
        words += ["--storage", config.storage]
    if config.tracking is not None and not os.environ.get(TRACKING_VARIABLE):
        words += ["--tracking", config.tracking]
    return shlex.join(words)


def create_studies(
    database: Database, config: StudyConfig
) -> tuple[list[tuple[Study, StudyConfig]], TaskData | None]:
    """Create the study and, before it, its reference study.

    Returns
    -------
    Both studies, and the data if it was read.
    """
    wanted = [each for each in (config.reference, config) if each is not None]
    for each in wanted:
        check_constraints(each)
    # A recorded study is permanent, so first check that all names are free and the data can be trained on.
    values = {each.name: _as_recorded(database, each) for each in wanted}
    moved = [each for each in wanted if has_other_files(database, each.name, values[each.name])]
    new = [
        each for each in wanted if each not in moved and not is_begun(database, each.name, values[each.name])
    ]
    earlier = {each.name: _copied(database, each) for each in new}
    data = None
    if moved or new:
        with progress_bar() as progress:
            data = prepare_data(config.task, progress, database.settings.features)
        for each in wanted:
            _refuse_useless_widths(each, data)
        for each in moved:
            add_files(database, each.name, list(each.data.files), data.fingerprints["data"])
    studies = []
    for each in wanted:
        hours = each.limits.hours
        budget = Budget(
            trials=trial_limit(each),
            seconds=hours * 3600 if hours is not None else None,
            epochs=each.limits.epochs,
            until_no_gain=each.limits.until_no_gain,
        )
        # The reference study has the priority of the study.
        study = create_study(
            database, each.name, values[each.name], budget, config.priority, earlier.get(each.name, ())
        )
        studies.append((study, each))
    return studies, data


def _copied(database: Database, config: StudyConfig) -> list[EarlierStudy]:
    """Copy the results of the studies that a new study learns from.

    Raises
    ------
    ConfigError
        with a line that names a study that does not exist, or has no result that lies in the space.
    """
    copies = []
    for name in config.learn_from or ():
        try:
            study = open_study(database, name)
        except StudyNotFoundError as error:
            raise ConfigError(f"{config.name}: learn_from: {error}") from None
        copies.append(copy_of(config, study))
        logger.info("%s learns from %s", config.name, format_earlier(copies[-1]))
    return copies


def _refuse_useless_widths(config: StudyConfig, data: TaskData) -> None:
    """Refuse to search widths of elements that the data lack, as no error depends on them.

    Raises
    ------
    ConfigError
        that names the elements.
    """
    present = data.dataset.elements
    if useless := [element for element in config.elements_with_widths if element not in present]:
        elements = ", ".join(element for element in config.features.aev.elements if element in present)
        raise ConfigError(
            f"{config.name}: space.width.per_element: the data have no {', '.join(useless)}, so these widths"
            f" would be searched in vain: add features: {{aev: {{elements: [{elements}]}}}} to the file"
        )


def _as_recorded(database: Database, config: StudyConfig) -> dict[str, Any]:
    """Return the record of a study with the data files of a configuration, or its record if it is new.

    Raises
    ------
    StudyExistsError
        if the study has a record, and another configuration.
    """
    values, files = dump_config(config), list(config.data.files)
    record = record_of(database, config.name)
    if record is None:
        return values
    known = dump_config(study_from_record(record, config.name))
    refuse_other_settings(config.name, with_files(known, files), values)
    return with_files(record, files)
