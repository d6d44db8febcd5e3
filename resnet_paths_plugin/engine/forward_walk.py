"""One walk forward over a graph with a bank of tangents, by what the paths from the tap have counted.

The counterpart of the backward walk: it carries directions at the taps on to every block's branch, through the
derivatives of the same operators.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from resnet_paths_plugin.engine.banks import Bank, Part, aligned, by_part, merged, sorted_keys
from resnet_paths_plugin.engine.calls import Slope
from resnet_paths_plugin.engine.keys import Edge, Key
from resnet_paths_plugin.engine.linearised_pass import LinearisedPass, LinearisedSegment
from resnet_paths_plugin.engine.liveness import LivenessAnalysis
from resnet_paths_plugin.engine.program import Sum, mask_of, positions_of
from resnet_paths_plugin.engine.routing import ByLength
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.graph import operators as ops
from resnet_paths_plugin.graph.process_state import autocast_as

Banks = dict[int, dict[Part, Bank]]
"""Tangents at values by their position, and by part of the value."""
AtBranch = Callable[[int, Bank], None]
"""Sees the tangents at a block's branch, `[R, *branch]`, by what has been counted before it."""


class ForwardWalk:
    """Walks of one batch from the taps to the branches.

    Args:
        forward_pass: the forward pass that operators are linearised at, for the graph of paths.
        bank_bytes: size of the part of a bank that goes through a segment at a time.
    """

    def __init__(self, forward_pass: LinearisedPass, bank_bytes: int) -> None:
        self.forward_pass = forward_pass
        self.graph, self.program = forward_pass.graph, forward_pass.program
        self.bank_bytes = bank_bytes

    def run(
        self, directions: Mapping[int, Tensor], lengths: ByLength, at_branch: AtBranch, *, by_rules: bool = True
    ) -> None:
        """Carry directions on to the branches.

        Args:
            directions: the direction at each tap, shape `[*tap]`.
            lengths: what branches add to the length.
            at_branch: sees the tangents at each branch.
            by_rules: whether common operators are taken by own rules, or all by autograd.
        """
        with torch.no_grad(), autocast_as({}):
            start = tuple(lengths.start())
            banks: Banks = {
                tap: {None: Bank(start, value.to(self.forward_pass.dtype).expand(len(start), *value.shape))}
                for tap, value in directions.items()
            }
            for which, total in enumerate(self.program.sums):
                self._segment(which, banks, by_rules=by_rules)
                self._close(total, banks, lengths, at_branch)
                for at in [at for at in banks if at <= total.root and not self._alive[which] >> at & 1]:
                    del banks[at]  # a tap inside the graph waits for its segment

    @cached_property
    def _alive(self) -> tuple[int, ...]:
        """For each sum, the values up to it that are read later."""
        return LivenessAnalysis(self.program).of(Schedule(len(self.program.blocks))).after

    def _segment(self, which: int, banks: Banks, *, by_rules: bool) -> None:
        """Carry tangents through a segment, a part of the rows at a time; those that are read later are added."""
        positions = [at for at in self.program.segments[which] if self.graph.leads_to_tap(at) and at not in banks]
        read = mask_of({*(place for at in positions for place in positions_of(self.program.reads[at]))})
        taken = [bank for at, parts in banks.items() if read >> at & 1 for bank in parts.values()]
        if not positions or not taken:
            return
        operators = self.forward_pass.segment(which, by_rules=by_rules)
        wanted = self._read_after(which)
        keys = sorted_keys({key for bank in taken for key in bank.keys})
        step = max(1, self.bank_bytes // max(bank.rows[0].nbytes for bank in taken))
        found: dict[int, dict[Part, list[Bank]]] = {}
        for start in range(0, len(keys), step):
            local = _some(banks, read, keys[start : start + step])
            for at in positions:
                self._operator(at, operators, local)
            for at in positions:
                if at in local and wanted >> at & 1:
                    for part, bank in local[at].items():
                        found.setdefault(at, {}).setdefault(part, []).append(bank.settled())
        for at, parts in found.items():
            banks[at] = {part: merged(some) for part, some in parts.items()}

    def _read_after(self, which: int) -> int:
        """Return the mask of what the sum after a segment, or anything later, reads."""
        total = self.program.sums[which]
        return self._alive[which] | mask_of({term.value for term in total.terms})

    def _operator(self, at: int, operators: LinearisedSegment, banks: Banks) -> None:
        """Add the tangents of an operator's value, where one of its operands has some."""
        operands, derivative = operators.at(at)
        given = [banks.get(operand) for operand in operands]
        if not any(given):
            return
        only = given[0].get(None) if len(given) == 1 and given[0] is not None else None
        if only is not None and isinstance(derivative, Slope):
            banks[at] = {None: self._shared(only, operands[0]).sloped(derivative.slope)}
            return
        for operand in operands:  # worked in once, as others may read it too
            if operand in banks:
                banks[operand] = {part: bank.settled() for part, bank in banks[operand].items()}
        keys, rows = _of_operands([banks.get(operand) for operand in operands])
        pushed = derivative.push(rows)
        if not operators.by_rules and len(operands) == 1 and self.program.nodes[at].target in ops.ELEMENTWISE:
            # Autograd's backward pass stops where a slope is infinite and nothing came: 0 times infinity is NaN.
            pushed = torch.where((rows[0] == 0) & pushed.isnan(), 0.0, pushed)
        found = {part: one for part, one in by_part(pushed).items() if one is not None}
        if found:
            banks[at] = {part: Bank(keys, one, owned=self._is_fresh(one, rows)) for part, one in found.items()}

    def _shared(self, bank: Bank, operand: int) -> Bank:
        """Return the bank of an operand for one reader; memory is its own where no other value is read from it."""
        alone = len(self.program.nodes[operand].users) == 1 and not self.graph.nodes >> operand & 1
        return bank if alone else replace(bank, owned=False)

    @staticmethod
    def _is_fresh(rows: Tensor, given: Iterable[Any]) -> bool:
        """Whether rows have memory of their own."""
        storages = {
            one.untyped_storage().data_ptr()
            for bank in given
            if bank is not None
            for one in by_part(bank).values()
            if one is not None
        }
        return rows.untyped_storage().data_ptr() not in storages and 0 not in rows.stride()

    def _close(self, total: Sum, banks: Banks, lengths: ByLength, at_branch: AtBranch) -> None:
        """Add the tangents at a sum, of all its terms."""
        if total.root in self.graph.taps:
            return
        like = self.program.nodes[total.root].meta["val"]
        terms: list[Bank] = []
        for term in total.terms:
            if term.value not in banks:
                continue
            banks[term.value] = {part: bank.settled() for part, bank in banks[term.value].items()}
            bank = replace(banks[term.value][None], owned=False)
            if term.block is not None:
                at_branch(term.block, bank)
            rows = bank.rows if term.scale == 1 else bank.rows * term.scale
            missing = like.ndim - (rows.ndim - 1)
            whole = rows.reshape(rows.shape[0], *[1] * missing, *rows.shape[1:]) if missing else rows
            edge = Edge(total.root, term.value, term.block, term.value)
            moved = Bank(bank.keys, whole).renamed([lengths.along(edge, key) for key in bank.keys])
            if moved is not None:
                terms.append(moved)
        if terms:
            banks[total.root] = {None: replace(_added(terms), owned=False)}


def _some(banks: Banks, read: int, keys: Sequence[Key]) -> Banks:
    """Return the rows with some keys of the banks that are read."""
    local: Banks = {}
    for at, parts in banks.items():
        if read >> at & 1:
            found = {part: taken for part, bank in parts.items() if (taken := bank.take(keys)) is not None}
            if found:
                local[at] = found
    return local


def _added(terms: Sequence[Bank]) -> Bank:
    """Add the banks of terms, some of which may be broadcast."""
    shape = torch.broadcast_shapes(  # type: ignore[no-untyped-call]  # torch's
        *(bank.rows.shape[1:] for bank in terms)
    )
    return merged(
        [
            bank if bank.rows.shape[1:] == shape else replace(bank, rows=bank.rows.expand(len(bank.keys), *shape))
            for bank in terms
        ]
    )


def _of_operands(given: Sequence[dict[Part, Bank] | None]) -> tuple[tuple[Key, ...], list[Any]]:
    """Return the rows of each operand with the same keys, zeros where one has no such row, None where it has none."""
    whole = {(at, part): bank for at, parts in enumerate(given) if parts is not None for part, bank in parts.items()}
    numbered: dict[Part, Bank] = dict(enumerate(whole.values()))
    keys, rows = aligned(numbered)
    found: list[Any] = [None] * len(given)
    for number, (at, part) in enumerate(whole):
        if part is None:
            found[at] = rows[number]
        else:
            found[at] = {**(found[at] or {}), part: rows[number]}
    return keys, found
