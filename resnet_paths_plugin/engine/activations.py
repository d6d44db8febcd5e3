"""The values at every block of the intact network, and the gradient at every sum: one forward and one backward.

Parameters and inputs get no gradient unless they are tracked, and a value is kept no longer than it is read or shown.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_paths_plugin.engine.program import Program, Sum, Values, mask_of, positions_of
from resnet_paths_plugin.errors import PluginError
from resnet_paths_plugin.graph.blocks import ResidualBlock


@dataclass(frozen=True, slots=True, eq=False)
class BlockActivation:
    """What the intact network computes at one block; values have their batch first, `[B, *]`, and carry no gradient.

    Attributes:
        block: the block.
        source: `x_i`; None where the batch is mixed with another dimension.
        skip: `s_i(x_i)` as it is added, in the shape of the sum.
        branch: `f_i(x_i)` as it is added, the constant factor of its term included, in the shape of the sum.
        sum: `y_i`, which parallel branches share.
        gate: what multiplies the branch of a gated block, with its own shape; None for other blocks, and where the
            batch is no dimension of it.
    """

    block: ResidualBlock
    source: Tensor | None
    skip: Tensor
    branch: Tensor
    sum: Tensor
    gate: Tensor | None


Visit = Callable[[BlockActivation], None]


class ActivationEngine:
    """Runs the intact network and shows each block's state as soon as its sum is computed.

    Blocks whose sum mixes the batch with another dimension (windows, say) are not shown: what belongs to which sample
    is not known there.

    Raises:
        PluginError: if a block names a gate that the graph does not have.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        order = {node.name: at for at, node in enumerate(program.nodes)}
        self._places = tuple(self._places_of(block, order) for block in program.blocks)
        self._steps = self._plan()

    def run(
        self,
        inputs: Values,
        parameters: Values,
        visit: Visit,
        *,
        differentiable: bool = False,
        tracked: Iterable[int] = (),
    ) -> "IntactRun":
        """Run the network forward.

        Args:
            inputs: the value of each input placeholder, tensors with batch `B`.
            parameters: the values of parameters, buffers and constants (`Program.parameters`).
            visit: gets the state of each block.
            differentiable: whether gradients will be asked for, so that activations have to be kept.
            tracked: positions of inputs and parameters that get a gradient too; no others do.
        """
        program = self.program
        followed = {at: (inputs[at] if at in inputs else parameters[at]) for at in tracked}
        values = {**_detached(inputs), **{at: value for at, value in followed.items() if at in inputs}}
        sums: list[Tensor] = []
        with torch.set_grad_enabled(differentiable):
            kept = {at: value for at, value in followed.items() if at not in inputs}
            static = program.prepare({**_detached(parameters), **kept}, values)
            for at, dead in self._steps:
                value = program.operators[at](static, values)
                total = program.sum_at.get(at)
                if total is not None and differentiable:
                    # Gradients begin at the first sum, so that inputs may be integers.
                    if not value.requires_grad:
                        value = value.detach().requires_grad_()
                    sums.append(value)
                values[at] = value
                if total is not None:
                    self._show(total, static, values, visit)
                for place in dead:
                    values.pop(place, None)
        return IntactRun(program, sums, {**static, **values}, followed)

    def _show(self, total: Sum, static: Values, values: Values, visit: Visit) -> None:
        graph, nodes = self.program.graph, self.program.nodes
        root = values[total.root].detach()
        summed = graph.samples_first(nodes[total.root], root)
        if summed is None:
            return
        scales = {term.value: term.scale for term in total.terms}

        def batch_first(at: int) -> Tensor | None:
            return graph.samples_first(nodes[at], _value(at, static, values).detach())

        def added(at: int) -> Tensor:
            value = _value(at, static, values).detach()
            scale = scales.get(at, 1.0)
            term = (value if scale == 1 else scale * value).expand_as(root)
            return term if (moved := graph.samples_first(nodes[total.root], term)) is None else moved

        for index in total.blocks:
            places = self._places[index]
            visit(
                BlockActivation(
                    block=self.program.blocks[index],
                    source=batch_first(places.source),
                    skip=added(places.skip),
                    branch=added(places.branch),
                    sum=summed,
                    gate=None if places.gate is None else batch_first(places.gate),
                )
            )

    def _places_of(self, block: ResidualBlock, order: Mapping[str, int]) -> "_Places":
        if block.gate is not None and block.gate not in order:
            raise PluginError(f"block {block.name!r} names a gate that the graph does not have: {block.gate!r}")
        branch = self.program.branches[block.index]
        gate = None if block.gate is None else order[block.gate]
        return _Places(branch.source, order[block.skip], branch.value, gate)

    def _plan(self) -> list[tuple[int, tuple[int, ...]]]:
        """Return the operators to run, each with the values that nobody reads from then on."""
        program = self.program
        live = mask_of({at for at in program.outputs if at is not None}) & program.moving
        needed = live | mask_of({total.root for total in program.sums})
        steps: list[tuple[int, tuple[int, ...]]] = []
        for at in reversed(program.dynamic):
            if not needed >> at & 1:
                continue
            reads = program.reads[at]
            for index in program.sum_at[at].blocks if at in program.sum_at else ():
                reads |= self._places[index].mask & program.moving
            needed |= reads
            steps.append((at, tuple(positions_of((reads | 1 << at) & ~live))))
            live |= reads
        steps.reverse()
        return steps


