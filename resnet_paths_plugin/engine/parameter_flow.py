"""ParameterFlow: what a program computes from its parameters alone, and which block or part reads it.

Paths end at parameters as they end at inputs. A model may compute a weight from others first (weight standardisation,
weight norm): gradients arrive at what its operators read, and go on from there to the parameters.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from resnet_paths_plugin.engine.backward import Watch
from resnet_paths_plugin.engine.banks import Bank, Part, aligned, by_part, merged
from resnet_paths_plugin.engine.calls import Call
from resnet_paths_plugin.engine.derivatives import linearise
from resnet_paths_plugin.engine.keys import Key
from resnet_paths_plugin.engine.program import Program, Values
from resnet_paths_plugin.graph.operators import has_gradient
from resnet_paths_plugin.graph.process_state import autocast_as

STEM, TRUNK, HEAD = "stem", "trunk", "head"


class ParameterFlow:
    """The parameters of a program and their readers.

    Attributes:
        program: the program.
        parameters: position of each real or complex parameter, by the parameter's path in the model.
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
            if isinstance(held[node], nn.Parameter) and (held[node].is_floating_point() or held[node].is_complex())
            if only is None or path in only
        }
        read = {at: frozenset([path]) for path, at in self.parameters.items()}
        for at in program.prepared:
            node = program.nodes[at]
            found = frozenset().union(*(read.get(order[other], frozenset()) for other in node.all_input_nodes))
            if found and has_gradient(node):
                read[at] = found
        self._read = read
        self.derived = frozenset(read)
        blocks = tuple(block.name for block in program.blocks)
        others = dict.fromkeys(part for part in self._part_of.values() if part not in blocks)
        trunk = (self._named(STEM), self._named(TRUNK), self._named(HEAD))
        skips = [part for part in others if part not in trunk]
        self.parts = (*blocks, *(name for name in (trunk[0], *skips, *trunk[1:]) if name in others))

    def parameters_of(self, part: str) -> tuple[str, ...]:
        """Return the paths of the parameters that a part reads, also by way of what is computed from them."""
        read = {path for at, name in self._part_of.items() if name == part for path in self._paths_read_at(at)}
        return tuple(path for path in self.parameters if path in read)

    def _paths_read_at(self, at: int) -> frozenset[str]:
        return frozenset().union(*(self._read.get(place, frozenset()) for place in self._read_at(at)))

    def _read_at(self, at: int) -> list[int]:
        """Return the positions of what an operator, a sum or an output reads."""
        program = self.program
        if at in self.derived:  # an output of the model
            return [at]
        total = program.sum_at.get(at)
        if total is not None:
            return [term.value for term in total.terms]
        return [program.flow.order[other] for other in program.nodes[at].all_input_nodes]

    def _named(self, part: str) -> str:
        """Return the name of a part of the trunk: in brackets where a block has it."""
        return f"({part})" if any(block.name == part for block in self.program.blocks) else part

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
        for branch, block in zip(program.branches, program.blocks, strict=True):
            source, skip = program.nodes[branch.source], program.nodes[self._skip(branch.index)]
            for node in program.flow.between(source, skip):
                found.setdefault(order[node], self._named(f"{block.name} (skip)"))
        sums = [total.root for total in program.sums]
        outputs = {at for at in program.outputs if at in self.derived}
        reading = [
            at
            for at in (*program.dynamic, *outputs)
            if (at not in program.in_sums or at in program.sum_at)
            and any(place in self.derived for place in self._read_at(at))
        ]
        flow, nodes = program.flow, program.nodes
        for at in reading:
            if at not in found:
                after = any(root != at and flow.is_ancestor(nodes[root], of=nodes[at]) for root in sums)
                before = any(root == at or flow.is_ancestor(nodes[at], of=nodes[root]) for root in sums)
                found[at] = self._named(TRUNK if after and before else STEM if before else HEAD)
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

    def is_finite(self) -> bool:
        """Whether all gradients are."""
        arrived = (bank for places in self._arrived.values() for banks in places.values() for bank in banks)
        sums = [bank.rows.sum() for bank in arrived]  # infinite or NaN where one of the rows is
        return not sums or bool(torch.stack(sums).isfinite().all())

    def clear(self) -> None:
        """Forget what has arrived."""
        self._arrived = {}

    def gradients(self) -> dict[str, dict[str, Bank]]:
        """Return the gradients at each parameter, `[R, *parameter]`, by part and by the parameter's path."""
        found: dict[str, dict[str, Bank]] = {}
        with torch.no_grad(), autocast_as({}):
            for part, arrived in self._arrived.items():
                banks: dict[int, dict[Part, list[Bank]]] = {at: {None: list(some)} for at, some in arrived.items()}
                self._through_prepared(banks)
                found[part] = {
                    path: merged(banks[at][None]) for path, at in self._flow.parameters.items() if at in banks
                }
        return found

    def _through_prepared(self, banks: dict[int, dict[Part, list[Bank]]]) -> None:
        """Carry gradients at what is computed from parameters, or at parts of it, on to these."""
        program = self._flow.program
        order = program.flow.order
        leaves = set(self._flow.parameters.values())
        for at in sorted(self._flow.derived - leaves, reverse=True):
            if at not in banks:
                continue
            keys, rows = aligned({part: merged(some) for part, some in banks.pop(at).items()})
            node = program.nodes[at]
            operands = [other for other in node.all_input_nodes if order[other] in self._flow.derived]
            call = Call(node, lambda other: self._static[order[other]], self._static[at], operands, self._dtype)
            for operand, pulled in zip(operands, linearise(call).pull(rows), strict=True):
                for part, one in by_part(pulled).items():
                    if one is not None:
                        banks.setdefault(order[operand], {}).setdefault(part, []).append(Bank(keys, one))
