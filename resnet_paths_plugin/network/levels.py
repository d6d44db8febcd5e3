"""What a study changes as one: single blocks, or groups of blocks such as whole transformer layers."""

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from resnet_paths_plugin.errors import InputError, UnknownBlockError
from resnet_paths_plugin.graph.blocks import BlockLike, ResidualBlock
from resnet_paths_plugin.network.captured_network import CapturedNetwork

Level = Literal["block", "group"]
"""`"block"`, or `"group"`: all blocks of one owning module."""

Units = Mapping[str, tuple[ResidualBlock, ...]]
"""The blocks of each unit by its name, in execution order."""


def units_of(network: CapturedNetwork, level: Level) -> Units:
    """Return what is changed as one, by name, in execution order.

    A group that has the name of another block goes by the names of its blocks, joined by "+".

    Raises:
        InputError: if there is no such level.
    """
    if level == "block":
        return {block.name: (block,) for block in network.blocks}
    if level == "group":
        if network.units == "layers":
            raise InputError("layers of a plain network come in no groups: leave level='block'")
        groups: dict[str, tuple[ResidualBlock, ...]] = {}
        for block in network.blocks:
            groups[block.group] = (*groups.get(block.group, ()), block)
        names = {block.name: (block,) for block in network.blocks}
        return {
            name if names.get(name, members) == members else "+".join(block.name for block in members): members
            for name, members in groups.items()
        }
    raise InputError(f"level must be 'block' or 'group', not {level!r}")


def unit_names(network: CapturedNetwork, units: Units, level: Level, members: Iterable[BlockLike]) -> list[str]:
    """Return the names of the units that are given by name, or by blocks of them, as they are given.

    Raises:
        UnknownBlockError: if the network has no such block or group.
    """
    names: list[str] = []
    group_of = {block: name for name, unit in units.items() for block in unit}
    for member in members:
        if level == "block":
            names.extend(block.name for block in network.blocks_of(member))
        elif isinstance(member, str) and member in units:
            names.append(member)
        elif isinstance(member, Integral):
            raise UnknownBlockError(
                f"at level 'group', groups are given by name or by a block of them, not by {member}"
            )
        else:
            named = network.blocks_of(member)
            names.extend(dict.fromkeys(group_of[block] for block in named))
    return names


def placements(network: CapturedNetwork, units: Units) -> NDArray[np.bool_]:
    """Return whether a unit can run at the place of another one, shape `(units, units)`: `[unit, place]`."""
    fits = network.program.fits
    members = [[block.index for block in unit] for unit in units.values()]
    return np.array(
        [[len(unit) == len(place) and bool(fits[unit, place].all()) for place in members] for unit in members],
        dtype=bool,
    )


def swappable(fits: NDArray[np.bool_], order: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the pairs of places whose units can trade places.

    Args:
        fits: from `placements`.
        order: for each place the unit that is there now.

    Returns:
        The pairs, shape `(pairs, 2)`, lower place first.
    """
    there = fits[order]
    return np.argwhere(np.triu(there & there.T, 1))
