"""The blocks of a network by what they are given as: name, index, object, group, or label of a study."""

import difflib
from collections.abc import Sequence
from numbers import Integral

from resnet_paths_plugin.errors import UnknownBlockError
from resnet_paths_plugin.graph.blocks import BlockLike, ResidualBlock


class NamedBlocks:
    """Looks the blocks of a network up.

    Args:
        network: the network's name, for errors.
        blocks: its blocks, in execution order.
        layers: whether these are layers of a plain network, which have no groups.
    """

    def __init__(self, network: str, blocks: Sequence[ResidualBlock], *, layers: bool) -> None:
        self._network = network
        self._blocks = blocks
        self._layers = layers
        self._by_name = {block.name: block for block in blocks}

    def block(self, block: BlockLike) -> ResidualBlock:
        """Return a block by name, index (from 0) or object.

        Raises:
            UnknownBlockError: if there is no such block; the nearest names are given.
        """
        if isinstance(block, ResidualBlock):
            block = block.name
        if isinstance(block, str):
            if block in self._by_name:
                return self._by_name[block]
            noun = "layer" if self._layers else "block"
            raise UnknownBlockError(f"{self._network} has no {noun} {block!r}. {self._known(block)}")
        if not isinstance(block, Integral) or isinstance(block, bool):
            raise UnknownBlockError(f"a block is given by name, index or object, not by {block!r}")
        count = len(self._blocks)
        if not -count <= block < count:
            raise UnknownBlockError(f"{self._network} has no block {block}: its {count} blocks count from 0")
        return self._blocks[int(block)]

    def blocks_of(self, block: BlockLike) -> list[ResidualBlock]:
        """Return the blocks that a name, a group or a label stands for.

        Raises:
            UnknownBlockError: if it stands for none, or is a block's name and another group's alike.
        """
        if not isinstance(block, str):
            return [self.block(block)]
        group = [] if self._layers else [one for one in self._blocks if one.group == block]
        if block in self._by_name:
            named = self._by_name[block]
            if group and group != [named]:
                label = "+".join(one.name for one in group)
                raise UnknownBlockError(
                    f"{block!r} is a block of {self._network}, and the group of the blocks {label!r}: give the block "
                    f"as net.block({block!r}) or by its index {named.index}, the group as {label!r} or by index"
                )
            return [named]
        if not group and "+" in block:
            return [one for part in block.split("+") for one in self._part(part)]
        return group or [self.block(block)]

    def _part(self, name: str) -> list[ResidualBlock]:
        """Return the blocks of one part of a label, in which names are those of blocks wherever there is one."""
        return [self._by_name[name]] if name in self._by_name else self.blocks_of(name)

    def _known(self, name: str) -> str:
        close = difflib.get_close_matches(name, self._by_name, n=3)
        if close:
            return f"Did you mean {', '.join(map(repr, close))}?"
        if not self._blocks:
            return f"It has no {'layers that can be deleted' if self._layers else 'residual blocks'}"
        names = ", ".join(map(repr, list(self._by_name)[:4]))
        return f"Its {len(self._blocks)} blocks are named {names}, ..."
