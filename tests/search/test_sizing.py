"""How many trials are trained at once, by the machine's cores and memory, and by a measurement."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from search.study import StudyConfig, study_from_values
from search.work import sizing
from search.work.sizing import choose_concurrent_trials, measure_sizes, training_gib, worthwhile
from trainer.config import TrainConfig
from trainer.fitting.devices import resolve_precision
from trainer.fitting.pack import Pack
from trainer.task import Task

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
ENDLESS = sys.maxsize


def study(**values: Any) -> StudyConfig:
    return study_from_values({"name": "tiny"} | values, "test")


def config(**settings: Any) -> TrainConfig:
    return resolve_precision(TrainConfig(**({"hidden": (8,), "batch_size": 32, "device": "cpu"} | settings)))


@pytest.mark.parametrize(
    ("cores", "gib", "threads", "left", "expected"),
    [
        (8, 100.0, 1, ENDLESS, 8),
        (8, 100.0, 1, 5, 5),
        (8, 100.0, 3, ENDLESS, 2),
        (2, 100.0, 4, ENDLESS, 1),
        (8, 2.0, 1, ENDLESS, 3),
        (8, 0.2, 1, ENDLESS, 1),
    ],
)
def test_on_the_cpu_it_follows_from_cores_threads_and_memory(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    task: Task,
    cores: int,
    gib: float,
    threads: int,
    left: int,
    expected: int,
) -> None:
    monkeypatch.setattr(sizing, "usable_cores", lambda: cores)
    monkeypatch.setattr(sizing, "free_gib", lambda: gib)
    caplog.set_level(logging.INFO, "anitune")
    assert (
        choose_concurrent_trials(study(training={"threads": threads, "device": "cpu"}), task, CPU, left)
        == expected
    )
    (line,) = caplog.messages
    at_once = f"{expected} trials at once" if expected > 1 else "one trial at a time"
    assert line.startswith(f"tiny: {at_once}: {cores} cores, {threads} for a trial; {gib:.3g} GiB free")


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize(
    "larger",
    [
        {"hidden": (2048,)},
        {"hidden": (8, 2048)},
        {"hidden": {"H": (2048,), "C": (8,), "N": (8,), "O": (8,)}},
        {"batch_size": 8192, "hidden": (64,)},
    ],
    ids=str,
)
def test_larger_trainings_are_taken_to_need_more(
    task: Task, larger: Mapping[str, Any], device: torch.device
) -> None:
    assert training_gib(task, config(**larger), device) > training_gib(task, config(), device)


def test_the_largest_training_of_the_space_is_reckoned_with(
    monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    monkeypatch.setattr(sizing, "usable_cores", lambda: 100)
    monkeypatch.setattr(sizing, "free_gib", lambda: 10.0)

    def concurrent_trials(**values: Any) -> int:
        return choose_concurrent_trials(study(**values), task, CPU, ENDLESS)

    wide = {"layers": 2, "width": {"low": 32, "high": 4096, "step": 32}}
    narrow = {"layers": 2, "width": 32}
    one = {"label": "one", "training": {"hidden": [32, 32]}}
    other = {"label": "other", "training": {"hidden": [4096, 4096]}}
    assert concurrent_trials(space=wide) < concurrent_trials(space=narrow)
    assert concurrent_trials(rows=[one, other]) < concurrent_trials(rows=[one])


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 8.0, 2: 4.0, 4: 2.0, 8: 1.0}, 8),
        ({1: 8.0, 2: 4.0, 4: 2.1, 8: 2.05, 16: 2.02}, 4),
        ({1: 8.0, 2: 7.9, 4: 3.0, 8: 4.0}, 4),
        ({1: 8.0, 2: 9.0}, 1),
        ({1: 8.0}, 1),
    ],
)
def test_more_at_once_must_be_worth_it(seconds: dict[int, float], expected: int) -> None:
    assert worthwhile(seconds) == expected


def test_all_sizes_do_the_same_work(monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    packs: list[tuple[int, ...]] = []
    train_epoch = Pack.train_epoch

    def counted(pack: Pack, order: int) -> Any:
        packs.append(tuple(training.config.seed for training in pack.trainings))
        assert len(pack.trainings[0].train) == 16  # two of the largest batches
        return train_epoch(pack, order)

    monkeypatch.setattr(Pack, "train_epoch", counted)
    configs = [config(seed=seed, batch_size=4 + 4 * (seed % 2)) for seed in range(4)]
    seconds = measure_sizes(task, configs, [1, 2, 4])
    assert list(seconds) == [1, 2, 4]
    assert all(took > 0 for took in seconds.values())
    # Each twice: the first epoch is not counted. Batches that differ are not shared.
    alone = [(0,), (1,), (2,), (3,)]
    expected = [*alone, *alone, (0, 2), (1, 3)]
    assert packs == [pack for pack in expected for _ in range(2)]


@pytest.mark.parametrize(
    ("gib", "left", "sizes", "expected"),
    [
        (80.0, ENDLESS, [1, 2, 4, 8, 16], 8),
        (80.0, 5, [1, 2, 4], 4),
        (1e-9, ENDLESS, None, 1),
        (80.0, 1, None, 1),
    ],
)
def test_on_a_gpu_it_is_measured_as_far_as_memory_and_trials_go(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    task: Task,
    gib: float,
    left: int,
    sizes: list[int] | None,
    expected: int,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(gib * 2**30), int(gib * 2**30)))
    monkeypatch.setattr(sizing, "release_memory", lambda device: None)
    asked: list[tuple[list[TrainConfig], list[int]]] = []

    def measure(task: Task, configs: list[TrainConfig], sizes: list[int]) -> dict[int, float]:
        asked.append((configs, sizes))
        return {size: 1 / min(size, 8) for size in sizes}

    monkeypatch.setattr(sizing, "measure_sizes", measure)
    caplog.set_level(logging.INFO, "anitune")
    # The trainings themselves stay on the CPU here.
    assert choose_concurrent_trials(study(training={"device": "cpu"}), task, GPU, left) == expected
    if sizes is None:
        assert asked == []
    else:
        ((configs, measured),) = asked
        assert measured == sizes
        assert len(configs) == sizes[-1]
        assert len({each.hidden for each in configs}) > 1
        assert "relative throughput by number of trials at once: 1: 1.00, 2: 2.00, 4: 4.00" in caplog.text


def fitting(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let an epoch of more than so many trainings raise what a GPU does that has too little memory."""
    train_epoch = Pack.train_epoch

    def limited(pack: Pack, order: int) -> Any:
        if len(pack.trainings) > most:
            raise torch.AcceleratorError("CUDA error: out of memory")
        return train_epoch(pack, order)

    monkeypatch.setattr(Pack, "train_epoch", limited)


