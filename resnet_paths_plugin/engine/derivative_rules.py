"""Rules for the derivatives of common operators: they fold a bank's rows into a dimension that is treated alike.

A rule returns None for a call that it does not serve; each is autograd's derivative wherever rows are finite.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, fx

from resnet_paths_plugin.engine.attention import attention
from resnet_paths_plugin.engine.calls import Call, Derivative, Rows, Rule, Slope, leaf_of
from resnet_paths_plugin.engine.convolution import Convolution, convolution_options, folded, image_layout
from resnet_paths_plugin.engine.selection import selection
from resnet_paths_plugin.graph import operators as ops
from resnet_paths_plugin.graph.operators import aten


def _sum_to(bank: Rows, shape: torch.Size) -> Rows:
    """Sum a bank over the dimensions in which an operand of this shape was broadcast."""
    extra = bank.ndim - 1 - len(shape)
    if extra:
        bank = bank.sum(dim=tuple(range(1, 1 + extra)))
    spread = tuple(dim + 1 for dim, size in enumerate(shape) if size == 1 and bank.shape[dim + 1] != 1)
    return bank.sum(dim=spread, keepdim=True) if spread else bank


def _spread_to(bank: Rows, value: Tensor) -> Rows:
    """Return tangents of an operand that was broadcast to the shape of a value."""
    missing = value.ndim - (bank.ndim - 1)
    whole = bank.reshape(bank.shape[0], *[1] * missing, *bank.shape[1:]) if missing else bank
    return whole.expand(bank.shape[0], *value.shape)


def _total(parts: Iterable[Rows | None]) -> Rows | None:
    """Add tangents that come from several operands; None where none comes."""
    found = [part for part in parts if part is not None]
    return reduce(add, found) if found else None


def _of_one(pull: Callable[[Rows], Rows], push: Callable[[Rows], Rows]) -> Rule:
    """Return the derivative of a call with one operand."""
    return Rule(lambda bank: [pull(bank)], lambda banks: None if banks[0] is None else push(banks[0]))


def _convolution(call: Call) -> Convolution | None:
    options = convolution_options(call)
    if not call.only_operand() or options is None or not call.args[0].numel():
        return None
    return Convolution(call.args[0].shape, call.args[1], *options)


def _linear(call: Call) -> Derivative | None:
    weight = call.args[1]
    if weight.ndim != 2 or not call.only_operand():
        return None
    return _of_one(lambda bank: _product(bank, weight), lambda bank: _product(bank, weight.mT))


def _product(bank: Rows, matrix: Tensor) -> Rows:
    """Return `bank @ matrix` as one product of two matrices, with the vectors in the order in which they lie."""
    order = sorted(range(bank.ndim - 1), key=lambda dim: -bank.stride()[dim])
    ordered = bank.permute(*order, -1)
    found = (ordered.reshape(-1, bank.shape[-1]) @ matrix).view(*ordered.shape[:-1], -1)
    return found.permute(*(order.index(dim) for dim in range(bank.ndim - 1)), -1)


def _batch_norm(call: Call) -> Derivative | None:
    source, weight, _, _, variance = call.args[:5]
    packed = isinstance(call.value, list | tuple)
    training, epsilon = (False, call.args[6]) if packed else (call.args[5], call.args[7])
    if not call.only_operand():
        return None
    if training:
        return _batch_norm_of_batch(source, weight, epsilon)
    scale = torch.rsqrt(variance + epsilon) * (1 if weight is None else weight)
    scale = scale.view(-1, *[1] * (source.ndim - 2))
    if packed:
        return Rule(lambda bank: [bank[0] * scale], lambda banks: None if banks[0] is None else {0: banks[0] * scale})
    return Slope(scale)


def _batch_norm_of_batch(source: Tensor, weight: Tensor | None, epsilon: float) -> Derivative:
    """Return the derivative of a batch norm with the statistics of the batch, which moves no running ones."""
    normal, inverse = batch_normal(source, epsilon)
    scale = inverse if weight is None else inverse * weight.view(inverse.shape)
    dims = (1, *range(3, source.ndim + 1))  # all but rows and channels

    def through(rows: Rows) -> Rows:  # the Jacobian is symmetric
        means = rows.mean(dims, keepdim=True), (rows * normal).mean(dims, keepdim=True)
        return (rows - means[0]).addcmul_(normal, means[1], value=-1).mul_(scale)

    return _of_one(through, through)


def batch_normal(source: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return a batch with mean 0 and variance 1 in each channel, and one over the standard deviation of each."""
    dims = (0, *range(2, source.ndim))
    variance, mean = torch.var_mean(source, dim=dims, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + epsilon)
    return (source - mean) * inverse, inverse


