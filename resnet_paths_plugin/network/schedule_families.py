"""Families of schedules: a kind of change, made at every place of a network. Each returns schedules by name.

`BlockSchedules` runs them; `functools.partial` sets their options.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Literal

from resnet_paths_plugin.argument_sizes import listed_values
from resnet_paths_plugin.engine.schedule import Row, Schedule
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.blocks import BlockLike, ResidualBlock
from resnet_paths_plugin.network.levels import Level, placements, units_of
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

__all__ = [
    "Family",
    "adjacent_swaps",
    "parallel_ranges",
    "repeated_blocks",
    "reversed_ranges",
    "scaled_branches",
    "skipped_ranges",
]

Family = Callable[[UnraveledNetwork], Mapping[str, Schedule]]
"""Makes the schedules of one kind for a network, by name."""

Range = Sequence[tuple[str, tuple[ResidualBlock, ...]]]
"""Consecutive units: name and blocks of each."""

Lengths = int | Iterable[int] | None


def adjacent_swaps(net: UnraveledNetwork, *, level: Level = "block") -> dict[str, Schedule]:
    """Let every two neighbours trade places that may.

    Examples:
        >>> list(rpp.schedules.adjacent_swaps(net))
        ['swap layer1.0 and layer1.1']
    """
    return {
        f"swap {pair[0][0]} and {pair[1][0]}": _rearranged(net, pair, pair[::-1]) for pair in _ranges(net, level, 2)
    }


def reversed_ranges(net: UnraveledNetwork, *, lengths: Lengths = None, level: Level = "block") -> dict[str, Schedule]:
    """Reverse the order of consecutive blocks (Sun et al. 2025, "Transformer Layers as Painters").

    Args:
        net: the network.
        lengths: how many blocks (or groups) a range has; None takes each longest range whose blocks may trade places.
        level: whether single blocks or groups change places.

    Examples:
        >>> list(rpp.schedules.reversed_ranges(net))
        ['reverse layer1.0..layer1.1']
    """
    return {f"reverse {_span(units)}": _rearranged(net, units, units[::-1]) for units in _ranges(net, level, lengths)}


def repeated_blocks(net: UnraveledNetwork, *, lengths: Lengths = None, level: Level = "block") -> dict[str, Schedule]:
    """Run the middle of consecutive blocks at the places of all of them (Sun et al. 2025, "middle repeat").

    Args:
        net: the network.
        lengths: how many blocks (or groups) a range has; None takes each longest range whose blocks may trade places.
        level: whether single blocks or groups are repeated.

    Examples:
        >>> list(rpp.schedules.repeated_blocks(net))
        ['repeat layer1.1 at layer1.0..layer1.1']
    """
    return {
        f"repeat {units[len(units) // 2][0]} at {_span(units)}": _rearranged(
            net, units, [units[len(units) // 2]] * len(units)
        )
        for units in _ranges(net, level, lengths)
    }


def parallel_ranges(
    net: UnraveledNetwork, *, lengths: Lengths = None, reduction: Literal["mean", "sum"] = "mean"
) -> dict[str, Schedule]:
    """Run consecutive blocks side by side on the source of the first of them (Sun et al. 2025, "parallel").

    Single blocks only: what a whole transformer layer computes is no branch of one sum.

    Args:
        net: the network.
        lengths: how many blocks a range has; None takes each longest range whose blocks may trade places.
        reduction: whether the `"mean"` or the `"sum"` of the branches is added.

    Examples:
        >>> list(rpp.schedules.parallel_ranges(net, reduction="sum"))
        ['parallel layer1.0..layer1.1']
    """
    return {
        f"parallel {_span(units)}": Schedule.parallel(net, [unit[0] for _, unit in units], reduction=reduction)
        for units in _ranges(net, "block", lengths)
    }


def scaled_branches(
    net: UnraveledNetwork,
    *,
    factors: float | Iterable[float] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5),
    blocks: Iterable[BlockLike] | None = None,
) -> dict[str, Schedule]:
    """Multiply the branches of some blocks, by default of all, by one factor after the other.

    Examples:
        >>> list(rpp.schedules.scaled_branches(net, factors=[0.5, 1.5]))
        ['scale 0.5', 'scale 1.5']
    """
    chosen = None if blocks is None else list(blocks)
    listed = listed_values(factors, "factors") if isinstance(factors, Iterable) else [factors]
    scaled = [(factor, Schedule.scaled(net, factor, chosen)) for factor in listed]
    return {f"scale {float(factor)!r}": schedule for factor, schedule in scaled}


def skipped_ranges(net: UnraveledNetwork, *, lengths: Lengths = None, level: Level = "block") -> dict[str, Schedule]:
    """Delete consecutive blocks.

    Args:
        net: the network.
        lengths: how many blocks (or groups) a range has; None takes every length from every start.
        level: whether single blocks or groups are deleted.

    Examples:
        >>> list(rpp.schedules.skipped_ranges(net, lengths=5))
        ['skip layer1.0..layer3.0', 'skip layer1.1..layer3.1']
    """
    units = list(units_of(net, level).items())
    sizes = range(1, len(units) + 1) if lengths is None else _sizes(lengths, len(units))
    found = (units[start : start + size] for size in sizes for start in range(len(units) - size + 1))
    return {f"skip {_span(part)}": Schedule.lesion(net, [b for _, unit in part for b in unit]) for part in found}


def _rearranged(net: UnraveledNetwork, places: Range, units: Range) -> Schedule:
    """Run the blocks of each unit at the places of another one's."""
    rows: dict[int, Row] = {}
    for (_, there), (_, unit) in zip(places, units, strict=True):
        rows |= {place.index: ((block.index, 1.0),) for place, block in zip(there, unit, strict=True) if place != block}
    return Schedule.from_rows(net, rows)


def _ranges(net: UnraveledNetwork, level: Level, lengths: Lengths) -> Iterator[Range]:
    """Yield ranges of neighbours of which any may take the place of any other."""
    units = units_of(net, level)
    fits = placements(net, units)
    runs: list[list[int]] = []
    for at in range(len(units)):
        if runs and all(fits[at, other] and fits[other, at] for other in runs[-1]):
            runs[-1].append(at)
        else:
            runs.append([at])
    sizes = None if lengths is None else _sizes(lengths, len(units))
    listed = list(units.items())
    for run in runs:
        members = [listed[at] for at in run]
        if sizes is None:
            if len(run) > 1:
                yield members
            continue
        for size in sizes:
            for start in range(len(run) - size + 1):
                yield members[start : start + size]


def _sizes(lengths: int | Iterable[int], largest: int) -> list[int]:
    sizes = listed_values(lengths, "lengths") if isinstance(lengths, Iterable) else [lengths]
    for size in sizes:
        if not isinstance(size, Integral) or isinstance(size, bool) or not 1 <= size <= largest:
            raise InputError(f"lengths must be between 1 and {largest}, the number of units, not {size!r}")
    return [int(size) for size in sizes]


def _span(units: Range) -> str:
    return units[0][0] if len(units) == 1 else f"{units[0][0]}..{units[-1][0]}"
