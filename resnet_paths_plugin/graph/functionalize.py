"""In-place operators become functional ones, so that a graph can be cut and run in parts.

Mutations of plain values are rewritten here; graphs that mutate through a view go through torch's own
functionalization, which also replaces some composite operators.
"""

from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram

from resnet_paths_plugin.graph.exported_graph import (
    has_nested_modes,
    has_transforms,
    merge_equal,
    put_users_in_step,
)
from resnet_paths_plugin.graph.operators import same_shape, same_sizes
from resnet_paths_plugin.graph.plain_forms import write_plainly
from resnet_paths_plugin.graph.regions import detach_still_values
from resnet_paths_plugin.graph.traced_modes import noted_modes

aten = torch.ops.aten

_ADDING = {aten.add.Tensor, aten.sub.Tensor, aten.stack.default}
_VIEWS = {aten.view.default, aten._unsafe_view.default}
_CHECKS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}


def functional_program(program: ExportedProgram, *, training: bool = False) -> ExportedProgram:
    """Return the program with a graph in which no operator changes its arguments, and no value is computed twice.

    The program given is used up: its graph may be the one returned. In training mode norms may count how often they
    run, so each stays.
    """
    put_users_in_step(program.graph)
    if has_nested_modes(program.graph):
        program = _traced_again(program)
    rewritten = not has_transforms(program.graph) and _rewrite(program.graph)
    detach_still_values(program.graph)
    if not rewritten:
        program = _traced_again(program)
    graph = program.graph
    for node in reversed(graph.nodes):
        if node.target in _CHECKS and not node.users:
            graph.erase_node(node)
    _read_copies_directly(graph)
    _read_parts_directly(graph)
    _erase_dead(graph)
    _reshape_views(graph)
    if write_plainly(graph):
        _erase_dead(graph)
    merge_equal(graph, training=training)
    for node in graph.nodes:
        if isinstance(node.target, HigherOrderOperator):  # as a file gives them back
            node.args = tuple(list(argument) if isinstance(argument, tuple) else argument for argument in node.args)
    return program


def _traced_again(program: ExportedProgram) -> ExportedProgram:
    """Return the program with writes to views, transforms and nested modes as plain operators."""
    with noted_modes(again=True):
        again: ExportedProgram = program.run_decompositions({})
    return again


def _erase_dead(graph: fx.Graph) -> None:
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in {"placeholder", "output"})


def _reshape_views(graph: fx.Graph) -> None:
    """Reshape wherever the trace took a view: values may lie in memory in another order than they did then.

    So they do where a branch is gone, where gradients choose another kernel, and in channels last. Where a view is
    possible a reshape is that view.
    """
    for node in graph.nodes:
        if node.target in _VIEWS:
            node.target = aten.reshape.default


def _read_copies_directly(graph: fx.Graph) -> None:
    """Read the source of a copy that fills a value whole, as an assignment to a slice leaves it: it has no gradient."""
    for node in graph.nodes:
        if node.target is not aten.copy.default:
            continue
        filled, source = (operand.meta["val"] for operand in node.args[:2])
        if same_shape(*node.args[:2]) and filled.dtype == source.dtype:
            node.replace_all_uses_with(node.args[1])


def _read_parts_directly(graph: fx.Graph) -> None:
    """Read the whole where a slice picks all of it, and an operand of a concatenation where a slice picks just that.

    Data flow is then what it seems. A concatenation that is added to is left whole: it may be the source of a block
    whose branch begins with a slice.
    """
    for node in graph.nodes:
        if node.target is not aten.slice.Tensor or not isinstance(node.meta["val"], Tensor):
            continue
        whole = node.args[0]
        if same_shape(node, whole):
            node.replace_all_uses_with(whole)
            continue
        added_to = any(user.target in _ADDING for user in whole.users)
        part = _operand_of(whole, *node.args[1:]) if whole.target is aten.cat.default and not added_to else None
        if part is not None:
            node.replace_all_uses_with(part)


