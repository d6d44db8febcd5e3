"""One walk backward over a graph with a bank of gradient rows; a routing rule says what each sum passes on.

Exact gradients by length, graded ones, single paths and random signs are four rules of the same walk. Activations are
those of one intact forward pass; each segment between two sums is computed again from what was kept at its start.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from resnet_paths_plugin.engine.demand import DemandAnalysis
from resnet_paths_plugin.engine.path_graph import PathGraph
from resnet_paths_plugin.engine.program import Program, Sum, Values
from resnet_paths_plugin.engine.routes import Edge, Key, Routing
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.engine.vjp import Call, Pullback, Slope, linearise

BANK_BYTES = 4 * 2**20
"""Size of the part of a bank that goes through a segment at a time on a CPU; larger ones leave the cache."""
BANK_BYTES_ON_DEVICE = 256 * 2**20
"""The same on other devices, which want much work at once."""

_SMALL = 1e-6
"""Largest element of a row below which the row is rescaled, where a routing asks for it."""

Lane = int | None
"""The one node for which rows are meant, or None for all."""
Part = int | None
"""Place in a value that is a list or tuple; None for a value that is a tensor."""


@dataclass(frozen=True, eq=False, slots=True)
class Bank:
    """Gradient rows at one value.

    Attributes:
        keys: what each row stands for; no key twice.
        rows: the rows, shape `[R, *value]`.
        slope: what all rows are still to be multiplied by, shape `[*value]` or one that broadcasts to it. Operators
            that treat each element alone follow each other; their slopes are multiplied, and the rows only once.
    """

    keys: tuple[Key, ...]
    rows: Tensor
    slope: Tensor | None = None

    def settled(self) -> "Bank":
        """Return the bank with its slope worked in."""
        return self if self.slope is None else Bank(self.keys, self.rows * self.slope)

    def sloped(self, slope: Tensor) -> "Bank":
        """Return the bank behind one more operator that treats each element alone."""
        return Bank(self.keys, self.rows, slope if self.slope is None else self.slope * slope)

    def take(self, keys: Iterable[Key]) -> "Bank | None":
        """Return the rows that have one of the keys, or None."""
        wanted = set(keys)
        places = [place for place, key in enumerate(self.keys) if key in wanted]
        if not places:
            return None
        return Bank(tuple(self.keys[place] for place in places), self.rows[_index(places)], self.slope)


class BackwardWalk:
    """Walks of one batch: one forward pass, then any number of banks back to the tap.

    Args:
        graph: the paths' graph, whose taps are where rows end.
        inputs: the value of each input placeholder.
        parameters: the values of parameters, buffers and constants.
        dtype: dtype of the rows; values are converted to it where an operator is linearised.
        bank_bytes: size of the part of a bank that goes through a segment at a time; None chooses by the device.
    """

    def __init__(
        self,
        graph: PathGraph,
        inputs: Values,
        parameters: Values,
        *,
        dtype: torch.dtype,
        bank_bytes: int | None = None,
    ) -> None:
        self.graph = graph
        self.program: Program = graph.program
        self.dtype = dtype
        on_cpu = all(value.device.type == "cpu" for value in inputs.values() if isinstance(value, Tensor))
        self.bank_bytes = bank_bytes or (BANK_BYTES if on_cpu else BANK_BYTES_ON_DEVICE)
        with torch.no_grad():
            self.static = self.program.prepare(parameters, inputs)
            self._starts, final = self._forward({at: inputs[at] for at in self.program.inputs})
        self.outputs = [
            constant if at is None else final[at] if at in final else self.static[at]
            for at, constant in zip(self.program.outputs, self.program.graph.outputs, strict=True)
        ]

    def run(self, seeds: Mapping[int, Tensor], routing: Routing) -> dict[int, Bank]:
        """Walk back from the output.

        Args:
            seeds: for positions of the output, the gradient of the objective there, shape `[*output]`.
            routing: what each sum passes on.

        Returns:
            For each tap that is reached, its bank, rows of shape `[R, *tap]`.
        """
        with torch.no_grad():
            arrivals = _Arrivals(self.graph)
            start = tuple(routing.start())
            for at, seed in seeds.items():
                rows = seed.to(self.dtype).expand(len(start), *seed.shape)
                self._send(arrivals, Bank(start, rows), [e for e in self.graph.outputs if e.term == at], routing)
            sums = self.program.sums
            for which in reversed(range(len(self.program.segments))):
                self._segment(which, arrivals)
                if which:
                    self._close(sums[which - 1], arrivals, routing)
            return {tap: arrived[None][None].settled() for tap in self.graph.taps if (arrived := arrivals.at(tap))}

    def _forward(self, values: Values) -> tuple[list[Values], Values]:
        """Run the intact network; keep what is still needed at the start of each segment."""
        program = self.program
        demand = DemandAnalysis(program).of(Schedule(len(program.blocks)))
        starts = [values]
        for which, total in enumerate(program.sums):
            values = self._values(which, starts)
            for at in (*total.brackets, total.root):
                values[at] = program.operators[at](self.static, values)
            starts.append({at: value for at, value in values.items() if demand.after[which] >> at & 1})
        return starts, self._values(len(program.sums), starts)

    def _values(self, which: int, starts: Sequence[Values]) -> Values:
        """Return every value of a segment, and those that were alive at its start."""
        values = dict(starts[which])
        for at in self.program.segments[which]:
            values[at] = self.program.operators[at](self.static, values)
        return values

    def _close(self, total: Sum, arrivals: "_Arrivals", routing: Routing) -> None:
        """Pass the bank of a sum on to its terms."""
        if total.root in self.graph.taps:
            return
        arrived = arrivals.at(total.root)
        if not arrived:
            return
        bank = arrived[None][None].settled()
        if routing.exponents is not None:
            bank = _rescaled(bank, routing.exponents)
        edges = self.graph.edges[total.root]
        for term in total.terms:
            ways = [edge for edge in edges if edge.term == term.value and edge.block == term.block]
            scaled = bank if term.scale == 1 else Bank(bank.keys, bank.rows * term.scale)
            self._send(arrivals, scaled, ways, routing)

    def _send(self, arrivals: "_Arrivals", bank: Bank, ways: Sequence[Edge], routing: Routing) -> None:
        """Route a bank along the edges of one term."""
        if not routing.by_edge or len(ways) == 1:
            ways = ways[:1]
        for edge in ways:
            routed = self._routed(bank, edge, routing)
            if routed is not None:
                lane = edge.node if routing.by_edge and len(self.graph.read_by(edge.term)) > 1 else None
                arrivals.add(edge.term, lane, routed)

    def _routed(self, bank: Bank, edge: Edge, routing: Routing) -> Bank | None:
        keys = [routing.along(edge, key) for key in bank.keys]
        kept = [place for place, key in enumerate(keys) if key is not None]
        if not kept:
            return None
        rows = bank.rows if len(kept) == len(keys) else bank.rows[_index(kept)]
        found = tuple(key for key in keys if key is not None)
        factor = routing.factor(edge)
        if factor != 1:
            rows = rows * factor
        if len(set(found)) == len(found):
            return Bank(found, rows)
        return _merged([Bank((key,), rows[place : place + 1]) for place, key in enumerate(found)])

    def _segment(self, which: int, arrivals: "_Arrivals") -> None:
        """Carry all banks that end inside a segment to the nodes before it, a part of the rows at a time."""
        waiting = arrivals.leave(self.program.segments[which])
        if not waiting:
            return
        operators = _Linearised(self, self._values(which, self._starts))
        banks = [bank for _, _, _, bank in waiting]
        keys = _sorted({key for bank in banks for key in bank.keys})
        step = max(1, self.bank_bytes // max(bank.rows[0].nbytes for bank in banks))
        for start in range(0, len(keys), step):
            local = _Arrivals(self.graph)
            for at, lane, part, bank in waiting:
                taken = bank.take(keys[start : start + step])
                if taken is not None:
                    local.add(at, lane, taken, part)
            for at in reversed(self.program.segments[which]):
                self._operator(at, operators, local)
            for at, lane, part, bank in local.leave():
                arrivals.add(at, lane, bank, part)

    def _operator(self, at: int, operators: "_Linearised", arrivals: "_Arrivals") -> None:
        """Carry what has arrived at an operator's value to the values it reads."""
        if self.graph.nodes >> at & 1:
            return
        for lane, parts in arrivals.at(at).items():
            operands, pullback = operators.at(at)
            if isinstance(pullback, Slope) and None in parts:
                arrivals.add(operands[0], lane, parts[None].sloped(pullback.slope))
                continue
            keys, rows = _aligned(parts)
            for operand, found in zip(operands, pullback(rows), strict=True):
                for part, bank in (found if isinstance(found, dict) else {None: found}).items():
                    if bank is not None:
                        arrivals.add(operand, lane, Bank(keys, bank), part)


