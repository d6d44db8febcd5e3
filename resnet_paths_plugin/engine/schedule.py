"""Schedule: which branches are added where, with which weights. The only way to intervene in a forward pass."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import SymInt, Tensor

from resnet_paths_plugin.engine.linear_map import LinearMap
from resnet_paths_plugin.engine.program import Program
from resnet_paths_plugin.errors import ScheduleError
from resnet_paths_plugin.graph.blocks import BlockLike, ResidualBlock

Row = tuple[tuple[int, float], ...]


class HasBlocks(Protocol):
    """What schedules need to know of a network: its blocks, and which of them may run where."""

    @property
    def name(self) -> str:
        """The network's name, for messages."""

    @property
    def blocks(self) -> tuple[ResidualBlock, ...]:
        """The blocks, in execution order."""

    @property
    def program(self) -> Program:
        """The graph and its blocks, ready to run."""

    def block(self, block: BlockLike) -> ResidualBlock:
        """Return one block by name, index or object."""

    def select(self, blocks: BlockLike | Iterable[BlockLike]) -> tuple[ResidualBlock, ...]:
        """Return one or several blocks, each once, in execution order."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The weights `w_ij`, constants `c_i` and maps `A_i` of `y_i = s_i(x_i) + sum_j w_ij f_j(x_i) + c_i + A_i x_i`.

    Only rows that differ from the intact network's (`w_ii = 1`, nothing else) are stored. Lesions, reorderings,
    repetitions, parallel and scaled branches and ablations are all schedules. Build one with the class methods.
    Layers of a plain network have no skip: there `y_i = sum_j w_ij f_j(x_i)`, and `x_i` where nothing is added.

    Attributes:
        n_blocks: number of blocks `n` of the network it is made for.
        rows: for block `i` (from 0), the pairs `(j, w_ij)` with `w_ij != 0`.
        constants: for block `i`, the tensor `c_i`, which broadcasts against the sum.
        linear: for block `i`, the affine map over channels that is applied to the source `x_i`.

    Examples:
        >>> schedule = rpp.Schedule.lesion(net, ["layer1.1"])
        >>> schedule.deleted
        (1,)
        >>> torch.equal(net.scheduled(schedule)(images), net.lesioned(["layer1.1"])(images))
        True
    """

    n_blocks: int
    rows: Mapping[int, Row] = field(default_factory=dict)
    constants: Mapping[int, Tensor] = field(default_factory=dict)
    linear: Mapping[int, LinearMap] = field(default_factory=dict)

    def row(self, block: int) -> Row:
        """Return the pairs `(j, w_ij)` of block `i`."""
        return self.rows.get(block, ((block, 1.0),))

    def changes(self, block: int) -> bool:
        """Whether block `i` differs from the intact network."""
        return block in self.rows or block in self.constants or block in self.linear

    def substituted(self, constants: Mapping[int, Tensor], linear: Mapping[int, LinearMap] | None = None) -> "Schedule":
        """Return this schedule with constants or maps added where a branch is deleted; the others are not used."""
        deleted = set(self.deleted)
        constants = {block: constant for block, constant in constants.items() if block in deleted}
        linear = {block: applied for block, applied in (linear or {}).items() if block in deleted}
        if not constants and not linear:
            return self
        return Schedule(self.n_blocks, self.rows, {**self.constants, **constants}, {**self.linear, **linear})

    @property
    def deleted(self) -> tuple[int, ...]:
        """The blocks at whose sums no branch is added."""
        return tuple(block for block, row in self.rows.items() if not row)

    @property
    def weights(self) -> NDArray[np.float64]:
        """All weights `w_ij`, shape `(n, n)`, float64."""
        matrix = np.eye(self.n_blocks)
        for block, row in self.rows.items():
            matrix[block] = 0.0
            for branch, weight in row:
                matrix[block, branch] += weight
        return matrix

    @classmethod
    def identity(cls, net: HasBlocks) -> "Schedule":
        """The intact network.

        Examples:
            >>> torch.equal(net.scheduled(rpp.Schedule.identity(net))(images), model(images))
            True
        """
        return cls(len(net.blocks))

    @classmethod
    def lesion(cls, net: HasBlocks, blocks: BlockLike | Iterable[BlockLike]) -> "Schedule":
        """Delete the branches of some blocks; their skips stay, a projection included (Veit et al. 2016, Sec. 4.1).

        Raises:
            UnknownBlockError: if the network does not have one of the blocks.

        Examples:
            >>> rpp.Schedule.lesion(net, ["layer1.1", "layer3.1"]).deleted
            (1, 5)
        """
        return cls(len(net.blocks), {block.index: () for block in net.select(blocks)})

    @classmethod
    def order(cls, net: HasBlocks, order: Sequence[BlockLike]) -> "Schedule":
        """Run the branch of block `order[i]` at place `i` (Veit et al. 2016, Sec. 4.3).

        Args:
            net: the network.
            order: a permutation of all blocks, by name, index or object.

        Raises:
            ScheduleError: if `order` is no permutation, or moves a branch to where it does not fit.

        Examples:
            >>> rpp.Schedule.order(net, [1, 0, 2, 3, 4, 5]).weights[:2, :2].tolist()
            [[0.0, 1.0], [1.0, 0.0]]
        """
        moved = [net.block(block).index for block in order]
        if sorted(moved) != list(range(len(net.blocks))):
            raise ScheduleError(
                f"an order must name each of the {len(net.blocks)} blocks once; this one has {len(moved)} entries"
                f" and {len(set(moved))} different blocks"
            )
        return cls.from_rows(net, {place: ((branch, 1.0),) for place, branch in enumerate(moved) if branch != place})

    @classmethod
    def scaled(cls, net: HasBlocks, factor: float, blocks: BlockLike | Iterable[BlockLike] | None = None) -> "Schedule":
        """Multiply the branches of some blocks, by default of all, by a factor.

        Raises:
            ScheduleError: if the factor is no finite number.

        Examples:
            >>> rpp.Schedule.scaled(net, 0.5, ["layer1.0"]).row(0)
            ((0, 0.5),)
        """
        chosen = net.blocks if blocks is None else net.select(blocks)
        try:
            weight = float(factor)
        except (TypeError, ValueError, OverflowError) as error:
            raise ScheduleError(
                f"a branch is multiplied by a finite number, not by {type(factor).__name__}: {error}"
            ) from error
        return cls.from_rows(net, {block.index: ((block.index, weight),) for block in chosen})

    @classmethod
    def repeated(cls, net: HasBlocks, block: BlockLike, places: BlockLike | Iterable[BlockLike]) -> "Schedule":
        """Run the branch of one block at the places of several.

        Raises:
            ScheduleError: if it does not fit one of the places.

        Examples:
            >>> rpp.Schedule.repeated(net, "layer1.0", places=["layer1.1"]).row(1)  # it runs twice
            ((0, 1.0),)
        """
        branch = net.block(block).index
        rows = {place.index: ((branch, 1.0),) for place in net.select(places)}
        return cls.from_rows(net, {place: row for place, row in rows.items() if place != branch})

    @classmethod
    def parallel(
        cls,
        net: HasBlocks,
        blocks: Iterable[BlockLike],
        *,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> "Schedule":
        """Run the branches of several blocks side by side, all on the source of the first of them.

        Args:
            net: the network.
            blocks: the blocks; their branches' mean or sum is added at the first one's sum, and nothing at the others'.
            reduction: `"mean"` of the branches, or their `"sum"`.

        Raises:
            ScheduleError: if a branch does not fit the first one's place, or there is no block.

        Examples:
            >>> side_by_side = rpp.Schedule.parallel(net, ["layer1.0", "layer1.1"])
            >>> side_by_side.row(0), side_by_side.row(1)
            (((0, 0.5), (1, 0.5)), ())
        """
        if reduction not in {"mean", "sum"}:
            raise ScheduleError(f"reduction must be 'mean' or 'sum', not {reduction!r}")
        chosen = [block.index for block in net.select(blocks)]
        if not chosen:
            raise ScheduleError("there is no block to run in parallel: name at least one")
        weight = 1 / len(chosen) if reduction == "mean" else 1.0
        rows: dict[int, Row] = dict.fromkeys(chosen[1:], ())
        return cls.from_rows(net, {chosen[0]: tuple((branch, weight) for branch in chosen), **rows})

    @classmethod
    def from_weights(cls, net: HasBlocks, weights: NDArray[np.floating]) -> "Schedule":
        """Take all weights `w_ij` from a matrix of shape `(n, n)`.

        Raises:
            ScheduleError: if the shape is another, a weight is not finite, or a branch does not fit its place.

        Examples:
            >>> weights = rpp.Schedule.identity(net).weights
            >>> weights[1, 1] = 0.0
            >>> rpp.Schedule.from_weights(net, weights).deleted
            (1,)
        """
        matrix = np.asarray(weights, dtype=np.float64)
        n = len(net.blocks)
        if matrix.shape != (n, n):
            raise ScheduleError(f"weights must have shape ({n}, {n}), one row per block, not {matrix.shape}")
        rows = {
            place: tuple((int(branch), float(matrix[place, branch])) for branch in np.flatnonzero(matrix[place]))
            for place in range(n)
        }
        return cls.from_rows(net, {place: row for place, row in rows.items() if row != ((place, 1.0),)})

    @classmethod
    def from_rows(
        cls,
        net: HasBlocks,
        rows: Mapping[int, Row],
        constants: Mapping[int, Tensor] | None = None,
        linear: Mapping[int, LinearMap] | None = None,
    ) -> "Schedule":
        """Take rows as they are, after checking that each branch fits where it is put.

        Raises:
            ScheduleError: if a weight is not finite, a branch does not fit its place (both blocks are named), or a
                constant or a map does not fit its sum.

        Examples:
            >>> both = rpp.Schedule.from_rows(net, {1: ((0, 0.5), (1, 0.5))})  # at the second sum, half of each branch
            >>> both.weights[1].tolist()
            [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]
        """
        n = len(net.blocks)
        strange = {at for place, row in rows.items() for at in (place, *(j for j, _ in row)) if not 0 <= at < n}
        if strange:
            raise ScheduleError(f"rows name blocks {sorted(strange)}: {net.name} has {n} blocks, counted from 0")
        for place, row in rows.items():
            for branch, weight in row:
                if not np.isfinite(weight):
                    raise ScheduleError(f"the weight of {net.blocks[branch].name!r} is {weight}, not a finite number")
                net.program.check_placement(branch, place)
        for place, constant in (constants or {}).items():
            _check_constant(net, place, constant)
        for place, applied in (linear or {}).items():
            _check_linear(net, place, applied)
        kept = {place: tuple((j, w) for j, w in row if w != 0) for place, row in rows.items()}
        return cls(len(net.blocks), kept, dict(constants or {}), dict(linear or {}))


def _check_constant(net: HasBlocks, place: int, constant: Tensor) -> None:
    block = _block_at(net, place, "constants")
    shape = net.program.nodes[net.program.sums[net.program.branches[place].sum].root].meta["val"].shape
    fits = constant.ndim <= len(shape) and all(
        size == 1 or isinstance(want, SymInt) or size == want
        for size, want in zip(reversed(constant.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ScheduleError(
            f"the constant of {block.name!r} has shape {list(constant.shape)}, which does not broadcast to its sum's, "
            f"{list(block.sum_shape)} for each sample"
        )


def _check_linear(net: HasBlocks, place: int, applied: LinearMap) -> None:
    block, program = _block_at(net, place, "linear maps"), net.program
    branch = program.branches[place]
    source, root = (program.nodes[at].meta["val"] for at in (branch.source, program.sums[branch.sum].root))
    if program.sums[branch.sum].is_layer:
        raise ScheduleError(f"{block.name!r} is a layer, and a linear map stands in for the branch beside a skip")
    if applied.weight.dtype != source.dtype:
        raise ScheduleError(
            f"the linear map of {block.name!r} is of {applied.weight.dtype}, and its source of {source.dtype}: give "
            "weight and bias that dtype"
        )
    batch = program.batch_dim(branch.source)
    if len(applied.strides) != source.ndim or (batch is not None and applied.strides[batch] != 1):
        raise ScheduleError(
            f"the linear map of {block.name!r} needs {source.ndim} strides, one for each dimension of its source with "
            f"1 at the batch, not {tuple(applied.strides)}"
        )
    with suppress(Exception):
        sizes = [2 if isinstance(size, SymInt) else size for size in source.shape]
        found = applied.to(torch.device("meta"))(torch.empty(sizes, dtype=applied.weight.dtype, device="meta"))
        if found.ndim == root.ndim and all(
            isinstance(want, SymInt) or size == want for size, want in zip(found.shape, root.shape, strict=True)
        ):
            return
    raise ScheduleError(
        f"the linear map of {block.name!r}, {list(applied.weight.shape)} at dimension {applied.dim} with strides "
        f"{applied.strides}, does not take its source, {list(block.source_shape)}, to its sum, {list(block.sum_shape)} "
        "for each sample"
    )


def _block_at(net: HasBlocks, place: int, what: str) -> ResidualBlock:
    if not 0 <= place < len(net.blocks):
        raise ScheduleError(f"{what} name block {place}: {net.name} has {len(net.blocks)} blocks, counted from 0")
    return net.blocks[place]
