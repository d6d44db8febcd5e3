"""How many samples, and how many changed networks, share one forward pass."""

import numpy as np
import torch

from resnet_paths_plugin.execution import RunOptions
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

CACHE_BYTES = 4 * 2**20
"""Size that the largest value of a chunk should have on a CPU; larger ones leave the cache."""

SAMPLES_ON_DEVICE = 256
"""Samples in a forward pass on other devices than a CPU, those of schedules side by side together."""


def chunk_size(network: UnraveledNetwork, run: RunOptions | None = None) -> int:
    """Return the number of samples per forward pass whose values suit the cache, and which the network takes."""
    if device_of(network, run).type != "cpu":
        return network.graph.conditions.reached(SAMPLES_ON_DEVICE)
    suits = int(np.clip(CACHE_BYTES // network.program.bytes_per_sample(), 8, 256))
    return network.graph.conditions.reached(suits)


def schedules_side_by_side(network: UnraveledNetwork, run: RunOptions | None, samples: int) -> int:
    """Return the number of schedules per forward pass.

    One on a CPU, where more were measured to be slower unless a batch has fewer than some four samples, and where
    results then do not depend on the number; elsewhere as many as fill a pass. It is a rule and no timing, so that the
    same call rounds alike every time, whoever runs it.

    Args:
        network: the network.
        run: where it runs.
        samples: samples per forward pass of one schedule.
    """
    return 1 if device_of(network, run).type == "cpu" else max(1, SAMPLES_ON_DEVICE // samples)


def device_of(network: UnraveledNetwork, run: RunOptions | None) -> torch.device:
    """Return the device that a network runs on."""
    asked = RunOptions.of(run).device
    return network.device if asked is None else torch.device(asked)
