"""How many blocks to delete for a share of the latency: estimated before a search, and chosen after it."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import xarray as xr

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.network.costs import latencies, measured_module
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

Search = Callable[[Callable[[], range]], tuple[range, xr.Dataset]]

_BELOW, _ABOVE = 2, 3
"""Sizes below and above the estimate that are searched for."""


def most_deleted(network: UnraveledNetwork, free: list[int]) -> int:
    """Return how many blocks can be deleted of those that may be: never all of a network's."""
    return min(len(free), len(network.blocks) - 1)


def sizes_for_latency(network: UnraveledNetwork, args: tuple[Any, ...], share: float, free: list[int]) -> range:
    """Return numbers of blocks among which one leaves about a share of the latency.

    Blocks are taken to save alike, which they may not: `fewest_fast_enough` looks further where they do not.

    Args:
        network: the network.
        args: arguments that are timed.
        share: the largest share of the intact network's latency that may be left.
        free: the blocks that may be deleted.

    Raises:
        InputError: if no number of blocks leaves so little.
    """
    most = most_deleted(network, free)
    views = (network.lesioned(()), network.lesioned(free[:most]))
    before, after = latencies([measured_module(network, view.schedule) for view in views], args)
    if after > share * before:
        raise InputError(
            f"--keep-latency {share:g} cannot be reached: without {most} of its {len(network.blocks)} blocks "
            f"{network.name} still takes {after / before:.0%} of the time. Choose a larger share"
        )
    size = math.ceil(most * (1 - share) / (1 - after / before))
    return range(max(1, size - _BELOW), min(most, size + _ABOVE) + 1)


def fewest_fast_enough(
    search: Search, chosen: Callable[[], range], most: int, method: str, share: float
) -> tuple[xr.Dataset, int]:
    """Search for sets of more and more sizes until the share lies between two of them.

    Args:
        search: chooses sizes, or takes those that an earlier run chose; returns them and the selection for them.
        chosen: returns the sizes to begin with.
        most: the largest size there is.
        method: the search whose sets count.
        share: the share of the intact network's time.

    Returns:
        A selection, and the place in it of its smallest set whose network takes at most that share. The set of one
        block less was searched too, and its network takes more.

    Raises:
        InputError: if no set is fast enough.
    """
    too_few = 0
    while True:
        sizes, ds = search(chosen)
        too_few = min(too_few, sizes[0] - 1)
        ratios = _ratios(ds, method)
        fast = [place for place, ratio in ratios.items() if ratio <= share]
        if fast:
            place = min(fast, key=lambda place: int(ds["n_deleted"][place]))
            if int(ds["n_deleted"][place]) > sizes[0] or sizes[0] == too_few + 1:
                return ds, place
            following = range(max(too_few + 1, sizes[0] - 2 * len(sizes)), sizes[0] + 1)
        elif sizes[-1] < most:
            too_few = sizes[-1]
            following = range(too_few + 1, min(most, too_few + 2 * len(sizes)) + 1)
        else:
            place = min(ratios, key=ratios.__getitem__)
            raise InputError(
                f"--keep-latency {share:g} was not reached: without {int(ds['n_deleted'][place])} blocks the network "
                f"still takes {ratios[place]:.0%} of the time. Choose a larger share, or give --delete"
            )
        chosen = partial(range, following.start, following.stop)


def timed_again(network: UnraveledNetwork, args: tuple[Any, ...], ds: xr.Dataset, place: int) -> xr.Dataset:
    """Return a selection with new latencies of the intact network and of one set, which was chosen for the old ones.

    Args:
        network: the network.
        args: arguments that are timed.
        ds: the selection.
        place: the place of the set.
    """
    names = ds["block"].values[ds["deleted"].values[place]].tolist()
    views = (network.lesioned(()), network.lesioned(names))
    before, after = latencies([measured_module(network, view.schedule) for view in views], args)
    ds = ds.copy(deep=True)
    ds["intact_latency"].values[...] = before
    ds["latency"].values[place] = after
    return ds


def _ratios(ds: xr.Dataset, method: str) -> dict[int, float]:
    """Return the share of the intact network's time that each set of a search takes, by its place."""
    ratios = ds["latency"].values / float(ds["intact_latency"])
    return {place: float(ratios[place]) for place, name in enumerate(ds["method"].values) if name == method}
