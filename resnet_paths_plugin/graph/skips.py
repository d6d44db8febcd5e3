"""Skips: which values a term of a sum is a cheap affine map of, and what that map does.

It says nothing of branches: whether one of these values is the source of a residual block is for `detection` to decide.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from resnet_paths_plugin.graph.blocks import SkipKind
from resnet_paths_plugin.graph.dataflow import DataFlow
from resnet_paths_plugin.graph.operators import (
    JOINS,
    SPLITS,
    SkipStep,
    aten,
    is_part,
    pre_activation,
    same_size,
    skip_step,
)
from resnet_paths_plugin.graph.sums import Term


@dataclass(frozen=True, eq=False, slots=True)
class Skip:
    """A term of a sum as a cheap map of an earlier value.

    Attributes:
        term: the term.
        source: the value that it is a map of.
        kind: what the map does.
        operators: the operators of the map, in execution order.
        weight: longest chain of weighted operations in it.
        partial: whether it passes on only a part of some value.
    """

    term: Term
    source: fx.Node
    kind: SkipKind
    operators: tuple[fx.Node, ...]
    weight: int
    partial: bool


def skips(term: Term, flow: DataFlow) -> Iterator[Skip]:
    """Yield the readings of a term as a skip of one value, from the term itself back to earlier values.

    Where operators put several values together, the walk goes back along all of them, latest value first, until one
    value is left that they are all computed from.
    """
    steps: list[SkipStep] = [] if term.scale == 1 else ["scaled"]
    walked: list[fx.Node] = []
    frontier = {term.node}
    while True:
        latest = max(frontier, key=flow.order.__getitem__)
        if len(frontier) == 1 and isinstance(latest.meta.get("val"), Tensor):
            yield _skip(term, latest, walked, steps, flow)
        step = skip_step(latest, flow.data)
        # The projection of a dual path net has a pre-activation of its own (norm, activation), apart from the branch's.
        if "activation" in steps:
            step = step if step is not None and step[0] in {"scaled", "identity"} else None
        elif step is None and "weighted" in steps:
            step = pre_activation(latest, flow.data)
        if step is None:
            return
        frontier.remove(latest)
        frontier.update(step[1])
        walked.insert(0, latest)
        steps.append(step[0])


def _skip(term: Term, source: fx.Node, walked: list[fx.Node], steps: list[SkipStep], flow: DataFlow) -> Skip:
    kind: SkipKind = "identity"
    if "scaled" in steps:
        kind = "scaled"
    if "weighted" in steps or "projection" in steps:
        kind = "projection"
    partial = "part" in steps and not _keep_everything(walked)
    joined = any(node.target in JOINS for node in walked)
    if joined and kind != "projection" and not partial and not same_size(source, term.node):
        kind = "projection"  # a part that is put in twice
    return Skip(term, source, kind, tuple(walked), flow.depth(walked), partial)


def _keep_everything(walked: list[fx.Node]) -> bool:
    """Whether the parts that are taken of each value are, together, all of it."""
    parts: dict[fx.Node, list[fx.Node]] = {}
    for node in walked:
        if is_part(node):
            parts.setdefault(node.all_input_nodes[0], []).append(node)
    return all(_is_whole(whole, taken) for whole, taken in parts.items())


def _is_whole(whole: fx.Node, parts: list[fx.Node]) -> bool:
    """Whether parts of a value leave no gap and do not overlap."""
    if whole.target in SPLITS:
        return {part.args[1] for part in parts} == set(range(len(whole.meta["val"])))
    ranges = sorted(filter(None, map(_range, parts)))
    if len(ranges) != len(parts) or len({dim for dim, _, _ in ranges}) != 1:
        return False
    ends = [0, *(end for _, _, end in ranges)]
    return [start for _, start, _ in ranges] == ends[:-1] and ends[-1] == whole.meta["val"].shape[ranges[0][0]]


def _range(part: fx.Node) -> tuple[int, int, int] | None:
    """Return dimension, start and end of a slice; None where they are not plain numbers."""
    given: list[Any] = list(part.args[1:4])
    dim, start, end = given + [0, None, None][len(given) :]
    if part.target is aten.select.int:
        end = start + 1 if start != -1 else None
    whole = part.all_input_nodes[0].meta["val"]
    if (
        part.target not in {aten.slice.Tensor, aten.select.int}
        or not isinstance(dim, int)
        or not isinstance(whole.shape[dim], int)
    ):
        return None
    size: int = whole.shape[dim]
    first, last = 0 if start is None else start, size if end is None else end
    if not isinstance(first, int) or not isinstance(last, int):
        return None
    return dim % whole.ndim, _from_start(first, size), _from_start(last, size)


def _from_start(position: int, size: int) -> int:
    return min(position + size if position < 0 else position, size)