@pytest.mark.parametrize(("most", "measured"), [(0, []), (1, [1]), (2, [1, 2]), (3, [1, 2])])
def test_measuring_ends_before_a_size_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    task: Task,
    most: int,
    measured: list[int],
) -> None:
    caplog.set_level(logging.INFO, "anitune")
    fitting(monkeypatch, most)
    seconds = measure_sizes(task, [config(seed=seed) for seed in range(4)], [1, 2, 4])
    assert list(seconds) == measured
    assert f"out of memory with {2 ** len(measured)} trials at once" in caplog.text


def test_a_gpu_on_which_measuring_does_not_fit_trains_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, task: Task
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**36, 2**37))
    monkeypatch.setattr(sizing, "release_memory", lambda device: None)
    caplog.set_level(logging.INFO, "anitune")
    fitting(monkeypatch, 0)
    assert choose_concurrent_trials(study(training={"device": "cpu"}), task, GPU, ENDLESS) == 1
    assert "tiny: one trial at a time: out of memory with one trial" in caplog.text


@pytest.mark.gpu
def test_on_a_real_gpu(task: Task) -> None:
    assert (
        1
        <= choose_concurrent_trials(study(training={"device": "cuda"}), task, GPU, ENDLESS)
        <= sizing.LARGEST
    )
