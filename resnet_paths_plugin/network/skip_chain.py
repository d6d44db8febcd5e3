"""SkipChain: what a module still does with its input when its blocks are deleted, read off the graph.

Parts of the module are named, not called. What is no part of it, and changes values, is refused.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from resnet_paths_plugin.engine.program import Program, Values
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.operators import MAX_POOLING, PERMUTING, RESHAPING, aten, same_shape
from resnet_paths_plugin.graph.traced_modes import STILL

RELU = "relu"
"""The name of a part that the module's own code computes: a ReLU that is no module."""
_IDEMPOTENT = frozenset(
    {aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default}
)
"""Activations that leave their own outputs as they are."""
_ACTIVATION_MODULES = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
_COPIES = frozenset({aten.clone.default, aten.contiguous.default, aten.alias.default})


@dataclass(frozen=True)
class SkipChain:
    """The way from a module's input to its output in one call of it, without the deleted blocks.

    Attributes:
        program: the graph and its blocks.
        source: position of the module's input.
        parts: paths below the module of the parts that are applied to it, in order; `RELU` where `is_function`.
        is_function: of each part, whether it is the module's own code.
        steps: positions of the values on the way, in order; the last one is the output.
        rests: for each deleted sum on the way, the position of what is left of it.
        fixed: activations that were left out, as the input is a value of them already.
    """

    program: Program
    source: int
    parts: tuple[str, ...]
    is_function: tuple[bool, ...]
    steps: tuple[int, ...]
    rests: Mapping[int, int]
    fixed: tuple[fx.Node, ...]

    def run(self, source: Tensor, static: Values) -> Tensor:
        """Return what the graph computes from an input.

        Args:
            source: the module's input.
            static: parameters and prepared values (`Program.prepare`) for inputs of the same batch.
        """
        values: Values = {self.source: source}
        for at in self.steps:
            rest = self.rests.get(at)
            values[at] = self.program.operators[at](static, values) if rest is None else values[rest]
        found: Tensor = values[self.steps[-1]]
        return found

    def admitted(self, source: Tensor) -> Tensor:
        """Return the nearest value that the module's input can have."""
        for node in self.fixed:
            source = node.target(source, *node.args[1:], **node.kwargs)  # type: ignore[operator]  # an operator
        return source


def calls_of(program: Program, path: str, sums: Iterable[str]) -> list[str]:
    """Return the calls of a module in which sums are computed, by the names that the graph gives them."""
    nodes = {node.name: node for node in program.nodes}
    found = (key for name in sums for key, owner in _stack(nodes[name]).items() if owner == path)
    return list(dict.fromkeys(found))


def skip_chain(program: Program, whole: nn.Module, call: str, path: str, deleted: Collection[int]) -> SkipChain:
    """Return what one call of a module still does without some blocks.

    Args:
        program: the graph and its blocks.
        whole: the module.
        call: the call, by its name in the graph.
        path: the module's path.
        deleted: the indices of the deleted blocks.

    Raises:
        InputError: if it does what no part of the module does, with the reason.
    """
    return _Walk(program, whole, call, path, deleted).chain()


