"""Batch trial: whether a captured graph does for another batch size than it was traced with what the model does.

torch.export takes every free size to be 2 or more without asking: a model that decides by `x.shape[0] > 1` leaves no
guard. So some samples are run through both; the model and the random number generators are left as they were.
"""

import warnings
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from resnet_paths_plugin.graph.export import uncompiled, undisturbed
from resnet_paths_plugin.graph.keywords import called
from resnet_paths_plugin.graph.process_state import kept_generators, set_aside
from resnet_paths_plugin.graph.traced_modes import AutocastInterpreter
from resnet_paths_plugin.process_lock import alone


def holds_for(
    model: nn.Module,
    args: tuple[Any, ...],
    graph: fx.Graph,
    inputs: tuple[fx.Node, ...],
    tensors: dict[fx.Node, Any],
    outputs: tuple[Any, ...],
) -> bool | None:
    """Return whether graph and model agree on some samples; None where that cannot be tried.

    Args:
        model: the model.
        args: arguments of one call.
        graph: the functional graph.
        inputs: its placeholders of the arguments, flattened.
        tensors: values of its other placeholders.
        outputs: the leaves of its output.
    """
    leaves = pytree.tree_leaves(args)
    if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in [*leaves, *tensors.values()]):
        return None
    with ExitStack() as stack, alone(), kept_generators(), torch.no_grad(), uncompiled(model):
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(set_aside("stdout"))  # the trace showed what the model prints
        stack.enter_context(set_aside("stderr"))
        try:
            with undisturbed(model):  # whose outputs may be buffers that it gets back as they were
                given = pytree.tree_leaves(pytree.tree_map(_copied, called(model, pytree.tree_map(_copied, args))))
        except Exception:  # noqa: BLE001 - the model itself does not take so many samples
            return False
        try:
            env = GraphRun(graph).values({**tensors, **dict(zip(inputs, leaves, strict=True))})
        except Exception:  # noqa: BLE001 - what was traced for another number does not run
            return False
        found = [env[leaf] if isinstance(leaf, fx.Node) else leaf for leaf in outputs]
        ranks = [_rank(leaf.meta["val"] if isinstance(leaf, fx.Node) else leaf) for leaf in outputs]
        return ranks == list(map(_rank, given)) and all(map(_agree, found, given))


class GraphRun(AutocastInterpreter):
    """Runs a functional graph on values."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__(nn.Module(), graph=graph, garbage_collect_values=False)

    def values(self, placeholders: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
        """Return the value of every node for those of the placeholders."""
        self.run(initial_env=dict(placeholders))
        return self.env


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _rank(leaf: Any) -> int | None:
    return leaf.ndim if isinstance(leaf, Tensor) else None


def _agree(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return isinstance(one, Tensor) == isinstance(other, Tensor)
    try:
        torch.testing.assert_close(one, other, equal_nan=True)
    except AssertionError:
        return False
    return True
