"""Arrivals: banks that wait at values until the walk takes them further."""

from collections.abc import Mapping, Sequence

from resnet_paths_plugin.engine.banks import Bank, Part, merged, pieces
from resnet_paths_plugin.engine.path_graph import PathGraph
from resnet_paths_plugin.engine.selection import Place, together

Lane = int | None
"""The one node for which rows are meant, or None for all."""
Waiting = tuple[int, Lane, Part | Place, Bank]
"""A bank that waits at a value: the value's position, the lane, and the part or the place of the value."""


class Arrivals:
    """Banks that have arrived at values and wait to be taken further, by lane and part of the value."""

    def __init__(self, graph: PathGraph) -> None:
        self.graph = graph
        self._waiting: dict[int, dict[Lane, dict[Part | Place, list[Bank]]]] = {}

    def add(self, at: int, lane: Lane, bank: Bank, part: Part | Place = None) -> None:
        """Let a bank arrive, of a part of a list or of one place of a tensor.

        One meant for a node that is not reached from here is dropped.
        """
        if lane is not None and lane not in self.graph.read_by(at):
            return
        if self.graph.nodes >> at & 1:
            lane = None
        self._waiting.setdefault(at, {}).setdefault(lane, {}).setdefault(part, []).append(bank)

    def at(self, at: int) -> dict[Lane, dict[Part, Bank]]:
        """Take what waits at a value."""
        return {lane: _whole(parts) for lane, parts in self._waiting.pop(at, {}).items()}

    def at_node(self, at: int) -> list[Bank]:
        """Take what waits at a node, in pieces that have no row in common."""
        found = self._waiting.pop(at, {}).get(None, {})
        whole = _whole({place: some for place, some in found.items() if isinstance(place, Place)})
        return pieces([*found.get(None, ()), *whole.values()])

    def leave(self, positions: Sequence[int] | None = None) -> list[Waiting]:
        """Take what waits at some positions, nodes excepted, or everywhere, in pieces that have no row in common."""
        chosen = (
            list(self._waiting) if positions is None else [at for at in positions if not self.graph.nodes >> at & 1]
        )
        return [
            (at, lane, part, bank)
            for at in chosen
            for lane, parts in self._waiting.pop(at, {}).items()
            for part, banks in parts.items()
            for bank in pieces(banks)
        ]


def _whole(arrived: Mapping[Part | Place, Sequence[Bank]]) -> dict[Part, Bank]:
    """Add what has arrived at each part; what has arrived at places of a tensor becomes one bank of it."""
    banks: dict[Part, Bank] = {part: merged(some) for part, some in arrived.items() if not isinstance(part, Place)}
    places = {place: merged(some) for place, some in arrived.items() if isinstance(place, Place)}
    if places:
        whole = together(places)
        banks[None] = merged([banks[None], whole]) if None in banks else whole
    return banks
