"""Which tensor of a model's outputs is the scores: the only one, or the one called `logits`."""

from collections.abc import Mapping
from typing import Any

from torch import SymInt, Tensor
from torch.utils import _pytree as pytree

LOGITS = "logits"
"""Key or attribute that holds the scores where outputs hold several tensors."""


def scores_of(outputs: Any) -> Tensor | None:
    """Return the tensor that holds the scores, from a dict, tuple, list or any other structure; None where unknown."""
    if isinstance(outputs, Tensor):
        return outputs
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    named = outputs.get(LOGITS) if isinstance(outputs, Mapping) else getattr(outputs, LOGITS, None)
    return named if isinstance(named, Tensor) else None


def sizes_of(outputs: Any) -> tuple[int, ...] | None:
    """Return the sizes of one sample's scores, which a target has an index for each of; None where there are none."""
    scores = scores_of(outputs)
    if scores is None or scores.ndim < 2 or not scores.is_floating_point():
        return None
    # One that an argument's rows decide is a symbol, with the size that it had.
    return tuple(int(size.node.hint if isinstance(size, SymInt) else size) for size in scores.shape[1:])