def _elementwise(call: Call) -> Derivative | None:
    """A function of each element alone: multiply by its derivative."""
    if not call.only_operand() or call.value.shape != call.args[0].shape:
        return None
    source = leaf_of(call.args[0])
    with torch.enable_grad():
        value = call.node.target(source, *call.args[1:], **call.kwargs)  # type: ignore[operator]  # a call_function node
    (slope,) = torch.autograd.grad(value, source, torch.ones_like(value))
    return Slope(slope.contiguous(memory_format=image_layout(slope)))


def _relu(call: Call) -> Derivative | None:
    """The derivative is read off the value, as autograd does, in a single pass."""
    if not call.only_operand():
        return None
    passes = (call.value <= 0).logical_not_()
    return Slope(passes.to(call.dtype, memory_format=image_layout(call.value)))


def _identity(call: Call) -> Derivative | None:
    if not isinstance(call.value, Tensor) or not call.only_operand() or call.value.shape != call.args[0].shape:
        return None
    return _of_one(lambda bank: bank, lambda bank: bank)


def _reshaping(call: Call) -> Derivative | None:
    if not call.only_operand():
        return None
    source, value = call.args[0].shape, call.value.shape
    return _of_one(lambda bank: bank.reshape(bank.shape[0], *source), lambda bank: bank.reshape(bank.shape[0], *value))


def _permute(call: Call) -> Derivative | None:
    dims = [dim % call.value.ndim for dim in call.args[1]]
    back = [0, *(1 + dims.index(dim) for dim in range(len(dims)))]
    there = [0, *(1 + dim for dim in dims)]
    return _of_one(lambda bank: bank.permute(back), lambda bank: bank.permute(there))


def _transpose(call: Call) -> Derivative | None:
    one, other = (dim % call.value.ndim + 1 for dim in call.args[1:3])
    return _of_one(lambda bank: bank.transpose(one, other), lambda bank: bank.transpose(one, other))


def _addition(call: Call) -> Derivative | None:
    alpha = call.kwargs.get("alpha", 1) * (-1 if call.node.target is aten.sub.Tensor else 1)
    if call.node.args[0] is call.node.args[1]:
        return None
    places = [call.node.args.index(operand) for operand in call.operands]
    factors = [(1, alpha)[at] for at in places]

    def scaled(rows: Rows, factor: Any) -> Rows:
        return rows if factor == 1 else rows * factor

    def pull(bank: Rows) -> list[Rows]:
        return [scaled(_sum_to(bank, call.args[at].shape), factor) for at, factor in zip(places, factors, strict=True)]

    def push(banks: Sequence[Rows | None]) -> Rows | None:
        return _total(
            None if bank is None else _spread_to(scaled(bank, factor), call.value)
            for bank, factor in zip(banks, factors, strict=True)
        )

    return Rule(pull, push)


def _multiplication(call: Call) -> Derivative | None:
    if call.node.args[0] is call.node.args[1]:
        return None
    places = [call.node.args.index(operand) for operand in call.operands]

    def pull(bank: Rows) -> list[Rows]:
        return [_sum_to(bank * call.args[1 - at], call.args[at].shape) for at in places]

    def push(banks: Sequence[Rows | None]) -> Rows | None:
        return _total(
            None if bank is None else _spread_to(bank, call.value) * call.args[1 - at]
            for bank, at in zip(banks, places, strict=True)
        )

    return Rule(pull, push)


