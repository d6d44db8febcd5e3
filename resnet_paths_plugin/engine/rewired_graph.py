"""RewiredGraph: a program under one schedule, written out as a graph without what deleted branches computed.

The counterpart of `ForwardEngine` for networks that leave the package: same operators, same order, same bits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, fx

from resnet_paths_plugin.engine.linear_map import LinearMap
from resnet_paths_plugin.engine.liveness import LivenessAnalysis
from resnet_paths_plugin.engine.program import Program, Sum
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.graph.layers import layer_output
from resnet_paths_plugin.graph.operators import aten
from resnet_paths_plugin.graph.traced_modes import AUTOCAST, Autocast

_amp = torch.amp.autocast_mode


@dataclass(frozen=True, eq=False)
class RewiredGraph:
    """A graph of its own. It takes tensors and then the inputs, and returns the leaves of the output.

    Attributes:
        graph: the graph.
        tensors: what each placeholder before the inputs stands for: a parameter or buffer, by its path in the model,
            or a tensor of the graph's or the schedule's own.
        nested: graphs inside it, such as the branches of `torch.cond`, by name.
        runs: the blocks whose branch runs somewhere.
        has_autocast: whether it enters autocast.
    """

    graph: fx.Graph
    tensors: tuple[str | Tensor, ...]
    nested: Mapping[str, fx.GraphModule]
    runs: frozenset[int]
    has_autocast: bool

    @classmethod
    def of(cls, program: Program, schedule: Schedule) -> "RewiredGraph":
        """Return a program under a schedule as a graph."""
        return _Writer(program, schedule).written()


class _Writer:
    def __init__(self, program: Program, schedule: Schedule) -> None:
        self.program, self.schedule = program, schedule
        self.analysis = LivenessAnalysis(program)
        self.graph = fx.Graph()
        self._inputs = {at: self.graph.placeholder(program.nodes[at].name) for at in program.inputs}
        self._static: dict[int, Any] = dict(self._inputs)
        self._tensors: list[tuple[str | Tensor, fx.Node]] = []
        self._nested: dict[str, fx.GraphModule] = {}
        self._entered: list[fx.Node] = []
        self._autocast: Autocast = ()
        self._runs: set[int] = set()
        self._has_autocast = False

    def written(self) -> RewiredGraph:
        program = self.program
        values: dict[int, Any] = dict(self._inputs)
        needed = self.analysis.of(self.schedule).needed
        for at in program.dynamic:
            if not needed >> at & 1:
                continue
            total = program.sum_at.get(at)
            if total is not None:
                values[at] = self._sum(total, values)
            elif at not in program.in_sums:
                values[at] = self._copy(at, values)
        leaves = [
            leaf if at is None else self._value(at, values)
            for at, leaf in zip(program.outputs, program.graph.outputs, strict=True)
        ]
        self._under(())
        self.graph.output(leaves)
        self.graph.lint()
        tensors = tuple(tensor for tensor, _ in self._tensors)
        return RewiredGraph(self.graph, tensors, self._nested, frozenset(self._runs), self._has_autocast)

    def _sum(self, total: Sum, values: dict[int, Any]) -> Any:
        schedule = self.schedule
        if not any(schedule.changes(block) for block in total.blocks):
            self._runs.update(total.blocks)
            local = dict(values)
            for at in (*total.brackets, total.root):
                local[at] = self._copy(at, local)
            return local[total.root]
        result: fx.Node | None = None
        for term in sorted(total.terms, key=lambda term: term.block is not None):
            if term.block is None:
                weight = term.scale if not total.is_layer else 0.0 if schedule.row(total.blocks[0]) else 1.0
                result = self._add(result, self._value(term.value, values), weight, total) if weight else result
                continue
            for block, weight in _merged(schedule, term.block).items():
                scale = self.program.branches[block].scale * weight
                if scale:
                    result = self._add(result, self._branch(block, term.block, total, values), scale, total)
            constant = schedule.constants.get(term.block)
            if constant is not None:
                result = self._add(result, self._tensor(constant, "stand_in"), 1.0, total)
            applied = schedule.linear.get(term.block)
            if applied is not None:
                source = values[self.program.branches[term.block].source]
                result = self._add(result, self._mapped(applied, source, total), 1.0, total)
        assert result is not None  # noqa: S101 - a sum has a skip, or stands for a layer
        if any(dtype != total.dtype for dtype in self._dtypes(total)):
            result = self._call(total.root, aten.to.dtype, (result, total.dtype), {})
        return result

    def _dtypes(self, total: Sum) -> Iterator[torch.dtype]:
        """Yield the dtypes of what is added at a sum."""
        for term in total.terms:
            value = self.program.nodes[term.value].meta.get("val")
            if isinstance(value, Tensor):
                yield value.dtype
        for block in total.blocks:
            if block in self.schedule.constants:
                yield self.schedule.constants[block].dtype
            if block in self.schedule.linear:
                yield self.schedule.linear[block].weight.dtype

    def _mapped(self, applied: LinearMap, source: Any, total: Sum) -> Any:
        """Write what a linear map makes of a source."""
        weight, bias = self._tensor(applied.weight, "stand_in"), self._tensor(applied.bias, "stand_in")
        return applied.written(lambda target, *args: self._call(total.root, target, args, {}), source, weight, bias)

    def _branch(self, block: int, place: int, total: Sum, values: dict[int, Any]) -> Any:
        """Return a block's branch, without its scale, on the source of the block at a place."""
        branch = self.program.branches[block]
        self._runs.add(block)
        if self.analysis.runs_in_place(block, total):
            return values[branch.value]
        needed = self.analysis.in_branch(block, [self.schedule])
        local = dict(values)
        local[branch.source] = values[self.program.branches[place].source]
        for at in branch.region:
            if not needed >> at & 1:
                continue
            inner = self.program.sum_at.get(at)
            if inner is not None:
                local[at] = self._sum(inner, local)
            elif at not in self.program.in_sums:
                local[at] = self._copy(at, local)
        return local[branch.value]

    def _add(self, result: fx.Node | None, operand: Any, scale: float, total: Sum) -> Any:
        if result is None:
            return operand if scale == 1 else self._call(total.root, aten.mul.Tensor, (operand, scale), {})
        return self._call(total.root, aten.add.Tensor, (result, operand), {} if scale == 1 else {"alpha": scale})

    def _copy(self, at: int, values: Mapping[int, Any]) -> Any:
        """Write an operator of the program."""
        node, order = self.program.nodes[at], self.program.flow.order

        def found(other: fx.Node) -> Any:
            return self._value(order[other], values)

        args, kwargs = fx.node.map_arg(node.args, found), fx.node.map_arg(node.kwargs, found)
        if node.target is layer_output:
            return args[1]
        copied = self._call(at, node.target, args, kwargs)
        counter = self.program.graph.counters.get(node)
        if counter is not None:
            self._call(at, aten.add_.Tensor, (found(counter), 1), {})
        return copied

    def _call(self, at: int, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        """Write one call, under the autocast of the operator at a position."""
        node = self.program.nodes[at]
        self._under(node.meta.get(AUTOCAST, ()))
        return self.graph.create_node("call_function", target, args, kwargs, name=node.name)

    def _under(self, autocast: Autocast) -> None:
        """Leave the autocast that holds and enter another, where they differ."""
        if autocast == self._autocast:
            return
        for entered in reversed(self._entered):
            self.graph.call_function(_amp._exit_autocast, (entered,))  # noqa: SLF001 - what torch.export writes
        self._entered = [self.graph.call_function(_amp._enter_autocast, asked) for asked in autocast]  # noqa: SLF001
        self._autocast = autocast
        self._has_autocast = True

    def _value(self, at: int, values: Mapping[int, Any]) -> Any:
        """Return a value that is written, or one that does not depend on the data, which is written once and here."""
        if at in values:
            return values[at]
        if at not in self._static:
            self._static[at] = self._written_static(at)
        return self._static[at]

    def _written_static(self, at: int) -> Any:
        node, captured = self.program.nodes[at], self.program.graph
        if node in captured.tensors:
            return self._tensor(captured.tensors[node], node.name)
        if node not in captured.constants:
            return self._copy(at, {})
        value = captured.constants[node]
        if isinstance(value, fx.GraphModule):
            self._nested[str(node.target)] = value
            return self.graph.get_attr(str(node.target))
        return self._tensor(value, node.name) if isinstance(value, Tensor) else value

    def _tensor(self, tensor: str | Tensor, name: str) -> fx.Node:
        """Return the placeholder of a tensor of the model, by its path, or of a constant."""
        for known, node in self._tensors:
            if known is tensor or (isinstance(tensor, str) and known == tensor):
                return node
        taken = {node.name for node in self.graph.nodes}
        names = chain([name], (f"{name}_{number}" for number in count(1)))
        with self.graph.inserting_before(next(iter(self._inputs.values()))):
            node = self.graph.placeholder(next(name for name in names if name not in taken))
        self._tensors.append((tensor, node))
        return node


def _merged(schedule: Schedule, place: int) -> dict[int, float]:
    weights: dict[int, float] = {}
    for block, weight in schedule.row(place):
        weights[block] = weights.get(block, 0.0) + weight
    return weights
