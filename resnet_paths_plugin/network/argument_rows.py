"""Which additional arguments a model reads whole, though they have as many rows as there are samples."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from resnet_paths_plugin.graph.export import batch_size, uncompiled, undisturbed
from resnet_paths_plugin.network.differences import difference, within
from resnet_paths_plugin.network.model_pass import seeded, tensors_of

_MOST_WAYS = 16
"""Ways to read additional arguments that are tried: all of up to four arguments."""


def read_whole(model: nn.Module, args: tuple[Any, ...], positions: Sequence[int]) -> tuple[int, ...] | None:
    """Return which arguments a model reads whole for each sample, though they have as many rows as there are samples.

    It is run on the later half of the samples, with rows of these arguments cut and not cut; what gives the outputs
    that it gives these samples among all is how it reads them. None where nothing does.

    Args:
        model: the model; it is left as it was.
        args: the arguments of one call, with at least two samples.
        positions: of these arguments among the flattened ones.
    """
    size = batch_size(args)
    half = slice(size - size // 2, size)
    leaves, spec = pytree.tree_flatten(args)
    ways = [way for count in range(len(positions) + 1) for way in combinations(positions, count)]
    with undisturbed(model), torch.no_grad(), uncompiled(model):
        try:
            wanted = [leaf[half] if _has_rows(leaf, size) else leaf for leaf in tensors_of(seeded(model, args))]
        except RuntimeError:
            return None  # the study says what does not fit
        unit = max((torch.finfo(leaf.dtype).eps for leaf in wanted if leaf.is_floating_point()), default=0.0)
        nearest: tuple[float, tuple[int, ...]] | None = None
        for way in ways[:_MOST_WAYS]:
            cut = [leaf[half] if _has_rows(leaf, size) and at not in way else leaf for at, leaf in enumerate(leaves)]
            try:
                found = tensors_of(seeded(model, pytree.tree_unflatten(cut, spec)))
            except (RuntimeError, IndexError, ValueError):
                continue  # so the model cannot be called
            error = difference(found, wanted)
            # The nearest, as what an argument adds may be small.
            if error is not None and within(error, wanted, unit) and (nearest is None or max(error) < nearest[0]):
                nearest = max(error, default=0.0), way
    return None if nearest is None else nearest[1]


def _has_rows(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size