def _division(call: Call) -> Derivative | None:
    if not call.only_operand() or call.kwargs:
        return None
    shape = call.args[0].shape
    return _of_one(
        lambda bank: _sum_to(bank / call.args[1], shape), lambda bank: _spread_to(bank, call.value) / call.args[1]
    )


def _matmul(call: Call) -> Derivative | None:
    """Products of stacks of matrices; the rows of the bank join the matrices' own rows or columns."""
    left, right = call.args[:2]
    matrices = min(left.ndim, right.ndim) >= 2
    if not matrices or left.shape[:-2] != right.shape[:-2] or call.node.args[0] is call.node.args[1]:
        return None

    is_left = [operand is call.node.args[0] for operand in call.operands]

    def from_the_right(bank: Rows, matrix: Tensor) -> Rows:
        joined = bank.movedim(0, -3).flatten(-3, -2) @ matrix
        split: Rows = joined.unflatten(-2, (bank.shape[0], bank.shape[-2]))  # type: ignore[no-untyped-call]  # torch's
        return split.movedim(-3, 0)

    def from_the_left(matrix: Tensor, bank: Rows) -> Rows:
        joined = matrix @ bank.movedim(0, -2).flatten(-2, -1)
        split: Rows = joined.unflatten(-1, (bank.shape[0], bank.shape[-1]))  # type: ignore[no-untyped-call]  # torch's
        return split.movedim(-2, 0)

    def pull(bank: Rows) -> list[Rows]:
        return [from_the_right(bank, right.mT) if first else from_the_left(left.mT, bank) for first in is_left]

    def push(banks: Sequence[Rows | None]) -> Rows | None:
        return _total(
            None if bank is None else from_the_right(bank, right) if first else from_the_left(left, bank)
            for bank, first in zip(banks, is_left, strict=True)
        )

    return Rule(pull, push)


def _concatenation(call: Call) -> Derivative | None:
    parts = call.node.args[0]
    if not isinstance(parts, list | tuple) or any(part.shape == (0,) for part in call.args[0]):
        return None  # an empty vector may stand among parts of another rank
    dim = call.args[1] if len(call.args) > 1 else 0
    sizes = [part.shape[dim] for part in call.args[0]]
    along = dim % call.value.ndim + 1

    def pull(bank: Rows) -> list[Rows]:
        pieces = torch.split(bank, sizes, dim=along)
        found: list[Rows] = []
        for operand in call.operands:
            mine = [piece for piece, part in zip(pieces, parts, strict=True) if part is operand]
            found.append(mine[0] if len(mine) == 1 else torch.stack(mine).sum(0))
        return found

    def push(banks: Sequence[Rows | None]) -> Rows | None:
        given = [(operand, bank) for operand, bank in zip(call.operands, banks, strict=True) if bank is not None]
        if not given:
            return None
        some = given[0][1]
        pieces = [
            next((bank for operand, bank in given if operand is part), None) if isinstance(part, fx.Node) else None
            for part in parts
        ]
        whole = [
            some.new_zeros((some.shape[0], *value.shape)) if piece is None else piece
            for piece, value in zip(pieces, call.args[0], strict=True)
        ]
        return torch.cat(whole, dim=along)

    return Rule(pull, push)


def _getitem(call: Call) -> Derivative | None:
    part = call.args[1]
    return Rule(lambda bank: [{part: bank}], lambda banks: None if banks[0] is None else banks[0].get(part))


def _select(call: Call) -> Derivative | None:
    return selection(call) if call.only_operand() and isinstance(call.args[2], int) else None