class _Walk:
    """Goes from a module's output back to its input, past deleted branches."""

    def __init__(self, program: Program, whole: nn.Module, call: str, path: str, deleted: Collection[int]) -> None:
        self._program, self._whole, self._call, self._path = program, whole, call, path
        self._order = program.flow.order
        self._moving = {*program.dynamic, *program.inputs}
        self._inside = [node for node in program.nodes if call in _stack(node)]
        self._deleted = {
            program.nodes[total.root] for total in program.sums if total.blocks and set(total.blocks) <= set(deleted)
        }
        self._parts: list[tuple[str, fx.Node, bool]] = []
        self._layout: list[fx.Node] = []
        self._rests: dict[int, int] = {}
        self._steps: set[int] = set()

    def chain(self) -> SkipChain:
        """Return the way."""
        value = self._output()
        while self._call in _stack(value):
            value = self._before(value)
        self._close_layout(value)
        if STILL not in value.meta and any(STILL in self._program.nodes[at].meta for at in self._steps):
            raise InputError("it stops gradients (torch.no_grad), which would be lost")
        parts, fixed = self._without_repeated_activations(value)
        return SkipChain(
            self._program,
            self._order[value],
            tuple(path for path, _, _ in parts),
            tuple(is_function for _, _, is_function in parts),
            tuple(sorted(self._steps)),
            self._rests,
            fixed,
        )

    def _output(self) -> fx.Node:
        escaping = [
            node
            for node in self._inside
            if self._order[node] in self._moving and any(self._call not in _stack(user) for user in node.users)
        ]
        if len(escaping) != 1:
            raise InputError(f"{len(escaping)} values of it are read outside it, and its place gives one")
        return escaping[0]

    def _before(self, value: fx.Node) -> fx.Node:
        """Return the value that a value is computed from, and keep the part that does it."""
        self._steps.add(self._order[value])
        if value in self._deleted:
            return self._rest(value)
        part = self._part(value)
        if part is not None:
            operand = self._entering(*part, value)
            self._close_layout(value)
            self._parts.append((part[1], value, False))
            return operand
        return self._own(value)

    def _rest(self, value: fx.Node) -> fx.Node:
        """Return what is left of a sum whose branches are all deleted."""
        total = self._program.sum_at[self._order[value]]
        rest = [term for term in total.terms if term.block is None]
        if len(rest) != 1 or rest[0].scale != 1:
            raise InputError(
                f"what is left of its sum {value.name!r} is no value of its own, as terms are scaled or several"
            )
        node = self._program.nodes[rest[0].value]
        if not same_shape(node, value) or node.meta["val"].dtype != value.meta["val"].dtype:
            raise InputError(f"its skip has another shape or dtype than its sum {value.name!r}")
        self._rests[self._order[value]] = rest[0].value
        return node

    def _part(self, value: fx.Node) -> tuple[str, str] | None:
        """Return the outermost part without deleted blocks that computes a value: its call, and its path below."""
        stack = list(_stack(value).items())
        below = stack[[key for key, _ in stack].index(self._call) + 1 :]
        for key, owner in below:
            if owner.startswith(f"{self._path}.") and not any(key in _stack(total) for total in self._deleted):
                return key, owner.removeprefix(f"{self._path}.")
        return None

    def _entering(self, call: str, part: str, value: fx.Node) -> fx.Node:
        """Return the one value that a part computes another from."""
        found: set[fx.Node] = set()
        ahead, seen = [value], {value}
        while ahead:
            node = ahead.pop()
            self._steps.add(self._order[node])
            for operand in node.all_input_nodes:
                if self._order[operand] not in self._moving or operand in seen:
                    continue
                seen.add(operand)
                if call in _stack(operand):
                    ahead.append(operand)
                else:
                    found.add(operand)
        if len(found) != 1:
            raise InputError(f"its part {part!r} is applied to {len(found)} values")
        return found.pop()

    def _own(self, value: fx.Node) -> fx.Node:
        """Return the operand of an operator of the module's own code, if that can be kept."""
        operands = [operand for operand in value.all_input_nodes if self._order[operand] in self._moving]
        if len(operands) == 1:
            if value.target is aten.relu.default:
                self._close_layout(value)
                self._parts.append((RELU, value, True))
                return operands[0]
            if value.target in RESHAPING | PERMUTING:
                self._layout.append(value)
                return operands[0]
            if value.target in _COPIES:
                return operands[0]
        raise InputError(
            f"its own code applies {value.target} on the way from its input to its output, which is no part of it and "
            "would be lost"
        )

    def _close_layout(self, start: fx.Node) -> None:
        """Check that views since the last part give the same tensor again.

        Args:
            start: the value that they are of.
        """
        views, self._layout = self._layout[::-1], []
        if not views:
            return
        if all(node.target in RESHAPING for node in views):
            kept = same_shape(start, views[-1])
        else:
            probe = torch.empty([2] * start.meta["val"].ndim, device="meta")  # each dimension has a stride of its own
            kept, strides = all(node.target in PERMUTING for node in views), probe.stride()
            for node in views if kept else ():
                probe = node.target(probe, *node.args[1:], **node.kwargs)  # type: ignore[operator]  # an operator
            kept = kept and probe.stride() == strides
        if not kept:
            raise InputError(f"its own code lays out values otherwise ({views[-1].target}), which would be lost")

    def _without_repeated_activations(
        self, source: fx.Node
    ) -> tuple[list[tuple[str, fx.Node, bool]], tuple[fx.Node, ...]]:
        """Return the parts in order, without activations of what is a value of the same activation already."""
        known = _activation(_through_maxima(source))
        kept: list[tuple[str, fx.Node, bool]] = []
        fixed: list[fx.Node] = []
        for path, node, is_function in reversed(self._parts):
            alone = is_function or type(self._whole.get_submodule(path)) in _ACTIVATION_MODULES
            own = _activation(node) if alone else None
            if own is not None and own == known:
                fixed += [] if kept else [node]
                continue
            kept.append((path, node, is_function))
            known = own
        return kept, tuple(fixed)


def _stack(node: fx.Node) -> dict[str, str]:
    """Return the modules whose code computes a value, the outermost first: their paths by the names of the calls."""
    return {str(key): str(owner) for key, (owner, _) in node.meta.get("nn_module_stack", {}).items()}


def _activation(node: fx.Node) -> tuple[object, ...] | None:
    """Return what tells an idempotent activation from others; None where it is none."""
    if node.target not in _IDEMPOTENT or node.kwargs or any(isinstance(one, fx.Node) for one in node.args[1:]):
        return None
    return node.target, *node.args[1:]


def _through_maxima(node: fx.Node) -> fx.Node:
    """Return what a value is made of by maxima over windows and by views alone, which leave it an activation's."""
    while node.target in MAX_POOLING | RESHAPING | PERMUTING | _COPIES and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node
