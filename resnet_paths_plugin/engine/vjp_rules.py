"""Rules for the pullbacks of common operators: they fold a bank's rows into a dimension that the operator treats alike.

A rule returns None for a call that it does not serve; each is autograd's derivative wherever rows are finite.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from resnet_paths_plugin.engine.calls import Call, Pullback, Rows, Slope, leaf_of
from resnet_paths_plugin.engine.convolution import Convolution, image_layout
from resnet_paths_plugin.graph import operators as ops
from resnet_paths_plugin.graph.operators import aten


def _sum_to(bank: Rows, shape: torch.Size) -> Rows:
    """Sum a bank over the dimensions in which an operand of this shape was broadcast."""
    extra = bank.ndim - 1 - len(shape)
    if extra:
        bank = bank.sum(dim=tuple(range(1, 1 + extra)))
    spread = tuple(dim + 1 for dim, size in enumerate(shape) if size == 1 and bank.shape[dim + 1] != 1)
    return bank.sum(dim=spread, keepdim=True) if spread else bank


def _per_dimension(size: int | Sequence[int], dimensions: int) -> list[int]:
    sizes = [size] if isinstance(size, int) else list(size)
    return sizes * dimensions if len(sizes) == 1 else sizes


def _convolution(call: Call) -> Convolution | None:
    source, weight = call.args[0], call.args[1]
    spatial = weight.ndim - 2
    if not call.only_operand() or source.ndim != weight.ndim:
        return None
    defaults = (None, 1, 0, 1, 1)
    given: list[Any] = [*call.args[2:], *defaults[len(call.args) - 2 :]]
    stride, padding, dilation, groups = given[1:]
    if call.kwargs or isinstance(padding, str):
        return None
    stride, padding, dilation = (
        _per_dimension(stride, spatial),
        _per_dimension(padding, spatial),
        _per_dimension(dilation, spatial),
    )

    return Convolution(source.shape, weight, stride, padding, dilation, groups)


def _linear(call: Call) -> Pullback | None:
    matrix = call.args[1].ndim == 2
    return (lambda bank: [bank @ call.args[1]]) if matrix and call.only_operand() else None


def _batch_norm(call: Call) -> Pullback | None:
    source, weight, _, _, variance = call.args[:5]
    packed = isinstance(call.value, list | tuple)
    training, epsilon = (False, call.args[6]) if packed else (call.args[5], call.args[7])
    if not call.only_operand() or training:
        return None
    scale = torch.rsqrt(variance + epsilon) * (1 if weight is None else weight)
    scale = scale.view(-1, *[1] * (source.ndim - 2))
    return (lambda bank: [bank[0] * scale]) if packed else Slope(scale)


def _elementwise(call: Call) -> Pullback | None:
    """A function of each element alone: multiply by its derivative."""
    if not call.only_operand() or call.value.shape != call.args[0].shape:
        return None
    source = leaf_of(call.args[0])
    with torch.enable_grad():
        value = call.node.target(source, *call.args[1:], **call.kwargs)  # type: ignore[operator]  # a call_function node
    (slope,) = torch.autograd.grad(value, source, torch.ones_like(value))
    return Slope(slope.contiguous(memory_format=image_layout(slope)))


def _relu(call: Call) -> Pullback | None:
    """The derivative is read off the value, as autograd does, in a single pass."""
    if not call.only_operand():
        return None
    passes = (call.value <= 0).logical_not_()
    return Slope(passes.to(call.dtype, memory_format=image_layout(call.value)))


def _identity(call: Call) -> Pullback | None:
    if not isinstance(call.value, Tensor) or not call.only_operand() or call.value.shape != call.args[0].shape:
        return None
    return lambda bank: [bank]


def _reshaping(call: Call) -> Pullback | None:
    if not call.only_operand():
        return None
    shape = call.args[0].shape
    return lambda bank: [bank.reshape(bank.shape[0], *shape)]


def _permute(call: Call) -> Pullback | None:
    dims = [dim % call.value.ndim for dim in call.args[1]]
    back = [0, *(1 + dims.index(dim) for dim in range(len(dims)))]
    return lambda bank: [bank.permute(back)]


def _transpose(call: Call) -> Pullback | None:
    one, other = (dim % call.value.ndim + 1 for dim in call.args[1:3])
    return lambda bank: [bank.transpose(one, other)]


def _addition(call: Call) -> Pullback | None:
    alpha = call.kwargs.get("alpha", 1) * (-1 if call.node.target is aten.sub.Tensor else 1)
    factors = (1, alpha)
    if call.node.args[0] is call.node.args[1]:
        return None

    def pullback(bank: Rows) -> list[Rows]:
        found = []
        for operand in call.operands:
            at = call.node.args.index(operand)
            rows = _sum_to(bank, call.args[at].shape)
            found.append(rows if factors[at] == 1 else rows * factors[at])
        return found

    return pullback


def _multiplication(call: Call) -> Pullback | None:
    if call.node.args[0] is call.node.args[1]:
        return None

    def pullback(bank: Rows) -> list[Rows]:
        found = []
        for operand in call.operands:
            at = call.node.args.index(operand)
            found.append(_sum_to(bank * call.args[1 - at], call.args[at].shape))
        return found

    return pullback


def _division(call: Call) -> Pullback | None:
    if not call.only_operand() or call.kwargs:
        return None
    shape = call.args[0].shape
    return lambda bank: [_sum_to(bank / call.args[1], shape)]


def _matmul(call: Call) -> Pullback | None:
    """Products of stacks of matrices; the rows of the bank join the matrices' own rows or columns."""
    left, right = call.args[:2]
    matrices = min(left.ndim, right.ndim) >= 2
    if not matrices or left.shape[:-2] != right.shape[:-2] or call.node.args[0] is call.node.args[1]:
        return None

    def pullback(bank: Rows) -> list[Rows]:
        found = []
        for operand in call.operands:
            if operand is call.node.args[0]:
                joined = bank.movedim(0, -3).flatten(-3, -2) @ right.mT
                found.append(joined.unflatten(-2, (bank.shape[0], -1)).movedim(-3, 0))
            else:
                joined = left.mT @ bank.movedim(0, -2).flatten(-2, -1)
                found.append(joined.unflatten(-1, (bank.shape[0], -1)).movedim(-2, 0))
        return found

    return pullback


