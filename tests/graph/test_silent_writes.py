"""Writes in place that autograd does not see: named in a refusal, with the line; where they change the model, refused.

The oracle is the line itself: it is found in this file, by the comment that stands on it.
"""

import copy
import inspect

import pytest
import torch
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import CaptureError

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two residual blocks, and something between them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.f, self.g, self.h = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x):
        x = x + torch.tanh(self.f(x))
        x = self.between(x)
        x = x + torch.tanh(self.g(x))
        return self.h(x)


class NoGrad(Net):
    def between(self, x):
        with torch.no_grad():
            x.mul_(2.0)  # the line
        return x


class NoGradPart(Net):
    def between(self, x):
        with torch.no_grad():
            x[:, 1].clamp_(max=0.1)  # the line
        return x


class NoGradAssigned(Net):
    def between(self, x):
        with torch.no_grad():
            x[:, 0] = 0  # the line
        return x


class InferenceMode(Net):
    def between(self, x):
        with torch.inference_mode():
            x.mul_(2.0)  # the line
        return x


class Data(Net):
    def between(self, x):
        x.data.mul_(2.0)  # the line
        return x


class DataPart(Net):
    def between(self, x):
        x.data[0].mul_(2.0)  # the line
        return x


class DataOut(Net):
    def between(self, x):
        torch.mul(x.detach(), 2.0, out=x.data)  # the line
        return x


class Masked(Net):
    """Writes without gradients to a value that has none, which changes no gradient; and has a backward of its own."""

    def between(self, x):
        with torch.no_grad():
            mask = torch.zeros_like(x)
            mask[:, 0].add_(1.0)
        return x + Reversed.apply(mask * x)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def line_of(kind):
    lines, start = inspect.getsourcelines(kind)
    (at,) = (start + number for number, line in enumerate(lines) if "# the line" in line)
    return f"{__file__}:{at} in between"


SILENT = {
    NoGrad: "torch.Tensor.mul_",
    NoGradPart: "torch.Tensor.clamp_",
    NoGradAssigned: "torch.Tensor.__setitem__",
    InferenceMode: "torch.Tensor.mul_",
    Data: "torch.Tensor.mul_",
    DataPart: "torch.Tensor.mul_",
    DataOut: "torch.mul",
}


@pytest.mark.parametrize("kind", SILENT)
def test_a_silent_write_is_named_where_gradients_differ(kind):
    model = kind().eval()
    net = rpp.unravel(model, X)
    assert torch.equal(net(X), model(X))
    assert rpp.BlockLesion(net).attribute(X, 0).attrs["verified"] == "outputs"
    with pytest.raises(rpp.CaptureMismatchError, match="writes in place where no gradients are recorded") as told:
        rpp.PathLengthGradient(net).attribute(X, 0)
    assert f"{SILENT[kind]} in the model itself ({kind.__name__}), {line_of(kind)}" in str(told.value)


def test_a_write_that_changes_no_gradient_is_not_blamed():
    net = rpp.unravel(Masked().eval(), X)
    with pytest.raises(rpp.CaptureMismatchError, match="autograd meets ReversedBackward"):
        rpp.PathLengthGradient(net).attribute(X, 0)


class ParameterData(Net):
    def between(self, x):
        self.f.weight.data.mul_(1.5)  # the line
        return x


class ParameterDataPart(Net):
    def between(self, x):
        self.f.weight.data[0].mul_(1.5)  # the line
        return x


class ParameterDataTransposed(Net):
    def between(self, x):
        self.f.weight.data.t()[:, 0].zero_()  # the line
        return x


class ParameterNoGrad(Net):
    def between(self, x):
        with torch.no_grad():
            self.f.weight.clamp_(min=0)  # the line
        return x


class ParameterNoGradPart(Net):
    def between(self, x):
        with torch.no_grad():
            self.f.weight[0].mul_(1.5)  # the line
        return x


class ParameterOut(Net):
    def between(self, x):
        with torch.no_grad():
            torch.mul(self.f.bias, 1.5, out=self.f.bias)  # the line
        return x


@pytest.mark.parametrize(
    "kind",
    [ParameterData, ParameterDataPart, ParameterDataTransposed, ParameterNoGrad, ParameterNoGradPart, ParameterOut],
)
def test_a_write_to_a_parameter_is_refused_with_the_line_and_leaves_the_model_as_it_is(kind):
    model = kind().eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CaptureError, match="a parameter is written to, which changes the model") as told:
        rpp.unravel(model, X)
    assert line_of(kind) in str(told.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Buffered(Net):
    """Writes to a buffer of its own, and to fresh values; both are put back or gone."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(5))

    def between(self, x):
        self.count.data[0].add_(1.0)
        y = torch.zeros_like(x)
        y[:, 0] = self.f.weight.detach().sum()
        return x + y.mul_(0.5)


def test_writes_to_buffers_and_fresh_values_run():
    model = Buffered().eval()
    found = rpp.PathLengthGradient(rpp.unravel(model, X)).attribute(X, 0)
    assert found.attrs["verified"] == "outputs and gradients"
    assert not model.count.any()
