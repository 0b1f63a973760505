"""The recorded configuration of a study, with the current paths of its data files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from search.study import StudyConfig, study_from_record
from trainer.data.found import find_again

if TYPE_CHECKING:
    from storage.studies import Study


def recorded_config(study: Study) -> StudyConfig:
    """Return the recorded configuration of a study, after looking for moved data files."""
    config = study_from_record(study.config, study.name)
    home = study.database.settings.home
    files = find_again(config.data.files, (home, home.parent, Path.cwd()))
    data = dataclasses.replace(config.data, files=files)
    reference = config.reference and dataclasses.replace(config.reference, data=data)
    return dataclasses.replace(config, data=data, reference=reference)