def _concatenation(call: Call) -> Pullback | None:
    parts = call.node.args[0]
    if not isinstance(parts, list | tuple) or any(part.shape == (0,) for part in call.args[0]):
        return None  # an empty vector may stand among parts of another rank
    dim = call.args[1] if len(call.args) > 1 else 0
    sizes = [part.shape[dim] for part in call.args[0]]
    along = dim % call.value.ndim + 1

    def pullback(bank: Rows) -> list[Rows]:
        pieces = torch.split(bank, sizes, dim=along)
        found: list[Rows] = []
        for operand in call.operands:
            mine = [piece for piece, part in zip(pieces, parts, strict=True) if part is operand]
            found.append(mine[0] if len(mine) == 1 else torch.stack(mine).sum(0))
        return found

    return pullback


def _getitem(call: Call) -> Pullback | None:
    return lambda bank: [{call.args[1]: bank}]


def _layer_norm(call: Call) -> Pullback | None:
    source, shape = call.args[:2]
    weight = call.args[2] if len(call.args) > 2 else None
    epsilon = call.args[4] if len(call.args) > 4 else 1e-5
    if not call.only_operand():
        return None
    dims = tuple(range(-len(shape), 0))
    variance, mean = torch.var_mean(source, dim=dims, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + epsilon)
    normal = (source - mean) * inverse

    def pullback(bank: Rows) -> list[Rows]:
        rows = bank if weight is None else bank * weight
        centred = rows - rows.mean(dims, keepdim=True) - normal * (rows * normal).mean(dims, keepdim=True)
        return [centred * inverse]

    return pullback


def _softmax(call: Call) -> Pullback | None:
    """Torch's own backward, which sums over the dimension counted from the end: the rows come first."""
    source, dim, *dtype = call.args
    if source.ndim == 0 or (dtype and dtype[0] not in {None, call.dtype}):
        return None
    dim = dim % source.ndim - source.ndim
    weights = source.softmax(dim)  # the value may have been rounded to the model's dtype
    backward = aten._softmax_backward_data  # noqa: SLF001 - an operator's name
    return lambda bank: [backward(bank, weights.expand_as(bank), dim, bank.dtype)]


RULES: dict[Any, Callable[[Call], Pullback | None]] = {
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv3d.default: _convolution,
    aten.linear.default: _linear,
    aten.batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,  # noqa: SLF001 - an operator's name
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.add.Tensor: _addition,
    aten.sub.Tensor: _addition,
    aten.mul.Tensor: _multiplication,
    aten.div.Tensor: _division,
    aten.matmul.default: _matmul,
    aten.bmm.default: _matmul,
    aten.cat.default: _concatenation,
    aten.layer_norm.default: _layer_norm,
    aten.softmax.int: _softmax,
    operator.getitem: _getitem,
    **dict.fromkeys(ops.POINTWISE, _elementwise),
    aten.relu.default: _relu,
    **dict.fromkeys(ops.RESHAPING, _reshaping),
    **dict.fromkeys(ops.COPYING, _identity),
}
