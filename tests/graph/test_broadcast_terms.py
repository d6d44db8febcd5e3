"""Blocks whose branch is broadcast in the sum: schedules, influence, graded lengths, and networks of timm.

The oracles are the same model patched by hand, and autograd.
"""

import numpy as np
import pytest
import torch
from torch import nn

import resnet_paths_plugin as rpp

X = torch.randn(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Squeezed(nn.Module):
    """Blocks that add one vector to all positions, but for the first; `plan` says what runs where, by hand.

    Attributes:
        plan: for each place, the weight of each branch.
        constants: for each place, what is added besides.
        seen: the branches' values of the last run, by place and branch.
    """

    def __init__(self, dims=1):
        super().__init__()
        self.f, self.h = nn.ModuleList(nn.Linear(5, 5) for _ in range(4)), nn.Linear(5, 4)
        self.plan = [{place: 1.0} for place in range(4)]
        self.constants = [0.0] * 4
        self.dims, self.seen, self.sums = dims, {}, []

    def branch(self, which, x):
        if which == 0:
            return torch.tanh(self.f[0](x))
        return torch.tanh(self.f[which](x.mean((0, 1)) if self.dims == 2 else x.mean(1, keepdim=True)))

    def forward(self, x):
        self.sums = []
        for place, row in enumerate(self.plan):
            source = x
            for which, weight in row.items():
                self.seen[place, which] = self.branch(which, source)
                x = x + weight * self.seen[place, which]
            x = x + self.constants[place]
            self.sums.append(x)
        return self.h(x).mean(1)


class Written(Squeezed):
    """The same without a plan, for the capture."""

    def forward(self, x):
        for which in range(4):
            x = x + self.branch(which, x)
        return self.h(x).mean(1)


def made(dims=1):
    torch.manual_seed(0)
    model, hand = (kind(dims).double().eval() for kind in (Written, Squeezed))
    hand.load_state_dict(model.state_dict())
    return rpp.unravel(model, X), hand


def rows_of(plan):
    return {place: tuple(row.items()) for place, row in enumerate(plan)}


PLANS = {
    "reordered": [{0: 1.0}, {2: 1.0}, {3: 1.0}, {1: 1.0}],
    "a whole one moved": [{1: 1.0}, {2: 1.0}, {0: 1.0}, {3: 1.0}],
    "scaled": [{0: 0.5}, {1: -2.0}, {2: 3.0}, {3: 1.0}],
    "repeated": [{1: 1.0}, {1: 1.0}, {1: 1.0}, {3: 1.0}],
    "side by side": [{0: 0.25, 1: 0.25, 2: 0.5}, {}, {}, {3: 1.0}],
    "lesions": [{}, {1: 1.0}, {}, {}],
    "nothing left": [{}, {}, {}, {}],
}


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("name", PLANS)
def test_schedules_of_broadcast_branches_are_those_by_hand(name, dims):
    net, hand = made(dims)
    hand.plan = PLANS[name]
    assert len(net.blocks) == 4
    with torch.no_grad():
        found = net.scheduled(rpp.Schedule.from_rows(net, rows_of(hand.plan)))(X)
        torch.testing.assert_close(found, hand(X), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [2, 3, 7])
def test_broadcast_branches_run_side_by_side(width):
    net, hand = made()
    plans = list(PLANS.values())
    schedules = [rpp.Schedule.from_rows(net, rows_of(plan)) for plan in plans]
    with torch.no_grad():
        found = dict(net.outputs(schedules, (X,), perturbations_per_eval=width))
        for place, hand.plan in enumerate(plans):
            torch.testing.assert_close(found[place], hand(X), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", range(4))
def test_the_mean_of_a_broadcast_branch_stands_in_for_it(block):
    net, hand = made()
    with torch.no_grad():
        hand(X)
        hand.constants[block] = hand.seen[block, block].mean(0)
        hand.plan = [{} if place == block else {place: 1.0} for place in range(4)]
        expected = hand(X)[:, 1]
    found = rpp.BlockLesion(net).attribute(X, 1, lesions=[block], ablation="mean")
    np.testing.assert_allclose(found.target_score.values.reshape(-1), expected, rtol=1e-5)


def test_the_influence_of_a_broadcast_branch_is_autograds():
    net, hand = made()
    found = rpp.BlockInfluence(net).attribute(X, target=1, objective="score")
    score = hand(X)[:, 1].sum()
    gradients = torch.autograd.grad(score, hand.sums)
    for block, gradient in enumerate(gradients):
        expected = -(gradient * hand.seen[block, block]).sum((1, 2)).detach()
        estimate = found.lesion_estimate.isel(block=block).values
        np.testing.assert_allclose(np.abs(estimate), expected.abs(), rtol=1e-5)


def test_lengths_counted_apart_add_up():
    net, hand = made()
    axes = ("whole", "squeezed")
    found = rpp.PathLengthGradient(net).attribute(
        X,
        target=1,
        grade=lambda block: {axis: int((block.index == 0) == (axis == "whole")) for axis in axes},
        keep_maps=True,
    )
    given = X.clone().requires_grad_()
    (own,) = torch.autograd.grad(hand(given)[:, 1].sum(), given)
    assert found.gradient.shape[:2] == (2, 4)
    np.testing.assert_allclose(found.gradient.sum(axes), own, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["gcresnext26ts", "gcresnet33ts"])
def test_context_blocks_of_timm_are_complete(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    found = rpp.PathLengthGradient(model).attribute(torch.randn(2, 3, 64, 64), target=0)
    assert found.sizes["block"] == {"gcresnext26ts": 16, "gcresnet33ts": 20}[name]
    assert found.completeness_error.max() < 1e-5
