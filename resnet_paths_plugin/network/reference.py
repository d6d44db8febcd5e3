"""Reference data: batches as analyzers take them, read for their inputs, in runs that suit the memory."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from resnet_paths_plugin.engine.transfer import moved
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.export import batch_size
from resnet_paths_plugin.network.captured_network import CapturedNetwork

MOST_SAMPLES = 256
"""Most samples of a reference that are run at a time."""


def reference_runs(network: CapturedNetwork, reference: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the model's arguments for the samples of a reference, so many at a time as are run together.

    Args:
        network: the network.
        reference: a tensor, a tuple of tensors, or an iterable of batches, whose targets are not looked at.

    Raises:
        InputError: if it is none of these, or empty.
    """
    if isinstance(reference, Tensor | Mapping) or (isinstance(reference, tuple) and all_tensors(reference)):
        reference = [reference] if isinstance(reference, Mapping) else [(reference, None)]
    if not isinstance(reference, Iterable) or isinstance(reference, str | bytes):
        raise InputError(
            "a reference must be a tensor, a tuple of tensors, or an iterable of (inputs, target) batches such as a "
            f"DataLoader, not {type(reference).__name__}"
        )
    empty = True
    for item in reference:
        inputs, _ = inputs_and_target(item)
        yield from _cut(network, inputs if isinstance(inputs, tuple) else (inputs,))
        empty = False
    if empty:
        raise InputError("the reference is empty: give at least one batch (is a one-shot iterator used up?)")


def _cut(network: CapturedNetwork, args: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    size = batch_size(args)
    pieces = -(-size // MOST_SAMPLES)
    step = network.samples_per_run(size, network.graph.conditions.reached(-(-size // pieces)))
    leaves, spec = pytree.tree_flatten(args)
    leaves = [moved(leaf, network.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    for start in range(0, size, step):
        cut = [
            leaf[start : start + step] if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == size else leaf
            for leaf in leaves
        ]
        yield pytree.tree_unflatten(cut, spec)


def all_tensors(values: tuple[Any, ...]) -> bool:
    """Whether these are tensors, one or more."""
    return bool(values) and all(isinstance(value, Tensor) for value in values)


def inputs_and_target(item: Any) -> tuple[Any, Any]:
    """Return the inputs and the target of one batch of an iterable; the target is None where it has none.

    Raises:
        InputError: if it is no batch.
    """
    if isinstance(item, list | tuple) and len(item) == 2:
        inputs, target = item
        return (tuple(inputs) if isinstance(inputs, list) else inputs), target
    if isinstance(item, Tensor):
        return item, None
    if isinstance(item, list | tuple) and len(item) == 1:
        return item[0], None
    if isinstance(item, Mapping):
        if "inputs" in item and set(item) <= {"inputs", "target"}:
            return inputs_and_target((item["inputs"], item.get("target")))
        keys = ", ".join(map(repr, item))
        raise InputError(
            f"inputs is a dict of {keys}: give it the keys 'inputs' and 'target', or pass a tuple of tensors; map the "
            "batches of a loader to (inputs, target), such as ((d['x'], d['y']) for d in loader)"
        )
    form = f"a {type(item).__name__} of {len(item)}" if isinstance(item, Sized) else repr(item)
    raise InputError(
        f"a batch must be (inputs, target), a dict of 'inputs' and 'target', or a tensor, not {form}: map each batch "
        "to that, such as ((x, y) for x, y, _ in loader)"
    )
