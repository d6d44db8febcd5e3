"""One walk backward over a graph with a bank of gradient rows; a routing rule says what each sum passes on.

Exact gradients by length, graded ones, single paths and random signs are four rules of the same walk. Activations are
those of one intact forward pass, which linearises operators as long as there is room; the rest is computed again.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from resnet_paths_plugin.engine.banks import Bank, Part, aligned, merged, row_index, sorted_keys
from resnet_paths_plugin.engine.calls import Call, Derivative, Slope
from resnet_paths_plugin.engine.convolution import Convolution
from resnet_paths_plugin.engine.liveness import LivenessAnalysis
from resnet_paths_plugin.engine.path_graph import PathGraph
from resnet_paths_plugin.engine.program import Program, Sum, Values
from resnet_paths_plugin.engine.random_states import RandomStates
from resnet_paths_plugin.engine.routing import Edge, Routing
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.engine.derivatives import linearise
from resnet_paths_plugin.graph.operators import has_gradient

BANK_BYTES = 4 * 2**20
"""Size of the part of a bank that goes through a segment at a time on a CPU; larger ones leave the cache."""
BANK_BYTES_ON_DEVICE = 256 * 2**20
"""The same on other devices, which want much work at once."""
KEPT_BYTES = 256 * 2**20
"""Size of the values of the forward pass that are kept for the walks on a CPU; beyond it, they are computed again."""
KEPT_BYTES_ON_DEVICE = 4 * 2**30
"""The same on other devices."""

Lane = int | None
"""The one node for which rows are meant, or None for all."""
Waiting = tuple[int, Lane, Part, Bank]
"""A bank that waits at a value: the value's position, the lane, and the part of the value."""


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
        self._kept: dict[int, _Linearised] = {}
        self._drawn = RandomStates(self.program)
        self._room = KEPT_BYTES if on_cpu else KEPT_BYTES_ON_DEVICE
        with torch.no_grad():
            self.static = self.program.prepare(parameters, inputs)
            self._starts, final = self._forward({at: inputs[at] for at in self.program.inputs})
        self.outputs = [
            constant if at is None else final[at] if at in final else self.static[at]
            for at, constant in zip(self.program.outputs, self.program.graph.outputs, strict=True)
        ]

    def gradients(self, seeds: Mapping[int, Tensor], routing: Routing) -> dict[int, Bank]:
        """Walk back from the output as `run` does, and once more by autograd's rules alone where rows are not finite.

        The rules of `derivatives` multiply by slopes of 0 where autograd may pass nothing on, as at a rectifier: 0 times
        infinity is NaN then. This waits for the device.
        """
        found = self.run(seeds, routing)
        if all(bool(bank.rows.isfinite().all()) for bank in found.values()):
            return found
        if routing.shifts is not None:
            routing.shifts.clear()
        return self.run(seeds, routing, by_rules=False)

    def run(self, seeds: Mapping[int, Tensor], routing: Routing, *, by_rules: bool = True) -> dict[int, Bank]:
        """Walk back from the output.

        Args:
            seeds: for positions of the output, the gradient of the objective there, shape `[*output]`.
            routing: what each sum passes on.
            by_rules: whether common operators are pulled back by own rules, or all by autograd, which takes longer.

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
                self._segment(which, arrivals, by_rules=by_rules)
                if which:
                    self._close(sums[which - 1], arrivals, routing)
            return {tap: arrived[None][None].settled() for tap in self.graph.taps if (arrived := arrivals.at(tap))}

    def _forward(self, values: Values) -> tuple[list[Values], Values]:
        """Run the intact network; keep what is still needed at the start of each segment."""
        program = self.program
        liveness = LivenessAnalysis(program).of(Schedule(len(program.blocks)))
        starts = [values]
        for which, total in enumerate(program.sums):
            values = self._values(which, starts)
            self._keep(which, values)
            for at in (*total.brackets, total.root):
                values[at] = program.operators[at](self.static, values)
            starts.append({at: value for at, value in values.items() if liveness.after[which] >> at & 1})
        values = self._values(len(program.sums), starts)
        self._keep(len(program.sums), values)
        return starts, values

    def _values(self, which: int, starts: Sequence[Values]) -> Values:
        """Return every value of a segment, and those that were alive at its start."""
        values = dict(starts[which])
        for at in self.program.segments[which]:
            if at in self._drawn:
                values[at] = self._drawn.run(at, self.static, values)
            else:
                values[at] = self.program.operators[at](self.static, values)
        return values

    def drawn_at(self, at: int) -> AbstractContextManager[None]:
        """Return a context in which an operator draws what it drew at first."""
        return self._drawn.at(at)

    def _keep(self, which: int, values: Values) -> None:
        """Linearise a segment for all walks where there is room for its values, of which most are not kept then."""
        found = pytree.tree_leaves([values[at] for at in self.program.segments[which]])
        # Linearised, they have the dtype of the rows.
        size = sum(max(one.nbytes, one.numel() * self.dtype.itemsize) for one in found if isinstance(one, Tensor))
        if size <= self._room:
            self._room -= size
            self._kept[which] = _Linearised(self, values).complete(self.program.segments[which])

    def _close(self, total: Sum, arrivals: "_Arrivals", routing: Routing) -> None:
        """Pass the bank of a sum on to its terms."""
        if total.root in self.graph.taps:
            return
        arrived = arrivals.at(total.root)
        if not arrived:
            return
        bank = arrived[None][None].settled()
        if routing.shifts is not None:
            bank = bank.rescaled(routing.shifts)
        edges = self.graph.edges[total.root]
        for term in total.terms:
            ways = [edge for edge in edges if edge.term == term.value and edge.block == term.block]
            rows = self._of_term(bank.rows, term.value, total.root)
            scaled = rows if term.scale == 1 else rows * term.scale
            self._send(arrivals, bank if scaled is bank.rows else Bank(bank.keys, scaled), ways, routing)

    def _of_term(self, rows: Tensor, term: int, root: int) -> Tensor:
        """Return the rows of a sum for one of its terms: summed over the dimensions along which it is broadcast."""
        own, whole = (self.program.nodes[at].meta["val"].shape for at in (term, root))
        missing = len(whole) - len(own)
        if missing:
            rows = rows.sum(tuple(range(1, 1 + missing)))
        once = [
            1 + dim
            for dim, (size, full) in enumerate(zip(own, whole[missing:], strict=True))
            if isinstance(size, int) and size == 1 and not (isinstance(full, int) and full == 1)
        ]
        return rows.sum(once, keepdim=True) if once else rows

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
        rows = bank.rows if len(kept) == len(keys) else bank.rows[row_index(kept, bank.rows)]
        found = tuple(key for key in keys if key is not None)
        factor = routing.factor(edge)
        if factor != 1:
            rows = rows * factor
        if len(set(found)) == len(found):
            return Bank(found, rows)
        return merged([Bank((key,), rows[place : place + 1]) for place, key in enumerate(found)])

    def _segment(self, which: int, arrivals: "_Arrivals", *, by_rules: bool) -> None:
        """Carry all banks that end inside a segment to the nodes before it, a part of the rows at a time."""
        waiting = arrivals.leave(self.program.segments[which])
        if not waiting:
            return
        operators = self._kept.get(which) if by_rules else None
        operators = operators or _Linearised(self, self._values(which, self._starts), by_rules=by_rules)
        banks = [bank for _, _, _, bank in waiting]
        keys = sorted_keys({key for bank in banks for key in bank.keys})
        step = max(1, self.bank_bytes // max(bank.rows[0].nbytes for bank in banks))
        for start in range(0, len(keys), step):
            taken = ((at, lane, part, bank.take(keys[start : start + step])) for at, lane, part, bank in waiting)
            some = [(at, lane, part, bank) for at, lane, part, bank in taken if bank is not None]
            for at, lane, part, bank in self._through(which, operators, some):
                arrivals.add(at, lane, bank, part)

    def _through(self, which: int, operators: "_Linearised", waiting: Sequence[Waiting]) -> list[Waiting]:
        """Carry banks through a segment; return those that have arrived before it."""
        local = _Arrivals(self.graph)
        for at, lane, part, bank in waiting:
            local.add(at, lane, bank, part)
        for at in reversed(self.program.segments[which]):
            self._operator(at, operators, local)
        return local.leave()

    def _operator(self, at: int, operators: "_Linearised", arrivals: "_Arrivals") -> None:
        """Carry what has arrived at an operator's value to the values it reads."""
        if self.graph.nodes >> at & 1:
            return
        for lane, parts in arrivals.at(at).items():
            operands, derivative = operators.at(at)
            whole = parts.get(None)
            if whole is not None and isinstance(derivative, Slope):
                arrivals.add(operands[0], lane, whole.sloped(derivative.slope))
                continue
            if whole is not None and isinstance(derivative, Convolution):
                arrivals.add(operands[0], lane, whole.through(derivative))
                continue
            keys, rows = aligned(parts)
            for operand, found in zip(operands, derivative.pull(rows), strict=True):
                for part, bank in (found if isinstance(found, dict) else {None: found}).items():
                    if bank is not None:
                        arrivals.add(operand, lane, Bank(keys, bank), part)