class _Linearised:
    """The operators of a segment, each linearised at its first use."""

    def __init__(self, walk: BackwardWalk, values: Values) -> None:
        self.walk = walk
        self.values = values
        self._made: dict[int, tuple[tuple[int, ...], Pullback]] = {}

    def at(self, at: int) -> tuple[tuple[int, ...], Pullback]:
        """Return the positions of an operator's operands, and its pullback to them."""
        if at not in self._made:
            program, order = self.walk.program, self.walk.program.flow.order
            node = program.nodes[at]
            operands = [
                other
                for other in node.all_input_nodes
                if other in program.flow.data and self.walk.graph.leads_to_tap(order[other])
            ]

            def value(other: Any) -> Any:
                place = order[other]
                return self.values[place] if place in self.values else self.walk.static[place]

            pullback = linearise(Call(node, value, self.values[at], operands, self.walk.dtype))
            self._made[at] = tuple(order[other] for other in operands), pullback
        return self._made[at]


class _Arrivals:
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
            lane: {part: _merged(banks) for part, banks in parts.items()}
            for lane, parts in self._waiting.pop(at, {}).items()
        }

    def leave(self, positions: Sequence[int] | None = None) -> list[tuple[int, Lane, Part, Bank]]:
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


def bank_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that gradient rows have for a model's dtype: float32 where that is shorter."""
    return torch.float32 if dtype.itemsize < torch.float32.itemsize else dtype


