"""One walk backward over a graph with a bank of gradient rows; a routing rule says what each sum passes on.

Exact gradients by length, graded ones, single paths and random signs are four rules of the same walk. What lies on the
way (the gradients at a block's branch, at parameters) is shown to a watch.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from resnet_paths_plugin.engine.arrivals import Arrivals, Waiting
from resnet_paths_plugin.engine.banks import Bank, Part, aligned, by_part, row_index, sorted_keys
from resnet_paths_plugin.engine.calls import Derivative, Slope
from resnet_paths_plugin.engine.convolution import Convolution
from resnet_paths_plugin.engine.keys import Edge, Key
from resnet_paths_plugin.engine.linearised_pass import LinearisedPass, LinearisedSegment
from resnet_paths_plugin.engine.path_graph import PathGraph
from resnet_paths_plugin.engine.program import Program, Sum, Values
from resnet_paths_plugin.engine.routing import Routing
from resnet_paths_plugin.engine.selection import Selection
from resnet_paths_plugin.graph.process_state import autocast_as

BANK_BYTES = 4 * 2**20
"""Size of the part of a bank that goes through a segment at a time on a CPU; larger ones leave the cache."""
BANK_BYTES_ON_DEVICE = 256 * 2**20
"""The same on other devices, which want much work at once."""


SUM: tuple[Key, ...] = ((),)
"""Keys of one row that is the sum of others."""


class Watch:
    """What sees the gradients on their way back; this one looks at nothing.

    Attributes:
        summed: keys of the rows that are added up before they go on to parameters, under the key `SUM`: one product
            for each operator. None: each row goes on as it is.
    """

    summed: Collection[Key] | None = None

    def at_branch(self, block: int, bank: Bank) -> None:
        """See the gradients at a block's branch, `[R, *branch]`, by what they have counted up to its sum.

        The same branch may be seen several times, with other keys.
        """

    def at_parameters(self, at: int, keys: Sequence[Key], banks: Mapping[int, Tensor]) -> None:
        """See the gradients at what an operator (or a sum) at a position reads of parameters.

        Args:
            at: the operator's position.
            keys: of the rows; the same operator may be seen several times, with other keys.
            banks: the gradients by the position of what is read, `[R, *value]`, summed over the batch.
        """

    def is_finite(self) -> bool:
        """Whether all that was seen is, as far as anything was kept."""
        return True

    def clear(self) -> None:
        """Forget what was seen, as the walk begins anew."""


class BackwardWalk:
    """Walks of one batch: one forward pass, then any number of banks back to the tap.

    Args:
        graph: the paths' graph, whose taps are where rows end.
        inputs: the value of each input placeholder.
        parameters: the values of parameters, buffers and constants.
        dtype: dtype of the rows; values are converted to it where an operator is linearised.
        bank_bytes: size of the part of a bank that goes through a segment at a time; None chooses by the device.
        keep: positions of values of the forward pass to keep, in `forward_pass.kept`.
        freeze_norms: whether the scales of layer and RMS norms are constants for gradients.
    """

    def __init__(
        self,
        graph: PathGraph,
        inputs: Values,
        parameters: Values,
        *,
        dtype: torch.dtype,
        bank_bytes: int | None = None,
        keep: Collection[int] = (),
        freeze_norms: bool = False,
    ) -> None:
        self.graph = graph
        self.program: Program = graph.program
        self.dtype = dtype
        self.forward_pass = LinearisedPass(graph, inputs, parameters, dtype=dtype, keep=keep, freeze_norms=freeze_norms)
        self.outputs = self.forward_pass.outputs
        self.bank_bytes = bank_bytes or (BANK_BYTES if self.forward_pass.on_cpu else BANK_BYTES_ON_DEVICE)

    def gradients(self, seeds: Mapping[int, Tensor], routing: Routing, watch: Watch | None = None) -> dict[int, Bank]:
        """Walk back from the output as `run` does, and once more by autograd's rules alone where rows are not finite.

        The rules of operators multiply by slopes of 0 where autograd may pass nothing on, as at a rectifier: 0 times
        infinity is NaN then. This waits for the device.
        """
        found = self.run(seeds, routing, watch=watch)
        finite = all(bool(bank.rows.isfinite().all()) for bank in found.values())
        if finite and (watch is None or watch.is_finite()):
            return found
        if watch is not None:
            watch.clear()
        return self.run(seeds, routing, by_rules=False, watch=watch)

    def run(
        self,
        seeds: Mapping[int, Tensor],
        routing: Routing,
        *,
        by_rules: bool = True,
        watch: Watch | None = None,
    ) -> dict[int, Bank]:
        """Walk back from the output.

        Args:
            seeds: for positions of the output, the gradient of the objective there, shape `[*output]`.
            routing: what each sum passes on.
            by_rules: whether common operators are pulled back by own rules, or all by autograd, which takes longer.
            watch: sees the gradients on their way.

        Returns:
            For each tap that is reached, its bank, rows of shape `[R, *tap]`.
        """
        with torch.no_grad(), autocast_as({}):
            arrivals = Arrivals(self.graph)
            start = tuple(routing.start())
            for at, seed in seeds.items():
                rows = seed.to(self.dtype).expand(len(start), *seed.shape)
                self._show(watch, at, at, Bank(start, rows))  # a parameter may be an output as it is
                self._send(arrivals, Bank(start, rows), [e for e in self.graph.outputs if e.term == at], routing)
            sums = self.program.sums
            for which in reversed(range(len(self.program.segments))):
                self._segment(which, arrivals, watch, by_rules=by_rules)
                if which:
                    self._close(sums[which - 1], arrivals, routing, watch)
            return {tap: arrived[None][None].settled() for tap in self.graph.taps if (arrived := arrivals.at(tap))}

    def _show(self, watch: Watch | None, at: int, place: int, bank: Bank) -> None:
        """Show a watch the gradients at a parameter that a sum, or the output, reads as it is."""
        if watch is None or place not in self.graph.parameters:
            return
        if watch.summed is None:
            watch.at_parameters(at, bank.keys, {place: bank.rows})
        elif (chosen := bank.take(watch.summed)) is not None:
            watch.at_parameters(at, SUM, {place: chosen.rows.sum(0, keepdim=True)})

    def _close(self, total: Sum, arrivals: Arrivals, routing: Routing, watch: Watch | None) -> None:
        """Pass what has arrived at a sum on to its terms."""
        if total.root in self.graph.taps:
            return
        for bank in routing.at_sum(arrivals.at_node(total.root), total.root):
            self._to_terms(total, bank, arrivals, routing, watch)

    def _to_terms(self, total: Sum, bank: Bank, arrivals: Arrivals, routing: Routing, watch: Watch | None) -> None:
        """Pass one bank of a sum on to its terms."""
        edges = self.graph.edges[total.root]
        for term in total.terms:
            ways = [edge for edge in edges if edge.term == term.value and edge.block == term.block]
            rows = self._of_term(bank.rows, term.value, total.root)
            scaled = rows if term.scale == 1 else rows * term.scale
            # Nothing writes into the rows of a sum, which several terms and the watch share.
            found = Bank(bank.keys, scaled)
            if watch is not None and term.block is not None:
                watch.at_branch(term.block, found)
            self._show(watch, total.root, term.value, found)
            self._send(arrivals, found, ways, routing)

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

    def _send(self, arrivals: Arrivals, bank: Bank, ways: Sequence[Edge], routing: Routing) -> None:
        """Route a bank along the edges of one term."""
        if not routing.by_edge or len(ways) == 1:
            ways = ways[:1]
        for edge in ways:
            routed = routing.taken(bank, edge)
            if routed is not None:
                lane = edge.node if routing.by_edge and len(self.graph.read_by(edge.term)) > 1 else None
                arrivals.add(edge.term, lane, routed)

    def _segment(self, which: int, arrivals: Arrivals, watch: Watch | None, *, by_rules: bool) -> None:
        """Carry all banks that end inside a segment to the nodes before it, a part of the rows at a time."""
        waiting = arrivals.leave(self.program.segments[which])
        if not waiting:
            return
        operators = self.forward_pass.segment(which, by_rules=by_rules)
        banks = [bank for _, _, _, bank in waiting]
        keys = sorted_keys({key for bank in banks for key in bank.keys})
        step = max(1, self.bank_bytes // max(bank.rows[0].nbytes for bank in banks))
        seen = None if watch is None else _Seen(operators, watch)
        holders: dict[Key, list[int]] = {}
        for number, bank in enumerate(banks):
            for key in bank.keys:
                holders.setdefault(key, []).append(number)
        for start in range(0, len(keys), step):
            wanted = keys[start : start + step]
            here = (waiting[number] for number in sorted({number for key in wanted for number in holders[key]}))
            taken = ((at, lane, part, bank.take(wanted)) for at, lane, part, bank in here)
            some = [(at, lane, part, bank) for at, lane, part, bank in taken if bank is not None]
            for at, lane, part, bank in self._through(which, operators, some, seen):
                arrivals.add(at, lane, bank, part)
        if seen is not None:
            seen.finish()

    def _through(
        self, which: int, operators: LinearisedSegment, waiting: Sequence[Waiting], seen: "_Seen | None"
    ) -> list[Waiting]:
        """Carry banks through a segment; return those that have arrived before it."""
        local = Arrivals(self.graph)
        for at, lane, part, bank in waiting:
            local.add(at, lane, bank, part)
        for at in reversed(self.program.segments[which]):
            self._operator(at, operators, local, seen)
        return local.leave()

    def _operator(self, at: int, operators: LinearisedSegment, arrivals: Arrivals, seen: "_Seen | None") -> None:
        """Carry what has arrived at an operator's value to the values it reads."""
        if self.graph.nodes >> at & 1:
            return
        for lane, parts in arrivals.at(at).items():
            operands, derivative = operators.at(at)
            reads = seen is not None and self.graph.reads_parameters(at)
            whole = seen.at(at, parts, derivative) if seen is not None and reads else parts
            only = whole.get(None)
            if only is not None and isinstance(derivative, Slope):
                arrivals.add(operands[0], lane, only.sloped(derivative.slope))
                continue
            if only is not None and isinstance(derivative, Convolution):
                arrivals.add(operands[0], lane, only.through(derivative))
                continue
            if only is not None and isinstance(derivative, Selection):
                arrivals.add(operands[0], lane, only, derivative.place)
                continue
            keys, rows = aligned(whole)
            pulled = [
                (operand, part, bank)
                for operand, found in zip(operands, derivative.pull(rows), strict=True)
                for part, bank in by_part(found).items()
                if bank is not None
            ]
            readers = Counter(map(_memory, [*by_part(rows).values(), *(bank for _, _, bank in pulled)]))
            for operand, part, bank in pulled:
                fresh = readers[_memory(bank)] == 1 and 0 not in bank.stride()
                arrivals.add(operand, lane, Bank(keys, bank, owned=fresh), part)