class IntactRun:
    """A finished forward pass.

    Attributes:
        outputs: leaves of the output.
        tracked: the gradient at each position that was tracked, filled by `gradients`.
    """

    def __init__(self, program: Program, sums: list[Tensor], values: Values, followed: Values) -> None:
        self._program = program
        self._sums = sums
        self._followed = followed
        self.tracked: dict[int, Tensor] = {}
        self._values = {at: values[at] for at in program.outputs if at is not None}
        self.outputs = [
            constant if at is None else self._values[at]
            for at, constant in zip(program.outputs, program.graph.outputs, strict=True)
        ]

    def gradients(self, leaves: Mapping[int, Tensor | None]) -> dict[int, Tensor]:
        """Return the gradient at each block's sum by the block's index, `[B, *]`; a differentiable run gives it once.

        It is total: along every way from the sum to the outputs, zero where there is none. Blocks that are not shown
        are left out.

        Args:
            leaves: the gradient at each leaf of the output.
        """
        reached = {
            at: gradient for at, gradient in self._program.at_outputs(leaves).items() if self._values[at].requires_grad
        }
        places = [*self._sums, *self._followed.values()]
        found: tuple[Tensor | None, ...] = (None,) * len(places)
        if reached:
            found = torch.autograd.grad(
                [self._values[at] for at in reached],
                places,
                [gradient.to(self._values[at].dtype) for at, gradient in reached.items()],
                allow_unused=True,
            )
        beside = found[len(self._sums) :]
        self.tracked = {
            at: torch.zeros_like(value) if gradient is None else gradient
            for (at, value), gradient in zip(self._followed.items(), beside, strict=True)
        }
        gradients: dict[int, Tensor] = {}
        for total, value, gradient in zip(self._program.sums, self._sums, found, strict=False):
            dim = self._program.batch_dim(total.root)
            if dim is not None:
                whole = torch.zeros_like(value) if gradient is None else gradient
                gradients |= dict.fromkeys(total.blocks, whole.detach().movedim(dim, 0))
        return gradients


@dataclass(frozen=True, slots=True)
class _Places:
    """Positions of a block's values in the graph."""

    source: int
    skip: int
    branch: int
    gate: int | None

    @property
    def mask(self) -> int:
        return mask_of({at for at in (self.source, self.skip, self.branch, self.gate) if at is not None})


def _value(at: int, static: Values, values: Values) -> Tensor:
    value: Tensor = values[at] if at in values else static[at]
    return value


def _detached(values: Values) -> Values:
    return {at: value.detach() if isinstance(value, Tensor) else value for at, value in values.items()}
