"""Sums of a graph that close no residual block, each with the reason: nothing is passed over in silence.

It explains what `detection` decides, by the same definition, and decides nothing itself.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.graph.detection import branches_of, deeper_terms
from resnet_paths_plugin.graph.facts import WHOLE, owner_of
from resnet_paths_plugin.graph.operators import same_shape
from resnet_paths_plugin.graph.skips import skips
from resnet_paths_plugin.graph.sums import Term, addition_above, brackets, is_addition, is_subtraction, sum_terms
from resnet_paths_plugin.graph.values import DataFlow


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

    Sums within a larger sum are told of with it. A sum with fewer than two terms that depend on the inputs, such as a
    position embedding, is told of as well.
    """
    flow = DataFlow(graph)
    closed = {block.sum for block in blocks}
    found: list[OtherSum] = []
    for node in flow.nodes:
        if not (is_subtraction(node) or (is_addition(node) and addition_above(node) is None)):
            continue
        if closed.isdisjoint(part.name for part in brackets(node)):
            found.append(OtherSum(owner_of(node) or WHOLE, node.name, _reason(node, flow)))
    return tuple(found)


def _reason(root: fx.Node, flow: DataFlow) -> str:
    """Return what stands nearest to a block, and is none."""
    live = [term for term in sum_terms(root) if term.node in flow.data]
    if len(live) < 2:
        return "adds a parameter or constant"
    told = [told for at, skip in enumerate(live) for told in _refusals(root, skip, live[:at] + live[at + 1 :], flow)]
    return min(told)[-1]


def _refusals(root: fx.Node, skip: Term, others: Sequence[Term], flow: DataFlow) -> Iterator[tuple[int, int, str]]:
    """Yield what keeps a term from being the skip, behind two ranks: the lower, the nearer to a block."""
    if skip.scale <= 0:
        yield 2, 0, "a difference: what would be the skip is subtracted"
        return
    if not same_shape(skip.node, root):
        yield 2, 0, "a term is broadcast"
        return
    at, weight = skip.node, 0
    for way in skips(skip, flow):
        at, weight = way.source, way.weight
        if not any(flow.is_ancestor(at, of=term.node) for term in others):
            continue
        if way.partial and not weight:
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
        yield 2, weight, f"{operator} of {owner_of(at) or WHOLE} stands on the way of the skip"
    else:
        yield 4, 0, "its terms share no value"
