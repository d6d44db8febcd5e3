"""Path gradients where terms are broadcast, values are integers, masks are drawn, or paths are tiny.

The oracle is autograd through the model itself; by length, with every branch's gradient scaled, which makes the whole a
polynomial whose coefficients are the gradients by length.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import StochasticModelWarning


class Gated(nn.Module):
    """A model whose branches pass through `self.of`, which scales their gradients where it is asked to."""

    gate: float | None = None

    def __init__(self, width=5):
        super().__init__()
        self.f, self.g, self.h = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 4)

    def of(self, branch):
        return branch if self.gate is None else self.gate * branch + (1 - self.gate) * branch.detach()

    def gradient(self, x, gate=None):
        self.gate = gate
        x = x.detach().clone().requires_grad_()
        try:
            (found,) = torch.autograd.grad(self(x)[:, 0].sum(), x)
        finally:
            self.gate = None
        return found

    def by_length(self, x, blocks=2):
        points = torch.linspace(-1, 1, blocks + 1, dtype=x.dtype)
        found = torch.stack([self.gradient(x, float(point)) for point in points])
        powers = torch.stack([points**k for k in range(blocks + 1)], 1)
        return torch.linalg.solve(powers, found.flatten(1)).view(found.shape)


class OnePosition(Gated):
    def forward(self, x):
        x = x + self.of(torch.tanh(self.f(x)))
        x = x + self.of(torch.tanh(self.g(x.mean(1, keepdim=True))))
        return self.h(x.mean(1))


class FewerDimensions(Gated):
    """A gate for each channel, of one dimension less, added to all positions of all samples' mean."""

    def forward(self, x):
        x = x + self.of(torch.tanh(self.f(x)))
        x = self.of(torch.tanh(self.g(x.mean((0, 1))))) + x
        return self.h(x.mean(1))


class Channels(Gated):
    """Squeeze and excitation that adds instead of scaling, over two dimensions."""

    def __init__(self):
        super().__init__(4)

    def forward(self, x):
        x = x + self.of(torch.tanh(self.f(x)))
        squeezed = x.mean((1,), keepdim=True)
        x = torch.add(x, self.of(torch.tanh(self.g(squeezed))), alpha=0.5)
        return self.h(x.mean(1))


class Counted(Gated):
    def forward(self, x):
        x = x + self.of(self.f(x).tanh())
        x = x + self.of(self.g(x).tanh() / (x.abs() > 1).sum(-1, keepdim=True).clamp(1.0))
        return self.h(x.mean(1))


class Ordered(Gated):
    """Indices, comparisons and casts of integers to floats."""

    def forward(self, x):
        x = x + self.of(self.f(x).tanh().gather(-1, x.argsort(-1)))
        best = x.argmax(-1, keepdim=True)
        x = x + self.of(self.g(x).tanh() * (1 + best.to(x.dtype)) * torch.clamp(best, 1, 3).add(1).div(2))
        return self.h(x.mean(1) + functional.one_hot(x.mean(1).argmax(-1), 5).to(x.dtype))


class Looked(Gated):
    """An embedding by computed indices, and where."""

    def forward(self, x):
        index = (x.sum(-1) > 0).long()
        x = x + self.of(self.f(x).tanh() + functional.embedding(index, self.g.weight))
        return self.h(torch.where(index[..., None] > 0, x + self.of(self.g(x).tanh()), x).mean(1))


KINDS = (OnePosition, FewerDimensions, Channels, Counted, Ordered, Looked)


