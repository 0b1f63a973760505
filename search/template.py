"""A first study file for a data set: settings that suit its size, with the reason for each."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final

from search.documents import write_document
from search.plural import count_of
from trainer.config import AEVConfig, DataConfig, SplitConfig, dump_config
from trainer.data.dataset import Dataset
from trainer.data.splits import split_dataset
from trainer.data.summary import DatasetSummary, summarize
from trainer.features.aev import aev_length

#: Number of molecules from which a validation set of whole molecules is large enough for comparisons.
MANY_MOLECULES: Final = 50

#: Desired number of optimizer steps in an epoch, and in a whole training.
STEPS_AN_EPOCH: Final = 150
STEPS: Final = 25_000

#: Standard deviation over mean of the absolute errors, if errors are normally distributed: sqrt(pi / 2 - 1).
SPREAD: Final = math.sqrt(math.pi / 2 - 1)


@dataclass(frozen=True)
class _Space:
    """Layers and widths to search, for fewer than ``below`` training structures."""

    below: float
    layers: tuple[int, int]
    width: tuple[int, int]
    why: str


_SPACES: Final = (
    _Space(2_000, (1, 2), (32, 128), "Few structures: larger networks overfit."),
    _Space(300_000, (2, 3), (96, 256), "One layer had 1.8 times the error of two on 5,410 structures."),
    _Space(math.inf, (2, 4), (96, 256), "Much data: the default range without its smallest networks."),
)


def study_template(dataset: Dataset, data: DataConfig, name: str) -> str:
    """Write the text of a study file.

    Parameters
    ----------
    data : how the data set was read, with the paths of its files as the study file is to name them

    Raises
    ------
    DataError
        if there are too few structures for the subsets of a split.
    """
    summary = summarize(dataset)
    by_molecule = summary.molecules >= MANY_MOLECULES
    fractions = _fractions(summary.structures)
    split = SplitConfig(by="molecule" if by_molecule else "structure", fractions=fractions)
    parts = split_dataset(dataset, split)
    train, validation = len(parts.train), len(parts.validation)
    batch = _power_of_two(train / STEPS_AN_EPOCH, 8, 1024)
    epochs = _rounded(STEPS / math.ceil(train / batch), 30, 300)
    space = next(each for each in _SPACES if train < each.below)
    aev, features = _features(dataset)
    elements = " ".join(summary.elements)
    lines = [
        f"# {summary.structures:,} structures of {count_of(summary.molecules, 'molecule')} of {elements},"
        f" {summary.atoms_per_structure:.1f} atoms each.",
        "# Written by `anitune study init`; docs/study-file.md describes every setting.",
        *_written({"name": name, "data": _not_default(data)}),
        *_isolated_atoms(summary),
        *[f"# In all molecules {each}: no other composition can be predicted." for each in summary.balances],
        "",
        *features,
        *_split_reasons(summary.molecules, by_molecule),
        f"# {validation:,} validation structures: the error of a trial is known to about"
        f" {SPREAD / math.sqrt(validation):.0%} of it.",
        *_written({"split": {"by": split.by, "fractions": list(fractions)}}),
        "",
        "# The search space. A setting that is neither here nor under training is searched over its default"
        " range.",
        "space:",
        f"  # {space.why}",
        f"  layers: {{low: {space.layers[0]}, high: {space.layers[1]}}}",
        f"  width: {{low: {space.width[0]}, high: {space.width[1]}, step: 32}}"
        f" # {_most_parameters(space, aev_length(aev), len(aev.elements)):,} parameters at most",
        "  activation: {choices: [celu, gelu, silu]} # smooth: their forces have no jumps",
        "  dropout: 0.0 # a single value is not searched: with little data, dropout only hurts",
        "  learning_rate: {low: 3.0e-4, high: 5.0e-3, log: true}",
        f"  # {train:,} training structures: {math.ceil(train / batch):,} steps per epoch with {batch}.",
        f"  batch_size: {{choices: {[size for size in (batch // 2, batch, 2 * batch) if size >= 8]}}}",
        "  weight_decay: {low: 1.0e-8, high: 1.0e-4, log: true}",
        "",
        "training:",
        f"  epochs: {epochs} # about {epochs * math.ceil(train / batch):,} steps in all",
        "  optimizer: adamw",
        "  schedule: cosine",
        "  ema_decay: 0.99 # the average of the last hundred or so steps is evaluated: less noise",
        "",
        "sampler: {kind: tpe}",
        "pruner: {kind: asha} # trials that are not among the best quarter wait, and may continue later",
        "",
        "# `hours: 8` can be added: the first limit reached counts. `anitune study extend` adds more.",
        "limits: {trials: 40}",
        "",
    ]
    return "\n".join(lines)


def study_name(file: str) -> str:
    """Make a name for a study from the name of its data file."""
    stem = file.rsplit("/", 1)[-1].split(".", 1)[0]
    return re.sub("[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:60] or "my-study"


def _features(dataset: Dataset) -> tuple[AEVConfig, list[str]]:
    """Return the constants of the features, and their section if the defaults do not suffice."""
    usual = AEVConfig()
    others = [element for element in dataset.elements if element not in usual.elements]
    if not others:
        return usual, []
    aev = AEVConfig(elements=(*usual.elements, *others))
    return aev, [
        f"# The default features are for {' '.join(usual.elements)} alone. With {' '.join(others)} they are"
        f" {aev_length(aev):,} numbers per atom, instead of {aev_length(usual)}.",
        *_written({"features": {"aev": {"elements": list(aev.elements)}}}),
        "",
    ]


def _isolated_atoms(summary: DatasetSummary) -> list[str]:
    if summary.self_energies_hartree:
        return ["# The energies of the isolated atoms are the self-energies; they are not trained on."]
    if not summary.isolated_atoms:
        return []
    return [
        f"# Isolated atoms ({' '.join(summary.isolated_atoms)}) are trained on like other structures. With",
        "# `self_energies: isolated_atoms` under data, their energies are the self-energies instead.",
    ]


def _split_reasons(molecules: int, by_molecule: bool) -> list[str]:
    if by_molecule:
        return [
            f"# {molecules:,} molecules, each in one subset: the error is that on molecules never seen.",
            "# With `by: structure` it would be that on other geometries of known molecules.",
        ]
    few = "One molecule is" if molecules == 1 else f"{molecules} molecules are"
    return [
        f"# {few} too few to hold some out: the structures of each are divided, and the error is",
        "# that on other geometries of known molecules.",
    ]


def _fractions(structures: int) -> tuple[float, float, float]:
    """Return the shares of the subsets; small data sets need a larger share for validation and test."""
    if structures < 2_000:
        return 0.7, 0.15, 0.15
    return (0.8, 0.1, 0.1) if structures < 100_000 else (0.9, 0.05, 0.05)


def _not_default(data: DataConfig) -> dict[str, Any]:
    usual = dump_config(DataConfig())
    return {key: value for key, value in dump_config(data).items() if value != usual[key] or key == "files"}


def _written(values: dict[str, Any]) -> list[str]:
    return write_document(values).splitlines()


def _most_parameters(space: _Space, inputs: int, elements: int) -> int:
    width, layers = space.width[1], space.layers[1]
    one = (inputs + 1) * width + (layers - 1) * (width + 1) * width + width + 1
    return elements * one


def _power_of_two(value: float, low: int, high: int) -> int:
    return int(min(high, max(low, 2 ** round(math.log2(max(1.0, value))))))


def _rounded(value: float, low: int, high: int) -> int:
    """Round to tens, within two bounds."""
    return int(min(high, max(low, round(value, -1))))
