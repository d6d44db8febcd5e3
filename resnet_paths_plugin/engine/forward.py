"""Many schedules over one batch: shared prefixes are computed once, dead branches never.

Schedules form a prefix tree over the sums. It is walked depth first, the largest group last, so that at most
`log2(number of schedules) + 2` checkpoints (the values still needed at a sum) are alive at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor

from resnet_paths_plugin.engine.compiled import Compiler, Part, Step
from resnet_paths_plugin.engine.liveness import Liveness, LivenessAnalysis
from resnet_paths_plugin.engine.program import Program, Sum, Values, mask_of, positions_of
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.engine.transfer import sent
from resnet_paths_plugin.graph.traced_modes import modes_of


@dataclass(frozen=True, slots=True)
class Member:
    """A schedule on its way through the prefix tree, with its place in the caller's list."""

    place: int
    liveness: Liveness


class ForwardEngine:
    """Runs a program under schedules.

    Args:
        program: the program.
        compiled: whether what lies between sums is compiled by `torch.compile`, at its first run.
    """

    def __init__(self, program: Program, *, compiled: bool = False) -> None:
        self.program = program
        self.analysis = LivenessAnalysis(program)
        self._segments = tuple(mask_of(positions) for positions in program.segments)
        self._parts: dict[tuple[int, int, int], Part] = {}
        self._compile: Callable[[Sequence[Step]], Part] = (
            Compiler(program) if compiled else lambda steps: partial(_execute, steps)
        )

    def run(
        self,
        schedules: Sequence[Schedule],
        inputs: Values,
        parameters: Values,
        *,
        perturbations_per_eval: int = 1,
    ) -> Iterator[tuple[int, list[Any]]]:
        """Yield `(position in schedules, leaves of the output)` for each schedule, in the order of completion.

        Args:
            schedules: the schedules; their order does not matter.
            inputs: the value of each input placeholder, tensors with batch `B`.
            parameters: the values of parameters, buffers and constants (`Program.parameters`).
            perturbations_per_eval: schedules run side by side in one batch of `perturbations_per_eval * B`. Where
                the network mixes the batch with another dimension at a sum, one at a time.
        """
        members = [Member(place, self.analysis.of(schedule)) for place, schedule in enumerate(schedules)]
        if not members:
            return
        width = perturbations_per_eval if self.stackable else 1
        run = _Run(self, inputs, parameters, width)
        values = {at: inputs[at] for at in self.program.inputs}
        run.segment(0, values, run.static, members)
        yield from run.visit(0, values, members)

    def prefix_order(self, schedules: Sequence[Schedule]) -> list[int]:
        """Return the positions of schedules in the order of the prefix tree's leaves.

        Cut into groups in this order, schedules share within a group most of what they share at all.
        """
        ranks: list[dict[Any, int]] = [{} for _ in self.program.sums]
        ways = [
            tuple(rank.setdefault(key, len(rank)) for rank, key in zip(ranks, self.analysis.of(one).keys, strict=True))
            for one in schedules
        ]
        return sorted(range(len(ways)), key=ways.__getitem__)

    @cached_property
    def stackable(self) -> bool:
        """Whether several schedules can share a batch: the batch is a dimension of every value alive at a sum."""
        program = self.program
        alive = reduce(or_, self.analysis.of(Schedule(len(program.blocks))).before, 0)
        values = [at for at in program.dynamic if alive >> at & 1]
        values += [total.root for total in program.sums]
        values += [at for at in program.outputs if at is not None]
        return all(program.batch_dim(at) is not None for at in values)

    def part(self, segment: int, needed: int, live: int) -> Part:
        """Return what runs the needed operators of a segment and leaves the values that are alive after it."""
        key = (segment, needed & self._segments[segment], live)
        part = self._parts.get(key)
        if part is None:
            part = self._parts[key] = self._compile(self._steps(self.program.segments[segment], needed, live))
        return part

    def _steps(self, positions: Sequence[int], needed: int, live: int) -> list[Step]:
        """Return the needed operators among `positions`, each with the values to free after it; `live` are kept."""
        program = self.program
        steps: list[Step] = []
        for at in reversed(positions):
            if not needed >> at & 1:
                continue
            dead = tuple(positions_of(program.reads[at] & ~live))
            live |= program.reads[at]
            steps.append((program.operators[at], at, dead))
        steps.reverse()
        return steps


