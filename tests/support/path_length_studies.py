"""Path-length studies of the small networks whose paths can be counted one by one."""

from functools import cache

import numpy as np
import torch
from path_enumeration import squared_norms, summed, twin

import resnet_paths_plugin as rpp

TARGET = 2


@cache
def network(name):
    return rpp.unravel(twin(name).model, twin(name).inputs)


def attribute(name, *, target=TARGET, **options):
    known = twin(name)
    inputs = known.inputs if len(known.inputs) > 1 else known.inputs[0]
    return rpp.PathLengthGradient(network(name)).attribute(inputs, target, **options)


def enumerated(name, key=lambda path: path.length, objective=None):
    """Return the summed gradients of the paths with equal keys."""
    known = twin(name)
    paths = known.paths if objective is None else known.wiring.enumerate(known.inputs, objective)
    return summed(paths, key)


def norms_of(gradients):
    return squared_norms(gradients).sqrt().numpy()


def assert_norms(found, expected):
    """Compare norms `(path_length, sample)` with those of enumerated gradients by length."""
    assert found.sizes["path_length"] == max(expected) + 1
    for length, gradients in expected.items():
        ours = found.sel(path_length=length).values
        np.testing.assert_allclose(ours, norms_of(gradients), rtol=1e-11, atol=1e-13)


def ordinary(model, x, objective):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(objective(model(x)).sum(), x)[0]
