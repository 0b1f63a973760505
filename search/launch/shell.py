"""Shell scripts of a launch, which run on a node around Parsl's process pool and around each worker.

Parsl ends its pool within a second, which is too short to hand a trial back. So each worker runs in a session
of its own, and the shell of the block (the job, pod or process group of a node) ends it: when the shell is
asked to stop, it ends the pool, asks the workers to hand their trials back, and waits for them.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from search.work.card_faults import FAULTS_VARIABLE

GRACE_SECONDS = 60
"""Time before the end of a machine's job at which its workers are asked to hand their trials back, s."""

BLOCK_FUNCTION = "anitune_block"
"""Name of the shell function that runs a command as the pool of a block."""

# A shell handles a signal only after its foreground command has ended, so the pool runs in the background.
BLOCK_SCRIPT = f"""
{BLOCK_FUNCTION}() {{
    set +eu  # whatever the set-up chose
    export ANITUNE_BLOCK=$(mktemp -d)
    export ANITUNE_GPUS=$CUDA_VISIBLE_DEVICES
    "$@" &
    anitune_pool=$!
    trap anitune_hand_back TERM
    while kill -0 "$anitune_pool" 2>/dev/null; do wait "$anitune_pool"; done
    while anitune_workers -0; do sleep 0.2; done
    rm -r "$ANITUNE_BLOCK"
}}
anitune_hand_back() {{
    kill "$anitune_pool" 2>/dev/null
    anitune_workers -TERM
}}
anitune_workers() {{
    local file found=1
    for file in "$ANITUNE_BLOCK"/*; do
        kill "$1" "${{file##*/}}" 2>/dev/null && found=0
    done
    return $found
}}
"""

# If the scheduler assigned GPUs by number, Parsl's number is an index into that list.
_PIN_SCRIPT = """
if [ -n "$ANITUNE_GPUS" ]; then
    IFS=, read -ra gpus <<< "$ANITUNE_GPUS"
    export CUDA_VISIBLE_DEVICES=${gpus[$CUDA_VISIBLE_DEVICES]:?there are fewer GPUs than --gpus-per-node}
fi
"""

# A worker whose card has failed writes a file (search.work.card_faults). Then another worker is started in
# its place, unless the block is to end or Parsl's process has ended.
_WORKER_SCRIPT = """
trap 'anitune_ending=1' TERM
export {variable}={faults}
while :; do
    setsid {command} &
    worker=$!
    touch "$ANITUNE_BLOCK/$worker"
    while wait $worker; code=$?; kill -0 $worker 2>/dev/null; do :; done  # a signal ends a wait, too
    [ -e "${variable}/$(uname -n).$worker" ] && [ -z "$anitune_ending" ] || exit $code
    kill -0 $PPID || exit $code
    echo "anitune: a card has failed; starting another worker in place of this one" >&2
done
"""


def worker_script(command: Sequence[str], faults: Path, *, pinned: bool) -> str:
    """Write the script that runs a worker in a session of its own and ends with its exit code.

    Parameters
    ----------
    faults : folder in which failures of cards are recorded
    pinned : whether Parsl gives each worker a GPU
    """
    run = _WORKER_SCRIPT.format(
        variable=FAULTS_VARIABLE, faults=shlex.quote(str(faults)), command=shlex.join(command)
    )
    return (_PIN_SCRIPT if pinned else "") + run
