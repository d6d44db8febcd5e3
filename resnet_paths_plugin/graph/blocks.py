"""ResidualBlock: the declared facts of one residual block, and what two blocks need to trade places.

Facts only: nothing here holds a tensor or a module, so blocks can be compared, printed and stored.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, cast

from resnet_paths_plugin.argument_sizes import listed_values
from resnet_paths_plugin.errors import UnknownBlockError

SkipKind = Literal["identity", "scaled", "projection", "gated", "none"]
"""`"none"` is a layer of a plain network, which has no skip: deleted, it becomes the identity."""
BranchType = Literal["convolution", "attention", "mlp", "pooling", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualBlock:
    """One residual block `y_i = s_i(x_i) + f_i(x_i)` of a captured network.

    Attributes:
        index: position in execution order, from 0.
        name: unique name, such as `"layer1.0"` or `"blocks.3.attn"`.
        module: path of the module that owns the sum.
        group: what is handled as one at `level="group"`: the owning module, and which run of it (`":1"`, `":2"`)
            where it runs several times; `"(model)"` for the model's own `forward`.
        skip_kind: what the skip `s_i` does.
        branch_type: what the branch `f_i` is made of.
        stage: stage of the network, from 0; None where it is not known.
        depth: longest chain of weighted operations in the branch.
        source_shape: shape of one sample of the source `x_i` (without the batch).
        sum_shape: shape of one sample of the sum `y_i` (without the batch).
        source: name of the graph value that is `x_i`.
        skip: name of the graph value that is `s_i(x_i)`, a term of the sum.
        branch: name of the graph value that is `f_i(x_i)`, a term of the sum.
        sum: name of the graph value that is `y_i`.
        gate: name of the graph value that multiplies the branch of a gated block; None for other blocks.

    Examples:
        >>> block = net.block("layer2.0")
        >>> block.index, block.skip_kind, block.source_shape, block.sum_shape, block.movable
        (2, 'projection', (8, 8, 8), (16, 4, 4), False)
    """

    index: int
    name: str
    module: str
    group: str
    skip_kind: SkipKind
    branch_type: BranchType
    stage: int | None
    depth: int
    source_shape: tuple[int, ...]
    sum_shape: tuple[int, ...]
    source: str
    skip: str
    branch: str
    sum: str
    gate: str | None = None

    @property
    def movable(self) -> bool:
        """Whether the block may trade places with another: its skip is no projection."""
        return self.skip_kind != "projection"


BlockLike = ResidualBlock | str | int
"""A block by object, name or index (from 0)."""


def listed(blocks: BlockLike | Iterable[BlockLike]) -> list[BlockLike]:
    """Return one block, or several, as a list; numbers of any integer type are indices.

    Raises:
        UnknownBlockError: if it is neither a block nor several.
    """
    if isinstance(blocks, ResidualBlock | str | Integral):
        return [cast("BlockLike", blocks)]
    if not isinstance(blocks, Iterable):
        raise UnknownBlockError(f"a block is given by name, index or object, and blocks by a list, not by {blocks!r}")
    return listed_values(blocks, "a list of blocks")


def why_not(branch: ResidualBlock, place: ResidualBlock) -> str | None:
    """Return why the branch of one block cannot run at the place of another, by the facts; None if it can."""
    for block in (branch, place):
        if not block.movable:
            return f"the skip of {block.name!r} is a projection, so it has to stay where it is"
    if branch.source_shape != place.source_shape or branch.sum_shape != place.sum_shape:
        return (
            f"{branch.name!r} maps {branch.source_shape} to {branch.sum_shape}, "
            f"{place.name!r} maps {place.source_shape} to {place.sum_shape}"
        )
    return None
