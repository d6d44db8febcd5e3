"""A study that tests kill in a process of its own, where it goes on, and the network that it is of."""

from functools import cache

import torch
from networks import PreActivation, randomised
from small_studies import batches

import resnet_paths_plugin as rpp

PATIENCE_S = 600
N_UNITS = 60
"""Tasks of the study."""
DATA = batches(40)


@cache
def network():
    """Return the network, captured once: processes that are forked from this one have it too."""
    torch.manual_seed(1)
    return rpp.unravel(randomised(PreActivation(blocks=3)).eval(), DATA[0][0])


def study(net, checkpoint=None):
    """Two stages: 10 batches times 2 groups of schedules, then 2 pieces of each batch times 2 groups."""
    return rpp.BlockLesion(net).attribute(
        DATA,
        n_deleted=[1, 2],
        draws=20,
        batch_norm="recalibrated",
        internal_batch_size=2,
        run=rpp.RunOptions(checkpoint=checkpoint),
    )
