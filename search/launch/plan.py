"""The plan of a launch in plain values, from which a place makes a provider of machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from search.launch.config import LaunchConfig
from search.launch.shell import BLOCK_SCRIPT


class Scaling(TypedDict):
    """How many blocks Parsl keeps. A block is a node, which is given back when its workers have ended."""

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
        Name of this launch; the names of its workers are this name and a number.
    gpus_per_node
        Workers per node, one pinned to each GPU; 0: one worker per node, which is not pinned.
    home
        ``ANITUNE_HOME`` of the workers. Workers on other machines must see it at the same path.
    arguments
        Arguments of ``anitune worker``, except the name of the worker.
    """

    name: str
    gpus_per_node: int
    nodes: int
    home: Path
    config: LaunchConfig
    arguments: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Folder of the workers' logs and of Parsl's files."""
        return self.home / "launches" / self.name

    @property
    def card_faults(self) -> Path:
        """Folder in which workers record failures of cards."""
        return self.folder / "card-faults"

    @property
    def workers(self) -> dict[str, Path]:
        """The log of each worker, by its name."""
        count = self.nodes * max(1, self.gpus_per_node)
        return {f"{self.name}.{number}": self.folder / f"worker-{number}.log" for number in range(count)}

    @property
    def scaling(self) -> Scaling:
        """Scaling options of Parsl's provider."""
        return {
            "nodes_per_block": 1,
            "init_blocks": self.nodes,
            "min_blocks": 0,
            "max_blocks": self.nodes,
        }

    @property
    def init(self) -> str:
        """Shell lines that a block runs first."""
        return f"{self.config.setup.rstrip()}\n{BLOCK_SCRIPT}"
