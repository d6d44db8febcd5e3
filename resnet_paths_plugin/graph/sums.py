"""Additions as sums of terms, however they are bracketed: the joints at which residual blocks meet."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from torch import fx

from resnet_paths_plugin.graph.operators import aten, holds_tensor

_NOTHING: frozenset[fx.Node] = frozenset()


@dataclass(frozen=True, eq=False, slots=True)
class Term:
    """One term of a sum: a value and the constant it is multiplied by (`torch.add(alpha=)`, subtraction)."""

    node: fx.Node
    scale: float


def is_addition(node: fx.Node) -> bool:
    """Whether a node adds tensors: `a + b`, or `stack(...)` summed or averaged over the stacked dimension."""
    if node.target is aten.add.Tensor:
        return all(isinstance(operand, fx.Node) and holds_tensor(operand) for operand in node.args[:2])
    return stacked_terms(node) is not None


def is_subtraction(node: fx.Node) -> bool:
    """Whether a node subtracts one tensor from another."""
    return node.target is aten.sub.Tensor and all(
        isinstance(operand, fx.Node) and holds_tensor(operand) for operand in node.args[:2]
    )


def stacked_terms(node: fx.Node) -> list[fx.Node] | None:
    """Return the terms of `stack(...).sum(...)` and `stack(...).mean(...)`, or None for any other node."""
    if node.target not in {aten.sum.dim_IntList, aten.mean.dim} or len(node.args) != 2:
        return None
    stack, dims = node.args
    if not isinstance(stack, fx.Node) or stack.target is not aten.stack.default or len(stack.users) != 1:
        return None
    parts = stack.args[0]
    dim = stack.args[1] if len(stack.args) > 1 else 0
    if not isinstance(parts, list | tuple) or not isinstance(dims, list | tuple) or list(dims) != [dim]:
        return None
    return [part for part in parts if isinstance(part, fx.Node)]


def addition_above(node: fx.Node) -> fx.Node | None:
    """Return the addition that alone reads this one and so continues it, or None."""
    user = _only_reader(node)
    if user is not None and user.target is aten.stack.default:
        user = _only_reader(user)
    return user if user is not None and is_addition(user) else None


def sum_terms(root: fx.Node, stops: AbstractSet[fx.Node] = _NOTHING) -> list[Term]:
    """Return the terms of the sum that ends in `root`, in the order of its operands; one for a value added twice.

    Args:
        root: an addition or a subtraction.
        stops: additions that are terms of their own, though only this sum reads them.
    """
    scales: dict[fx.Node, float] = {}
    for term in _terms(root, 1.0, stops):
        scales[term.node] = scales.get(term.node, 0.0) + term.scale
    return [Term(node, scale) for node, scale in scales.items()]


def brackets(root: fx.Node, stops: AbstractSet[fx.Node] = _NOTHING) -> list[fx.Node]:
    """Return the additions inside a sum, and their stacks, innermost first and `root` last."""
    found: list[fx.Node] = []
    for operand in _operands(root):
        if _continues(operand[0], stops):
            found.extend(brackets(operand[0], stops))
    if stacked_terms(root) is not None:
        found.extend(root.all_input_nodes)
    return [*found, root]


def _terms(node: fx.Node, scale: float, stops: AbstractSet[fx.Node]) -> Iterator[Term]:
    for operand, factor in _operands(node):
        if _continues(operand, stops):
            yield from _terms(operand, scale * factor, stops)
        else:
            yield Term(operand, scale * factor)


def _continues(operand: fx.Node, stops: AbstractSet[fx.Node]) -> bool:
    return operand not in stops and is_addition(operand) and addition_above(operand) is not None


def _operands(node: fx.Node) -> list[tuple[fx.Node, float]]:
    stacked = stacked_terms(node)
    if stacked is not None:
        return [(part, 1 / len(stacked) if node.target is aten.mean.dim else 1.0) for part in stacked]
    sign = -1.0 if is_subtraction(node) else 1.0
    alpha = node.kwargs.get("alpha", 1)
    factor = sign * float(alpha) if isinstance(alpha, int | float) else sign
    first, second = (operand for operand in node.args[:2] if isinstance(operand, fx.Node))
    return [(first, 1.0), (second, factor)]


def _only_reader(node: fx.Node) -> fx.Node | None:
    """Return the one node that reads this value exactly once, or None."""
    users = list(node.users)
    if len(users) != 1 or users[0].op == "output":
        return None
    operands = users[0].args[0] if users[0].target is aten.stack.default else users[0].args
    assert isinstance(operands, list | tuple)  # noqa: S101 - the operator's signature
    return users[0] if sum(operand is node for operand in operands) == 1 else None
