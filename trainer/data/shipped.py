"""The data set that ships with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

#: The name of the shipped data set wherever a file is asked for.
SAMPLE = "sample"


def sample_file() -> Path:
    """Return the shipped HDF5 file: omegaB97X/6-31G(d) energies in the ANI-1 release layout."""
    return Path(str(resources.files("trainer.data") / "ani1_sample.h5"))