class _Run:
    """One batch on its way through the prefix tree."""

    def __init__(self, engine: ForwardEngine, inputs: Values, parameters: Values, width: int) -> None:
        self.engine = engine
        self.program = engine.program
        self.analysis = engine.analysis
        self.inputs = inputs
        self.width = width
        self.static = self.program.prepare(parameters, inputs)
        first = next(value for value in inputs.values() if isinstance(value, Tensor) and value.ndim)
        self.batch = int(first.shape[0])

    def visit(self, at: int, values: Values, members: Sequence[Member]) -> Iterator[tuple[int, list[Any]]]:
        """Go on from just before sum `at`, where all members agree, to the outputs. Uses `values` up."""
        pending: list[Member] = []
        start: tuple[int, Values] | None = None
        while at < len(self.program.sums):
            groups = _by_key(members, at)
            for group in groups[:-1]:
                if len(group) >= self.width:
                    yield from self.visit(at, dict(values), group)
                    continue
                if start is None:
                    start = at, dict(values)
                pending.extend(group)
                if len(pending) >= self.width:
                    yield from self.side_by_side(*start, pending)
                    pending, start = [], None
            members = groups[-1]
            self.close(at, values, self.static, members)
            self.segment(at + 1, values, self.static, members)
            at += 1
        leaves = self.leaves(values, self.static)
        for member in members:
            yield member.place, leaves
        if start is not None:
            values.clear()
            yield from self.side_by_side(*start, pending)

    def side_by_side(self, at: int, values: Values, members: Sequence[Member]) -> Iterator[tuple[int, list[Any]]]:
        """Run different schedules from just before sum `at` in one batch, one copy of the samples for each."""
        count = len(members)
        if count == 1:
            yield from self.visit(at, dict(values), members)
            return
        wide = {place: self.widen(place, value, count) for place, value in values.items()}
        static = self.program.resized(
            self.static, {k: _widened_shape(v, self.batch, count) for k, v in self.inputs.items()}
        )
        for which in range(at, len(self.program.sums)):
            self.close(which, wide, static, members)
            self.segment(which + 1, wide, static, members)
        leaves = self.leaves(wide, static)
        for copy, member in enumerate(members):
            yield (
                member.place,
                [self._copy_of(place, leaf, copy) for place, leaf in zip(self.program.outputs, leaves, strict=True)],
            )

    def widen(self, at: int, value: Any, count: int) -> Any:
        """Repeat a value `count` times along its batch dimension."""
        if not isinstance(value, Tensor):
            return value
        dim = self.program.batch_dim(at)
        return value if dim is None else torch.cat([value] * count, dim)

    def _copy_of(self, at: int | None, leaf: Any, copy: int) -> Any:
        dim = None if at is None else self.program.batch_dim(at)
        return leaf if dim is None else leaf.narrow(dim, copy * self.batch, self.batch)

    def segment(self, at: int, values: Values, static: Values, members: Sequence[Member]) -> None:
        """Run the operators just before sum `at` (or after the last one) that some member needs."""
        needed = reduce(or_, (member.liveness.needed for member in members))
        if at < len(self.program.sums):
            live = reduce(or_, (member.liveness.before[at] for member in members))
        else:
            live = self.analysis.outputs
        self.engine.part(at, needed, live)(static, values)

    def close(self, at: int, values: Values, static: Values, members: Sequence[Member]) -> None:
        """Compute sum `at` where it is needed, and drop the values that nobody reads from then on."""
        total = self.program.sums[at]
        needs = [bool(member.liveness.needed >> total.root & 1) for member in members]
        if any(needs):
            schedules = _standing_in([member.liveness.schedule for member in members], needs)
            with modes_of(self.program.nodes[total.root]):
                values[total.root] = self.sum(total, values, static, schedules)
        after = reduce(or_, (member.liveness.after[at] for member in members))
        for dead in [place for place in values if not after >> place & 1]:
            del values[dead]

    def leaves(self, values: Values, static: Values) -> list[Any]:
        """Return the leaves of the output."""
        return [
            constant if at is None else values[at] if at in values else static[at]
            for at, constant in zip(self.program.outputs, self.program.graph.outputs, strict=True)
        ]

    def sum(self, total: Sum, values: Values, static: Values, schedules: Sequence[Schedule]) -> Any:
        """Return the value of a sum: for each copy of the batch under its own schedule, or under the one of all."""
        if not any(schedule.changes(block) for schedule in schedules for block in total.blocks):
            local = dict(values)
            for at in (*total.brackets, total.root):
                local[at] = self.program.operators[at](static, local)
            return local[total.root]
        result: Any = None
        for term in sorted(total.terms, key=lambda term: term.block is not None):
            if term.block is None:
                operand = values[term.value] if term.value in values else static[term.value]
                weights = _skip_weights(schedules, total, term.scale)
                result = self._add_weighted(result, operand, weights, total)
                continue
            for block, weights in _columns(schedules, term.block).items():
                those = _standing_in(schedules, [weight != 0 for weight in weights])
                operand = self.branch(block, term.block, total, values, static, those)
                scale = self.program.branches[block].scale
                result = self._add_weighted(result, operand, [scale * weight for weight in weights], total)
            result = self._add_constants(result, schedules, term.block, total)
            result = self._add_linear(result, schedules, term.block, values, total)
        return result if result.dtype == total.dtype else result.to(total.dtype)

    def branch(
        self,
        block: int,
        place: int,
        total: Sum,
        values: Values,
        static: Values,
        schedules: Sequence[Schedule],
    ) -> Any:
        """Return the value of a block's branch, without its scale, on the source of the block at `place`."""
        branch = self.program.branches[block]
        if self.analysis.runs_in_place(block, total):
            return values[branch.value]
        needs = [self.analysis.in_branch(block, [schedule]) for schedule in schedules]
        needed = reduce(or_, needs)
        local = dict(values)
        local[branch.source] = values[self.program.branches[place].source]
        for at in branch.region:
            if not needed >> at & 1:
                continue
            inner = self.program.sum_at.get(at)
            if inner is not None:
                those = _standing_in(schedules, [bool(mask >> at & 1) for mask in needs])
                local[at] = self.sum(inner, local, static, those)
            elif at not in self.program.in_sums:
                local[at] = self.program.operators[at](static, local)
        return local[branch.value]

    def _add_weighted(self, result: Any, operand: Any, weights: Sequence[float], total: Sum) -> Any:
        if len(set(weights)) == 1:
            return _add(result, operand, weights[0]) if weights[0] else result
        scale = self._per_copy(weights, operand, total)
        if result is None:
            result = torch.zeros_like(operand)
        # Not just a product with 0, which would let infinities of a deleted branch through.
        return torch.where(scale != 0, result + scale * operand, result)

    def _add_constants(self, result: Any, schedules: Sequence[Schedule], block: int, total: Sum) -> Any:
        constants = [schedule.constants.get(block) for schedule in schedules]
        for constant in {id(c): c for c in constants if c is not None}.values():
            tiled = self._tiled(constant, result, total)
            result = self._add_weighted(result, tiled, [float(other is constant) for other in constants], total)
        return result

    def _add_linear(self, result: Any, schedules: Sequence[Schedule], block: int, values: Values, total: Sum) -> Any:
        maps = [schedule.linear.get(block) for schedule in schedules]
        for one in {id(applied): applied for applied in maps if applied is not None}.values():
            operand = one(values[self.program.branches[block].source])
            result = self._add_weighted(result, operand, [float(other is one) for other in maps], total)
        return result

    def _tiled(self, constant: Tensor, like: Tensor, total: Sum) -> Tensor:
        """Repeat a constant that has a value for each sample for each copy of the batch."""
        dim = self.program.batch_dim(total.root)
        if dim is None or constant.ndim < like.ndim - dim or constant.shape[dim - like.ndim] in {1, like.shape[dim]}:
            return constant
        return torch.cat([constant] * (like.shape[dim] // self.batch), dim - like.ndim)

    def _per_copy(self, weights: Sequence[float], like: Tensor, total: Sum) -> Tensor:
        """Lay one weight per copy out along the batch dimension of a sum."""
        dim = self.program.batch_dim(total.root)
        assert dim is not None  # noqa: S101 - copies are made only where the engine is stackable
        shape = [1] * len(self.program.nodes[total.root].meta["val"].shape)
        shape[dim] = len(weights) * self.batch
        column = sent(weights, like.dtype, like.device)
        return column.repeat_interleave(self.batch).view(shape)


def _execute(steps: Sequence[Step], static: Values, values: Values) -> None:
    for operator, at, frees in steps:
        values[at] = operator(static, values)
        for dead in frees:
            values.pop(dead, None)


def _add(result: Any, operand: Any, scale: float) -> Any:
    if result is None:
        return operand if scale == 1 else operand * scale
    return result + operand if scale == 1 else torch.add(result, operand, alpha=scale)


def _standing_in(schedules: Sequence[Schedule], needs: Sequence[bool]) -> list[Schedule]:
    """Return schedules of which those that do not need a value are replaced by one that does.

    In their copies of the batch the value is not read, and what only they would compute it from may not be there.
    """
    one = next(schedule for schedule, needed in zip(schedules, needs, strict=True) if needed)
    return [schedule if needed else one for schedule, needed in zip(schedules, needs, strict=True)]


def _skip_weights(schedules: Sequence[Schedule], total: Sum, scale: float) -> list[float]:
    """Return the weight of a term that is no branch, under each schedule."""
    if not total.is_layer:
        return [scale] * len(schedules)
    return [0.0 if schedule.row(total.blocks[0]) else 1.0 for schedule in schedules]


def _by_key(members: Sequence[Member], at: int) -> list[list[Member]]:
    """Group members by what decides sum `at`, the largest group last."""
    groups: dict[Any, list[Member]] = {}
    for member in members:
        groups.setdefault(member.liveness.keys[at], []).append(member)
    return sorted(groups.values(), key=len)


def _columns(schedules: Sequence[Schedule], place: int) -> dict[int, list[float]]:
    """Return for each branch that runs at a place its weight in each schedule."""
    columns: dict[int, list[float]] = {}
    for copy, schedule in enumerate(schedules):
        for block, weight in schedule.row(place):
            columns.setdefault(block, [0.0] * len(schedules))[copy] += weight
    return columns


def _widened_shape(value: Any, batch: int, count: int) -> Any:
    """Stand in for an input repeated `count` times, where only its shape is read."""
    if not isinstance(value, Tensor) or not value.ndim or value.shape[0] != batch:
        return value
    return value.new_empty((count * batch, *value.shape[1:]), device="meta")
