"""Seeds that follow from the study's seed and the trial's number, so that a trial can be repeated."""

from __future__ import annotations

import numpy as np


def training_seed(study_seed: int, number: int) -> int:
    """For initial weights, dropout and order of the data of a trial, unless the study fixes them."""
    return _seed(study_seed, number, 0)


def sampler_seed(study_seed: int, number: int) -> int:
    """For the sampler that proposes the trial."""
    return _seed(study_seed, number, 1)


def fold_seed(study_seed: int, number: int) -> int:
    """For the trainings of a promotion on folds: the same for all candidates."""
    return _seed(study_seed, number, 2)


def member_seed(study_seed: int, number: int) -> int:
    """For a member of a promoted ensemble."""
    return _seed(study_seed, number, 3)


def _seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
