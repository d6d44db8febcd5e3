"""Norms whose statistics are held constant: what they divide by is a constant for gradients, what they subtract is not.

With the scale of layer and RMS norms held constant, what a residual stream adds up reaches the scores as a sum: the
convention of direct logit attribution (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").
"""

import operator
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from resnet_paths_plugin.engine.calls import Call, Derivative, Rows, Rule
from resnet_paths_plugin.graph.operators import aten

_PRODUCTS = frozenset({aten.mul.Tensor, aten.div.Tensor})
_VARIANCES = frozenset({aten.var.correction, aten.var.dim, aten.std.correction, aten.std.dim})
_PARTS_OF_VARIANCES = frozenset({aten.var_mean.correction, aten.var_mean.dim})
_NORMS = frozenset({aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim})
_SUMS = frozenset({aten.mean.dim, aten.sum.dim_IntList})
_STEPS = frozenset({
    aten.rsqrt.default, aten.sqrt.default, aten.reciprocal.default, aten.pow.Tensor_Scalar, aten.add.Tensor,
    aten.mul.Tensor, aten.div.Tensor, aten.clamp.default, aten.clamp_min.default, aten.maximum.default,
    aten.expand.default, aten.expand_as.default, aten.unsqueeze.default, aten.view.default, aten.reshape.default,
    aten.to.dtype, aten._to_copy.default,  # noqa: SLF001 - an operator's name
})  # fmt: skip
"""What may stand between the sum of squares and the division by its root."""
_CENTRINGS = frozenset({aten.sub.Tensor, aten.mul.Tensor, aten.to.dtype, aten._to_copy.default})  # noqa: SLF001
_TWO = 2


def frozen_operands(node: fx.Node, data: Collection[fx.Node]) -> tuple[fx.Node, ...]:
    """Return the operands of a product, or quotient, that are the scale of a norm written out: constants then.

    That is the root of the variance or mean square of what the other operand is, or is centred from:
    `x * rsqrt(mean(x^2) + eps)`, `(x - mean) / sqrt(var + eps)`, `x / norm(x)`. What else a root is multiplied with, it
    is no scale of.

    Args:
        node: an operator.
        data: the values that are computed from the inputs.
    """
    arguments = [argument for argument in node.args[:_TWO] if isinstance(argument, fx.Node)]
    if node.target not in _PRODUCTS or len(arguments) < _TWO:
        return ()
    one, other = arguments
    pairs = [(other, one)] if node.target is aten.div.Tensor else [(other, one), (one, other)]
    return tuple(
        scale
        for scale, normed in pairs
        if (source := _source_of_scale(scale, data)) is not None and _is_centred(normed, source)
    )


def frozen_norms(nodes: Iterable[fx.Node], data: Collection[fx.Node]) -> int:
    """Return how many norms have a scale that can be held constant."""
    return sum(node.target in _RULES or bool(frozen_operands(node, data)) for node in nodes)


def _source_of_scale(scale: fx.Node, data: Collection[fx.Node]) -> fx.Node | None:
    """Return what a scale is the root of the mean square, or the variance, of."""
    node = scale
    while node.target in _STEPS:
        shaped = node.target is aten.expand_as.default  # reads the other one's shape
        moving = [other for other in node.all_input_nodes[: 1 if shaped else None] if other in data]
        if len(moving) != 1 or (node.target is aten.mul.Tensor and node.args[0] is node.args[1]):
            return None
        (node,) = moving
    if node.target in _SUMS:
        return _squared(node.args[0])
    reduced = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if node.target is operator.getitem and reduced is not None and reduced.target in _PARTS_OF_VARIANCES:
        source = reduced.args[0] if node.args[1] == 0 else None
        return source if isinstance(source, fx.Node) else None
    is_norm = node.target in _NORMS and (len(node.args) < _TWO or bool(node.args[1] == _TWO))
    return reduced if node.target in _VARIANCES or is_norm else None


def _squared(value: Any) -> fx.Node | None:
    """Return what a value is the square of."""
    if not isinstance(value, fx.Node):
        return None
    power = value.target is aten.pow.Tensor_Scalar and bool(value.args[1] == _TWO)
    product = value.target is aten.mul.Tensor and value.args[0] is value.args[1]
    source = value.args[0] if power or product or value.target is aten.square.default else None
    return source if isinstance(source, fx.Node) else None


def _is_centred(value: Any, source: fx.Node) -> bool:
    """Whether a value is a source, or is made of it by subtracting its mean, scaling and converting."""
    seen = {source, *_through_conversions(source)}
    while isinstance(value, fx.Node):
        if value in seen:
            return True
        if value.target not in _CENTRINGS:
            return False
        value = value.args[0]
    return False


def _through_conversions(node: fx.Node) -> Iterator[fx.Node]:
    """Yield what a value was converted, or centred, from."""
    while node.target in _CENTRINGS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        yield node


def frozen_norm(call: Call) -> Derivative | None:
    """Return the derivative of a layer or RMS norm whose scale is held constant; None for other operators."""
    rule = _RULES.get(call.node.target)
    # One whose weight depends on the data is differentiated as it is.
    return rule(call) if rule is not None and call.operands == (call.node.args[0],) else None


def _centred(rows: Rows, dims: tuple[int, ...]) -> Rows:
    return rows - rows.mean(dims, keepdim=True)


def _layer_norm(call: Call) -> Derivative:
    source, shape = call.args[:2]
    weight = call.args[2] if len(call.args) > 2 else call.kwargs.get("weight")
    epsilon = call.args[4] if len(call.args) > 4 else call.kwargs.get("eps", 1e-5)
    dims = tuple(range(-len(shape), 0))
    variance = source.var(dims, correction=0, keepdim=True)
    return _linear(call, torch.rsqrt(variance + epsilon), weight, lambda rows: _centred(rows, dims))


def _rms_norm(call: Call) -> Derivative:
    source, shape = call.args[:2]
    weight = call.args[2] if len(call.args) > 2 else call.kwargs.get("weight")
    epsilon = call.args[3] if len(call.args) > 3 else call.kwargs.get("eps")
    epsilon = torch.finfo(source.dtype).eps if epsilon is None else epsilon
    dims = tuple(range(-len(shape), 0))
    square = source.square().mean(dims, keepdim=True)
    return _linear(call, torch.rsqrt(square + epsilon), weight, lambda rows: rows)


def _linear(call: Call, inverse: Tensor, weight: Tensor | None, centred: Callable[[Rows], Rows]) -> Derivative:
    """Return the derivative of a norm that multiplies by a constant; centring is its own transpose."""
    scale = inverse if weight is None else inverse * weight
    place = call.operands.index(call.node.args[0])  # the source's

    def pull(bank: Rows) -> list[Rows | None]:
        found: list[Rows | None] = [None] * len(call.operands)
        found[place] = centred(bank * scale)
        return found

    def push(banks: Any) -> Rows | None:
        bank = banks[place]
        return None if bank is None else centred(bank) * scale

    return Rule(pull, push)


_RULES: dict[Any, Callable[[Call], Derivative]] = {
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
}
