"""The measure of a Limpet's outputs: how sure it is."""

from typing import Any

from torch import Tensor


def score_margin(outputs: Tensor, target: Any) -> Tensor:  # noqa: ARG001 - the measure needs no labels
    """Return how far the best score is above the second best, shape `[B]`."""
    best = outputs.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]