def _operand_of(
    cat: fx.Node, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> fx.Node | None:
    """Return the operand of a concatenation that a slice of it equals, or None."""
    operands, along = cat.args[0], cat.args[1] if len(cat.args) > 1 else 0
    rank = cat.meta["val"].ndim
    if not isinstance(operands, list | tuple) or not isinstance(along, int) or step != 1:
        return None
    shapes = [operand.meta["val"].shape for operand in operands if isinstance(operand, fx.Node)]
    # An empty vector adds nothing, whatever the rank of the others.
    sizes = [0 if tuple(shape) == (0,) else shape[along] for shape in shapes]
    if along % rank != dim % rank or not all(isinstance(size, int) for size in (*sizes, start or 0, end or 0)):
        return None
    total = sum(sizes)
    first, last = (
        (bound + total if bound < 0 else min(bound, total)) for bound in (start or 0, total if end is None else end)
    )
    at = 0
    for operand, size in zip(operands, sizes, strict=True):
        if (at, at + size) == (first, last):
            return operand if isinstance(operand, fx.Node) else None
        at += size
    return None


def _rewrite(graph: fx.Graph) -> bool:
    """Replace each mutation of a value that no view of it outlives; False (graph untouched) if there is another."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    mutations = [node for node in graph.nodes if _is_mutation(node)]
    if not mutations:
        return True
    aliases = _aliases(graph)
    for node in mutations:
        if _functional_twin(node) is None or not isinstance(node.args[0], fx.Node) or _promotes(node):
            return False
        mutated = node.args[0]
        for other in aliases[_storage(mutated.meta["val"])]:
            outlives = any(order[user] > order[node] for user in other.users)
            if order[other] < order[node] and outlives and not _same_view(other, mutated):
                return False
    for node in mutations:
        mutated = node.args[0]
        assert isinstance(mutated, fx.Node)  # noqa: S101 - checked above; narrows the type
        node.target = _functional_twin(node)
        for other in aliases[_storage(mutated.meta["val"])]:
            if order[other] < order[node]:
                other.replace_all_uses_with(
                    node,
                    delete_user_cb=lambda user, node=node: order[user] > order[node],  # type: ignore[misc]  # early binding
                )
    return True


def _is_mutation(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _functional_twin(node: fx.Node) -> Any:
    """Return `aten.add.Tensor` for a node that calls `aten.add_.Tensor`; None where there is no such twin."""
    target = node.target
    assert isinstance(target, OpOverload)  # noqa: S101 - callers ask for mutations only
    name = target._schema.name.removeprefix("aten::")
    if not name.endswith("_") or len(target._schema.returns) != 1:
        return None
    packet = getattr(aten, name.removesuffix("_"), None)
    return getattr(packet, target._overloadname, None) if packet is not None else None


def _storage(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def _aliases(graph: fx.Graph) -> dict[int, list[fx.Node]]:
    aliases: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        parts = value if isinstance(value, list | tuple) else (value,)
        for storage in {_storage(part) for part in parts if isinstance(part, Tensor)}:
            aliases.setdefault(storage, []).append(node)
    return aliases


def _promotes(node: fx.Node) -> bool:
    """Whether the functional twin might have another dtype, since another tensor's takes part."""
    own = node.args[0].meta["val"].dtype  # type: ignore[union-attr]  # checked by the caller
    values = (other.meta.get("val") for other in node.all_input_nodes)
    return any(isinstance(value, Tensor) and value.dtype != own for value in values)


def _same_view(one: fx.Node, other: fx.Node) -> bool:
    a, b = one.meta["val"], other.meta["val"]
    return bool(
        isinstance(a, Tensor)
        and isinstance(b, Tensor)
        and a.dtype == b.dtype
        and same_sizes(a.shape, b.shape)
        and same_sizes(a.stride(), b.stride())
        and same_sizes((a.storage_offset(),), (b.storage_offset(),))
    )
