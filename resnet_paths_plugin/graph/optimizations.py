"""Rewrites of a captured graph that make it faster and keep outputs within rounding.

The model keeps its parameters: what is computed from them here is computed each time that the graph is run.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.graph.operators import SIZES, aten

_CONVOLUTIONS = frozenset({aten.conv1d.default, aten.conv2d.default, aten.conv3d.default})
_UP_TO_BIAS = 3
"""Number of a convolution's or linear layer's arguments up to the bias."""
_IMAGE_NDIM = 4


def fold_batch_norms(graph: CapturedGraph) -> None:
    """Fold every batch norm that alone reads the value of a convolution or linear layer into that operator.

    The operator then stands in the batch norm's place, under its name: blocks found before stay valid.

    Args:
        graph: a graph captured in eval mode; it is changed.
    """
    outputs = {leaf for leaf in graph.outputs if isinstance(leaf, fx.Node)}
    for norm in [node for node in graph.graph.nodes if _can_be_folded(node, outputs)]:
        _fold(graph.graph, norm)


def with_channels_last(graph: CapturedGraph) -> None:
    """Lay inputs that are images, and the kernels of two-dimensional convolutions, out with their channels last.

    Args:
        graph: a captured graph; it is changed.
    """
    for image in graph.inputs:
        value = image.meta.get("val")
        if isinstance(value, Tensor) and value.ndim == _IMAGE_NDIM and value.is_floating_point():
            with graph.graph.inserting_after(image):
                laid_out = _laid_out(graph.graph, image)
            image.replace_all_uses_with(
                laid_out,
                delete_user_cb=lambda user, laid_out=laid_out: user is not laid_out and user.target not in SIZES,  # type: ignore[misc]  # early binding
            )
    for node in list(graph.graph.nodes):
        if node.target is aten.conv2d.default and isinstance(node.args[1], fx.Node):
            with graph.graph.inserting_before(node):
                kernel = _laid_out(graph.graph, node.args[1])
            node.args = (node.args[0], kernel, *node.args[2:])


def _laid_out(graph: fx.Graph, value: fx.Node) -> fx.Node:
    return _call(graph, aten.contiguous.default, value, memory_format=torch.channels_last)


def _can_be_folded(norm: fx.Node, outputs: set[fx.Node]) -> bool:
    if norm.target is not aten.batch_norm.default or norm.args[5] is not False:
        return False
    operator, *parameters = norm.args[:5]
    if not isinstance(operator, fx.Node) or list(operator.users) != [norm] or operator in outputs or operator.kwargs:
        return False
    # A linear layer has its channels in the last dimension, a batch norm in the second.
    matrix = operator.target is aten.linear.default and operator.meta["val"].ndim == 2
    convolution = operator.target in _CONVOLUTIONS and operator.meta["val"].ndim == operator.args[1].meta["val"].ndim  # type: ignore[union-attr]  # a node
    if not convolution and not matrix:
        return False
    # Statistics that are computed, or of another dtype than the weight, stay as they are.
    given = [one for one in parameters if one is not None]
    dtype = operator.args[1].meta["val"].dtype  # type: ignore[union-attr]  # a node
    return (
        parameters[2] is not None
        and all(isinstance(one, fx.Node) and one.op == "placeholder" for one in given)
        and all(one.meta["val"].dtype == dtype for one in given)  # type: ignore[union-attr]  # nodes
    )


def _fold(graph: fx.Graph, norm: fx.Node) -> None:
    """Compute `w' = w g` and `b' = (b - mean) g + shift` with `g = scale / sqrt(variance + epsilon)`."""
    operator, scale, shift, mean, variance = norm.args[:5]
    assert isinstance(operator, fx.Node)  # noqa: S101 - `_can_be_folded`
    weight, *bias = operator.args[1:_UP_TO_BIAS]
    assert isinstance(weight, fx.Node)  # noqa: S101 - a weighted operator's
    with graph.inserting_before(norm):
        gain = _call(graph, aten.rsqrt.default, _call(graph, aten.add.Scalar, variance, norm.args[7]))
        if scale is not None:
            gain = _call(graph, aten.mul.Tensor, gain, scale)
        per_channel = _call(graph, aten.view.default, gain, [-1, *[1] * (weight.meta["val"].ndim - 1)])
        gained = _call(graph, aten.mul.Tensor, weight, per_channel)
        if bias and bias[0] is not None:
            offset = _call(graph, aten.sub.Tensor, bias[0], mean)
        else:
            offset = _call(graph, aten.neg.default, mean)
        offset = _call(graph, aten.mul.Tensor, offset, gain)
        if shift is not None:
            offset = _call(graph, aten.add.Tensor, offset, shift)
    norm.target = operator.target
    norm.args = (operator.args[0], gained, offset, *operator.args[_UP_TO_BIAS:])
    graph.erase_node(operator)


def _call(graph: fx.Graph, target: Callable[..., Any], *arguments: Any, **options: Any) -> fx.Node:
    """Insert an operator, with the value that it would have been captured with."""
    node = graph.call_function(target, arguments, options)
    node.meta["val"] = target(*fx.node.map_arg(arguments, lambda other: other.meta["val"]), **options)
    return node
