"""The configuration of a study as its record has it, with data files where they are now."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from search.study import StudyConfig, study_from_record
from trainer.data.found import find_again

if TYPE_CHECKING:
    from storage.studies import Study


def recorded_config(study: Study) -> StudyConfig:
    """The configuration of a study, to train with."""
    config = study_from_record(study.config, study.name)
    home = study.database.settings.home
    files = find_again(config.data.files, (home, home.parent, Path.cwd()))
    data = dataclasses.replace(config.data, files=files)
    reference = config.reference and dataclasses.replace(config.reference, data=data)
    return dataclasses.replace(config, data=data, reference=reference)
