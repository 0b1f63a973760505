"""Seeds derived from the study's seed and the trial's number, so that a trial is reproducible."""

from __future__ import annotations

import numpy as np


def training_seed(study_seed: int, number: int) -> int:
    """Derive the seed of a trial's weights, dropout and data order, used unless the study fixes one."""
    return _seed(study_seed, number, 0)


def sampler_seed(study_seed: int, number: int) -> int:
    """Derive the seed of the sampler that proposes a trial."""
    return _seed(study_seed, number, 1)


def fold_seed(study_seed: int, number: int) -> int:
    """Derive a seed of a promotion's trainings on folds, which is the same for all candidates."""
    return _seed(study_seed, number, 2)


def member_seed(study_seed: int, number: int) -> int:
    """Derive the seed of a member of a promoted ensemble."""
    return _seed(study_seed, number, 3)


def _seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
