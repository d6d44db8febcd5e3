"""What a task of a study of contributions does with some samples: one walk back, one inner product for each row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_paths_plugin.analyzers.gradients.objectives import Objective, per_sample
from resnet_paths_plugin.analyzers.gradients.walks import products, walk_of
from resnet_paths_plugin.engine.backward import Watch
from resnet_paths_plugin.engine.banks import Bank
from resnet_paths_plugin.engine.keys import TAIL
from resnet_paths_plugin.engine.program import Program
from resnet_paths_plugin.engine.routing import ByLength
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import Arrays, Samples
from resnet_paths_plugin.graph.channels import channel_dim
from resnet_paths_plugin.network.unraveled import UnraveledNetwork


@dataclass(frozen=True, eq=False)
class ContributionWork:
    """Contributions of blocks' branches to an objective, by the number of later branches.

    Attributes:
        objective: what is differentiated.
        n_lengths: how many numbers of later branches have a row of their own, from 0.
        cut: whether paths may take more.
        freeze_norms: whether the scales of layer and RMS norms are constants.
        map_shape: shape of the maps of positions; None for none.
    """

    objective: Objective
    n_lengths: int
    cut: bool
    freeze_norms: bool
    map_shape: tuple[int, ...] | None

    @property
    def n_groups(self) -> int:
        """One walk serves all blocks."""
        return 1

    def on(self, network: UnraveledNetwork) -> "_ContributionJob":
        """Return what measures the contributions of a network's blocks."""
        return _ContributionJob(self, network)


def root_sources(program: Program) -> list[int]:
    """Return the positions of the sources that no sum and no other source is computed into: where the stem ends."""
    flow, nodes = program.flow, program.nodes
    sums = [total.root for total in program.sums]
    sources = sorted({branch.source for branch in program.branches})
    first = [at for at in sources if not any(flow.is_ancestor(nodes[root], of=nodes[at]) for root in sums)]
    return [
        at for at in first if not any(other != at and flow.is_ancestor(nodes[other], of=nodes[at]) for other in first)
    ]


class _ContributionJob:
    def __init__(self, work: ContributionWork, network: UnraveledNetwork) -> None:
        self._work, self._network = work, network
        self._roots = root_sources(network.program)
        self._graph = network.path_graph_to(self._roots)

    def __call__(self, _: int, samples: Samples) -> Arrays:
        """Return the contributions of all blocks for some samples."""
        (chunk,) = samples
        work, program = self._work, self._network.program
        keep = {*self._roots, *(branch.value for branch in program.branches)}
        walk, seeds = walk_of(
            self._network, self._graph, work.objective, chunk, keep=keep, freeze_norms=work.freeze_norms
        )
        watch = _Contributions(self._network, walk.forward_pass.kept, work, chunk.size)
        limits = (work.n_lengths - 1,) if work.cut else None
        banks = walk.gradients(seeds, ByLength([(1,)] * len(self._network.blocks), limits), watch)
        found = watch.arrays()
        total = per_sample(work.objective, self._network.graph.unflatten(walk.outputs), chunk)
        found["stem"] = self._stem(banks, walk.forward_pass.kept, chunk.size)
        found["objective"] = total.detach().double().cpu().numpy()
        return found

    def _stem(self, banks: Mapping[int, Bank], values: Mapping[int, Tensor], size: int) -> NDArray[np.float64]:
        """Return what the sources of the first blocks add to the objective through no branch, shape `[B]`."""
        found = np.zeros(size)
        for at, bank in banks.items():
            dim, direct = self._network.program.batch_dim(at), bank.take([(0,)])
            if direct is not None:
                whole = np.full(size, np.nan)
                if dim is not None:
                    whole = products(direct.rows, values[at][None].to(direct.rows), dim)[:, 0, 0].numpy()
                found = found + whole
        return found