class _Linearised:
    """The operators of a segment, each linearised at its first use."""

    def __init__(self, walk: BackwardWalk, values: Values, *, by_rules: bool = True) -> None:
        self.walk = walk
        self.values = values
        self.by_rules = by_rules
        self._made: dict[int, tuple[tuple[int, ...], Derivative]] = {}

    def complete(self, positions: Sequence[int]) -> "_Linearised":
        """Linearise all operators at some positions, and release the values."""
        for at in positions:
            if self.walk.graph.leads_to_tap(at) and not self.walk.graph.nodes >> at & 1:
                self.at(at)
        self.values = {}
        return self

    def at(self, at: int) -> tuple[tuple[int, ...], Derivative]:
        """Return the positions of an operator's operands, and its derivative."""
        if at not in self._made:
            program, order = self.walk.program, self.walk.program.flow.order
            node = program.nodes[at]
            operands = [
                other
                for other in node.all_input_nodes
                if other in program.flow.data and self.walk.graph.leads_to_tap(order[other]) and has_gradient(other)
            ]

            def value(other: Any) -> Any:
                place = order[other]
                return self.values[place] if place in self.values else self.walk.static[place]

            with self.walk.drawn_at(at):
                call = Call(node, value, self.values[at], operands, self.walk.dtype)
                derivative = linearise(call, by_rules=self.by_rules)
            self._made[at] = tuple(order[other] for other in operands), derivative
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


def bank_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that gradient rows have for a model's dtype: float32 where that is shorter."""
    return torch.float32 if dtype.itemsize < torch.float32.itemsize else dtype
