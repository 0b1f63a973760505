"""Data of a study, read again from its files for a report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from dashboards.record import StudyRecord
from trainer.config import DataConfig, SplitConfig, load_config
from trainer.data.found import find_again
from trainer.data.readers import read_data as read_files
from trainer.data.shipped import SAMPLE
from trainer.data.splits import split_dataset
from trainer.data.summary import DatasetSummary, summarize
from trainer.errors import TrainerError
from trainer.progress import no_progress

LARGEST_BYTES: Final = 2**31
"""Files larger than this are not read for a report, because it would take minutes."""


@dataclass(frozen=True)
class StudyData:
    """Data and split of a study.

    Attributes
    ----------
    summary
        Summary of the files; None if they cannot be read here.
    parts
        Numbers of structures of the training, validation and test set.
    why_not
        Why there is no summary.
    """

    summary: DatasetSummary | None
    parts: tuple[int, int, int] | None
    why_not: str = ""


def read_data(record: StudyRecord, home: Path) -> StudyData:
    """Read the data files again, or say why they cannot be read or were changed since."""
    files = find_again(record.config["data"]["files"], (home, home.parent, Path.cwd()))
    try:
        if sum(Path(file).stat().st_size for file in files if file != SAMPLE) > LARGEST_BYTES:
            return StudyData(None, None, "The data files are large, and were not read again for this report.")
        division = load_config(SplitConfig, record.config["split"], record.name)
        data = load_config(DataConfig, {**record.config["data"], "files": files}, record.name)
        dataset = replace(read_files(data, no_progress), told_apart_by=division.molecules)
        if record.facts.get("data", dataset.fingerprint) != dataset.fingerprint:
            return StudyData(None, None, "The data files were changed since the study was trained on them.")
        split = split_dataset(dataset, division)
    except (TrainerError, OSError) as error:
        return StudyData(None, None, f"The data files cannot be read here: {_line(error)}.")
    return StudyData(summarize(dataset), (len(split.train), len(split.validation), len(split.test)))


def _line(error: Exception) -> str:
    said: Any = getattr(error, "strerror", None) or error
    return str(said).rstrip(".")
