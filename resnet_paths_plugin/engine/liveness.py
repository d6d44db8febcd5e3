"""Liveness: what a schedule needs computed, and what is still to be read at each sum. Nothing else is ever run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from typing import Any

from resnet_paths_plugin.engine.program import Program, Sum, mask_of
from resnet_paths_plugin.engine.schedule import Schedule


@dataclass(frozen=True, slots=True, eq=False)
class Liveness:
    """What one schedule needs of a program; sets of values are bit masks over positions.

    Attributes:
        schedule: the schedule.
        needed: the values to compute.
        before: for each sum, the values computed before it that are read by it or later.
        after: for each sum, the values up to it that are read later.
        keys: for each sum, what decides its value apart from the values it reads; None where it is not run. Two
            schedules agree up to the first sum where their keys differ.
    """

    schedule: Schedule
    needed: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    keys: tuple[Any, ...]


class LivenessAnalysis:
    """Derives the liveness of schedules for one program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.outputs = mask_of(at for at in program.outputs if at is not None) & program.moving

    def of(self, schedule: Schedule) -> Liveness:
        """Walk the program backward from its outputs, through the rows of the schedule."""
        sums, segments = self.program.sums, self.program.segments
        needed = self._walk(segments[-1], self.outputs, schedule)
        before, after = [0] * len(sums), [0] * len(sums)
        for which in reversed(range(len(sums))):
            root = sums[which].root
            after[which] = needed & ((2 << root) - 1)
            if needed >> root & 1:
                needed |= self._read_by(sums[which], schedule)
            before[which] = needed & ((1 << root) - 1)
            needed = self._walk(segments[which], needed, schedule)
        keys = tuple(self.key(total, schedule) if needed >> total.root & 1 else None for total in sums)
        return Liveness(schedule, needed, tuple(before), tuple(after), keys)

    def in_branch(self, block: int, schedules: Iterable[Schedule]) -> int:
        """Return what a branch needs wherever it runs: values of its region, and values from outside it."""
        branch = self.program.branches[block]
        wanted = 1 << branch.value
        return reduce(or_, (self._walk(branch.region, wanted, schedule) for schedule in schedules))

    def runs_in_place(self, block: int, total: Sum) -> bool:
        """Whether a branch's value at a sum is the one that the graph computes there anyway."""
        branch = self.program.branches[block]
        own = self.program.branches[total.blocks[0]]
        return block in total.blocks or (branch.source == own.source and branch.value < total.root)

    def key(self, total: Sum, schedule: Schedule) -> tuple[Any, ...]:
        """Return what decides a sum's value under a schedule, apart from the values it reads."""
        parts: list[Any] = []
        for block in total.blocks:
            added = schedule.constants.get(block), schedule.linear.get(block)
            parts.append((schedule.row(block), *(None if one is None else id(one) for one in added)))
            for other, _ in schedule.row(block):
                if not self.runs_in_place(other, total):
                    parts.extend(self.key(inner, schedule) for inner in self._nested[other])
        return tuple(parts)

    @cached_property
    def _nested(self) -> tuple[tuple[Sum, ...], ...]:
        """For each block, the sums inside its branch."""
        sum_at = self.program.sum_at
        return tuple(tuple(sum_at[at] for at in branch.region if at in sum_at) for branch in self.program.branches)

    def _walk(self, positions: Sequence[int], needed: int, schedule: Schedule) -> int:
        """Add to `needed` what the operators and sums at some positions need, going backward."""
        program = self.program
        for at in reversed(positions):
            if not needed >> at & 1:
                continue
            total = program.sum_at.get(at)
            if total is not None:
                needed |= self._read_by(total, schedule)
            elif at not in program.in_sums:
                needed |= program.reads[at]
        return needed

    def _read_by(self, total: Sum, schedule: Schedule) -> int:
        mask = 0
        for term in total.terms:
            if term.block is None:
                mask |= 1 << term.value
                continue
            if term.block in schedule.linear:
                mask |= 1 << self.program.branches[term.block].source
            for block, _ in schedule.row(term.block):
                branch = self.program.branches[block]
                if self.runs_in_place(block, total):
                    mask |= 1 << branch.value
                else:
                    mask |= 1 << self.program.branches[term.block].source
                    mask |= self.in_branch(block, [schedule]) & ~mask_of(branch.region) & ~(1 << branch.source)
        return mask & self.program.moving
