"""Additions inside single operators, whose terms are no values of the graph: they can be listed, not read as blocks."""

from collections.abc import Iterator
from typing import Any

from torch import fx

from resnet_paths_plugin.graph.dataflow import DataFlow
from resnet_paths_plugin.graph.operators import (
    ACTIVATIONS,
    ARITHMETIC,
    FUSED_SUMS,
    JOINS,
    PRODUCTS,
    RESHAPING,
    aten,
)

_REDUCTIONS = frozenset({aten.sum.dim_IntList, aten.mean.dim, aten.nansum.default, aten.nanmean.default})
_ELEMENTWISE = ACTIVATIONS | ARITHMETIC
_SCATTERING = {
    aten.index_put.default: (3, "accumulate", True),
    aten.scatter.reduce: (4, "reduce", "add"),
    aten.scatter_reduce.two: (4, "reduce", "sum"),
}
"""Operators that add where one of their arguments, by position and name, says so."""


def adds_inside(node: fx.Node) -> bool:
    """Whether an operator adds one of its operands to something that it computes from the others."""
    if node.target not in _SCATTERING:
        return node.target in FUSED_SUMS
    at, name, value = _SCATTERING[node.target]
    return bool((node.args[at] if len(node.args) > at else node.kwargs.get(name)) == value)


def adds_stacked_values(node: fx.Node, flow: DataFlow) -> bool:
    """Whether an operator adds up, possibly with weights, values that were stacked along a dimension."""
    return any(_is_stacked(operand, dim, flow) for operand, dim in _added(node))


def _added(node: fx.Node) -> Iterator[tuple[Any, int]]:
    """Yield the operands of a reduction or product with each of their dimensions along which it adds."""
    args: Any = node.args
    if node.target in _REDUCTIONS:
        dims = args[1] if len(args) > 1 else None
        yield from ((args[0], dim) for dim in (dims if isinstance(dims, list | tuple) else ()))
    elif node.target is aten.einsum.default:
        terms, _, after = args[0].replace(" ", "").partition("->")
        for operand, letters in zip(args[1], terms.split(","), strict=True):
            *_, last = letters.split("...")
            first = _ndim(operand) - len(last) if "..." in letters else 0
            yield from ((operand, first + at) for at, letter in enumerate(last) if letter not in after)
    elif node.target is aten.tensordot.default:
        yield from ((operand, dim) for operand, dims in zip(args[:2], args[2:4], strict=True) for dim in dims)
    elif node.target in PRODUCTS and len(args) == 2:
        yield args[0], -1
        yield args[1], -min(2, _ndim(args[1]))


def _is_stacked(value: Any, dim: int, flow: DataFlow) -> bool:
    """Whether the elements of a value along a dimension come from values that were stacked there."""
    if not isinstance(value, fx.Node) or value not in flow.data or value.op != "call_function":
        return False
    dim %= _ndim(value)
    if value.target in JOINS:
        return _is_stack(value, dim, flow)
    if value.target in RESHAPING:
        return _is_reshaped_stack(value, dim, flow)
    return any(_is_stacked(operand, place, flow) for operand, place in _places(value, dim))


def _places(value: fx.Node, dim: int) -> Iterator[tuple[fx.Node, int]]:
    """Yield what a value is a permutation or an elementwise function of, and where the dimension is there."""
    args: Any = value.args
    if value.target is aten.permute.default:
        yield args[0], args[1][dim]
    elif value.target is aten.transpose.int:
        one, other = (place % _ndim(value) for place in args[1:3])
        yield args[0], {one: other, other: one}.get(dim, dim)
    elif value.target in _ELEMENTWISE:
        from_end = dim - _ndim(value)
        yield from ((operand, from_end) for operand in value.all_input_nodes if _ndim(operand) >= -from_end)


def _is_stack(join: fx.Node, dim: int, flow: DataFlow) -> bool:
    args: Any = join.args
    moving = {part for part in join.all_input_nodes if part in flow.data}
    single = join.target is aten.stack.default or all(part.meta["val"].shape[dim] == 1 for part in moving)
    return bool((args[1] if len(args) > 1 else 0) % _ndim(join) == dim and len(moving) > 1 and single)


def _is_reshaped_stack(value: fx.Node, dim: int, flow: DataFlow) -> bool:
    whole = value.all_input_nodes[0]
    before, after = ([*map(str, node.meta["val"].shape)] for node in (whole, value))
    if before[: dim + 1] == after[: dim + 1]:
        return _is_stacked(whole, dim, flow)
    parts = whole.args[0] if whole.target in JOINS - {aten.stack.default} else None
    return isinstance(parts, list | tuple) and str(len(parts)) == after[dim] and len({*parts} & flow.data) > 1


def _ndim(value: Any) -> int:
    return int(value.meta["val"].ndim) if isinstance(value, fx.Node) else 0
