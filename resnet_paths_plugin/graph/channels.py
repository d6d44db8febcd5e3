"""Which dimension of a block's source holds its channels: read off the first operator of the branch that mixes them.

Dimensions are followed through operators that move, split or keep them. Names of modules play no part.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from resnet_paths_plugin.graph.operators import (
    CONVOLUTIONS,
    LINEAR,
    NORMS,
    PERMUTING,
    PRODUCTS,
    RECURRENCE,
    RESHAPING,
    WINDOWED_POOLING,
    aten,
    same_sizes,
)

Labels = tuple[int | None, ...]
"""For each dimension of a value the dimension of the source that it is; None where it is none of them."""


def channel_dim(source: fx.Node, region: Sequence[fx.Node]) -> int | None:
    """Return the dimension of a source that holds its channels, from the last (`-1`); None where no operator tells.

    A convolution, a windowed pooling and a batch, group or instance norm have them before the positions, a linear map,
    a matrix product, a recurrence and a layer norm in the last dimension.

    Args:
        source: the source of a branch.
        region: the operators that the branch computes from it, in order.
    """
    ndim = int(source.meta["val"].ndim)
    known: dict[fx.Node, Labels] = {source: tuple(range(ndim))}
    for node in region:
        operand = next((other for other in node.all_input_nodes if other in known), None)
        if operand is None:
            continue
        told = _CHANNELS.get(node.target)
        place = None if told is None else told(node, operand)
        labels = known[operand]
        if place is not None and -len(labels) <= place < len(labels):
            label = labels[place]
            if label is not None:
                return label - ndim
        known[node] = _moved(node, operand, known[operand])
    return None


def _before_positions(node: fx.Node, operand: fx.Node) -> int | None:
    kernel = node.args[1]
    return 1 - int(kernel.meta["val"].ndim) if node.args[0] is operand and isinstance(kernel, fx.Node) else None


def _before_window(node: fx.Node, _: fx.Node) -> int | None:
    window = node.args[1]
    return -1 - len(window) if isinstance(window, list | tuple) else None


def _second(node: fx.Node, operand: fx.Node) -> int | None:
    return 1 if node.args[0] is operand else None


def _last(node: fx.Node, operand: fx.Node) -> int | None:
    return -1 if node.args[0] is operand else None


def _last_alone(node: fx.Node, _: fx.Node) -> int | None:
    shape = node.args[1]
    return -1 if isinstance(shape, list | tuple) and len(shape) == 1 else None


def _contracted(node: fx.Node, operand: fx.Node) -> int:
    return -1 if node.args[_FIRST_FACTORS.get(node.target, 0)] is operand else -2


_FIRST_FACTORS: Mapping[Any, int] = {aten.addmm.default: 1, aten.baddbmm.default: 1, aten.addbmm.default: 1}
"""Where the first of two factors stands, if it is not the first argument."""
_CHANNELS: Mapping[Any, Callable[[fx.Node, fx.Node], int | None]] = {
    **dict.fromkeys(CONVOLUTIONS, _before_positions),
    **dict.fromkeys(WINDOWED_POOLING, _before_window),
    **dict.fromkeys(NORMS, _second),
    **dict.fromkeys((aten.layer_norm.default, aten.native_layer_norm.default, aten.rms_norm.default), _last_alone),
    **dict.fromkeys(LINEAR | RECURRENCE, _last),
    **dict.fromkeys(PRODUCTS - {aten.einsum.default}, _contracted),
}
"""Which dimension of its operand an operator takes for channels."""


def _moved(node: fx.Node, operand: fx.Node, labels: Labels) -> Labels:
    """Return the labels of what an operator makes of a value."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return labels  # the parts of a split
    ndim = len(labels)
    if node.target in PERMUTING:
        probe = torch.empty([2] * ndim, device="meta")  # each of its dimensions has a stride of its own
        moved = node.target(probe, *node.args[1:], **node.kwargs)
        return tuple(labels[probe.stride().index(stride)] for stride in moved.stride())
    if node.target in RESHAPING:
        return _reshaped(operand.meta["val"].shape, value.shape, labels)
    if value.ndim >= ndim:
        return (None,) * (value.ndim - ndim) + labels
    return (None,) * value.ndim


def _reshaped(before: Sequence[Any], after: Sequence[Any], labels: Labels) -> Labels:
    """Keep the labels of the leading and trailing dimensions that a reshape leaves as they are."""
    shorter = min(len(before), len(after))
    first = next((at for at in range(shorter) if not same_sizes(before[at : at + 1], after[at : at + 1])), shorter)
    rest = shorter - first
    last = 0
    while last < rest and same_sizes([before[-1 - last]], [after[-1 - last]]):
        last += 1
    middle: Labels = (None,) * (len(after) - first - last)
    return labels[:first] + middle + labels[len(labels) - last :]
