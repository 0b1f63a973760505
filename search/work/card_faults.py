"""GPU failures in a launch: each is recorded as a file, and a card that has failed several times is left out.

The environment of the workers names the folder of these files. After a worker has written such a file, the
shell of the launch (:mod:`search.launch.shell`) starts another worker in its place.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter

from trainer.errors import DeviceError, OutputError
from trainer.files import write_by_rename
from trainer.strict_json import read_json

if TYPE_CHECKING:
    import torch

FAULTS_VARIABLE: Final = "ANITUNE_CARD_FAULTS"

FAULTS_ALLOWED: Final = 3
"""Number of failures of a card after which a launch leaves it out."""


@dataclass(frozen=True)
class CardFault:
    """A failure of a card.

    Attributes
    ----------
    card : identifies the card among those of all machines
    words : description of the card for people
    reason : the error message of the worker
    """

    host: str
    card: str
    words: str
    reason: str
    time: float


_CARD_FAULT: Final = TypeAdapter(CardFault)


@contextmanager
def card_faults_recorded(device: torch.device) -> Iterator[None]:
    """Record a failure of this card within the block, if this process belongs to a launch.

    Raises
    ------
    DeviceError
        if the launch leaves this card out.
    """
    if not (name := os.environ.get(FAULTS_VARIABLE)):
        yield
        return
    # Imported late: the launcher uses the rest of this module, and does not need torch.
    from trainer.fitting.devices import card_id, describe_card

    folder, host = Path(name), os.uname().nodename
    try:
        card = f"{host} {card_id(device)}"
    except RuntimeError:  # the card does not respond; the code in the block will report why
        card = f"{host} CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}"
    count = sum(fault.card == card for fault in card_faults(folder))
    if count >= FAULTS_ALLOWED:
        raise DeviceError(
            f"{describe_card(device)} of {host} has failed {count} times and is left out of this launch",
            device,
        )
    try:
        yield
    except DeviceError as error:
        fault = CardFault(host, card, f"{describe_card(device)} of {host}", str(error), time.time())
        with suppress(OutputError):  # then no other worker is started, and this one reports the failure
            # The shell identifies its worker by host and process id.
            write_by_rename(folder / f"{host}.{os.getpid()}", json.dumps(asdict(fault)).encode())
        raise


def card_faults(folder: Path) -> list[CardFault]:
    """Read all failures in a launch, the earliest first."""
    found = []
    for file in folder.glob("[!.]*"):
        with suppress(OSError, ValueError):  # not one of our files
            found.append(_CARD_FAULT.validate_python(read_json(file)))
    return sorted(found, key=lambda fault: fault.time)


def cards_left_out(folder: Path) -> list[CardFault]:
    """Return the last failure of each card that a launch leaves out."""
    faults = card_faults(folder)
    last = {fault.card: fault for fault in faults}
    return [
        fault for card, fault in last.items() if sum(each.card == card for each in faults) >= FAULTS_ALLOWED
    ]
