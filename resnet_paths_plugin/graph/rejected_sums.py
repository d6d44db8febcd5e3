"""Sums of a graph that close no residual block, each with the reason: none is omitted.

It explains what `detection` decides, by the same definition, and decides nothing itself.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import fx
from torch._ops import OpOverload

from resnet_paths_plugin.graph.block_facts import WHOLE, owner_of
from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.graph.dataflow import DataFlow
from resnet_paths_plugin.graph.detection import branches_of, deeper_terms
from resnet_paths_plugin.graph.hidden_sums import adds_inside, adds_stacked_values
from resnet_paths_plugin.graph.operators import same_shape
from resnet_paths_plugin.graph.skips import skips
from resnet_paths_plugin.graph.sums import Term, addition_above, brackets, is_addition, is_subtraction, sum_terms


@dataclass(frozen=True, slots=True)
class OtherSum:
    """A sum that closes no residual block.

    Attributes:
        module: path of the module that owns the sum; `"(model)"` for the model's own `forward`.
        sum: name of the graph value.
        reason: why it closes no block.
    """

    module: str
    sum: str
    reason: str


def other_sums(graph: CapturedGraph, blocks: Iterable[ResidualBlock]) -> tuple[OtherSum, ...]:
    """Return every sum of a graph that none of the blocks closes, in execution order.

    Sums within a larger sum are listed with it. A sum with fewer than two terms that depend on the inputs, such as a
    position embedding, is listed as well.
    """
    flow = DataFlow(graph)
    closed = {block.sum for block in blocks}
    found: list[OtherSum] = []
    for node in flow.nodes:
        if not (is_subtraction(node) or is_addition(node)):
            reason = _hidden(node, flow, graph)
            if reason is not None:
                found.append(OtherSum(owner_of(node) or WHOLE, node.name, reason))
            continue
        if is_addition(node) and addition_above(node) is not None:
            continue
        if closed.isdisjoint(part.name for part in brackets(node)):
            found.append(OtherSum(owner_of(node) or WHOLE, node.name, _reason(node, flow)))
    return tuple(found)


def _hidden(node: fx.Node, flow: DataFlow, graph: CapturedGraph) -> str | None:
    """Return why the addition inside an operator closes no block; None where there is no addition in it."""
    if _runs_sums(node, graph):
        return f"inside {node.target}, which runs graphs of its own"
    operator = str(node.target).split(".")[1] if isinstance(node.target, OpOverload) else ""
    if adds_inside(node):
        both = node.args[0] in flow.data and any(operand in flow.data for operand in node.args[1:])
        return f"{operator} adds inside one operator" if both else "adds a parameter or constant"
    return f"{operator} adds stacked values inside one operator" if adds_stacked_values(node, flow) else None


def _runs_sums(node: fx.Node, graph: CapturedGraph) -> bool:
    """Whether an operator runs nested graphs, as `torch.cond` does, with sums in them."""
    nested = [graph.constants.get(other) for other in node.all_input_nodes if other.op == "get_attr"]
    parts = [part for one in nested if isinstance(one, fx.GraphModule) for part in one.modules()]
    inside = [inner for part in parts if isinstance(part, fx.GraphModule) for inner in part.graph.nodes]
    return any(is_addition(inner) or is_subtraction(inner) for inner in inside)


def _reason(root: fx.Node, flow: DataFlow) -> str:
    """Return what stands nearest to a block, and is none."""
    live = [term for term in sum_terms(root) if term.node in flow.data]
    if len(live) < 2:
        return "adds a parameter or constant"
    refusals = [
        refusal for at, skip in enumerate(live) for refusal in _refusals(root, skip, live[:at] + live[at + 1 :], flow)
    ]
    return min(refusals)[-1]


def _depth(term: Term, flow: DataFlow) -> int:
    """Return the longest chain of weighted operations from an input to a term."""
    inputs = [node for node in flow.data if node.op == "placeholder"]
    return max(flow.depth(flow.between(node, term.node)) for node in inputs)


def _refusals(root: fx.Node, skip: Term, others: Sequence[Term], flow: DataFlow) -> Iterator[tuple[int, int, str]]:
    """Yield what keeps a term from being the skip, behind two ranks: the lower, the nearer to a block."""
    if skip.scale <= 0:
        yield 2, 0, "a difference: what would be the skip is subtracted"
        return
    if not same_shape(skip.node, root):
        yield 2, 0, "a term is broadcast"
        return
    at = skip.node
    for way in skips(skip, flow):
        at = way.source
        if not any(flow.is_ancestor(at, of=term.node) for term in others):
            continue
        if way.partial and not way.weight:
            yield 1, 0, "the skip would be a part of a tensor"
            return
        if branches_of(root, way, others, flow):
            yield -1, 0, "a block by its data flow, which a plugin leaves out"
            return
        if not deeper_terms(way, others, flow):
            yield 3, 0, "no term does more to a value that they share than the other"
        else:
            yield 0, 0, "a value inside the branch is read elsewhere, beside a skip with weights"
    if at.op == "call_function":
        operator = getattr(at.target, "__name__", str(at.target)).partition(".")[0]
        yield 2, 1 + _depth(skip, flow), f"{operator} of {owner_of(at) or WHOLE} stands on the way of the skip"
    else:
        yield 4, 0, "its terms share no value"
