"""How far rounding may take a network from its model: right ones pass in every dtype, a term of 3 % that lacks is seen.

The models are right by construction, or lose a part of their gradient in a backward of their own.
"""

from types import SimpleNamespace

import pytest
import torch
import torchvision
from networks import PreActivation, randomised
from torch import nn
from torch._subclasses import FakeTensorMode

import resnet_paths_plugin as rpp
from resnet_paths_plugin.network.differences import unit_of

pytestmark = pytest.mark.slow

SHORT = [torch.bfloat16, torch.float16]
ACTIVATIONS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu, "gelu": nn.functional.gelu}


class Lacking(torch.autograd.Function):
    """The identity, whose backward gives a part of the gradient only."""

    @staticmethod
    def forward(ctx, x, part):
        ctx.part = part
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.part, None


class Net(nn.Module):
    def __init__(self, n=8, width=32, activation=torch.tanh, part=1.0):
        super().__init__()
        self.f = nn.ModuleList(nn.Linear(width, width) for _ in range(n))
        self.h, self.activation, self.part = nn.Linear(width, 4), activation, part

    def forward(self, x):
        x = x if self.part == 1 else Lacking.apply(x, self.part)
        for f in self.f:
            x = x + self.activation(f(x))
        return self.h(x)


class Under(nn.Module):
    """A model that runs under autocast."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x).float()


def made(dtype, **options):
    torch.manual_seed(0)
    return Net(**options).eval().to(dtype), torch.randn(8, 32).to(dtype)


def kinds(*sizes):
    """Yield all dtypes, activations and numbers of blocks; by default each dtype and each activation is in one case."""
    usual = list(zip([*SHORT, torch.float32, torch.float64], ACTIVATIONS, sizes * 2, strict=True))
    for n in sizes:
        for activation in ACTIVATIONS:
            for dtype in (*SHORT, torch.float32, torch.float64):
                marks = () if (dtype, activation, n) in usual else pytest.mark.zoo
                yield pytest.param(dtype, activation, n, marks=marks, id=f"{n}-{activation}-{dtype}")


@pytest.mark.parametrize(("dtype", "activation", "n"), [*kinds(3, 30)])
def test_a_right_model_is_not_refused_in_any_dtype(dtype, activation, n):
    model, x = made(dtype, n=n, activation=ACTIVATIONS[activation])
    found = rpp.PathLengthGradient(model).attribute(x, 0, max_length=2)
    assert found.attrs["verified"] == "outputs and gradients"


@pytest.mark.parametrize(("dtype", "activation", "n"), [*kinds(3, 8)])
def test_a_gradient_that_lacks_three_per_cent_is_refused(dtype, activation, n):
    model, x = made(dtype, n=n, activation=ACTIVATIONS[activation], part=0.97)
    for analyzer in (rpp.PathLengthGradient, rpp.BlockInfluence):
        with pytest.raises(rpp.CaptureMismatchError, match="a backward of its own"):
            analyzer(model).attribute(x, 0)
    with pytest.raises(rpp.CaptureMismatchError, match="a backward of its own"):
        rpp.unravel(model, x).restricted([1])(x)


@pytest.mark.parametrize("part", [1.0, 0.97])
def test_the_same_under_autocast(part):
    inner, x = made(torch.float32, part=part)
    study = rpp.PathLengthGradient(Under(inner))
    if part == 1:
        assert study.attribute(x, 0).attrs["verified"] == "outputs and gradients"
        return
    with pytest.raises(rpp.CaptureMismatchError, match="a backward of its own"):
        study.attribute(x, 0)


def under_autocast(call, x):
    """Return the gradients of a random objective at the input and the parameters, the call made under autocast."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = call(x)
    total = (outputs * torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))).sum()
    trained = [one for one in call.parameters() if one.requires_grad]
    found = torch.autograd.grad(total, [x, *trained], allow_unused=True)
    return outputs, [torch.zeros_like(one) if g is None else g for one, g in zip([x, *trained], found, strict=True)]


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "recomputed"])
@pytest.mark.parametrize("training", [None, False, True], ids=["inputs", "eval", "train"])
def test_views_of_lengths_run_under_the_autocast_of_their_caller(training, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr("resnet_paths_plugin.engine.linearised_pass.KEPT_BYTES", -1)
    torch.manual_seed(0)
    model, x = randomised(PreActivation()), torch.randn(4, 3, 16, 16)
    net = rpp.unravel(model, x)
    model.train(bool(training))
    outputs, whole = under_autocast(model, x)
    views = [net.restricted(lengths, parameters=training is not None) for lengths in (range(2), range(2, 4))]
    parts = [under_autocast(view, x) for view in views]
    for found, _ in parts:
        torch.testing.assert_close(found, outputs, rtol=0, atol=0)
    for some, others, expected in zip(parts[0][1], parts[1][1], whole, strict=True):
        if training is not None or expected is whole[0]:
            assert (some + others - expected).norm() < 3e-2 * max(expected.norm(), 1e-2 * whole[0].norm())
    assert all(part[0].any() for _, part in parts)


@pytest.mark.parametrize("parameters", [False, True])
def test_a_gradient_that_lacks_three_per_cent_is_refused_under_the_callers_autocast(parameters):
    model, x = made(torch.float32, part=0.97)
    view = rpp.unravel(model, x).restricted([1], parameters=parameters)
    with pytest.raises(rpp.CaptureMismatchError, match="a backward of its own"), torch.autocast("cpu", torch.bfloat16):
        view(x.requires_grad_())


def test_what_a_view_casts_under_autocast_is_not_left_for_the_model():
    """Torch keeps cast parameters until autocast is left; those cast without gradients would cut the model's own."""
    model, x = made(torch.float32)
    view = rpp.unravel(model, x, verify=False).restricted([1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        view(x)
        gradients = torch.autograd.grad(model(x).float().sum(), list(model.parameters()))
    assert all(g.any() for g in gradients)


@pytest.mark.parametrize("dtype", SHORT)
def test_a_convolutional_network_is_not_refused(dtype):
    torch.manual_seed(0)
    model, x = torchvision.models.resnet18().eval().to(dtype), torch.randn(2, 3, 32, 32).to(dtype)
    found = rpp.PathLengthGradient(model).attribute(x, 0, max_length=1)
    assert found.attrs["verified"] == "outputs and gradients"


@pytest.mark.parametrize("dtype", [*SHORT, torch.float32])
def test_outputs_on_a_cpu_are_compared_bit_for_bit(dtype):
    """A factor that a later attribute changes by one unit of rounding, which no structure shows."""

    class Scaled(Net):
        def forward(self, x):
            return super().forward(x) * self.factors[0]

    torch.manual_seed(0)
    model, x = Scaled().eval().to(dtype), torch.randn(8, 32).to(dtype)
    model.factors = [1.0]
    net = rpp.unravel(model, x)
    net(x)
    model.factors[0] = 1 + 2 * torch.finfo(dtype).eps
    for analyzer in (rpp.BlockLesion, rpp.PathLengthGradient):
        with pytest.raises(rpp.CaptureMismatchError, match="outputs are not those"):
            analyzer(net).attribute(x, 0)


@pytest.mark.parametrize("dtype", SHORT)
def test_a_gradient_that_underflows_in_the_model_is_not_refused(dtype):
    class Small(Net):
        def forward(self, x):
            return super().forward(x * scale) * scale

    scale = float(torch.finfo(dtype).smallest_normal) ** 0.5 / 64
    torch.manual_seed(0)
    model, x = Small().eval().to(dtype), torch.randn(8, 32).to(dtype)
    with pytest.warns(UserWarning, match="add up"):
        rpp.PathLengthGradient(model).attribute(x, 0)


@pytest.mark.parametrize(
    ("device", "dtype", "unit"),
    [
        ("cpu", torch.float32, 2**-23),
        ("cuda", torch.float32, 2**-10),
        ("cuda", torch.float64, 2**-52),
        ("cuda", torch.bfloat16, 2**-7),
        ("cpu", torch.float16, 2**-10),
    ],
)
def test_the_unit_of_rounding_is_that_of_dtype_and_device(device, dtype, unit):
    with FakeTensorMode():
        value = torch.empty(2, device=device, dtype=dtype)
    node = SimpleNamespace(meta={"val": value})
    assert unit_of(SimpleNamespace(graph=SimpleNamespace(nodes=[node]))) == unit
