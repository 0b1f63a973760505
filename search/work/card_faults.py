"""Cards that fail in a launch: each failure is a file in its folder, and a card with several is left out.

The launch names the folder in the environment of its workers. Its shell (:mod:`search.launch.shell`) starts
another worker in the place of one that has written such a file.
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
"""Failures of a card after which a launch leaves it out."""


@dataclass(frozen=True)
class CardFault:
    """A failure of a card.

    Attributes
    ----------
    card : identifies it among all machines
    words : the same for people
    reason : what its worker said
    """

    host: str
    card: str
    words: str
    reason: str
    time: float


_CARD_FAULT: Final = TypeAdapter(CardFault)


@contextmanager
def card_faults_recorded(device: torch.device) -> Iterator[None]:
    """In a launch, record a failure of this card in the block.

    Raises
    ------
    DeviceError
        if the launch leaves this card out.
    """
    if not (name := os.environ.get(FAULTS_VARIABLE)):
        yield
        return
    # Imported late: a launcher, which needs the rest, has no use for torch.
    from trainer.fitting.devices import card_id, describe_card

    folder, host = Path(name), os.uname().nodename
    try:
        card = f"{host} {card_id(device)}"
    except RuntimeError:  # it does not answer: what follows tells why
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
        with suppress(OutputError):  # then no other worker is started; this one tells the failure itself
            # The shell knows its worker by host and process id.
            write_by_rename(folder / f"{host}.{os.getpid()}", json.dumps(asdict(fault)).encode())
        raise


def card_faults(folder: Path) -> list[CardFault]:
    """All failures in a launch, the first one first."""
    found = []
    for file in folder.glob("[!.]*"):
        with suppress(OSError, ValueError):  # it is none of ours
            found.append(_CARD_FAULT.validate_python(read_json(file)))
    return sorted(found, key=lambda fault: fault.time)


def cards_left_out(folder: Path) -> list[CardFault]:
    """The last failure of each card that a launch leaves out."""
    faults = card_faults(folder)
    last = {fault.card: fault for fault in faults}
    return [
        fault for card, fault in last.items() if sum(each.card == card for each in faults) >= FAULTS_ALLOWED
    ]
