"""Repairs of graphs as torch.export leaves them; nothing here knows of models or batches."""

import operator
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from resnet_paths_plugin.graph.operators import NORMS, WINDOWED_POOLING, draws_at_random
from resnet_paths_plugin.graph.traced_modes import AUTOCAST

_NESTED_MODES = {torch.ops.higher_order.wrap_with_set_grad_enabled, torch.ops.higher_order.wrap_with_autocast}
_TRANSFORMS = "torch._functorch.predispatch"
"""Module of the functions that enter and leave vmap, jvp and grad in a graph."""


def put_users_in_step(graph: fx.Graph) -> None:
    """Make each node's `users` those nodes of the graph that read it: export loses some beside nested graphs."""
    nodes = set(graph.nodes)
    for node in graph.nodes:
        for user in [user for user in node.users if user not in nodes]:
            del node.users[user]
        for read in node.all_input_nodes:
            read.users.setdefault(node)


def merge_equal(graph: fx.Graph, *, training: bool = False) -> None:
    """Let one node stand for all that call one operator on the same arguments.

    Operators that draw are left alone, in training those that count how often they run, and poolings, which without
    any weight may be branches of their own.
    """
    known: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or _differs_each_time(node) or (training and node.target in NORMS):
            continue
        # Of one module's code: what other modules compute alike are operators of their own branches.
        owner = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("",))[0]
        where = (owner, node.meta.get(AUTOCAST))
        key = _key((node.target, node.args, sorted(node.kwargs.items()), where))
        first = known.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _differs_each_time(node: fx.Node) -> bool:
    """Whether two calls on the same arguments may return other values."""
    target = node.target
    if not isinstance(target, OpOverload):
        return target is not operator.getitem
    return draws_at_random(node) or target in WINDOWED_POOLING or "empty" in str(target) or target._schema.is_mutable  # noqa: SLF001 - an operator


def _key(argument: Any) -> Any:
    """Return an argument as something to look up by: 1, 1.0 and True are not the same, nor are 0.0 and -0.0."""
    if isinstance(argument, list | tuple):
        return tuple(map(_key, argument))
    if isinstance(argument, fx.Node | OpOverload) or callable(argument):
        return argument
    return type(argument), repr(argument)


def has_nested_modes(graph: fx.Graph) -> bool:
    """Whether what runs under another gradient mode or autocast is a graph of its own, as torch.export leaves it."""
    return any(node.target in _NESTED_MODES for node in graph.nodes)


def has_transforms(graph: fx.Graph) -> bool:
    """Whether the graph enters vmap, jvp or grad, whose operators only run between entry and exit."""
    return any(getattr(node.target, "__module__", "") == _TRANSFORMS for node in graph.nodes)
