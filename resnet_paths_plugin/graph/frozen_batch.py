"""Frozen batch: along which dimension of each value the samples lie, where their number is a number in the trace."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from resnet_paths_plugin.graph.batch_trial import GraphRun


def batch_dims(
    graph: fx.Graph, inputs: Sequence[fx.Node], tensors: dict[fx.Node, Any], batch: int
) -> dict[fx.Node, int | None]:
    """Return the dimension of values along which the samples lie; None where they are mixed with another.

    The first sample is NaN and the others are 0: along the batch NaN is at the first place alone, as samples are
    independent, and along another dimension it is everywhere or nowhere. Values that NaN does not reach are left out.

    Args:
        graph: the functional graph.
        inputs: its placeholders of the inputs that share the batch.
        tensors: values of all its other placeholders.
        batch: the number of samples.
    """
    given = {**tensors, **{node: _first_is_nan(node.meta.get("val"), batch) for node in inputs}}
    try:
        with torch.no_grad():
            values = GraphRun(graph).values(given)
    except Exception:  # noqa: BLE001 - indices that are computed from NaN, say; shapes alone are left to go by
        return {}
    return {
        node: _where_first(value, batch)
        for node, value in values.items()
        if isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any())
    }


def _first_is_nan(value: Any, batch: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    filled = torch.zeros(tuple(map(int, value.shape)), dtype=value.dtype, device=value.device)
    if filled.ndim and len(filled) == batch and filled.is_floating_point():
        filled[0] = torch.nan
    return filled


def _where_first(value: Tensor, batch: int) -> int | None:
    """Return the only dimension of a size that has NaN at its first place alone."""
    lost = value.isnan()
    found = [
        dim
        for dim, size in enumerate(value.shape)
        if size == batch and bool(lost.select(dim, 0).any()) and not bool(lost.narrow(dim, 1, batch - 1).any())
    ]
    return found[0] if len(found) == 1 else None
