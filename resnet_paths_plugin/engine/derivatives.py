"""Derivatives of single operators, for a bank of rows at once.

An operator is linearised at the values of one forward pass; its derivative then takes gradients `[R, *value]` back to
`[R, *operand]`, and tangents `[R, *operand]` on to `[R, *value]`. Common operators have rules of their own
(`derivative_rules`); every other one goes through autograd, batched over the rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from resnet_paths_plugin.engine.calls import Call, Derivative, Rows, Rule, leaf_of
from resnet_paths_plugin.engine.derivative_rules import RULES
from resnet_paths_plugin.graph import operators as ops
from resnet_paths_plugin.graph.operators import aten
from resnet_paths_plugin.graph.regions import has_autocast
from resnet_paths_plugin.graph.traced_modes import modes_of


def linearise(call: Call, *, by_rules: bool = True) -> Derivative:
    """Return the derivative of a call; operands are those of `call.operands`, in that order.

    Args:
        call: the operator's call.
        by_rules: whether to use the rules of common operators, which multiply by derivatives of 0 where autograd passes
            nothing on; that differs where a bank is infinite or NaN.
    """
    if isinstance(call.value, Tensor) and not (call.value.is_floating_point() or call.value.is_complex()):
        # Such as indices: constant wherever they can be differentiated.
        return Rule(lambda _: [None] * len(call.operands), lambda _: None)
    rule = RULES.get(call.node.target) if by_rules and has_rules(call) else None
    derivative = rule(call) if rule is not None else None
    return derivative if derivative is not None else _by_autograd(call)


def has_rules(call: Call) -> bool:
    """Whether a call is one that rules are written for."""
    node = call.node
    return not (_is_complex(call) or ops.draws_at_random(node) or _names_its_arguments(node) or has_autocast(node))


def _names_its_arguments(node: fx.Node) -> bool:
    """Whether a call gives by name what the rules read by position."""
    arguments = node.target._schema.arguments if isinstance(node.target, OpOverload) else ()
    return any(argument.name in node.kwargs and not argument.kwarg_only for argument in arguments)


def _is_complex(call: Call) -> bool:
    """Whether a call reads or returns complex numbers, whose products the rules would have to conjugate."""
    leaves = pytree.tree_leaves((call.args, call.kwargs, call.value))
    return any(isinstance(leaf, Tensor) and leaf.is_complex() for leaf in leaves)


def _by_autograd(call: Call) -> Derivative:
    """Differentiate one operator by autograd: gradients by its backward pass, tangents by the transpose of that."""
    leaves: dict[fx.Node, Any] = {}

    def tracked(argument: fx.Node, value: Any) -> Any:
        if argument not in call.operands:
            return value
        if argument not in leaves:
            leaves[argument] = pytree.tree_map(leaf_of, value)
        return leaves[argument]

    args = _without_statistics(call.node, _map_nodes(call.node.args, call.args, tracked))
    kwargs = _map_nodes(call.node.kwargs, call.kwargs, tracked)
    target = call.node.target
    if target is aten.scaled_dot_product_attention.default and not ops.draws_at_random(call.node):
        target = _in_plain_operators  # another kernel would draw another mask
    with torch.enable_grad(), modes_of(call.node):
        value = target(*args, **kwargs)  # type: ignore[operator]  # a call_function node
        if has_autocast(call.node):  # rows keep their dtype where autocast computes in another
            value = pytree.tree_map(lambda leaf: _to(leaf, call.dtype), value)
    sources = [leaves[operand] for operand in call.operands]
    flat = [leaf for leaf in pytree.tree_leaves(sources) if isinstance(leaf, Tensor) and leaf.requires_grad]

    def pull(bank: Any) -> list[Any]:
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

    def push(banks: Sequence[Any]) -> Any:
        given = [
            (leaf, rows)
            for source, bank in zip(sources, banks, strict=True)
            if bank is not None
            for leaf, rows in (
                ((source[part], rows) for part, rows in bank.items()) if isinstance(bank, dict) else [(source, bank)]
            )
            if leaf.requires_grad
        ]
        found = _tangents(value, given)
        return found if isinstance(value, list | tuple) else found.get(0)

    return Rule(pull, push)


def _tangents(value: Any, given: Sequence[tuple[Tensor, Rows]]) -> dict[int, Rows]:
    """Return the tangents of each part of a value for tangents of leaves.

    The vector-Jacobian product is linear in its seed, and its derivative there is the Jacobian-vector product: what
    autograd's backward pass leaves out is left out here, too.
    """
    values = value if isinstance(value, list | tuple) else (value,)
    seeds = {
        part: torch.zeros_like(one, requires_grad=True)
        for part, one in enumerate(values)
        if isinstance(one, Tensor) and one.requires_grad
    }
    if not given or not seeds:
        return {}
    outputs = [values[part] for part in seeds]
    leaves = [leaf for leaf, _ in given]
    with torch.enable_grad():
        pulled = torch.autograd.grad(
            outputs, leaves, list(seeds.values()), retain_graph=True, create_graph=True, allow_unused=True
        )
    moved = [(one, rows) for one, (_, rows) in zip(pulled, given, strict=True) if one is not None and one.requires_grad]
    if not moved:
        return {}
    found = _batched_grad([one for one, _ in moved], list(seeds.values()), [rows for _, rows in moved])
    return {part: rows for part, rows in zip(seeds, found, strict=True) if rows is not None}


def _to(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


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


def _without_statistics(node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return arguments without the running statistics that the call has moved, and its value does not depend on."""
    return (*args[:3], None, None, *args[5:]) if ops.moves_statistics(node) else args


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
