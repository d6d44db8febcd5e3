"""Regions of a graph: what a model runs without gradients, or under an autocast of its own."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from resnet_paths_plugin.graph.sums import addition_above, is_addition
from resnet_paths_plugin.graph.traced_modes import AUTOCAST, STILL, modes_of

aten = torch.ops.aten


def detach_still_values(graph: fx.Graph) -> None:
    """Detach each value that was computed without gradients where it is read with them, or leaves the graph.

    From then on nothing else has to know where gradients stop. A sum that goes on with gradients has its terms detached
    instead, so that it is one sum.
    """
    for node in reversed(graph.nodes):
        above = addition_above(node) if STILL in node.meta and is_addition(node) else None
        if above is not None and STILL not in above.meta and node.target is aten.add.Tensor:
            del node.meta[STILL]
            for term in node.all_input_nodes:
                node.replace_input_with(term, _detached(graph, term))
    for node in list(graph.nodes):
        readers = {user for user in node.users if STILL not in user.meta and user.target is not aten.detach.default}
        if STILL in node.meta and readers and _can_have_gradient(node):
            detached = _detached(graph, node)
            node.replace_all_uses_with(detached, delete_user_cb=readers.__contains__)


def _can_have_gradient(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _detached(graph: fx.Graph, node: fx.Node) -> fx.Node:
    after = node
    while node.target is operator.getitem and after.next.target is operator.getitem:
        after = after.next  # a file keeps the parts of a value together
    with graph.inserting_after(after):
        detached = graph.call_function(aten.detach.default, (node,))
    detached.meta = {key: held for key, held in node.meta.items() if key not in {STILL, AUTOCAST}}
    return detached


def has_autocast(node: fx.Node) -> bool:
    """Whether a node's operator runs under an autocast of the model's own."""
    return AUTOCAST in node.meta


def in_region(node: fx.Node) -> Callable[..., Any]:
    """Return the operator of a node as it runs there; the operator itself where the model asks nothing of autocast."""
    target: Any = node.target
    return partial(_run, node, target) if has_autocast(node) else target


def _run(node: fx.Node, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with modes_of(node):
        return target(*args, **kwargs)
