"""Lesion studies of one small network, and what it takes to compare them."""

import functools

import torch
import xarray as xr
from networks import PreActivation, Transformer, randomised

import resnet_paths_plugin as rpp

IMAGES = (3, 6, 6)
LABELS = torch.tensor([0, 3, 1, 4, 4, 2, 0])


@functools.cache
def network():
    """A network with three blocks `blocks.0` to `blocks.2`, its model, and images."""
    model = randomised(PreActivation()).eval()
    x = torch.randn(7, *IMAGES, generator=torch.Generator().manual_seed(3))
    return rpp.unravel(model, x), model, x


@functools.cache
def transformer():
    model = randomised(Transformer()).eval()
    x = torch.randn(7, *IMAGES, generator=torch.Generator().manual_seed(3))
    return rpp.unravel(model, x), model, x


def study(target=LABELS, **options):
    net, _, x = network()
    return rpp.BlockLesion(net).attribute(x, target, **options)


def assert_same_values(one, other, names=None):
    for name in names or one.data_vars:
        xr.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6)
