"""Free batch: the ways to export a model so that its batch size stays free, and at last with the size it was given."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from resnet_paths_plugin.errors import CaptureError
from resnet_paths_plugin.graph.batch_conditions import as_captured, batch_conditions, example_batch, parameter_names
from resnet_paths_plugin.graph.batch_norm_buffers import check_momentum
from resnet_paths_plugin.graph.export import batch_size, export, training_mode
from resnet_paths_plugin.graph.export_errors import explained

Args = tuple[Any, ...]
"""The arguments of one call."""


def widened(example_inputs: Args) -> Args:
    """Return the inputs with a batch of one repeated to two; other batches as they are."""
    return resized(example_inputs, 2) if batch_size(example_inputs) == 1 else example_inputs


def resized(args: Args, size: int, apart: Callable[[int], bool] = lambda _: False) -> Args:
    """Return arguments with another number of samples, those at hand repeated or cut.

    Args:
        args: the arguments.
        size: the number of samples.
        apart: whether the argument at a position, among the flattened ones, has as many rows by chance.
    """
    batch = batch_size(args)
    leaves, spec = pytree.tree_flatten(args)

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim or leaf.shape[0] != batch or size == batch:
            return leaf
        return torch.cat([leaf] * -(-size // batch))[:size]

    found: Args = pytree.tree_unflatten([x if apart(at) else resize(x) for at, x in enumerate(leaves)], spec)
    return found


def programs(
    model: nn.Module,
    example_inputs: Args,
    *,
    training: bool = False,
    n_inputs: int | None = None,
    free: bool = True,
) -> Iterator[ExportedProgram]:
    """Yield a model exported with a free batch, in the ways that there are; the last one is for the batch as given.

    A batch of one is widened to two, since export would freeze it. Where the model's Python freezes the batch
    (`len(x)`, a shape that it keeps, frames that make one clip), strict export is tried, then examples with other
    numbers of samples: twice as many, which can be divided as often, and one more.

    Args:
        model: the model; it is left as it is.
        example_inputs: positional arguments of one call.
        training: whether to export in training mode.
        n_inputs: how many of the arguments' leaves, from the first, share the batch whatever the model does.
        free: whether to try for a free batch; if not, only the batch as given is exported.

    Raises:
        CaptureError: if `torch.export` cannot follow the model.
    """
    batch, args = batch_size(example_inputs), widened(example_inputs)

    def trial(inputs: Args, *, strict: bool = False) -> ExportedProgram | None:
        try:
            return export(model, inputs, training=training, strict=strict, n_inputs=n_inputs)
        except Exception:  # noqa: BLE001 - one way of several; the one that counts says what is wrong
            return None

    if training:
        with training_mode(model):
            check_momentum(model)
    if not free:
        yield _exported(model, example_inputs, training=training, n_inputs=n_inputs, free=False)
        return
    first = trial(args) if batch == 1 else _exported(model, args, training=training, n_inputs=n_inputs)
    names = parameter_names(model)
    for made in () if first is None else _ways(first, trial, args, n_inputs):
        if not batch_conditions(made, names).narrow:
            yield made
    if first is not None and batch > 1:
        yield first
    else:
        yield _exported(model, example_inputs, training=training, n_inputs=n_inputs, free=False)


def _ways(
    first: ExportedProgram, trial: Callable[..., ExportedProgram | None], args: Args, n_inputs: int | None
) -> Iterator[ExportedProgram]:
    """Yield an export and what other ways of tracing give, as far as they can be gone."""
    yield first
    strict = trial(args, strict=True)
    if strict is not None and _same_parts(strict, first) and _same_outputs(strict, first):
        yield strict
    for size in (2 * batch_size(args), batch_size(args) + 1):
        other = trial(resized(args, size))
        if other is None and n_inputs is not None:  # the further ones have as many rows by chance
            other = trial(resized(args, size, lambda at: at >= n_inputs))
        if other is not None and _same_outputs(other, first):
            yield other


def _exported(
    model: nn.Module,
    example_inputs: Args,
    *,
    training: bool = False,
    n_inputs: int | None = None,
    free: bool = True,
) -> ExportedProgram:
    try:
        return export(model, example_inputs, training=training, n_inputs=n_inputs, free=free)
    except Exception as error:
        raise CaptureError(explained(error, model, example_inputs, training=training)) from error


def _same_parts(one: ExportedProgram, other: ExportedProgram) -> bool:
    """Whether two exports read the same parameters and buffers, and are called alike."""
    parts = [{spec.target for spec in each.graph_signature.input_specs if spec.target} for each in (one, other)]
    return parts[0] <= parts[1] and one.call_spec == other.call_spec


def _same_outputs(one: ExportedProgram, other: ExportedProgram) -> bool:
    """Whether the first dimension of each output is the batch in both exports or in neither."""
    return _has_batch(one) == _has_batch(other)


def _has_batch(program: ExportedProgram) -> list[bool]:
    batch, outputs = example_batch(program), next(node for node in program.graph.nodes if node.op == "output").args[0]
    values = [leaf.meta.get("val") for leaf in outputs if isinstance(leaf, fx.Node)]
    return [isinstance(value, Tensor) and value.ndim > 0 and as_captured(value.shape[0]) == batch for value in values]
