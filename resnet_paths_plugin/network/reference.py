"""Reference data: batches as analyzers take them, read for their inputs, in runs that suit the memory."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from resnet_paths_plugin.engine.transfer import moved
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.export import batch_size
from resnet_paths_plugin.graph.keywords import call_arguments
from resnet_paths_plugin.network.batch_items import inputs_and_target, is_one_batch
from resnet_paths_plugin.network.captured_network import CapturedNetwork

MOST_SAMPLES = 256
"""Most samples of a reference that are run at a time."""


def reference_runs(network: CapturedNetwork, reference: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the model's arguments for the samples of a reference, so many at a time as are run together.

    Args:
        network: the network.
        reference: a tensor, a tuple of tensors, a dict of arguments by name, or an iterable of batches, whose targets
            are not looked at.

    Raises:
        InputError: if it is none of these, or empty.
    """
    if is_one_batch(reference):
        reference = [reference] if isinstance(reference, Mapping) else [(reference, None)]
    if not isinstance(reference, Iterable) or isinstance(reference, str | bytes):
        raise InputError(
            "a reference must be a tensor, a tuple of tensors, a dict of arguments by name, or an iterable of "
            f"(inputs, target) batches such as a DataLoader, not {type(reference).__name__}"
        )
    empty = True
    for item in reference:
        inputs, _ = inputs_and_target(item)
        yield from _cut(network, network.graph.arranged(call_arguments(inputs)))
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
