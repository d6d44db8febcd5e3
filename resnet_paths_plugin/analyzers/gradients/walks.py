"""Walks of a study: one batch's forward pass, the objective's gradient at the outputs, and products of banks."""

from collections.abc import Collection

import torch
from torch import Tensor

from resnet_paths_plugin.analyzers.gradients.objectives import Objective, output_gradients
from resnet_paths_plugin.engine.backward import BackwardWalk, bank_dtype
from resnet_paths_plugin.engine.path_graph import PathGraph
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution.batches import Batch
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

Seeds = dict[int, Tensor]
"""The gradient of the objective at each position of the output."""


def walk_of(
    network: UnraveledNetwork,
    graph: PathGraph,
    objective: Objective,
    chunk: Batch,
    *,
    keep: Collection[int] = (),
    freeze_norms: bool = False,
    seeded: bool = True,
    anywhere: bool = False,
) -> tuple[BackwardWalk, Seeds]:
    """Return a forward pass of some samples that can be walked back, and where the walk starts.

    Args:
        network: the network.
        graph: the paths.
        objective: what is differentiated.
        chunk: the samples.
        keep: positions of values of the forward pass to keep.
        freeze_norms: whether the scales of layer and RMS norms are constants for gradients.
        seeded: whether the walk starts at the outputs.
        anywhere: whether gradients that reach no node serve as well, as those of outputs that are parameters.

    Raises:
        InputError: if the objective does not depend on the outputs.
    """
    program = network.program
    dtype = bank_dtype(network.dtype)
    walk = BackwardWalk(
        graph, network.inputs(chunk.args), program.parameters(), dtype=dtype, keep=keep, freeze_norms=freeze_norms
    )
    if not seeded:
        return walk, {}
    leaves = output_gradients(objective, network.graph.unflatten(walk.outputs), chunk, dtype)
    seeds = program.at_outputs(leaves)
    if not anywhere and not any(graph.read_by(at) for at in seeds):
        raise InputError("no gradient reaches the tap: the objective does not depend on it")
    return walk, seeds


def products(one: Tensor, other: Tensor, batch_dim: int) -> Tensor:
    """Return the inner products of two sets of rows for each sample.

    Args:
        one: shape `[R, *value]`.
        other: shape `[S, *value]`.
        batch_dim: dimension of the value that is the batch.

    Returns:
        Shape `[B, R, S]`, float64 on the CPU.
    """
    ours, theirs = by_sample(one, batch_dim, like=one), by_sample(other, batch_dim, like=one)
    return torch.bmm(ours, theirs.mT).double().cpu()


def by_sample(rows: Tensor, batch_dim: int, *, like: Tensor) -> Tensor:
    """Return rows `[R, *value]` as one vector for each sample and row, `[B, R, D]`.

    Elements are in the order in which those of `like` lie in memory, so that its own are not copied.
    """
    rest = [dim for dim in range(1, rows.ndim) if dim != 1 + batch_dim]
    rest.sort(key=lambda dim: -like.stride()[dim])
    ordered = rows.permute(1 + batch_dim, 0, *rest)
    return ordered.flatten(2) if rest else ordered.unsqueeze(-1)
