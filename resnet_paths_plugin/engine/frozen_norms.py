"""Norms whose statistics are held constant: what they divide by is a constant for gradients, what they subtract is not.

With the scale of layer and RMS norms held constant, what a residual stream adds up reaches the scores as a sum: the
convention of direct logit attribution (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from resnet_paths_plugin.engine.calls import Call, Derivative, Rows, Rule
from resnet_paths_plugin.graph.operators import aten

_ROOTS = frozenset({aten.rsqrt.default, aten.sqrt.default})
_VARIANCES = frozenset({aten.var.correction, aten.var.dim, aten.std.correction, aten.std.dim})
_SQUARES = frozenset({aten.square.default})
_STEPS = frozenset({
    aten.add.Tensor, aten.clamp.default, aten.clamp_min.default, aten.to.dtype, aten._to_copy.default,  # noqa: SLF001
})  # fmt: skip
_PARTS_OF_VARIANCES = frozenset({aten.var_mean.correction, aten.var_mean.dim})


def is_statistic(node: fx.Node) -> bool:
    """Whether a value is the root of a variance or a mean square, as norms that are written out divide by."""
    power = node.target is aten.pow.Tensor_Scalar and bool(node.args[1] == -0.5 or node.args[1] == 0.5)
    if node.target not in _ROOTS and not power:
        return bool(node.target in {aten.std.correction, aten.std.dim})
    operand = node.args[0]
    while isinstance(operand, fx.Node) and operand.target in _STEPS:
        operand = operand.args[0]
    if not isinstance(operand, fx.Node):
        return False
    if operand.target in _VARIANCES:
        return True
    if operand.target is operator.getitem:
        source = operand.args[0]
        return isinstance(source, fx.Node) and source.target in _PARTS_OF_VARIANCES and bool(operand.args[1] == 0)
    return operand.target is aten.mean.dim and _is_square(operand.args[0])


def _is_square(value: Any) -> bool:
    if not isinstance(value, fx.Node):
        return False
    power = value.target is aten.pow.Tensor_Scalar and bool(value.args[1] == 2)
    product = value.target is aten.mul.Tensor and value.args[0] is value.args[1]
    return power or product or value.target in _SQUARES


def frozen_norm(call: Call) -> Derivative | None:
    """Return the derivative of a layer or RMS norm whose scale is held constant; None for other operators."""
    rule = _RULES.get(call.node.target)
    return rule(call) if rule is not None and call.node.args[0] in call.operands else None


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
