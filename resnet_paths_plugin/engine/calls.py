"""One call of an operator, and its derivative: the nouns that rules and autograd share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

Rows = Tensor
"""The rows of a bank, `[R, *value]`."""
Parts = dict[int, Rows]
"""Rows of the parts of a value that is a list or tuple, by position."""


class Derivative(Protocol):
    """The derivative of one call at the values of one forward pass, for a bank of rows at once.

    Gradients go from the value to the operands (vector-Jacobian products), tangents from the operands to the value
    (Jacobian-vector products). A value that is a list or tuple has `Parts` for a bank, and so has an operand that is
    one.
    """

    @property
    def pull(self) -> Callable[[Any], list[Any]]:
        """Takes the gradients at the value, `[R, *value]`, to those at each operand, `[R, *operand]`; None for none."""

    @property
    def push(self) -> Callable[[Sequence[Any]], Any]:
        """Takes the tangents at each operand (None: they are zero) to those at the value; None where it has none."""


@dataclass(frozen=True, eq=False, slots=True)
class Rule:
    """A derivative that two functions compute, each the transpose of the other."""

    pull: Callable[[Any], list[Any]]
    push: Callable[[Sequence[Any]], Any]


@dataclass(frozen=True, eq=False, slots=True)
class Slope:
    """The derivative of an operator that treats each element alone: multiply by its slope there."""

    slope: Tensor

    def pull(self, bank: Any) -> list[Any]:
        """Return the gradients at the one operand."""
        return [bank * self.slope]

    def push(self, banks: Sequence[Any]) -> Any:
        """Return the tangents at the value."""
        return None if banks[0] is None else banks[0] * self.slope


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


def leaf_of(value: Any) -> Any:
    """Return a value as a leaf that gradients end at; as it is where it can have none."""
    differentiable = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
    return value.detach().requires_grad_() if differentiable else value


def _in_dtype(value: Any, dtype: torch.dtype) -> Any:
    def convert(leaf: Any) -> Any:
        return leaf.detach().to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return convert(value) if isinstance(value, Tensor) else pytree.tree_map(convert, value)
