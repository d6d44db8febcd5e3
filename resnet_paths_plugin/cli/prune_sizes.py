"""How many blocks to delete for a share of the latency: estimated before a search, and chosen after it."""

import math
from typing import Any

import xarray as xr

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.network.costs import latencies, measured_module
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

_BELOW, _ABOVE = 2, 3
"""Sizes below and above the estimate that are searched for."""


def sizes_for_latency(network: UnraveledNetwork, args: tuple[Any, ...], share: float, free: list[int]) -> range:
    """Return numbers of blocks among which one leaves about a share of the latency.

    Blocks are taken to save alike; the range is wide enough for those that do not.

    Args:
        network: the network.
        args: arguments that are timed.
        share: the share of the intact network's latency that is to be left at most.
        free: the blocks that may be deleted.

    Raises:
        InputError: if no number of blocks leaves so little.
    """
    most = min(len(free), len(network.blocks) - 1)
    views = (network.lesioned(()), network.lesioned(free[:most]))
    before, after = latencies([measured_module(network, view.schedule) for view in views], args)
    if after > share * before:
        raise InputError(
            f"--keep-latency {share:g} cannot be reached: without {most} of its {len(network.blocks)} blocks "
            f"{network.name} still takes {after / before:.0%} of the time. Choose a larger share"
        )
    size = math.ceil(most * (1 - share) / (1 - after / before))
    return range(max(1, size - _BELOW), min(most, size + _ABOVE) + 1)


def smallest_fast_enough(ds: xr.Dataset, method: str, share: float) -> int:
    """Return the place of the smallest chosen set whose network takes at most a share of the intact one's time.

    Args:
        ds: the selection.
        method: the search whose sets count.
        share: the share.

    Raises:
        InputError: if none of them does.
    """
    ratios = ds["latency"].values / float(ds["intact_latency"])
    chosen = [place for place, name in enumerate(ds["method"].values) if name == method]
    fast = [place for place in chosen if ratios[place] <= share]
    if not fast:
        place = min(chosen, key=lambda place: ratios[place])
        raise InputError(
            f"--keep-latency {share:g} was not reached: without {int(ds['n_deleted'][place])} blocks the network "
            f"still takes {ratios[place]:.0%} of the time. Choose a larger share, or give --delete"
        )
    return min(fast, key=lambda place: int(ds["n_deleted"][place]))
