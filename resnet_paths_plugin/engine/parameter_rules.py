"""Rules for the gradients of operators at their parameters, for a bank of rows at once, summed over the batch.

The rows of a convolution's bank become further channels of its value, those of a linear map further matrices; what has
no rule here goes through `derivatives`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import mul
from typing import Any

import torch
from torch import Tensor

from resnet_paths_plugin.engine.calls import Call, Rows
from resnet_paths_plugin.engine.convolution import convolution_options, image_layout
from resnet_paths_plugin.engine.derivative_rules import batch_normal
from resnet_paths_plugin.engine.derivatives import has_rules, linearise
from resnet_paths_plugin.graph.operators import aten

_SEEN_BYTES = 16 * 2**20
"""Size of what a kernel sees of some samples, laid out for products: each value as often as the kernel has points."""
_NARROW = 32
"""Channels of a convolution's value up to which torch's own routine is faster than products of matrices that narrow."""
Pullback = Callable[..., list[Any]]


def parameter_pullback(call: Call, *, by_rules: bool = True) -> Pullback:
    """Return what takes gradients at a call's value, `[R, *value]`, to those at its operands, all of them parameters.

    Of a convolution it also takes slopes that the gradients are still to be multiplied by, each one factor per channel:
    its parameters' gradients are multiplied instead, which are smaller.

    Args:
        call: the operator's call.
        by_rules: whether to use the rules of common operators.
    """
    rule = RULES.get(call.node.target) if by_rules and has_rules(call) else None
    of_each = rule(call) if rule is not None else None
    served = of_each is not None and all(
        call.node.args.count(operand) == 1 and call.node.args.index(operand) in of_each for operand in call.operands
    )
    if of_each is None or not served:
        pull = linearise(call, by_rules=by_rules).pull
        return lambda bank, *slopes: pull(reduce(mul, slopes, bank))
    rules = [of_each[call.node.args.index(operand)] for operand in call.operands]
    return lambda bank, *slopes: [_scaled(rule(bank), slopes) for rule in rules]


def _scaled(rows: Rows, slopes: Sequence[Tensor]) -> Rows:
    """Return gradients at a convolution's parameter, `[R, C', ...]`, multiplied by factors of channels."""
    if not slopes:
        return rows
    return rows * reduce(mul, slopes).reshape(-1, *[1] * (rows.ndim - 2))


ByPlace = dict[int, Callable[[Any], Rows]]
"""What takes a bank to the gradients at the argument at each place."""


def _convolution(call: Call) -> ByPlace | None:
    source, weight = call.args[:2]
    options = convolution_options(call)
    if options is None:
        return None
    groups = options[3]
    spatial = tuple(range(3, weight.ndim + 1))
    of_weight: Callable[[Any], Rows]
    narrow = weight.shape[0] <= _NARROW and weight.shape[2:].numel() > 1 and weight.dtype is torch.float32
    if weight.device.type != "cpu" or groups != 1:
        of_weight = partial(_of_weight, source, weight, *options)
    elif narrow and weight.ndim == 4 and set(options[0]) == {1}:
        layout = image_layout(weight)
        of_weight = partial(_row_by_row, source.contiguous(memory_format=layout), weight, *options)
    else:
        of_weight = _Products(source, weight, call.value.shape[2:], *options[:3])
    return {1: of_weight, 2: lambda bank: bank.sum((1, *spatial))}


def _of_weight(
    source: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    bank: Rows,
) -> Rows:
    """Return the gradients at a convolution's weight: the rows are further channels of one convolution."""
    rows, batch = bank.shape[:2]
    out, layout = weight.shape[0] // groups, image_layout(weight)
    # [R, B, groups * out, *] -> [B, groups * R * out, *]: each group's channels stay together.
    split = bank.reshape(rows, batch, groups, out, *bank.shape[3:])
    channels = split.movedim(0, 2).reshape(batch, groups * rows * out, *bank.shape[3:])
    like = weight.new_empty((groups * rows * out, *weight.shape[1:]))
    found = aten.convolution_backward(
        channels.contiguous(memory_format=layout), source.contiguous(memory_format=layout), like, None, stride,
        padding, dilation, False, [0] * (weight.ndim - 2), groups, [False, True, False],
    )[1]  # fmt: skip
    whole: Rows = found.reshape(groups, rows, out, *weight.shape[1:]).movedim(1, 0).reshape(rows, *weight.shape)
    return whole


def _row_by_row(source: Tensor, weight: Tensor, *options: Any) -> Rows:
    """Return the gradients at a convolution's weight by torch's own routine for each row, the last of the options."""
    *sizes, groups, bank = options
    given = (*sizes, False, [0] * (weight.ndim - 2), groups, [False, True, False])
    found: Rows = bank.new_empty((len(bank), *weight.shape))
    for row, room in zip(bank, found, strict=True):
        room.copy_(aten.convolution_backward(row, source, weight, None, *given)[1])
    return found


class _Products:
    """Returns the gradients at the weight of a convolution of one group by one product of matrices for each row.

    What the kernel sees at each position is laid out once for all rows; on a CPU that takes a third of the time.

    Args:
        source: what the convolution reads, `[B, C, *]`.
        weight: shape `[C', C, *kernel]`.
        positions: sizes of the value, one for each dimension of the kernel, as are all that follow.
        stride: of the convolution.
        padding: zeros on both sides.
        dilation: distance between the kernel's points.
    """

    def __init__(
        self,
        source: Tensor,
        weight: Tensor,
        positions: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> None:
        self._source, self._weight, self._positions = source, weight, tuple(positions)
        self._stride, self._padding, self._dilation = stride, padding, dilation
        self._points = weight[0].numel()
        self._samples = max(1, _SEEN_BYTES // (math.prod(positions) * self._points * weight.itemsize))
        self._kept: Tensor | None = None

    def __call__(self, bank: Rows) -> Rows:
        """Return `[R, *weight]` for rows `[R, B, *value]`."""
        rows, batch, out = bank.shape[:3]
        last = bank.movedim(2, -1)
        found = bank.new_zeros((rows, out, self._points))
        for start in range(0, batch, self._samples):
            seen = self._seen(start)
            some = last[:, start : start + self._samples].reshape(rows, -1, out)
            found.baddbmm_(some.mT, seen.expand(rows, *seen.shape))
        kernels = found.view(rows, out, *self._weight.shape[2:], self._weight.shape[1])
        return kernels.movedim(-1, 2)

    def _seen(self, start: int) -> Tensor:
        """Return what the kernel sees of some samples, `[B * positions, kernel * C]`; kept where that is all."""
        if self._kept is not None:
            return self._kept
        around = [size for zeros in reversed(self._padding) for size in (zeros, zeros)]
        source = self._source[start : start + self._samples]
        padded = torch.nn.functional.pad(source, around).movedim(1, -1).contiguous()
        sample, *steps, channel = padded.stride()
        windows = padded.as_strided(
            (source.shape[0], *self._positions, *self._weight.shape[2:], source.shape[1]),
            (sample, *map(mul, steps, self._stride), *map(mul, steps, self._dilation), channel),
        )
        seen = windows.reshape(-1, self._points)
        if self._samples >= self._source.shape[0]:
            self._kept = seen
        return seen


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
    normal = normal.contiguous(memory_format=image_layout(normal))  # as the rows are
    of_row = (0, *range(2, source.ndim))
    dims = (1, *range(3, source.ndim + 1))

    def rows_of(bank: Any) -> Rows:
        rows: Rows = bank[0] if packed else bank
        return rows

    def at_once(bank: Any) -> Rows:
        whole: Rows = (rows_of(bank) * normal).sum(dims)
        return whole

    def row_by_row(bank: Any) -> Rows:
        product = torch.empty_like(normal)  # of one row at a time: small enough for the cache
        of_each = [torch.mul(row, normal, out=product).sum(of_row) for row in rows_of(bank)]
        return torch.stack(of_each)

    return {1: row_by_row if normal.device.type == "cpu" else at_once, 2: lambda bank: rows_of(bank).sum(dims)}


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