def _layer_norm(call: Call) -> Derivative | None:
    source, shape = call.args[:2]
    weight = call.args[2] if len(call.args) > 2 else None
    epsilon = call.args[4] if len(call.args) > 4 else 1e-5
    if not call.only_operand():
        return None
    dims = tuple(range(-len(shape), 0))
    variance, mean = torch.var_mean(source, dim=dims, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + epsilon)

    def weighted(rows: Rows) -> Rows:
        scaled: Rows = rows if weight is None else rows * weight
        return scaled

    if source.device.type == "cpu":
        backward = partial(_layer_norm_backward, source, shape, mean, inverse)
        return _of_one(lambda bank: backward(bank, weight), lambda bank: weighted(backward(bank, None)))
    normal = (source - mean) * inverse

    def through(rows: Rows) -> Rows:
        centred = rows - rows.mean(dims, keepdim=True) - normal * (rows * normal).mean(dims, keepdim=True)
        scaled: Rows = centred * inverse
        return scaled

    return _of_one(lambda bank: through(weighted(bank)), lambda bank: weighted(through(bank)))


def _layer_norm_backward(
    source: Tensor, shape: Sequence[int], mean: Tensor, inverse: Tensor, bank: Rows, weight: Tensor | None
) -> Rows:
    """Return torch's own backward of each row, which passes over it but once; the Jacobian is symmetric but for it."""
    rows = bank.new_empty(bank.shape)
    for row, found in zip(bank, rows, strict=True):
        options = (source, shape, mean, inverse, weight, None, [True, False, False])
        found.copy_(aten.native_layer_norm_backward(row, *options)[0])
    return rows


def _max_pool(call: Call) -> Derivative | None:
    """Torch's own backward of each row, in the layout of convolutions."""
    source, *options = call.args
    if source.ndim != 4 or source.device.type != "cpu":
        return None
    defaults: list[Any] = [None, [], 0, 1, False]
    options += defaults[len(options) :]
    source = source.contiguous(memory_format=torch.channels_last)
    indices = aten.max_pool2d_with_indices(source, *options)[1].contiguous(memory_format=torch.channels_last)
    backward = aten.max_pool2d_with_indices_backward.grad_input

    def pull(bank: Rows) -> Rows:
        size = source.shape[0]
        flat = folded(bank, torch.channels_last)
        shape = (flat.shape[0], *source.shape[1:])
        found = torch.empty(shape, dtype=bank.dtype, memory_format=torch.channels_last)
        # Slices of the first dimension, as torch misreads the layout of a view with a batch of one.
        for seed, room in zip(torch.split(flat, size), torch.split(found, size), strict=True):
            backward(seed, source, *options, indices, grad_input=room)
        return found.view(bank.shape[0], *source.shape)

    def push(bank: Rows) -> Rows:
        places = indices.flatten(2).expand(bank.shape[0], -1, -1, -1)
        return bank.flatten(3).gather(-1, places).view(bank.shape[0], *indices.shape)

    return _of_one(pull, push)


def _softmax(call: Call) -> Derivative | None:
    """Torch's own backward, which sums over the dimension counted from the end: the rows come first."""
    source, dim, *dtype = call.args
    if source.ndim == 0 or (dtype and dtype[0] not in {None, call.dtype}):
        return None
    dim = dim % source.ndim - source.ndim
    weights = source.softmax(dim)  # the value may have been rounded to the model's dtype
    backward = aten._softmax_backward_data  # noqa: SLF001 - an operator's name

    def through(bank: Rows) -> Rows:  # the Jacobian is symmetric
        if bank.device.type != "cpu":
            rows: Rows = backward(bank, weights.expand_as(bank), dim, bank.dtype)
            return rows
        rows = bank.new_empty(bank.shape)
        for row, found in zip(bank, rows, strict=True):  # without a copy of the weights for each
            backward.out(row, weights, dim, bank.dtype, grad_input=found)
        return rows

    return _of_one(through, through)


RULES: dict[Any, Callable[[Call], Derivative | None]] = {
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
    aten.select.int: _select,
    aten.max_pool2d.default: _max_pool,
    aten.softmax.int: _softmax,
    aten.scaled_dot_product_attention.default: attention,
    operator.getitem: _getitem,
    **dict.fromkeys(ops.POINTWISE, _elementwise),
    aten.relu.default: _relu,
    **dict.fromkeys(ops.RESHAPING, _reshaping),
    **dict.fromkeys(ops.COPYING, _identity),
}
