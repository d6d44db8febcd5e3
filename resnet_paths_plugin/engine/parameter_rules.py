"""Rules for the gradients of operators at their parameters, for a bank of rows at once, summed over the batch.

The rows of a convolution's bank become further channels of its value, those of a linear map further matrices; what has
no rule here goes through `derivatives`.
"""

from collections.abc import Callable
from typing import Any

import torch

from resnet_paths_plugin.engine.calls import Call, Rows
from resnet_paths_plugin.engine.convolution import convolution_options, image_layout
from resnet_paths_plugin.engine.derivative_rules import batch_normal
from resnet_paths_plugin.engine.derivatives import has_rules, linearise
from resnet_paths_plugin.graph.operators import aten

Pullback = Callable[[Any], list[Any]]


def parameter_pullback(call: Call, *, by_rules: bool = True) -> Pullback:
    """Return what takes gradients at a call's value, `[R, *value]`, to those at its operands, all of them parameters.

    Args:
        call: the operator's call.
        by_rules: whether to use the rules of common operators.
    """
    rule = RULES.get(call.node.target) if by_rules and has_rules(call) else None
    of_each = rule(call) if rule is not None else None
    if of_each is None:
        return linearise(call, by_rules=by_rules).pull
    places = [call.node.args.index(operand) for operand in call.operands]
    if any(at not in of_each for at in places) or any(call.node.args.count(operand) != 1 for operand in call.operands):
        return linearise(call, by_rules=by_rules).pull
    return lambda bank: [of_each[at](bank) for at in places]


ByPlace = dict[int, Callable[[Any], Rows]]
"""What takes a bank to the gradients at the argument at each place."""


def _convolution(call: Call) -> ByPlace | None:
    source, weight = call.args[:2]
    options = convolution_options(call)
    if options is None:
        return None
    stride, padding, dilation, groups = options
    layout = image_layout(weight)
    out, spatial = weight.shape[0] // groups, tuple(range(2, weight.ndim))

    def of_weight(bank: Rows) -> Rows:
        rows, batch = bank.shape[:2]
        # [R, B, groups * out, *] -> [B, groups * R * out, *]: each group's channels stay together.
        split = bank.reshape(rows, batch, groups, out, *bank.shape[3:])
        channels = split.movedim(0, 2).reshape(batch, groups * rows * out, *bank.shape[3:])
        like = weight.new_empty((groups * rows * out, *weight.shape[1:]))
        found = aten.convolution_backward(
            channels.contiguous(memory_format=layout), source.contiguous(memory_format=layout), like, None, stride,
            padding, dilation, False, [0] * len(spatial), groups, [False, True, False],
        )[1]  # fmt: skip
        grouped = found.reshape(groups, rows, out, *weight.shape[1:])
        whole: Rows = grouped.movedim(1, 0).reshape(rows, *weight.shape)
        return whole

    return {1: of_weight, 2: lambda bank: bank.sum((1, *(at + 1 for at in spatial)))}


def _linear(call: Call) -> ByPlace | None:
    source, weight = call.args[:2]
    if weight.ndim != 2 or source.ndim < 2:
        return None
    flat = source.reshape(-1, source.shape[-1])

    def of_weight(bank: Rows) -> Rows:
        whole: Rows = bank.reshape(bank.shape[0], -1, bank.shape[-1]).mT @ flat
        return whole

    return {1: of_weight, 2: lambda bank: bank.reshape(bank.shape[0], -1, bank.shape[-1]).sum(1)}


def _batch_norm(call: Call) -> ByPlace | None:
    source, _, _, mean, variance = call.args[:5]
    packed = isinstance(call.value, list | tuple)
    training, epsilon = (False, call.args[6]) if packed else (call.args[5], call.args[7])
    shape = (-1, *[1] * (source.ndim - 2))
    if training:
        normal, _ = batch_normal(source, epsilon)
    else:
        normal = (source - mean.view(shape)) * torch.rsqrt(variance + epsilon).view(shape)
    dims = (1, *range(3, source.ndim + 1))

    def rows_of(bank: Any) -> Rows:
        rows: Rows = bank[0] if packed else bank
        return rows

    return {1: lambda bank: (rows_of(bank) * normal).sum(dims), 2: lambda bank: rows_of(bank).sum(dims)}


def _layer_norm(call: Call) -> ByPlace | None:
    source, shape = call.args[:2]
    epsilon = call.args[4] if len(call.args) > 4 else 1e-5
    dims = tuple(range(-len(shape), 0))
    variance, mean = torch.var_mean(source, dim=dims, correction=0, keepdim=True)
    normal = (source - mean) * torch.rsqrt(variance + epsilon)
    summed = tuple(range(1, source.ndim - len(shape) + 1))

    def over_batch(rows: Rows) -> Rows:
        return rows.sum(summed) if summed else rows

    return {2: lambda bank: over_batch(bank * normal), 3: over_batch}


RULES: dict[Any, Callable[[Call], ByPlace | None]] = {
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv3d.default: _convolution,
    aten.linear.default: _linear,
    aten.batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,  # noqa: SLF001 - an operator's name
    aten.layer_norm.default: _layer_norm,
}
