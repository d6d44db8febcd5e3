"""AlongOwnPaths: sampled paths of which each sample of a batch has its own, side by side in one walk.

At each way back the rows that take it are packed to the front, sample by sample, so that a branch gets hardly more rows
than its share of the paths. Row j of a packed bank stands for another path in each sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_paths_plugin.engine.banks import Bank, laid_out_like_images, merged, rescaling_shift
from resnet_paths_plugin.engine.keys import Edge, Key, Lengths
from resnet_paths_plugin.engine.path_graph import PathGraph
from resnet_paths_plugin.engine.routing import Routing
from resnet_paths_plugin.engine.transfer import sent

DRAWN_TOGETHER = 128
"""Paths of a sample that are drawn by one generator, and walk side by side; another number would draw other paths."""

Index = NDArray[np.int64]


@dataclass(frozen=True)
class PathDraws:
    """Paths to draw for each sample, uniformly among those of a length, by a generator of the sample's own.

    Attributes:
        lengths: the length of each path.
        grades: for each block, what its branch adds to the length.
        seed: seed of all generators.
    """

    lengths: tuple[Lengths, ...]
    grades: tuple[Lengths, ...]
    seed: int

    @property
    def starts(self) -> range:
        """The number of the first path of each walk."""
        return range(0, len(self.lengths), DRAWN_TOGETHER)

    def drawn(self, graph: PathGraph, start: int, samples: Sequence[int]) -> "AlongOwnPaths":
        """Return the paths of one walk for some samples.

        Args:
            graph: the graph of paths.
            start: number of the first path, one of `starts`.
            samples: numbers of the samples among all samples of the study.
        """
        lengths = self.lengths[start : start + DRAWN_TOGETHER]
        seeds = (np.random.SeedSequence(self.seed, spawn_key=(start, sample)) for sample in samples)
        generators = [np.random.default_rng(seed) for seed in seeds]
        return AlongOwnPaths(graph, graph.draw_ways(lengths, self.grades, generators))


@dataclass(eq=False)
class AlongOwnPaths(Routing):
    """Gradients of single paths, another one for each sample: row r of sample b goes along path (r, b) only.

    Each row is rescaled by powers of two on its way, for each sample by its own.

    Attributes:
        graph: the graph of paths.
        ways: for the output (None) and each sum, the number of the way back that each path takes, -1 where it does not
            come by, shape `[R, B]`.
        shifts: filled by a walk: positions of paths in the bank at a sum, and what its rows were divided by.
    """

    graph: PathGraph
    ways: dict[int | None, Index]
    shifts: list[tuple[Index, Tensor]] = field(default_factory=list)
    by_edge: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self._edges = [*self.graph.outputs, *(edge for ways in self.graph.edges.values() for edge in ways)]
        self._number = {edge: number for number, edge in enumerate(self._edges)}
        self._lost = np.zeros(self.ways[None].shape, dtype=bool)

    def start(self) -> Sequence[Key]:
        """One row per path, by its number, not divided by anything yet."""
        self._lost[:] = False
        self.shifts.clear()
        return [(row,) for row in range(len(self.ways[None]))]

    def along(self, _edge: Edge, key: Key) -> Key | None:
        """Rows are packed by `taken`."""
        return key

    def taken(self, bank: Bank, edge: Edge) -> Bank | None:
        """Return the rows whose path takes a way back, packed to the front for each sample; None where none does."""
        found = self._found(edge.origin, bank)
        self._lost |= self._takes(edge) & (found < 0)  # on a way that passes no gradient on
        takes = self._takes(edge)
        most = int(takes.sum(0).max(initial=0))
        if not most:
            return None
        chosen = np.zeros((most, takes.shape[1]), dtype=np.int64)  # what is more than a sample's count is read by none
        rows, samples = np.nonzero(takes)
        chosen[self._packed(takes)[rows, samples], samples] = found[rows, samples]
        dim = self.graph.program.batch_dim(edge.term)
        assert dim is not None  # noqa: S101 - checked by `has_own_paths`
        number = self._number[edge]
        return Bank(tuple((number, place) for place in range(most)), _gathered(bank.rows, chosen, dim))

    def at_sum(self, arrived: Sequence[Bank], node: int, /) -> list[Bank]:
        """Divide what is small of each row and sample by powers of two, and note them; rows are packed in one bank."""
        if not arrived:
            return []
        bank = merged(arrived).settled()
        dim = self.graph.program.batch_dim(node)
        assert dim is not None  # noqa: S101 - checked by `has_own_paths`
        moved = bank.rows.movedim(1 + dim, 1)
        shift = rescaling_shift(moved.abs().flatten(2).amax(2) if moved.ndim > 2 else moved.abs())
        self.shifts.append((self._found(node, bank), shift))
        wide = shift.view(*shift.shape, *[1] * (moved.ndim - 2))
        return [Bank(bank.keys, torch.ldexp(moved, -wide).movedim(1, 1 + dim))]

    def at_tap(self, tap: int, bank: Bank, values: Tensor) -> NDArray[np.float64]:
        """Return a number for each path from those of a bank's rows and samples, 0 where a path does not end there.

        Args:
            tap: position of the tap.
            bank: the bank there.
            values: the numbers, shape `[rows, B]`.
        """
        found = self._found(tap, bank)
        each = np.asarray(values.cpu().double())
        result: NDArray[np.float64] = np.where(found < 0, 0.0, np.take_along_axis(each, np.maximum(found, 0), 0))
        return result

    def exponents(self) -> Index:
        """Return the power of two that each path's row has been divided by in all, shape `[R, B]`."""
        total = np.zeros(self.ways[None].shape, dtype=np.int64)
        for found, shift in self.shifts:
            each = np.asarray(shift.cpu()).astype(np.int64)
            total += np.where(found < 0, 0, np.take_along_axis(each, np.maximum(found, 0), 0))
        return total

    def _takes(self, edge: Edge) -> NDArray[np.bool_]:
        ways = self.graph.outputs if edge.origin is None else self.graph.edges[edge.origin]
        taken: NDArray[np.bool_] = (self.ways[edge.origin] == ways.index(edge)) & ~self._lost
        return taken

    @staticmethod
    def _packed(takes: NDArray[np.bool_]) -> Index:
        """Return the place of each path among those of its sample that take the same way."""
        places: Index = np.cumsum(takes, axis=0) - 1
        return places

    def _found(self, node: int | None, bank: Bank) -> Index:
        """Return the row of a bank at a node that each path is in, -1 where it does not come by, shape `[R, B]`."""
        shape = self.ways[None].shape
        if node is None:
            return np.broadcast_to(np.arange(shape[0])[:, None], shape)
        first = {key[0]: place for place, key in reversed(list(enumerate(bank.keys)))}
        found = np.full(shape, -1, dtype=np.int64)
        for edge in self._edges:
            number = self._number[edge]
            if edge.node == node and number in first:
                takes = self._takes(edge)
                found[takes] = first[number] + self._packed(takes)[takes]
        return found


def has_own_paths(graph: PathGraph) -> bool:
    """Whether each sample can go along paths of its own: the batch is a dimension of all that paths meet."""
    edges = [*graph.outputs, *(edge for ways in graph.edges.values() for edge in ways)]
    met = {at for edge in edges for at in (edge.origin, edge.term, edge.node) if at is not None}
    return all(graph.program.batch_dim(at) is not None for at in met)


def _gathered(rows: Tensor, chosen: Index, dim: int) -> Tensor:
    """Return other rows for each sample, laid out as they are.

    Args:
        rows: shape `[R, *value]`.
        chosen: which row, shape `[rows, B]`.
        dim: the dimension of the value that is the batch.
    """
    moved = rows.movedim(1 + dim, 1)
    images = laid_out_like_images(rows[0]) and dim == 0
    moved = moved.permute(0, 1, 3, 4, 2) if images else moved
    batch = moved.shape[1]
    flat = moved.reshape(-1, *moved.shape[2:])
    index = sent((chosen * batch + np.arange(batch)).ravel().tolist(), torch.int64, rows.device)
    found = flat.index_select(0, index).view(len(chosen), batch, *moved.shape[2:])
    return found.permute(0, 1, 4, 2, 3) if images else found.movedim(1, 1 + dim)
