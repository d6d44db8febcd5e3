"""Operators written in the plain form that detection reads: einsums that permute, scale or add up, sums over stacks.

Each form computes the same bits as what it replaces; an operator that has no plain form is left as it is.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from resnet_paths_plugin.graph.regions import has_autocast

aten = torch.ops.aten

_Forms = Mapping[Any, Callable[[fx.Graph, fx.Node], fx.Node | None]]

_REDUCTIONS = frozenset({aten.sum.dim_IntList, aten.mean.dim})


def write_plainly(graph: fx.Graph) -> bool:
    """Write each operator of a functional graph that has a plain form in that form; return whether one had."""
    written = False
    stacked: _Forms = dict.fromkeys(_REDUCTIONS, _stacked)
    for forms in (_OPERATORS, stacked):  # an einsum may be written as a sum over a stack
        for node in list(graph.nodes):
            if node.target not in forms or has_autocast(node):
                continue  # autocast may compute what is written otherwise in another precision
            with graph.inserting_before(node):
                value = forms[node.target](graph, node)
            if value is not None:
                _replace(graph, node, value)
                written = True
    return written


def _subtraction(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return _call(graph, node, aten.sub.Tensor, *reversed(node.args), **node.kwargs)


def _transposition(graph: fx.Graph, node: fx.Node) -> fx.Node:
    dims = node.args[1:] or (-2, -1)
    return _call(graph, node, aten.transpose.int, node.args[0], *dims)


def _einsum(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Permute, multiply or sum where an einsum does just that."""
    operands = node.args[1]
    assert isinstance(operands, list | tuple)  # noqa: S101 - the operator's signature
    terms = _letters(str(node.args[0]), operands)
    if terms is None or any(len({*letters}) < len(letters) for letters in terms):
        return None  # a repeated letter is a diagonal
    *read, after = terms
    if len(operands) == 1:
        left = [letter for letter in read[0] if letter in after]
        added = [letter for letter in read[0] if letter not in after]
        value: fx.Node = operands[0]  # type: ignore[assignment]  # a list of nodes
        if left != list(after) or not added:  # torch lays the result of a sum out in the order of its operand
            value = _call(
                graph, node, aten.permute.default, value, [read[0].index(letter) for letter in [*after, *added]]
            )
            read[0] = after + "".join(added)
        dims = [read[0].index(letter) for letter in added]
        return _call(graph, node, aten.sum.dim_IntList, value, dims) if added else value
    if len(operands) == 2 and {*after} == {*read[0]} | {*read[1]}:
        one, other = (_laid_out(graph, node, *pair, after) for pair in zip(operands, read, strict=True))
        return _call(graph, node, aten.mul.Tensor, one, other)
    return None


def _letters(equation: str, operands: Sequence[Any]) -> list[str] | None:
    """Return a letter for each dimension of the operands and of the result; None where none is written for that."""
    before, arrow, after = equation.replace(" ", "").partition("->")
    if not arrow:
        return None
    free = [letter for letter in string.ascii_letters if letter not in equation]
    terms = [*before.split(","), after]
    ranks = [
        operand.meta["val"].ndim - len(term.replace("...", ""))
        for operand, term in zip(operands, terms, strict=False)
        if "..." in term
    ]
    rank = max(ranks, default=0)
    found: list[str] = []
    for at, term in enumerate(terms):
        own = rank
        if at < len(operands) and "..." in term:
            own = operands[at].meta["val"].ndim - len(term.replace("...", ""))
        found.append(term.replace("...", "".join(free[rank - own : rank])))
    return found


def _laid_out(graph: fx.Graph, like: fx.Node, operand: fx.Node, before: str, after: str) -> fx.Node:
    """Lay an operand out so that it broadcasts to the dimensions of a result."""
    order = [before.index(letter) for letter in after if letter in before]
    if order != sorted(order):
        operand = _call(graph, like, aten.permute.default, operand, order)
    start = next((at for at, letter in enumerate(after) if letter in before), len(after))
    for at in range(start, len(after)):
        if after[at] not in before:
            operand = _call(graph, like, aten.unsqueeze.default, operand, at - start)
    return operand


def _stacked(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Reduce `stack(parts)`, and give the result its dimension back where it keeps it."""
    whole, dims, *keeps = node.args
    if not isinstance(whole, fx.Node) or not isinstance(dims, list | tuple) or len(dims) != 1:
        return None
    dim = dims[0] % whole.meta["val"].ndim
    if whole.target is aten.stack.default and len(node.args) == 2 and (dim, dim) == (dims[0], _along(whole)):
        return None
    stack = _as_stack(graph, whole, dim)
    if stack is None:
        return None
    value = _call(graph, node, node.target, stack, [dim], **node.kwargs)
    return _call(graph, node, aten.unsqueeze.default, value, dim) if any(keeps) else value


def _as_stack(graph: fx.Graph, whole: fx.Node, dim: int) -> fx.Node | None:
    """Return a value as a stack of others along a dimension; None where it is none, or is read elsewhere as well."""
    if whole.target is aten.stack.default:
        same = len(whole.users) == 1 and _along(whole) % whole.meta["val"].ndim == dim
        return _call(graph, whole, aten.stack.default, whole.args[0], dim) if same else None
    split = whole.target in {aten.reshape.default, aten.view.default}
    joined = whole.all_input_nodes[0] if split else whole
    if joined.target is not aten.cat.default or len(joined.users) != 1 or len(whole.users) != 1:
        return None
    parts: Any = joined.args[0]
    shapes = [[*map(str, part.meta["val"].shape)] for part in parts]
    if _along(joined) % joined.meta["val"].ndim != dim or any(shape != shapes[0] for shape in shapes):
        return None
    if split:
        wanted = [*shapes[0][:dim], str(len(parts)), *shapes[0][dim:]]
        values = parts if [*map(str, whole.meta["val"].shape)] == wanted else None
    else:
        values = [_squeezed(graph, joined, part, dim) for part in parts] if shapes[0][dim] == "1" else None
    return None if values is None else _call(graph, whole, aten.stack.default, values, dim)


def _squeezed(graph: fx.Graph, like: fx.Node, part: fx.Node, dim: int) -> fx.Node:
    """Return what a dimension was put into, or the value without that dimension."""
    args: Any = part.args
    if part.target is aten.unsqueeze.default and args[1] % part.meta["val"].ndim == dim:
        return part.all_input_nodes[0]
    return _call(graph, like, aten.squeeze.dim, part, dim)


def _along(join: fx.Node) -> int:
    dim = join.args[1] if len(join.args) > 1 else 0
    assert isinstance(dim, int)  # noqa: S101 - the operator's signature
    return dim


def _call(graph: fx.Graph, like: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """Insert an operator of the same code as another, with the value that it would have been captured with."""
    node = graph.call_function(target, args, kwargs)
    node.meta = dict(like.meta)
    node.meta["val"] = target(*fx.node.map_arg(args, lambda other: other.meta["val"]), **kwargs)
    return node


def _replace(graph: fx.Graph, node: fx.Node, value: fx.Node) -> None:
    """Let a value stand for another, under its name."""
    name = node.name
    node.replace_all_uses_with(value)
    graph.erase_node(node)
    value._rename(name)  # noqa: SLF001 - fx has no other way


_OPERATORS: _Forms = {
    aten.rsub.Tensor: _subtraction,
    aten.einsum.default: _einsum,
    **dict.fromkeys([aten.mT.default, aten.swapaxes.default, aten.swapdims.default], _transposition),
}