class _Seen:
    """What a watch is shown of the operators of one segment, of which only a part of the rows passes at a time."""

    def __init__(self, operators: LinearisedSegment, watch: Watch) -> None:
        self._operators, self._watch = operators, watch
        self._sums: dict[int, dict[Part, Tensor]] = {}
        self._slopes: dict[int, tuple[Tensor, ...]] = {}

    def at(self, at: int, parts: Mapping[Part, Bank], derivative: Derivative) -> Mapping[Part, Bank]:
        """Show the gradients at an operator's parameters, or keep their sum; return those at its value, worked in.

        Slopes of channels are left for a convolution, as its weight takes them; not where rows are added up, of which
        some may come without.
        """
        if isinstance(derivative, Convolution) and self._watch.summed is None:
            bank = parts[None].settled_but(derivative.absorbs)
            self._slopes[at] = bank.slopes
            self._show(at, bank.keys, bank.rows)
            return {None: bank}
        keys, rows = aligned(parts)
        self._show(at, keys, rows)
        return {part: Bank(keys, one) for part, one in by_part(rows).items()}

    def _show(self, at: int, keys: Sequence[Key], rows: Any) -> None:
        summed = self._watch.summed
        if summed is None:
            self._pass_on(at, keys, rows)
            return
        chosen = [place for place, key in enumerate(keys) if key in summed]
        sums = self._sums.setdefault(at, {}) if chosen else {}
        for part, one in by_part(rows).items() if chosen else ():
            total = one[row_index(chosen, one)].sum(0, keepdim=True)
            sums[part] = sums[part] + total if part in sums else total

    def _pass_on(self, at: int, keys: Sequence[Key], rows: Any) -> None:
        found = self._operators.parameter_gradients(at, rows, self._slopes.get(at, ()))
        self._watch.at_parameters(at, keys, found)

    def finish(self) -> None:
        """Show the gradients of the sums that were kept, when all rows have passed."""
        for at, sums in self._sums.items():
            self._pass_on(at, SUM, sums.get(None, sums))
        self._operators.release_parameters()


def _memory(rows: Tensor) -> int:
    """Return what tensors that share memory have in common."""
    return rows.untyped_storage().data_ptr()


def bank_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that gradient rows have for a model's dtype: float32 where that is shorter."""
    return torch.float32 if dtype.itemsize < torch.float32.itemsize else dtype
