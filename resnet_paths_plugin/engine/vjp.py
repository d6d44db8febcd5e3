"""Vector-Jacobian products of single operators, for a bank of rows at once.

An operator is linearised at the values of one forward pass; its pullback then takes a bank `[R, *output]` to banks
`[R, *operand]`. Common operators fold the rows into a dimension that they treat alike anyway; every other operator
goes through autograd, batched over the rows.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from resnet_paths_plugin.engine.convolution import Convolution, image_layout
from resnet_paths_plugin.graph import operators as ops
from resnet_paths_plugin.graph.operators import aten

Rows = Tensor
"""The rows of a bank, `[R, *value]`."""
Parts = dict[int, Rows]
"""Rows of the parts of a value that is a list or tuple, by position."""
Pullback = Callable[[Any], list[Any]]


@dataclass(frozen=True, eq=False, slots=True)
class Slope:
    """The pullback of an operator that treats each element alone: multiply by its derivative there."""

    slope: Tensor

    def __call__(self, bank: Any) -> list[Any]:
        """Return the one operand's bank."""
        return [bank * self.slope]


class Call:
    """One operator's call: its arguments, its value, and which operands gradients are wanted for.

    Attributes:
        node: the operator.
        args: positional arguments, nodes replaced by their values.
        kwargs: keyword arguments likewise.
        value: what the call returned.
        operands: the values that the call reads and gradients are wanted for, each once.
    """

    def __init__(
        self,
        node: fx.Node,
        values: Callable[[fx.Node], Any],
        value: Any,
        operands: Sequence[fx.Node],
        dtype: torch.dtype,
    ) -> None:
        def resolve(argument: Any) -> Any:
            return _in_dtype(values(argument), dtype)

        self.node = node
        self.operands = tuple(operands)
        self.dtype = dtype
        self.args: tuple[Any, ...] = fx.node.map_arg(node.args, resolve)
        self.kwargs: dict[str, Any] = fx.node.map_arg(node.kwargs, resolve)
        self.value = _in_dtype(value, dtype)

    def only_operand(self, position: int = 0) -> bool:
        """Whether the positional argument is the only one that a gradient is wanted for."""
        argument = self.node.args[position]
        reads = sum(other is argument for other in self.node.args)
        return self.operands == (argument,) and reads == 1


def linearise(call: Call) -> Pullback:
    """Return the pullback of a call: from the bank of its value to the banks of `call.operands`, in that order.

    A value that is a list or tuple has `Parts` for a bank, and so has an operand that is one.
    """
    if isinstance(call.value, Tensor) and not (call.value.is_floating_point() or call.value.is_complex()):
        return lambda _: [None] * len(call.operands)  # such as indices: constant wherever they can be differentiated
    rule = None if _is_complex(call) else _RULES.get(call.node.target)
    pullback = rule(call) if rule is not None else None
    return pullback if pullback is not None else _by_autograd(call)


def _is_complex(call: Call) -> bool:
    """Whether a call reads or returns complex numbers, whose products the rules would have to conjugate."""
    leaves = pytree.tree_leaves((call.args, call.kwargs, call.value))
    return any(isinstance(leaf, Tensor) and leaf.is_complex() for leaf in leaves)


def _in_dtype(value: Any, dtype: torch.dtype) -> Any:
    def convert(leaf: Any) -> Any:
        return leaf.detach().to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return pytree.tree_map(convert, value)


def _by_autograd(call: Call) -> Pullback:
    """Differentiate one operator by autograd."""
    leaves: dict[fx.Node, Any] = {}

    def tracked(argument: fx.Node, value: Any) -> Any:
        if argument not in call.operands:
            return value
        if argument not in leaves:
            leaves[argument] = pytree.tree_map(_leaf, value)
        return leaves[argument]

    args = _map_nodes(call.node.args, call.args, tracked)
    kwargs = _map_nodes(call.node.kwargs, call.kwargs, tracked)
    target = _in_plain_operators if call.node.target is aten.scaled_dot_product_attention.default else call.node.target
    with torch.enable_grad():
        value = target(*args, **kwargs)  # type: ignore[operator]  # a call_function node
    sources = [leaves[operand] for operand in call.operands]
    flat = [leaf for leaf in pytree.tree_leaves(sources) if isinstance(leaf, Tensor) and leaf.requires_grad]

    def pullback(bank: Any) -> list[Any]:
        banks = bank if isinstance(bank, dict) else {0: bank}
        values = value if isinstance(value, list | tuple) else (value,)
        outputs = [values[part] for part in banks if values[part].requires_grad]
        # torch's backward of batch statistics errs on a single sample with its channels last (pytorch 2.14, CPU).
        seeds = [rows.contiguous() for part, rows in banks.items() if values[part].requires_grad]
        found = iter(_batched_grad(outputs, flat, seeds)) if outputs else iter([None] * len(flat))
        result: list[Any] = []
        for source in sources:
            if isinstance(source, list | tuple):
                parts = {at: next(found) for at, leaf in enumerate(source) if leaf.requires_grad}
                result.append({at: rows for at, rows in parts.items() if rows is not None})
            else:
                result.append(next(found) if source.requires_grad else None)
        return result

    return pullback


def _in_plain_operators(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """Return attention by operators that have batching rules, which the fused kernels do not.

    Said by name and not by torch's switches between kernels, which all threads of a process share.
    """
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    attention: Tensor = aten._scaled_dot_product_attention_math.default(
        query, key, value, attn_mask, dropout_p, is_causal, **options
    )[0]
    return attention


def _batched_grad(outputs: list[Tensor], leaves: list[Tensor], seeds: list[Rows]) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(outputs, leaves, seeds, retain_graph=True, allow_unused=True, is_grads_batched=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        # An operator without a batching rule: row by row.
        rows = [
            torch.autograd.grad(outputs, leaves, list(row), retain_graph=True, allow_unused=True)
            for row in zip(*seeds, strict=True)
        ]
        return tuple(
            None if column[0] is None else torch.stack([part for part in column if part is not None])
            for column in zip(*rows, strict=True)
        )


def _leaf(value: Any) -> Any:
    differentiable = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
    return value.detach().requires_grad_() if differentiable else value


def _map_nodes(template: Any, values: Any, change: Callable[[fx.Node, Any], Any]) -> Any:
    """Map the values that stand where a template of arguments has nodes."""
    if isinstance(template, fx.Node):
        return change(template, values)
    if isinstance(template, list | tuple):
        mapped = [_map_nodes(part, value, change) for part, value in zip(template, values, strict=True)]
        return tuple(mapped) if isinstance(template, tuple) else mapped
    if isinstance(template, dict):
        return {key: _map_nodes(part, values[key], change) for key, part in template.items()}
    return values


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
    source = _leaf(call.args[0])
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


_RULES: dict[Any, Callable[[Call], Pullback | None]] = {
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv3d.default: _convolution,
    aten.linear.default: _linear,
    aten.batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
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
    operator.getitem: _getitem,
    **dict.fromkeys(ops.POINTWISE, _elementwise),
    aten.relu.default: _relu,
    **dict.fromkeys(ops.RESHAPING, _reshaping),
    **dict.fromkeys(ops.COPYING, _identity),
}
