"""What a graph in training mode writes to the model's buffers: batch-norm statistics and their counters, nothing else.

Batch norms move their statistics themselves when they run; the counters beside them are left to whoever runs the graph.
"""

from collections import Counter
from collections.abc import Iterator

from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_paths_plugin.errors import CaptureError
from resnet_paths_plugin.graph.operators import aten


def check_momentum(model: nn.Module) -> None:
    """Refuse batch norms in training mode whose momentum changes from batch to batch, which export cannot follow.

    Raises:
        CaptureError: if there is one.
    """
    for path, module in model.named_modules():
        if (
            isinstance(module, _BatchNorm)
            and module.training
            and module.track_running_stats
            and module.momentum is None
        ):
            raise CaptureError(
                f"batch norm {path!r} has momentum=None, a cumulative average whose factor changes with each batch and "
                "cannot be captured: set its momentum to a number, such as 0.1"
            )


def written_counters(program: ExportedProgram) -> Counter[str]:
    """Return the paths of the buffers that count batches, and how often one call of the model counts them up.

    Args:
        program: as exported in training mode, before its operators are made functional, which drops such writes.

    Raises:
        CaptureError: if the model writes to a parameter or buffer in another way.
    """
    signature = program.graph_signature
    paths = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    owners = {
        storage: paths[node.name]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in paths
        for storage in _storages(node)
    }
    found: Counter[str] = Counter()
    for node in program.graph.nodes:
        for written in _written(node):
            path = next((owners[storage] for storage in _storages(written) if storage in owners), None)
            if path is None:
                continue
            # A module that runs again counts on from the result of the first addition.
            counts_on = written.op == "placeholder" or written.target is aten.add_.Tensor
            if node.target is not aten.add_.Tensor or node.args[1] != 1 or not counts_on:
                _refuse(repr(path))
            found[path] += 1
    for name, nested in program.graph_module.named_modules():
        if name and isinstance(nested, fx.GraphModule) and _writes_to_arguments(nested.graph):
            _refuse("a parameter or buffer, in an operator that runs graphs of its own, such as torch.cond")
    return found


def counters(program: ExportedProgram, written: Counter[str]) -> dict[fx.Node, fx.Node]:
    """Return the counter's placeholder for each batch norm that keeps statistics and counts its batches.

    Args:
        program: functional.
        written: from `written_counters`.

    Raises:
        CaptureError: if other values are counted than the batches of batch norms, or batch norms were taken apart
            as the graph was made functional.
    """
    signature = program.graph_signature
    if signature.buffers_to_mutate:
        raise CaptureError(
            "the model changes values in place through views of them (as in x[:, 0] += 1), and torch takes its batch "
            "norms apart to undo that, so that their running statistics would stand still while training: write the "
            "change without views, as in torch.cat"
        )
    placeholders = {signature.inputs_to_buffers.get(node.name): node for node in program.graph.nodes}
    counter_of = {path.rpartition(".")[0]: path for path in written}
    found: dict[fx.Node, fx.Node] = {}
    uses: Counter[str] = Counter()
    for node in program.graph.nodes:
        if node.target is not aten.batch_norm.default or not node.args[5] or not isinstance(node.args[3], fx.Node):
            continue
        path = counter_of.get(signature.inputs_to_buffers.get(node.args[3].name, "").rpartition(".")[0])
        if path is not None:
            found[node] = placeholders[path]
            uses[path] += 1
    if uses != written:
        _refuse(", ".join(repr(path) for path in written if uses[path] != written[path]))
    return found


def draw_functionally(graph: fx.Graph) -> None:
    """Let random masks that are drawn into an empty tensor be values of their own.

    `bernoulli_` has no functional twin of its name, and torch's functionalization would take batch norms apart.
    """
    for node in graph.nodes:
        if node.target is aten.bernoulli_.float and len(node.args[0].users) == 1:
            node.target = aten.bernoulli.p
            node.args = (node.args[0], node.args[1] if len(node.args) > 1 else 0.5)


def _written(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the arguments that an operator writes to, as its schema says; batch norms do not say."""
    if not isinstance(node.target, OpOverload):
        return
    for at, argument in enumerate(node.target._schema.arguments):  # noqa: SLF001 - nothing public says what is written
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = node.args[at] if at < len(node.args) else node.kwargs.get(argument.name)
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, fx.Node):
                yield part


def _writes_to_arguments(graph: fx.Graph) -> bool:
    arguments = {storage for node in graph.nodes if node.op == "placeholder" for storage in _storages(node)}
    return any(
        storage in arguments for node in graph.nodes for written in _written(node) for storage in _storages(written)
    )


def _storages(node: fx.Node) -> list[int]:
    value = node.meta.get("val")
    return [int(value.untyped_storage()._cdata)] if isinstance(value, Tensor) else []  # noqa: SLF001 - its identity


def _refuse(what: str) -> None:
    raise CaptureError(
        f"in training mode the model writes to {what}, which a captured graph cannot repeat: only the running "
        "statistics of batch norms are supported. Put the module that does so in eval mode while the model itself is "
        "in training mode, or take it out"
    )