class _Contributions(Watch):
    """Multiplies the gradients at each branch with the branch's value."""

    def __init__(
        self, network: UnraveledNetwork, values: Mapping[int, Tensor], work: ContributionWork, size: int
    ) -> None:
        self._network, self._values, self._work, self._size = network, values, work, size
        self.clear()

    def clear(self) -> None:
        """Begin with zeros."""
        n = len(self._network.blocks)
        self._found = np.zeros((n, self._work.n_lengths, self._size))
        self._rest = np.zeros((n, self._size))
        self._unknown: set[int] = set()
        shape = self._work.map_shape
        self._maps = None if shape is None else np.zeros((n, self._size, *shape), dtype=np.float32)

    def is_finite(self) -> bool:
        """Whether all that can be known is."""
        known = [block for block in range(len(self._found)) if block not in self._unknown]
        return bool(np.isfinite(self._found[known]).all() and np.isfinite(self._rest[known]).all())

    def at_branch(self, block: int, bank: Bank) -> None:
        """Add what a block's branch contributes."""
        program = self._network.program
        branch = program.branches[block]
        dim = program.batch_dim(branch.value)
        if dim is None:
            self._found[block] = self._rest[block] = np.nan
            self._unknown.add(block)
            if self._maps is not None:
                self._maps[block] = np.nan
            return
        value = self._values[branch.value].to(bank.rows)
        found = products(bank.rows, value[None], dim)[:, :, 0].numpy()
        for key, row in zip(bank.keys, found.T, strict=True):
            if key == TAIL:
                self._rest[block] += row
            else:
                self._found[block, key[0]] += row
        direct = bank.take([(0,)])
        if self._maps is not None and direct is not None:
            self._maps[block] = spread(
                over_channels(self._network, block, direct.rows[0] * value), self._maps.shape[2:]
            )

    def arrays(self) -> dict[str, Any]:
        """Return what was found by name."""
        direct = self._found[:, 0]
        found = {
            "contribution": self._found,
            "direct": direct,
            "indirect": self._found[:, 1:].sum(axis=1) + self._rest,
        }
        return found if self._maps is None else {**found, "contribution_map": self._maps}


def map_shape(network: UnraveledNetwork) -> tuple[int, ...]:
    """Return the shape of maps of positions: the finest of the blocks' own, along each dimension.

    Raises:
        InputError: if the blocks' positions have different numbers of dimensions, or none.
    """
    graph, program = network.graph, network.program
    shapes = []
    for branch in program.branches:
        batch, channels = program.batch_dim(branch.value), _channels(network, branch.index)
        sizes = graph.sample_shape(program.nodes[branch.value])
        after = 0 if batch is None or channels is None or channels < batch else 1
        shapes.append(tuple(size for at, size in enumerate(sizes) if channels is None or at != channels - after))
    if len({len(shape) for shape in shapes}) != 1 or not shapes[0]:
        raise InputError(f"{network.name} has no positions that all blocks share: keep_maps needs them")
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True))


def _channels(network: UnraveledNetwork, block: int) -> int | None:
    """Return the dimension of a branch's value that holds its channels; None where no operator tells."""
    program = network.program
    branch = program.branches[block]
    found = channel_dim(program.nodes[branch.source], [program.nodes[at] for at in branch.region])
    return None if found is None else found + int(program.nodes[branch.value].meta["val"].ndim)


def over_channels(network: UnraveledNetwork, block: int, values: Tensor) -> Tensor:
    """Return values of a branch summed over its channels, with the batch first, `[B, *positions]`."""
    batch = network.program.batch_dim(network.program.branches[block].value) or 0
    channels = _channels(network, block)
    whole = values if channels is None else values.sum(channels, keepdim=True)
    first = whole.movedim(batch, 0)
    return first if channels is None else first.squeeze(channels + 1 if channels < batch else channels)


def spread(values: Tensor, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return values `[B, *positions]` on a finer grid `[B, *shape]`, shared by the positions that each covers."""
    found = values.float()
    for dim, size in enumerate(shape, start=1):
        coarse = found.shape[dim]
        covers = torch.arange(size, device=found.device) * coarse // size
        shared = found.movedim(dim, -1) / torch.bincount(covers, minlength=coarse)
        found = shared.index_select(-1, covers).movedim(-1, dim)
    return found.cpu().numpy()
