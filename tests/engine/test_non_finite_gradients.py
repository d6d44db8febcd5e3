"""Gradients that are NaN or infinite are said to be so, by every estimator, and with how many samples."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import IncompleteGradientWarning


class Steep(nn.Module):
    """A branch whose derivative is `steep` at 0."""

    def __init__(self, steep):
        super().__init__()
        self.f, self.h, self.steep = nn.Linear(5, 5, bias=False), nn.Linear(5, 4), steep

    def forward(self, x):
        return self.h(x + self.steep(self.f(x)))


def root(y):
    """Infinite at 0, NaN behind the absolute value."""
    return y.abs().sqrt()


def pole(y):
    return (y.abs() + 1e-200).reciprocal() * 1e-200


def nowhere(y):
    """Finite where nothing is 0."""
    return torch.where(y == 0, y.abs().sqrt(), y)


def made(steep):
    torch.manual_seed(0)
    model, x = Steep(steep).double().eval(), torch.randn(4, 5, dtype=torch.float64)
    x[1] = x[3] = 0
    return model, x


def warned(model, x, **ask):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = rpp.PathLengthGradient(model).attribute(x, target=0, **ask)
    return found, [str(one.message) for one in caught if issubclass(one.category, IncompleteGradientWarning)]


@pytest.mark.parametrize("steep", [root, pole, nowhere])
@pytest.mark.parametrize("estimator", ["exact", "signs"])
def test_samples_whose_gradients_are_not_finite_are_counted(steep, estimator):
    model, x = made(steep)
    given = x.clone().requires_grad_()
    (own,) = torch.autograd.grad(model(given)[:, 0].sum(), given)
    lost = ~own.isfinite().all(1)
    assert 0 < lost.sum() < len(x)
    found, messages = warned(model, x, estimator=estimator, draws=2)
    assert len(messages) == 1
    assert f"NaN or infinite for {int(lost.sum())} of 4 samples" in messages[0]
    values = found.gradient_norm if estimator == "exact" else found.path_gradient_rms
    np.testing.assert_array_equal(~np.isfinite(values.values).all(0), lost)


def test_sampled_paths_that_are_not_finite_are_told():
    model, x = made(root)
    _, messages = warned(model, x, estimator="sampled", draws=2)
    assert len(messages) == 1
    assert "NaN or infinite for some samples" in messages[0]


def test_finite_gradients_are_not_warned_of():
    model, x = made(torch.tanh)
    assert warned(model, x, estimator=("exact", "sampled", "signs"), draws=2)[1] == []


def test_paths_without_an_own_gradient_to_hold_them_against_are_incomplete(monkeypatch):
    """The model's own gradient is 0 and that of the paths is not: the error is infinite."""
    model, x = made(torch.tanh)
    net = rpp.unravel(model, x)
    monkeypatch.setattr(net.model, "forward", lambda x: x[:, :4] * 0 + Steep.forward(model, x).detach())
    with pytest.warns(IncompleteGradientWarning, match="only within inf"):
        found = rpp.PathLengthGradient(net).attribute(x, target=0, run=rpp.RunOptions(verify=False))
    assert np.isinf(found.completeness_error).all()
