"""What is to be launched, in plain values: a place turns it into a provider of machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from search.launch.config import LaunchConfig
from search.launch.shell import BLOCK_SCRIPT


class Scaling(TypedDict):
    """How many blocks Parsl keeps: a block is a node, and one whose workers have ended is given back."""

    nodes_per_block: int
    init_blocks: int
    min_blocks: int
    max_blocks: int


@dataclass(frozen=True)
class LaunchPlan:
    """Workers for one study.

    Attributes
    ----------
    name
        Of this launch; its workers are called by it and a number.
    gpus_per_node
        Workers of a node, one pinned to each GPU; 0: one worker a node, pinned to none.
    home
        What ``ANITUNE_HOME`` is for the workers: workers on other machines must see it at the same place.
    arguments
        Of ``anitune worker``, besides the name.
    """

    name: str
    gpus_per_node: int
    nodes: int
    home: Path
    config: LaunchConfig
    arguments: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where the logs of the workers and Parsl's own files go."""
        return self.home / "launches" / self.name

    @property
    def card_faults(self) -> Path:
        """Where workers record that a card has failed."""
        return self.folder / "card-faults"

    @property
    def workers(self) -> dict[str, Path]:
        """The log of each worker, by its name."""
        count = self.nodes * max(1, self.gpus_per_node)
        return {f"{self.name}.{number}": self.folder / f"worker-{number}.log" for number in range(count)}

    @property
    def scaling(self) -> Scaling:
        """Of Parsl's provider."""
        return {
            "nodes_per_block": 1,
            "init_blocks": self.nodes,
            "min_blocks": 0,
            "max_blocks": self.nodes,
        }

    @property
    def init(self) -> str:
        """What the shell of a block does first."""
        return f"{self.config.setup.rstrip()}\n{BLOCK_SCRIPT}"
