"""Arrivals: banks that wait at values until the walk takes them further."""

from collections.abc import Sequence

from resnet_paths_plugin.engine.banks import Bank, Part, merged
from resnet_paths_plugin.engine.path_graph import PathGraph

Lane = int | None
"""The one node for which rows are meant, or None for all."""
Waiting = tuple[int, Lane, Part, Bank]
"""A bank that waits at a value: the value's position, the lane, and the part of the value."""


class Arrivals:
    """Banks that have arrived at values and wait to be taken further, by lane and part of the value."""

    def __init__(self, graph: PathGraph) -> None:
        self.graph = graph
        self._waiting: dict[int, dict[Lane, dict[Part, list[Bank]]]] = {}

    def add(self, at: int, lane: Lane, bank: Bank, part: Part = None) -> None:
        """Let a bank arrive; one meant for a node that is not reached from here is dropped."""
        if lane is not None and lane not in self.graph.read_by(at):
            return
        if self.graph.nodes >> at & 1:
            lane = None
        self._waiting.setdefault(at, {}).setdefault(lane, {}).setdefault(part, []).append(bank)

    def at(self, at: int) -> dict[Lane, dict[Part, Bank]]:
        """Take what waits at a value."""
        return {
            lane: {part: merged(banks) for part, banks in parts.items()}
            for lane, parts in self._waiting.pop(at, {}).items()
        }

    def leave(self, positions: Sequence[int] | None = None) -> list[Waiting]:
        """Take what waits at some positions, nodes excepted, or everywhere."""
        chosen = (
            list(self._waiting) if positions is None else [at for at in positions if not self.graph.nodes >> at & 1]
        )
        return [
            (at, lane, part, bank)
            for at in chosen
            for lane, parts in self.at(at).items()
            for part, bank in parts.items()
        ]
