"""Residual blocks are read off a data-flow graph: for every sum, which term is the skip, which are branches.

After Veit et al. 2016, Sec. 3; the definition of a block for any graph is in the README ("What counts as a block").
Names and the other facts of the blocks found are derived in `facts`.
"""

from collections.abc import Iterator, Sequence

from torch import fx

from resnet_paths_plugin.graph.block_facts import Reading, blocks_of
from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.graph.dataflow import DataFlow
from resnet_paths_plugin.graph.operators import PARTS, WINDOWED_POOLING, aten, is_constant, same_shape
from resnet_paths_plugin.graph.skips import Skip, skips
from resnet_paths_plugin.graph.sums import (
    Term,
    addition_above,
    brackets,
    is_addition,
    is_subtraction,
    sum_terms,
)


def detect_blocks(graph: CapturedGraph) -> tuple[ResidualBlock, ...]:
    """Find the residual blocks of a captured graph, in execution order.

    One pass over the sums of the graph; the time is near-linear in the number of nodes.
    """
    flow = DataFlow(graph)
    readings: list[Reading] = []
    for node in flow.nodes:
        if is_subtraction(node) or (is_addition(node) and addition_above(node) is None):
            readings.extend(_read(node, flow))
    return blocks_of(graph, flow, readings)


def _read(root: fx.Node, flow: DataFlow) -> Iterator[Reading]:
    """Read a sum whole, or, where a bracket of it is a block with a source of its own, the bracket first."""
    terms = sum_terms(root)
    whole = _cheapest(root, terms, flow)
    for bracket in brackets(root)[:-1]:
        if not is_addition(bracket):
            continue
        inside = sum_terms(bracket)
        inner = _cheapest(bracket, inside, flow)
        if inner is None or inner.kind == "projection":
            continue
        within = {term.node for term in inside}
        outer = _cheapest(root, [*(term for term in terms if term.node not in within), Term(bracket, 1.0)], flow)
        if whole is not None and whole.source is inner.source:
            # The same block twice, unless the whole sum leaves over what is the skip around this bracket.
            if (
                outer is None
                or bracket not in {branch.node for branch in outer.branches}
                or outer.skip.node in whole.nodes
            ):
                continue
        elif whole is not None and whole.skip.node in within:
            continue
        yield from _read(bracket, flow)
        if outer is not None:
            yield outer
        return
    if whole is not None:
        yield whole


def _cheapest(root: fx.Node, terms: Sequence[Term], flow: DataFlow) -> Reading | None:
    """Return the reading whose skip does least; among equals the one with most branches, then the latest source."""
    live = [term for term in terms if term.node in flow.data]
    readings: list[Reading] = []
    for at, skip in enumerate(live):
        others = live[:at] + live[at + 1 :]
        readings.extend(filter(None, (_as_skip(root, skip, others, flow), _as_gated(root, skip, others, flow))))
    return min(readings, key=lambda r: (r.cost, -len(r.branches), -flow.order[r.source]), default=None)


def _as_skip(root: fx.Node, skip: Term, others: Sequence[Term], flow: DataFlow) -> Reading | None:
    """Walk back from one term over skip operators to the first value that another term is a branch of."""
    if skip.scale <= 0 or not same_shape(skip.node, root):
        return None
    for way in skips(skip, flow):
        if not any(flow.is_ancestor(way.source, of=term.node) for term in others):
            continue
        if way.partial and not way.weight:
            return None
        branches = branches_of(root, way, others, flow)
        if branches:
            return Reading(root, way.source, skip, way.kind, branches, (way.weight, len(way.operators)))
    return None


def branches_of(root: fx.Node, way: Skip, others: Sequence[Term], flow: DataFlow) -> tuple[Term, ...]:
    """Return the other terms that are branches beside a skip."""
    found = deeper_terms(way, others, flow)
    while way.weight:
        # A term that turns out to be no branch belongs to the outside, for the others as well.
        block = {*way.operators, *brackets(root)}.union(*found.values())
        closed = {term: region for term, region in found.items() if _is_closed(term, region, block)}
        if len(closed) == len(found):
            break
        found = closed
    return tuple(found)


def deeper_terms(way: Skip, others: Sequence[Term], flow: DataFlow) -> dict[Term, list[fx.Node]]:
    """Return the other terms that do more to the source than the skip does, and the operators of each from there."""
    regions = {term: flow.between(way.source, term.node) for term in others}
    return {term: region for term, region in regions.items() if _is_branch(region, way, flow)}


def _is_branch(region: list[fx.Node], way: Skip, flow: DataFlow) -> bool:
    if flow.depth(region) > way.weight:
        return True
    return way.kind == "identity" and any(node.target in WINDOWED_POOLING for node in region)


def _is_closed(term: Term, region: list[fx.Node], block: set[fx.Node]) -> bool:
    """Whether nothing inside the branch is read outside the block, for its form or to split its last value excepted.

    This tells the projection of a residual block from a lateral sum of a feature pyramid.
    """
    last = _last_value(term.node, set(region))
    return all(
        user in block or is_constant(user) or (node in last and user.target in PARTS)
        for node in region
        for user in node.users
    )


def _last_value(term: fx.Node, region: set[fx.Node]) -> set[fx.Node]:
    """Return the term and the values that it is a part of."""
    last: set[fx.Node] = set()
    while True:
        last.add(term)
        whole = [node for node in term.all_input_nodes if node in region]
        if term.target not in PARTS or len(whole) != 1:
            return last
        term = whole[0]


def _as_gated(root: fx.Node, skip: Term, others: Sequence[Term], flow: DataFlow) -> Reading | None:
    """Read `t * f(x) + (1 - t) * x`, the sum of a highway layer (Srivastava et al. 2015)."""
    if len(others) != 1 or not same_shape(skip.node, root):
        return None
    for carry, carried in _factors(skip.node, flow):
        for gate, transformed in _factors(others[0].node, flow):
            if not (_is_complement(carry, gate) or _is_complement(gate, carry)):
                continue
            for way in skips(Term(carried, 1.0), flow):
                if way.kind != "identity" or way.partial:
                    break
                if flow.depth(flow.between(way.source, transformed)):
                    return Reading(root, way.source, skip, "gated", tuple(others), (0, 1), gate)
    return None


def _factors(node: fx.Node, flow: DataFlow) -> Iterator[tuple[fx.Node, fx.Node]]:
    if node.target is aten.mul.Tensor:
        one, other = node.args[:2]
        if isinstance(one, fx.Node) and isinstance(other, fx.Node) and {one, other} <= flow.data:
            yield one, other
            yield other, one


def _is_complement(node: fx.Node, gate: fx.Node) -> bool:
    """Whether a node is `1 - gate`."""
    if node.target is aten.rsub.Scalar:
        return node.args[:2] == (gate, 1)
    if node.target is not aten.add.Tensor or node.args[1] != 1 or not isinstance(node.args[0], fx.Node):
        return False
    return node.args[0].target is aten.neg.default and node.args[0].args[0] is gate
