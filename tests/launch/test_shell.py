"""The shell of a block, in a real bash; a command stands for Parsl's pool, another for the worker."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from search.launch.shell import BLOCK_FUNCTION, BLOCK_SCRIPT, worker_script

FAULTS = Path("/nowhere/card-faults")

SLOW_TO_STOP = """
trap 'sleep 1; echo handed back >> {said}; exit 143' TERM
echo up >> {said}
while :; do sleep 0.1; done
"""


def block(pool: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", "-c", f'{BLOCK_SCRIPT}\nset -e\n{BLOCK_FUNCTION} bash -c "$POOL"'],
        env={**os.environ, "POOL": pool, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_worker_gets_the_gpu_that_its_number_means_here() -> None:
    worker = worker_script(["bash", "-c", "echo GPU $CUDA_VISIBLE_DEVICES"], FAULTS, pinned=True)
    pool = f"export CUDA_VISIBLE_DEVICES=1\n{worker}"  # as Parsl pins its second worker
    assert block(pool, CUDA_VISIBLE_DEVICES="4,7").communicate(timeout=30)[0] == "GPU 7\n"
    assert block(pool, CUDA_VISIBLE_DEVICES="").communicate(timeout=30)[0] == "GPU 1\n"
    said, fault = block(pool, CUDA_VISIBLE_DEVICES="4").communicate(timeout=30)
    assert said == ""
    assert "there are fewer GPUs than --gpus-per-node" in fault


def test_a_worker_that_is_not_pinned_sees_what_the_node_has() -> None:
    worker = worker_script(["bash", "-c", "echo GPU $CUDA_VISIBLE_DEVICES"], FAULTS, pinned=False)
    assert block(worker, CUDA_VISIBLE_DEVICES="4,7").communicate(timeout=30)[0] == "GPU 4,7\n"


def test_the_exit_code_is_the_workers() -> None:
    pool = f"({worker_script(['bash', '-c', 'exit 3'], FAULTS, pinned=False)}); echo code $?"
    assert block(pool).communicate(timeout=30)[0] == "code 3\n"


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to the shell", "to its process group"])
def test_a_block_that_must_end_waits_for_its_workers(
    tmp_path: Path, send: Callable[[int, int], None]
) -> None:
    said = tmp_path / "said"
    worker = worker_script(["bash", "-c", SLOW_TO_STOP.format(said=said)], FAULTS, pinned=False)
    shell = block(f"({worker}) & ({worker}) & wait; sleep 60")
    deadline = time.monotonic() + 30
    while not (said.exists() and said.read_text() == "up\nup\n"):
        assert time.monotonic() < deadline, "the workers do not begin"
        time.sleep(0.05)

    time.sleep(0.2)  # the shell of each worker has noted it by now
    send(shell.pid, signal.SIGTERM)
    shell.communicate(timeout=30)

    assert said.read_text() == "up\nup\nhanded back\nhanded back\n"


FAILING_CARD = """
echo worker >> {said}
[ $(wc -l < {said}) -gt 2 ] && exit 3
mkdir -p "$ANITUNE_CARD_FAULTS"
touch "$ANITUNE_CARD_FAULTS/$(uname -n).$$"
exit 1
"""


def test_another_worker_takes_the_place_of_one_whose_card_has_failed(tmp_path: Path) -> None:
    said, faults = tmp_path / "said", tmp_path / "card faults"
    worker = worker_script(["bash", "-c", FAILING_CARD.format(said=said)], faults, pinned=False)
    out, told = block(f"({worker}); echo code $?").communicate(timeout=30)
    assert out == "code 3\n"
    assert said.read_text() == "worker\n" * 3
    assert told.count("starting another worker in place of this one") == 2


def test_no_worker_takes_its_place_where_the_block_must_end(tmp_path: Path) -> None:
    said, faults = tmp_path / "said", tmp_path / "faults"
    card = FAILING_CARD.format(said=said)
    slow = f"trap 'sleep 1; {card}' TERM; echo up > {tmp_path / 'up'}; while :; do sleep 0.1; done"
    worker = worker_script(["bash", "-c", slow], faults, pinned=False)
    shell = block(f"({worker}) & wait; sleep 60")
    deadline = time.monotonic() + 30
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline, "the worker does not begin"
        time.sleep(0.05)
    time.sleep(0.2)
    os.killpg(shell.pid, signal.SIGTERM)
    shell.communicate(timeout=30)
    assert said.read_text() == "worker\n"