def _merged(banks: Sequence[Bank]) -> Bank:
    """Add banks row by row."""
    if len(banks) > 1 and sum(len(bank.keys) for bank in banks) == len({key for bank in banks for key in bank.keys}):
        return _joined(banks)
    total = banks[0]
    for bank in banks[1:]:
        total = _sum(total, bank)
    return total


def _joined(banks: Sequence[Bank]) -> Bank:
    """Put banks without a common key together; each row is written once."""
    keys = _sorted(key for bank in banks for key in bank.keys)
    place = {key: at for at, key in enumerate(keys)}
    rows = _empty_rows(banks[0].rows, len(keys))
    for bank in banks:
        here = _index([place[key] for key in bank.keys])
        if bank.slope is not None and isinstance(here, slice):
            torch.mul(bank.rows, bank.slope, out=rows[here])
        else:
            rows[here] = bank.settled().rows
    return Bank(keys, rows)


def _sum(one: Bank, other: Bank) -> Bank:
    """Add two banks; each run of rows that both have, or only one of them, is written once."""
    one, other = one.settled(), other.settled()
    if one.keys == other.keys:
        return Bank(one.keys, one.rows + other.rows)
    keys = _sorted({*one.keys, *other.keys})
    rows = _empty_rows(one.rows, len(keys))
    in_one, in_other = ({key: at for at, key in enumerate(bank.keys)} for bank in (one, other))
    runs = groupby(enumerate(keys), key=lambda item: (item[1] in in_one, item[1] in in_other))
    for (first, second), run in runs:
        places = list(run)
        here = slice(places[0][0], places[-1][0] + 1)
        parts = [
            bank.rows[_index([known[key] for _, key in places])]
            for bank, known, has in ((one, in_one, first), (other, in_other, second))
            if has
        ]
        if len(parts) == 1:
            rows[here] = parts[0]
        else:
            torch.add(*parts, out=rows[here])
    return Bank(keys, rows)


def _empty_rows(like: Tensor, count: int) -> Tensor:
    """Return room for rows in the layout of other rows."""
    one = torch.empty_like(like[0])
    strides = (one.numel(), *one.stride())
    return torch.empty_strided((count, *one.shape), strides, dtype=like.dtype, device=like.device)


def _rescaled(bank: Bank, exponents: dict[Key, int]) -> Bank:
    """Divide small rows by powers of two, which changes no digit of them, and add the exponents to those known."""
    peaks = bank.rows.abs().flatten(1).amax(1)
    shifts = torch.where(peaks < _SMALL, torch.frexp(peaks).exponent, 0)
    for key, shift in zip(bank.keys, shifts.tolist(), strict=True):
        exponents[key] = exponents.get(key, 0) + shift
    return Bank(bank.keys, torch.ldexp(bank.rows, -shifts.view(-1, *[1] * (bank.rows.ndim - 1))))


def _aligned(parts: Mapping[Part, Bank]) -> tuple[tuple[Key, ...], Any]:
    """Return the rows of a value, or of its parts with the same keys, zeros where a part has no such row."""
    if None in parts:
        return parts[None].keys, parts[None].settled().rows
    keys = _sorted({key for bank in parts.values() for key in bank.keys})
    rows: dict[Part, Tensor] = {}
    for part, bank in ((part, bank.settled()) for part, bank in parts.items()):
        rows[part] = bank.rows
        if bank.keys != keys:
            rows[part] = bank.rows.new_zeros((len(keys), *bank.rows.shape[1:]))
            rows[part][_index([keys.index(key) for key in bank.keys])] = bank.rows
    return keys, rows


def _index(places: Sequence[int]) -> Any:
    """Return an index for rows: a slice where they lie side by side, so that nothing is copied."""
    first, last = places[0], places[-1]
    return slice(first, last + 1) if list(places) == list(range(first, last + 1)) else list(places)


def _sorted(keys: Iterable[Key]) -> tuple[Key, ...]:
    """Sort keys by length, the tail last."""
    return tuple(sorted(keys, key=lambda key: (1, ()) if isinstance(key, str) else (0, key)))
