"""Path gradients beside infinite slopes are what autograd makes of them: 0, infinite or NaN at the same places.

The paths of a length may add up to NaN where the model's own gradient is infinite: a path is 0 times infinity there.
"""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import resnet_paths_plugin as rpp

pytestmark = pytest.mark.slow

POINTS = (0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e38, -1e38, 1e-45, 0.5, -0.5, 1.0, -1.0, 3.0, -3.0, 6.0, 20.5)

ELEMENTWISE = {
    "relu": torch.relu,
    "relu6": functional.relu6,
    "leaky_relu": functional.leaky_relu,
    "leaky_relu of 0": lambda z: functional.leaky_relu(z, 0.0),
    "elu": functional.elu,
    "celu": functional.celu,
    "selu": functional.selu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "mish": functional.mish,
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "hardtanh": functional.hardtanh,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": functional.softplus,
    "clamp": lambda z: z.clamp(-0.5, 3.0),
    "clamp_min": lambda z: z.clamp_min(0.0),
    "clamp_max": lambda z: z.clamp_max(0.5),
    "threshold": lambda z: functional.threshold(z, 0.5, 0.0),
    "hardshrink": functional.hardshrink,
    "softshrink": functional.softshrink,
    "where": lambda z: torch.where(z > 0, z, torch.zeros_like(z)),
    "masked_fill": lambda z: z.masked_fill(z <= 0, 0.0),
    "maximum": lambda z: torch.maximum(z, torch.zeros_like(z)),
    "abs": torch.abs,
    "times a mask": lambda z: z * (z > 0),
    "square": lambda z: z * z,
    "exp": torch.exp,
}
STEEP = {
    "nothing": lambda z: z,
    "sqrt": torch.sqrt,
    "log": torch.log,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "cube root": lambda z: z.abs().pow(1 / 3),
    "atanh": torch.atanh,
    "a large factor": lambda z: z * 3e38,
}


class Elements(nn.Module):
    """Two blocks of elementwise operators, one steep function on each channel; channels stay apart."""

    def __init__(self, operator):
        super().__init__()
        self.f = nn.ModuleList(nn.Conv1d(len(STEEP), len(STEEP), 1, groups=len(STEEP), bias=False) for _ in range(2))
        for f in self.f:
            nn.init.ones_(f.weight)
        self.operator = operator

    def branch(self, f, x):
        z = self.operator(f(x))
        return torch.cat([steep(z[:, at : at + 1]) for at, steep in enumerate(STEEP.values())], 1)

    def forward(self, x):
        for f in self.f:
            x = x + self.branch(f, x)
        return x.flatten(1).sum(1, keepdim=True)


def gradients(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rpp.PathLengthGradient(model).attribute(x, target=0, keep_maps=True).gradient.values


def own_gradients(model, x):
    """Return the gradient of all paths of each length, from autograd's own VJPs of the branches."""

    def vjp(f, at, seed):
        given = at.clone().requires_grad_()
        return torch.autograd.grad(model.branch(f, given), given, seed)[0]

    first, second = model.f
    with torch.no_grad():
        middle = x + model.branch(first, x)
    one = torch.ones_like(x)
    behind = vjp(second, middle, one)
    return torch.stack([one, behind + vjp(first, x, one), vjp(first, x, behind)]).numpy()


@pytest.mark.parametrize("operator", ELEMENTWISE)
def test_gradients_of_each_length_are_autograds_at_special_points(operator):
    model, x = Elements(ELEMENTWISE[operator]).eval(), torch.tensor(POINTS)[:, None, None].repeat(1, len(STEEP), 1)
    np.testing.assert_allclose(gradients(model, x), own_gradients(model, x), rtol=1e-5)


NET = rpp.unravel(Elements(torch.relu).eval(), torch.rand(4, len(STEEP), 1))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=8))
def test_gradients_of_each_length_are_autograds_at_any_point_behind_a_rectifier(points):
    x = torch.tensor(points)[:, None, None].repeat(1, len(STEEP), 1)
    np.testing.assert_allclose(gradients(NET, x), own_gradients(NET.model, x), rtol=1e-4, atol=1e-30)


def test_samples_beside_a_steep_one_keep_their_gradients():
    x = torch.rand(4, len(STEEP), 1) + 0.1
    alone = gradients(NET, x)
    steep = torch.cat([x, torch.zeros(1, len(STEEP), 1)])
    np.testing.assert_allclose(gradients(NET, steep)[:, :4], alone, rtol=1e-5)


def test_sampled_and_signed_paths_are_zero_where_a_rectifier_is():
    x = -torch.ones(2, len(STEEP), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = rpp.PathLengthGradient(NET).attribute(x, target=0, estimator=("exact", "sampled", "signs"), draws=2)
    for name in ("gradient_norm", "path_gradient_norm", "path_gradient_rms"):
        assert study[name].values[1:].max() == 0, name


def test_a_view_of_short_paths_has_autograds_gradient():
    x = torch.full((2, len(STEEP), 1), -1.0, requires_grad=True)
    NET.restricted([1, 2])(x).sum().backward()
    assert x.grad.abs().max() == 0
