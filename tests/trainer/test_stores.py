from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from filelock import FileLock

from trainer.config import AEVConfig, FeatureConfig, dump_config
from trainer.data.readers import read_dataset
from trainer.features.aev_store import MANIFEST
from trainer.features.source import open_features
from trainer.features.stores import YOUNG, UnneededStore, remove_store, unneeded_stores
from trainer.fingerprints import digest_of
from trainer.progress import no_progress


@pytest.fixture(scope="module")
def built(data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("built")
    open_features(read_dataset([data_file]), FeatureConfig(), root, no_progress)
    return root


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    """A folder with one store, which was built long ago."""
    shutil.copytree(built, tmp_path / "features")
    (store,) = (path for path in (tmp_path / "features").iterdir() if path.is_dir())
    long_ago = time.time() - YOUNG - 1
    os.utime(store, (long_ago, long_ago))
    return tmp_path / "features"


def test_a_store_goes_when_nobody_needs_its_data_and_its_features(root: Path, data_file: Path) -> None:
    data, features = read_dataset([data_file]).fingerprint, digest_of(dump_config(AEVConfig()))
    assert unneeded_stores(root, {(data, features)}) == []
    (store,) = unneeded_stores(root, {(data, "other"), ("other", features)})
    assert store.bytes == sum(file.stat().st_size for file in store.path.iterdir()) > 100_000
    assert remove_store(store)
    assert unneeded_stores(root, set()) == []
    assert not store.path.exists()


def test_a_young_store_may_have_been_built_ahead(root: Path) -> None:
    (store,) = unneeded_stores(root, set())
    os.utime(store.path)
    assert unneeded_stores(root, set()) == []


@pytest.mark.parametrize("manifest", ["{}", "[", '{"content": {"format": 1, "dataset": "d", "aev": {}}}'])
def test_a_store_that_cannot_be_used_is_not_needed(root: Path, manifest: str) -> None:
    (store,) = unneeded_stores(root, set())
    before = store.path.stat().st_mtime
    (store.path / MANIFEST).write_text(manifest)
    os.utime(store.path, (before, before))
    needed = {("d", digest_of({}))}
    assert [each.path for each in unneeded_stores(root, needed)] == [store.path]


def test_a_store_that_is_being_built_is_left_alone(tmp_path: Path) -> None:
    unfinished = tmp_path / "key.unfinished"
    unfinished.mkdir()
    store = UnneededStore(unfinished, 0)
    with FileLock(tmp_path / "key.lock"):
        assert not remove_store(store)
        assert unfinished.exists()
    assert remove_store(store)
