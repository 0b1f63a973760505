"""``anitune data features``: compute the features of data files, or check stored ones."""

from __future__ import annotations

from typing import Annotated

import typer

from search.cli.data import read_files, reads_data
from search.cli.progress import progress_bar
from search.cli.terminal import echo
from storage.settings import load_settings
from trainer.config import DataConfig, FeatureConfig
from trainer.features.source import StoredFeatures, open_features


@reads_data
def features(
    data: DataConfig,
    limit_gib: Annotated[
        float, typer.Option(min=0, metavar="GIB", help="Refuse to store more than this many GiB.")
    ] = 32.0,
) -> None:
    """Compute the atomic environment vectors of data files once for all trials, or check stored ones."""
    dataset = read_files(data)
    root = load_settings().features
    with progress_bar() as progress:
        config = FeatureConfig(store_limit_gib=limit_gib)
        source = open_features(dataset, config, root, progress, check=True)
    if isinstance(source, StoredFeatures):
        echo(f"{root}: the features of {dataset.structures:,} structures are stored")
