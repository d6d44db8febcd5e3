"""ParameterFlow: what a program computes from its parameters alone, and which block or part reads it.

Paths end at parameters as they end at inputs. A model may compute a weight from others first (weight standardisation,
weight norm): gradients arrive at what its operators read, and go on from there to the parameters.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from resnet_paths_plugin.engine.backward import Watch
from resnet_paths_plugin.engine.banks import Bank, by_part, merged
from resnet_paths_plugin.engine.calls import Call
from resnet_paths_plugin.engine.derivatives import linearise
from resnet_paths_plugin.engine.program import Program, Values
from resnet_paths_plugin.engine.routing import Key
from resnet_paths_plugin.graph.operators import has_gradient

STEM, TRUNK, HEAD = "stem", "trunk", "head"


class ParameterFlow:
    """The parameters of a program and their readers.

    Attributes:
        program: the program.
        parameters: position of each floating-point parameter, by the parameter's path in the model.
        derived: positions of the parameters and of what is computed from them and no input.
        parts: names of what reads parameters: the blocks, then the stem, skips, the trunk and the head.

    Args:
        program: the program.
        only: paths of the parameters that count; None for all.
    """

    def __init__(self, program: Program, only: Collection[str] | None = None) -> None:
        self.program = program
        order = program.flow.order
        held = program.graph.live_tensors()
        self.parameters = {
            path: order[node]
            for node, path in program.graph.tensors.items()
            if isinstance(held[node], nn.Parameter) and held[node].is_floating_point()
            if only is None or path in only
        }
        derived = set(self.parameters.values())
        for at in program.prepared:
            node = program.nodes[at]
            if has_gradient(node) and any(order[other] in derived for other in node.all_input_nodes):
                derived.add(at)
        self.derived = frozenset(derived)
        blocks = tuple(block.name for block in program.blocks)
        others = dict.fromkeys(part for part in self._part_of.values() if part not in blocks)
        skips = [part for part in others if part not in {STEM, TRUNK, HEAD}]
        self.parts = (*blocks, *(name for name in (STEM, *skips, TRUNK, HEAD) if name in others))

    def part_of(self, at: int) -> str:
        """Return the name of the block, or of the part of the trunk, that an operator or a sum belongs to."""
        return self._part_of[at]

    @cached_property
    def used(self) -> tuple[str, ...]:
        """Paths of the parameters that the output has a gradient at, zero or not."""
        order, nodes = self.program.flow.order, self.program.nodes
        reached = {nodes[at] for at in self.program.outputs if at is not None and has_gradient(nodes[at])}
        pending = list(reached)
        while pending:
            fresh = {other for other in pending.pop().all_input_nodes if has_gradient(other)} - reached
            reached |= fresh
            pending.extend(fresh)
        positions = {order[node] for node in reached}
        return tuple(path for path, at in self.parameters.items() if at in positions)

    @cached_property
    def _part_of(self) -> dict[int, str]:
        """The part of every operator and sum that reads what is derived from parameters.

        A value inside nested branches belongs to the innermost one; one that parallel branches share, to the first.
        """
        program = self.program
        order = program.flow.order
        found: dict[int, str] = {}
        for branch in sorted(program.branches, key=lambda branch: len(branch.region)):
            for at in branch.region:
                found.setdefault(at, program.blocks[branch.index].name)
        sums = [total.root for total in program.sums]
        for branch, block in zip(program.branches, program.blocks, strict=True):
            source, skip = program.nodes[branch.source], program.nodes[self._skip(branch.index)]
            for node in program.flow.between(source, skip):
                found.setdefault(order[node], f"{block.name} (skip)")
        reading = [
            at
            for at in (*program.dynamic, *sums)
            if any(order[other] in self.derived for other in program.nodes[at].all_input_nodes)
        ]
        flow, nodes = program.flow, program.nodes
        for at in reading:
            if at not in found:
                after = any(root != at and flow.is_ancestor(nodes[root], of=nodes[at]) for root in sums)
                before = any(root == at or flow.is_ancestor(nodes[at], of=nodes[root]) for root in sums)
                found[at] = TRUNK if after and before else STEM if before else HEAD
        return {at: found[at] for at in reading}

    def _skip(self, index: int) -> int:
        by_name = {node.name: at for at, node in enumerate(self.program.nodes)}
        return by_name[self.program.blocks[index].skip]


class ParameterBanks(Watch):
    """Collects the gradients at parameters, by the part that reads them and by what the paths have counted.

    Args:
        flow: the parameters and their readers.
        static: the values of what no input reaches, from the forward pass.
        dtype: dtype of the rows.
    """

    def __init__(self, flow: ParameterFlow, static: Values, dtype: torch.dtype) -> None:
        self._flow, self._static, self._dtype = flow, static, dtype
        self._arrived: dict[str, dict[int, list[Bank]]] = {}

    def at_parameters(self, at: int, keys: Sequence[Key], banks: Mapping[int, Tensor]) -> None:
        """Add the gradients at what an operator reads of parameters."""
        part = self._arrived.setdefault(self._flow.part_of(at), {})
        for place, rows in banks.items():
            shape = self._static[place].shape  # a sum may have broadcast it
            part.setdefault(place, []).append(Bank(tuple(keys), rows.sum_to_size(rows.shape[0], *shape)))

    def clear(self) -> None:
        """Forget what has arrived."""
        self._arrived = {}

    def gradients(self) -> dict[str, dict[str, Bank]]:
        """Return the gradients at each parameter, `[R, *parameter]`, by part and by the parameter's path."""
        found: dict[str, dict[str, Bank]] = {}
        with torch.no_grad():
            for part, arrived in self._arrived.items():
                banks = {at: merged(some) for at, some in arrived.items()}
                self._through_prepared(banks)
                found[part] = {path: banks[at] for path, at in self._flow.parameters.items() if at in banks}
        return found

    def _through_prepared(self, banks: dict[int, Bank]) -> None:
        """Carry gradients at what is computed from parameters on to these."""
        program = self._flow.program
        order = program.flow.order
        leaves = set(self._flow.parameters.values())
        for at in sorted(self._flow.derived - leaves, reverse=True):
            if at not in banks:
                continue
            bank = banks.pop(at)
            node = program.nodes[at]
            operands = [other for other in node.all_input_nodes if order[other] in self._flow.derived]
            call = Call(node, lambda other: self._static[order[other]], self._static[at], operands, self._dtype)
            for operand, rows in zip(operands, linearise(call).pull(bank.rows), strict=True):
                for one in by_part(rows).values():
                    if one is not None:
                        place = order[operand]
                        pulled = Bank(bank.keys, one)
                        banks[place] = merged([banks[place], pulled]) if place in banks else pulled
