"""Regions without gradients or under autocast are part of the graph: sums in them are found, gradients stop there.

The oracle is the model: its outputs, autograd through it, and copies of it with a branch multiplied by zero.
"""

import functools
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

import resnet_paths_plugin as rpp

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),  # torch's checkpoint
]
X = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Three blocks; `inside` is the region of the second."""

    def __init__(self, inside=nullcontext):
        super().__init__()
        self.gone, self.gate = -1, None
        self.f, self.h, self.inside = nn.ModuleList(nn.Linear(5, 5) for _ in range(3)), nn.Linear(5, 4), inside

    def branch(self, index, x):
        value = torch.tanh(self.f[index](x))
        if index == self.gone:
            return value * 0
        return value if self.gate is None else self.gate * value + (1 - self.gate) * value.detach()

    def forward(self, x):
        x = x + self.branch(0, x)
        with self.inside():
            x = x + self.branch(1, x)
        return self.h(x + self.branch(2, x))


class BranchOnly(Net):
    def forward(self, x):
        x = x + self.branch(0, x)
        with self.inside():
            inside = self.branch(1, x)
        x = x + inside
        return self.h(x + self.branch(2, x))


class GateOnly(Net):
    """A region inside a branch."""

    def forward(self, x):
        x = x + self.branch(0, x)
        with self.inside():
            weight = torch.sigmoid(self.f[1](x))
        value = torch.tanh(self.f[1](x)) * weight
        value = value * 0 if self.gone == 1 else value
        x = x + (value if self.gate is None else self.gate * value + (1 - self.gate) * value.detach())
        return self.h(x + self.branch(2, x))


class Several(Net):
    """A region in a region, and two one after the other, with a view and an operator in place."""

    def forward(self, x):
        with self.inside():
            y = x.view(x.shape)
            y = y + self.branch(0, y)
            with torch.enable_grad():
                y = y + self.branch(1, y)
        with self.inside():
            scale = torch.ones_like(y).add_(y.detach().abs().mean())
        return self.h((y + self.branch(2, y)) * scale)


class Decorated(Net):
    @torch.no_grad()
    def still(self, x):
        return x + self.branch(1, x)

    def forward(self, x):
        x = x + self.branch(0, x)
        x = self.still(x)
        return self.h(x + self.branch(2, x))


class Checkpointed(Net):
    reentrant = True

    def forward(self, x):
        x = x + self.branch(0, x)
        x = checkpoint(lambda y: y + self.branch(1, y), x, use_reentrant=self.reentrant)
        return self.h(x + self.branch(2, x))


class Recomputed(Checkpointed):
    reentrant = False


REGIONS = {
    "no_grad": torch.no_grad,
    "set_grad_enabled": lambda: torch.set_grad_enabled(False),
    "enable_grad": torch.enable_grad,
    "autocast off": lambda: torch.autocast("cpu", enabled=False),
    "nothing": nullcontext,
}


def made(cls, inside=nullcontext):
    torch.manual_seed(0)
    return cls(inside).double().eval()


@functools.cache
def unraveled(cls, inside):
    """Return a model with its network, which tests leave as they find them."""
    model = made(cls, inside)
    return model, rpp.unravel(model, X)


def gradient(model, x, gate=None):
    model.gate = gate
    x = x.detach().clone().requires_grad_()
    try:
        model(x)[:, 0].sum().backward()
    finally:
        model.gate = None
    model.zero_grad()
    return torch.zeros_like(x) if x.grad is None else x.grad


def by_length(model, x, blocks):
    points = torch.linspace(-1, 1, blocks + 1, dtype=x.dtype)
    found = torch.stack([gradient(model, x, float(point)) for point in points])
    return torch.linalg.solve(torch.stack([points**k for k in range(blocks + 1)], 1), found.flatten(1)).view(
        found.shape
    )


def forms():
    for name, inside in REGIONS.items():
        for cls in (Net, BranchOnly, GateOnly, Several):
            yield pytest.param(cls, inside, id=f"{cls.__name__} {name}")
    for cls in (Decorated, Checkpointed, Recomputed):
        yield pytest.param(cls, nullcontext, id=cls.__name__)


@pytest.mark.parametrize(("cls", "inside"), [*forms()])
def test_outputs_lesions_and_gradients_by_length_are_the_models(cls, inside):
    model, net = unraveled(cls, inside)
    assert torch.equal(net(X), model(X))
    assert [block.name for block in net.blocks] == ["f.0", "f.1", "f.2"]
    if cls is not Several:
        assert net.path_counts() == [1, 3, 3, 1]
        assert not len(net.other_sums())
    for index in range(3):
        found = net.lesioned([index])(X)
        model.gone = index
        torch.testing.assert_close(found, model(X))
        model.gone = -1
    lengths = rpp.PathLengthGradient(net).attribute(X, target=0, keep_maps=True)
    wanted = np.zeros(lengths.gradient.shape)
    values = by_length(model, X, 3)[: len(wanted)]
    wanted[: len(values)] = values
    np.testing.assert_allclose(lengths.gradient, wanted, rtol=1e-5, atol=1e-6)
    assert lengths.completeness_error.max() < 1e-12
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("cls", "inside"), [*forms()])
def test_training_all_blocks_gives_the_models_parameter_gradients(cls, inside):
    model, net = unraveled(cls, inside)
    net.sampling(n_active=3)(X).square().sum().backward()
    ours = [None if one.grad is None else one.grad.clone() for one in model.parameters()]
    model.zero_grad()
    model.train()
    model(X).square().sum().backward()
    for one, parameter in zip(ours, model.parameters(), strict=True):
        if parameter.grad is None:
            assert one is None or not one.any()
        else:
            torch.testing.assert_close(one, parameter.grad, rtol=1e-12, atol=1e-12)
    model.eval().zero_grad()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", [Net, BranchOnly, GateOnly])
def test_under_autocast_outputs_are_the_models_bit_for_bit_and_gradients_within_its_precision(cls, dtype):
    model = made(cls, lambda: torch.autocast("cpu", dtype=dtype)).float()
    x = X.float()
    net = rpp.unravel(model, x)
    assert torch.equal(net(x), model(x))
    assert len(net.blocks) == 3
    found = rpp.PathLengthGradient(net).attribute(x, target=0, keep_maps=True)
    np.testing.assert_allclose(found.gradient.values.sum(0), gradient(model, x), atol=0.03)
    assert found.completeness_error.max() < 0.05
    assert rpp.BlockLesion(net).attribute(x, 0).sizes["lesion"] == 3


def test_the_blocks_of_a_frozen_backbone_are_found():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = torchvision.models.resnet18(num_classes=6), nn.Linear(6, 3)

        def forward(self, x):
            with torch.no_grad():
                features = self.backbone(x)
            return self.head(features)

    model, x = Frozen().eval(), torch.randn(2, 3, 32, 32)
    net = rpp.unravel(model, x)
    assert len(net.blocks) == 8
    assert torch.equal(net(x), model(x))
    lengths = rpp.PathLengthGradient(net).attribute(x, target=0)
    assert (lengths.gradient_norm == 0).all()


def test_an_expression_in_a_region_and_out_of_it_are_two_values():
    class Both(Net):
        def forward(self, x):
            with torch.no_grad():
                weight = torch.tanh(self.f[0](x))
            return self.h(x + torch.tanh(self.f[0](x)) * weight)

    model = made(Both)
    net = rpp.unravel(model, X)
    found = rpp.PathLengthGradient(net).attribute(X, target=0, keep_maps=True)
    np.testing.assert_allclose(found.gradient.values.sum(0), gradient(model, X), rtol=1e-5, atol=1e-7)
