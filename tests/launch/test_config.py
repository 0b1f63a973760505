from __future__ import annotations

from pathlib import Path

import pytest

from search.launch.config import LaunchConfig, SlurmConfig, load_launch
from trainer.errors import ConfigError


def load(folder: Path, text: str) -> LaunchConfig:
    file = folder / "launch.yaml"
    file.write_text(text)
    return load_launch(file)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("24:00:00", "24:00:00"),
        ("'24:00:00'", "24:00:00"),
        ("01:30:00", "01:30:00"),
        ("100:00:30", "100:00:30"),
    ],
)
def test_a_walltime_is_read_as_it_is_written(tmp_path: Path, written: str, read: str) -> None:
    config = load(tmp_path, f"slurm: {{walltime: {written}, partition: gpu}}\n")
    assert config.slurm == SlurmConfig(walltime=read, partition="gpu")


FAULTS = {
    "unknown key": ("partition: gpu\n", "launch.yaml: partition (line 1): no such setting"),
    "unknown key deep": (
        "slurm:\n  walltime: 01:00:00\n  gpus: 4\n",
        "slurm.gpus (line 3): no such setting",
    ),
    "no walltime": ("slurm: {partition: gpu}\n", "slurm.walltime (line 1): is missing"),
    "walltime in words": ("slurm: {walltime: one day}\n", "slurm.walltime (line 1): string should match"),
    "no image": ("kubernetes: {namespace: chem}\n", "kubernetes.image (line 1): is missing"),
    "memory without unit": (
        "kubernetes: {image: a, memory: '16'}\n",
        "kubernetes.memory (line 1): string should match",
    ),
    "password": ("setup: export PGPASSWORD=x\n", "setup (line 1): do not put a password"),
    "token": ("setup: export MLFLOW_TRACKING_TOKEN=x\n", "do not put a password or a token"),
    "password in a URL": (
        "setup: |\n  export ANITUNE_STORAGE_URL=postgresql://me:secret@db/anitune\n",
        "do not put a password or a token",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_by_its_key(tmp_path: Path, fault: str) -> None:
    text, message = FAULTS[fault]
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_setting_up_an_environment_is_no_secret(tmp_path: Path) -> None:
    setup = "module load cuda\nexport TOKENIZERS_PARALLELISM=false\nsource ~/anitune/bin/activate\n"
    assert load(tmp_path, "setup: |\n" + "".join(f"  {line}\n" for line in setup.splitlines())).setup == setup
