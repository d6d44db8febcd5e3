"""Program: a captured graph and its blocks, laid out so that it can be run in parts and rewired at its sums.

Values are addressed by their position in the graph; sets of values are bit masks over positions.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import pairwise
from operator import or_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from resnet_paths_plugin.errors import PluginError, ScheduleError
from resnet_paths_plugin.graph.blocks import ResidualBlock, why_not
from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.graph.dataflow import DataFlow
from resnet_paths_plugin.graph.layers import layer_output
from resnet_paths_plugin.graph.operators import SIZES
from resnet_paths_plugin.graph.regions import in_region
from resnet_paths_plugin.graph.sums import brackets, sum_terms

Values = dict[int, Any]
Operator = Callable[[Mapping[int, Any], Mapping[int, Any]], Any]


@dataclass(frozen=True, slots=True)
class SumTerm:
    """One term of a sum: the position of its value, its constant factor, and the block whose branch it is."""

    value: int
    scale: float
    block: int | None


@dataclass(frozen=True, slots=True)
class Sum:
    """A sum that closes one or more residual blocks, or the output of a layer of a plain network.

    Attributes:
        root: position of the sum's value.
        brackets: positions of the additions inside it, innermost first, `root` excluded.
        terms: its terms in the order of the operands; skip and trunk terms have no block.
        blocks: indices of the blocks that it closes.
        dtype: dtype of its value.
        is_layer: whether it is a layer's output, `y_i = sum_j w_ij f_j(x_i)`: the term that is no branch is the layer's
            input `x_i`, which only stands in where nothing is added.
    """

    root: int
    brackets: tuple[int, ...]
    terms: tuple[SumTerm, ...]
    blocks: tuple[int, ...]
    dtype: torch.dtype
    is_layer: bool = False


@dataclass(frozen=True, slots=True)
class Branch:
    """Where a block's branch lies in the graph.

    Attributes:
        index: which block's it is.
        source: position of the block's input.
        value: position of the branch's value.
        scale: constant factor of the branch in its sum.
        sum: position of the block's sum among the program's sums.
        region: positions of the values computed from the source that the branch needs, in order.
    """

    index: int
    source: int
    value: int
    scale: float
    sum: int
    region: tuple[int, ...]


class Program:
    """A graph and its blocks, ready to run.

    Attributes:
        graph: the captured graph.
        blocks: its residual blocks.
        sums: the sums that close blocks, in execution order.
        branches: one for each block.
        operators: compiled operator of each position that is one.
        prepared: positions of the operators that the input's data does not reach, in order.
        dynamic: positions of the operators whose values depend on the input's data, in order.
        inputs: positions of the input placeholders.
        outputs: leaves of the output: a position where the leaf is a value of the graph, else None.
        reads: for each position, the mask of the moving values (inputs and dynamic ones) that it reads.
        moving: mask of the inputs and the dynamic values.
        sum_at: the sum whose value is at a position.
        in_sums: positions of all sums and the additions inside them.
        segments: positions of the operators before the first sum, between two sums, and after the last one; what
            belongs to a sum is in none.
    """

    def __init__(self, graph: CapturedGraph, blocks: Sequence[ResidualBlock]) -> None:
        self.graph = graph
        self.blocks = tuple(blocks)
        self.flow = DataFlow(graph)
        self.nodes: tuple[fx.Node, ...] = tuple(graph.graph.nodes)
        order = self.flow.order
        self.inputs = tuple(order[node] for node in graph.inputs)
        self.prepared, self.dynamic = self._classify()
        moving = {*self.dynamic, *self.inputs}
        self.moving = mask_of(moving)
        self.operators = _compile(self.nodes, order, moving)
        self.reads = tuple(
            mask_of(order[other] for other in node.all_input_nodes if order[other] in moving) for node in self.nodes
        )
        self.outputs = tuple(order[leaf] if isinstance(leaf, fx.Node) else None for leaf in graph.outputs)
        self.sums = self._sums()
        self.sum_at = {total.root: total for total in self.sums}
        self.in_sums = frozenset(at for total in self.sums for at in (*total.brackets, total.root))
        self.segments = self._segments()
        self.branches = self._branches()

    def parameters(self) -> Values:
        """Return the values of parameters, buffers and constants as the model holds them now."""
        return {self.flow.order[node]: value for node, value in self.graph.live_tensors().items()}

    def prepare(self, parameters: Values, inputs: Values) -> Values:
        """Return `parameters` with all values that depend on them and on the inputs' shapes alone."""
        static = dict(parameters)
        static.update({at: inputs[at] for at in self.inputs})
        for at in self.prepared:
            static[at] = self.operators[at](static, static)
        return static

    def resized(self, static: Values, inputs: Values) -> Values:
        """Return prepared values for inputs of other shapes: those that do not depend on shapes are taken over."""
        values = {**static, **{at: inputs[at] for at in self.inputs}}
        for at in self._sized:
            values[at] = self.operators[at](values, values)
        return values

    @cached_property
    def _sized(self) -> tuple[int, ...]:
        """Positions of the prepared operators that depend on the inputs' shapes."""
        sized = set(self.inputs)
        found = []
        for at in self.prepared:
            if any(self.flow.order[other] in sized for other in self.nodes[at].all_input_nodes):
                sized.add(at)
                found.append(at)
        return tuple(found)

    def output_leaves(self, static: Values, values: Values) -> list[Any]:
        """Return the leaves of the output, from prepared and other values."""
        return [
            constant if at is None else values[at] if at in values else static[at]
            for at, constant in zip(self.outputs, self.graph.outputs, strict=True)
        ]

    def at_outputs(self, gradients: Mapping[int, Tensor | None]) -> dict[int, Tensor]:
        """Return the gradients of some leaves of the output by position; a value may be a leaf more than once."""
        found: dict[int, Tensor] = {}
        for leaf, gradient in gradients.items():
            at = self.outputs[leaf]
            if at is not None and gradient is not None:
                found[at] = found[at] + gradient if at in found else gradient
        return found

    def batch_dim(self, at: int) -> int | None:
        """Return the dimension of a value that is the batch; None where there is none or it is mixed with another."""
        return self.graph.batch_dim(self.nodes[at])

    def check_placement(self, block: int, place: int) -> None:
        """Check that a block's branch can run at the place of another block.

        Raises:
            ScheduleError: if it cannot, naming both blocks, their shapes and the reason.
        """
        reason = self.why_not(block, place)
        if reason is not None:
            moved, target = (
                f"{one.name!r} ({list(one.source_shape)} to {list(one.sum_shape)})"
                for one in (self.blocks[block], self.blocks[place])
            )
            raise ScheduleError(f"the branch of {moved} cannot run at the place of {target}: {reason}")

    def why_not(self, block: int, place: int) -> str | None:
        """Return why a block's branch cannot run at the place of another block; None if it can."""
        if block == place:
            return None
        reason = why_not(self.blocks[block], self.blocks[place])
        if reason is not None:
            return reason
        branch, target = self.branches[block], self.branches[place]
        if self.sums[branch.sum].dtype != self.sums[target.sum].dtype:
            return f"dtypes {self.sums[branch.sum].dtype} and {self.sums[target.sum].dtype} differ"
        for inner, outer in ((branch, target), (target, branch)):
            if self._regions[outer.index] >> self.sums[inner.sum].root & 1:
                return "one of them lies inside the other"
        late = self._read_from_outside[block] >> self.sums[target.sum].root
        if late:
            name = self.nodes[self._read_from_outside[block].bit_length() - 1].name
            return f"it also reads the value {name!r}, which is not computed yet at that place"
        return None

    @cached_property
    def fits(self) -> NDArray[np.bool_]:
        """Whether the branch of one block can run at the place of another, shape `(n, n)`: `[branch, place]`."""
        indices = range(len(self.blocks))
        return np.array([[self.why_not(block, place) is None for place in indices] for block in indices], dtype=bool)

    @cached_property
    def _regions(self) -> tuple[int, ...]:
        """For each branch, the mask of its region."""
        return tuple(mask_of(branch.region) for branch in self.branches)

    @cached_property
    def _read_from_outside(self) -> tuple[int, ...]:
        """For each branch, the mask of the values other than its source that it reads from outside its region."""
        found = []
        for branch, region in zip(self.branches, self._regions, strict=True):
            reads = reduce(or_, (self.reads[at] for at in branch.region), 0)
            found.append(reads & ~region & ~(1 << branch.source))
        return tuple(found)

    def bytes_per_sample(self) -> int:
        """Return the size in bytes of the largest value, for one sample."""
        sizes = [
            math.prod(self.graph.sample_shape(node)) * node.meta["val"].element_size()
            for node in (self.nodes[at] for at in self.dynamic)
            if isinstance(node.meta.get("val"), Tensor)
        ]
        return max(sizes, default=1)

    def _classify(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Split the operators into those that the input's data does not reach, and the others."""
        order = self.flow.order
        moving = {node for node in self.graph.inputs if node in self.flow.data}
        inputs = set(moving)
        prepared, dynamic = [], []
        for node in self.nodes:
            if node.op != "call_function":
                continue
            reached = any(other in moving for other in node.all_input_nodes)
            if reached and not (node.target in SIZES and node.args[0] in inputs):
                moving.add(node)
                dynamic.append(order[node])
            else:
                prepared.append(order[node])
        return tuple(prepared), tuple(dynamic)

    def _sums(self) -> tuple[Sum, ...]:
        order = self.flow.order
        by_name = {node.name: node for node in self.nodes}
        closed: dict[fx.Node, list[ResidualBlock]] = {}
        for block in self.blocks:
            missing = [name for name in (block.source, block.skip, block.branch, block.sum) if name not in by_name]
            if missing:
                raise PluginError(f"block {block.name!r} names values that the graph does not have: {missing}")
            closed.setdefault(by_name[block.sum], []).append(block)
        # What a block names as skip or branch is one term, also where a plugin dropped the block that it closes.
        named = {by_name[name] for block in self.blocks for name in (block.skip, block.branch)}
        sums: list[Sum] = []
        for root, blocks in sorted(closed.items(), key=lambda item: order[item[0]]):
            if root.target is layer_output:
                sums.append(self._layer(root, blocks[0]))
                continue
            branches = {by_name[block.branch]: block.index for block in blocks}
            stops = (frozenset(closed) | named) - {root}
            terms = tuple(
                SumTerm(order[term.node], term.scale, branches.pop(term.node, None)) for term in sum_terms(root, stops)
            )
            if branches:
                names = [self.blocks[index].name for index in branches.values()]
                raise PluginError(f"the branch of {names} is no term of the sum that it names")
            inner = tuple(order[node] for node in brackets(root, stops) if node is not root)
            indices = tuple(block.index for block in blocks)
            sums.append(Sum(order[root], inner, terms, indices, root.meta["val"].dtype))
        return tuple(sums)

    def _layer(self, root: fx.Node, layer: ResidualBlock) -> Sum:
        source, value = (self.flow.order[node] for node in root.all_input_nodes)
        terms = (SumTerm(source, 1.0, None), SumTerm(value, 1.0, layer.index))
        return Sum(self.flow.order[root], (), terms, (layer.index,), root.meta["val"].dtype, is_layer=True)

    def _segments(self) -> tuple[tuple[int, ...], ...]:
        bounds = [-1, *(total.root for total in self.sums), len(self.nodes)]
        return tuple(
            tuple(at for at in self.dynamic if start < at < stop and at not in self.in_sums)
            for start, stop in pairwise(bounds)
        )

    def _branches(self) -> tuple[Branch, ...]:
        by_name = {node.name: node for node in self.nodes}
        where = {index: (at, total) for at, total in enumerate(self.sums) for index in total.blocks}
        branches: list[Branch] = []
        for block in self.blocks:
            at, total = where[block.index]
            term = next(term for term in total.terms if term.block == block.index)
            source, value = by_name[block.source], by_name[block.branch]
            start = self.flow.order[source]
            region = self._region(start, self.flow.order[value])
            branches.append(Branch(block.index, start, term.value, term.scale, at, region))
        return tuple(branches)

    def _region(self, source: int, value: int) -> tuple[int, ...]:
        """Return the positions computed from a source that a value needs, constants in the form of one included.

        Such constants carry no data, but where a branch runs elsewhere its own have to be made there.
        """
        span = self.dynamic[bisect_right(self.dynamic, source) : bisect_right(self.dynamic, value)]
        reached = 1 << source
        for at in span:
            if self.reads[at] & reached:
                reached |= 1 << at
        needed = 1 << value & reached
        for at in reversed(span):
            if needed >> at & 1:
                needed |= self.reads[at] & reached
        return tuple(positions_of(needed & ~(1 << source)))


def mask_of(positions: Iterator[int] | Sequence[int] | set[int]) -> int:
    """Return the bit mask of some positions."""
    mask = 0
    for at in positions:
        mask |= 1 << at
    return mask


def positions_of(mask: int) -> Iterator[int]:
    """Yield the positions in a bit mask, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _compile(nodes: Sequence[fx.Node], order: Mapping[fx.Node, int], moving: set[int]) -> tuple[Operator, ...]:
    """Compile each operator to a function of static values `p` and moving values `e`."""
    names: dict[str, Any] = {}
    lines: list[str] = []

    def text(argument: Any) -> str:  # noqa: PLR0911 - one return for each kind of argument
        match argument:
            case fx.Node():
                at = order[argument]
                return f"e[{at}]" if at in moving else f"p[{at}]"
            case list():
                return f"[{', '.join(map(text, argument))}]"
            case tuple():
                return f"({''.join(text(item) + ', ' for item in argument)})"
            case dict():
                return f"{{{', '.join(f'{key!r}: {text(item)}' for key, item in argument.items())}}}"
            case slice():
                return f"slice({text(argument.start)}, {text(argument.stop)}, {text(argument.step)})"
            case None | bool() | int() | str():
                return repr(argument)
            case _:
                name = f"c{len(names)}"
                names[name] = argument
                return name

    for at, node in enumerate(nodes):
        if node.op != "call_function":
            continue
        names[f"f{at}"] = in_region(node)
        arguments = [text(argument) for argument in node.args]
        arguments += [f"{key}={text(argument)}" for key, argument in node.kwargs.items()]
        lines.append(f"def o{at}(p, e): return f{at}({', '.join(arguments)})")
    exec(compile("\n".join(lines), "<captured graph>", "exec"), names)  # noqa: S102 - positions and literals only
    return tuple(names.get(f"o{at}", _no_operator) for at in range(len(nodes)))


def _no_operator(_static: Mapping[int, Any], _values: Mapping[int, Any]) -> Any:
    raise KeyError("a placeholder was run as an operator")