def made(kind):
    torch.manual_seed(0)
    model = kind().double().eval()
    return model, torch.randn(4, 6, model.f.in_features, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_length_are_autograds(kind):
    model, x = made(kind)
    net = rpp.unravel(model, x)
    found = rpp.PathLengthGradient(net).attribute(x, target=0, keep_maps=True, internal_batch_size=len(x))
    np.testing.assert_allclose(found.gradient.values.sum(0), model.gradient(x), rtol=1e-5, atol=1e-7)
    assert found.completeness_error.max() < 1e-12
    if len(net.blocks) == 2:
        wanted = model.by_length(x)
        np.testing.assert_allclose(found.gradient, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_restricted_to_all_lengths_the_gradient_is_the_models(kind):
    model, x = made(kind)
    net = rpp.unravel(model, x)
    view = net.restricted([k for k, count in enumerate(net.path_counts()) if count])
    given = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(view(given)[:, 0].sum(), given)
    torch.testing.assert_close(found, model.gradient(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [OnePosition, Channels])
def test_sampled_paths_and_signs_of_broadcast_terms_are_those_of_enumeration(kind):
    """With one path for each set of branches, two of length 1: their norms by gates of single branches."""
    model, x = made(kind)
    both = rpp.PathLengthGradient(model).attribute(x, target=0, estimator=("sampled", "signs", "exact"), draws=64)
    exact = both.gradient_norm
    for length in (0, 2):  # one path each: its norm is that of the whole
        np.testing.assert_allclose(both.path_gradient_norm[length], exact[length].mean("sample"), rtol=1e-9)
        np.testing.assert_allclose(both.path_gradient_rms[length], exact[length], rtol=1e-9)


class Deep(nn.Module):
    def __init__(self, depth=40, scale=0.01):
        super().__init__()
        self.f, self.h, self.scale = nn.ModuleList(nn.Linear(5, 5) for _ in range(depth)), nn.Linear(5, 4), scale

    def forward(self, x):
        for f in self.f:
            x = x + self.scale * torch.tanh(f(x))
        return self.h(x)


def test_random_signs_of_tiny_paths_in_float32_are_those_of_float64():
    torch.manual_seed(0)
    model, x = Deep().eval(), torch.randn(4, 5)
    single = rpp.PathLengthGradient(model).attribute(x, target=0, estimator="signs", draws=2).path_gradient_rms
    double = (
        rpp.PathLengthGradient(model.double())
        .attribute(x.double(), target=0, estimator="signs", draws=2)
        .path_gradient_rms
    )
    assert (single > 0).all()
    np.testing.assert_allclose(single, double, rtol=1e-3)


def test_random_signs_beyond_the_range_of_squares_are_there():
    torch.manual_seed(0)
    model, x = Deep(60, 1e-4).double().eval(), torch.randn(2, 5, dtype=torch.float64)
    found = rpp.PathLengthGradient(model).attribute(x, target=0, estimator="signs", draws=2).path_gradient_rms
    assert (found > 0).all()
    steps = np.diff(np.log10(found.values), axis=0)
    assert ((steps < -3) & (steps > -6)).all()  # every branch divides by some 10^4


class Dropping(Deep):
    """Masks that are always drawn."""

    def __init__(self):
        super().__init__(3, 1.0)

    def forward(self, x):
        for f in self.f:
            x = x + functional.dropout(torch.tanh(f(x)), 0.5, training=True) * torch.rand_like(x)
        return self.h(x)


@pytest.mark.parametrize("kept", [True, False])
def test_masks_that_are_always_drawn_are_the_same_forward_and_backward(monkeypatch, kept):
    if not kept:
        monkeypatch.setattr("resnet_paths_plugin.engine.linearised_pass.KEPT_BYTES", 0)
    torch.manual_seed(0)
    model, x = Dropping().double().eval(), torch.randn(4, 5, dtype=torch.float64)
    with pytest.warns(StochasticModelWarning):
        net = rpp.unravel(model, x)
    found = rpp.PathLengthGradient(net).attribute(x, target=0)
    assert found.completeness_error.max() < 1e-12
    view = net.restricted(range(4))
    given = x.clone().requires_grad_()
    view(given)  # its first call, at which it is held against the model
    torch.manual_seed(7)
    (ours,) = torch.autograd.grad(view(given)[:, 0].sum(), given)
    again = x.clone().requires_grad_()
    torch.manual_seed(7)
    (theirs,) = torch.autograd.grad(model(again)[:, 0].sum(), again)
    torch.testing.assert_close(ours, theirs)
