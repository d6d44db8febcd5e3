"""Models with a backward of their own: gradients are refused where they are wrong, and forward studies run.

The oracle is ordinary autograd through the model.
"""

import pytest
import torch
from torch import nn

import resnet_paths_plugin as rpp

pytestmark = pytest.mark.slow

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Three residual blocks and a head."""

    def __init__(self):
        super().__init__()
        self.f = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.h = nn.Linear(5, 4)

    def branch(self, f, x):
        return torch.tanh(f(x))

    def forward(self, x):
        for f in self.f:
            x = x + self.branch(f, x)
        return self.h(x)


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        return g


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return -g


class Swish(torch.autograd.Function):
    """As memory-saving activations are written: its backward is the right one."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return g * (s + x * s * (1 - s))


class StraightThrough(Net):
    def branch(self, f, x):
        return Sign.apply(f(x))


class GradientReversal(Net):
    def branch(self, f, x):
        return torch.tanh(Reversed.apply(f(x)))


class TensorHook(Net):
    def branch(self, f, x):
        y = torch.tanh(f(x))
        if y.requires_grad:
            y.register_hook(lambda g: 0.1 * g)
        return y


class WithSwish(Net):
    def branch(self, f, x):
        return Swish.apply(f(x))


class Detached(Net):
    """A straight-through gradient in plain operators, which a graph has as they are."""

    def branch(self, f, x):
        y = f(x)
        return y + (y.sign() - y).detach()


def made(cls):
    torch.manual_seed(0)
    return cls().eval()


GRADIENTS = {
    "path study": lambda net: rpp.PathLengthGradient(net).attribute(X, 0),
    "influence study": lambda net: rpp.BlockInfluence(net).attribute(X, 0),
    "restricted": lambda net: net.restricted([1])(X.clone().requires_grad_()).sum().backward(),
    "sampling": lambda net: net.sampling(n_active=3)(X),
    "sampling in eval mode": lambda net: net.sampling(n_active=3).eval()(X).sum().backward(),
    "called": lambda net: net(X).sum().backward(),
    "called after a forward study": lambda net: (rpp.BlockLesion(net).attribute(X, 0), net(X).sum().backward()),
    "lesioned": lambda net: torch.autograd.grad(net.lesioned([0])(y := X.clone().requires_grad_()).sum(), y),
}


@pytest.mark.parametrize("cls", [StraightThrough, GradientReversal, TensorHook])
@pytest.mark.parametrize("way", GRADIENTS)
def test_gradients_of_a_model_with_a_backward_of_its_own_are_refused(cls, way):
    model = made(cls)
    with pytest.raises(rpp.CaptureMismatchError, match="a backward of its own"):
        GRADIENTS[way](rpp.unravel(model, X))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_refusal_names_the_function():
    with pytest.raises(rpp.CaptureMismatchError, match="SignBackward"):
        rpp.PathLengthGradient(made(StraightThrough)).attribute(X, 0)


@pytest.mark.parametrize("cls", [StraightThrough, GradientReversal, TensorHook])
def test_studies_without_gradients_run(cls):
    model = made(cls)
    found = rpp.BlockLesion(model).attribute(X, 0)
    assert (found.intact_target_score.values == model(X)[:, 0].detach().numpy()).all()


@pytest.mark.parametrize("cls", [WithSwish, Detached])
def test_a_backward_that_is_the_operators_own_is_not_refused(cls):
    model = made(cls)
    net = rpp.unravel(model, X)
    net.sampling(n_active=len(net.blocks))(X).sum().backward()
    ours = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model(X).sum().backward()
    torch.testing.assert_close(ours, [parameter.grad for parameter in model.parameters()])
    assert rpp.PathLengthGradient(net).attribute(X, 0).completeness_error.max() < 1e-6


def test_a_module_hook_on_the_backward_pass_that_came_later_is_refused():
    model = made(Net)
    net = rpp.unravel(model, X)
    restricted = net.restricted([1])
    restricted(X)
    model.f[0].register_full_backward_hook(lambda _m, g, _o: (2 * g[0],))
    with pytest.raises(rpp.CaptureMismatchError, match=r"a backward hook of module 'f.0' was added"):
        restricted(X)


def test_integer_inputs_are_compared_at_the_parameters():
    class Tokens(StraightThrough):
        def __init__(self):
            super().__init__()
            self.e = nn.Embedding(7, 5)

        def forward(self, x):
            return super().forward(self.e(x))

    tokens = torch.arange(4)
    with pytest.raises(rpp.CaptureMismatchError, match="a backward of its own"):
        rpp.PathLengthGradient(made(Tokens)).attribute(tokens, 0, tap="stem")


class Overwrites(Net):
    """Works in place on what its own backward pass reads."""

    def branch(self, f, x):
        y = torch.sigmoid(f(x))
        z = y * y
        y.mul_(2)
        return z


class Raises(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        raise NotImplementedError("no backward")


class RaisesInBackward(Net):
    def branch(self, f, x):
        return Raises.apply(f(x))


STUDIES = ["path study", "influence study", "restricted"]


@pytest.mark.parametrize(("cls", "told"), [(Overwrites, "inplace operation"), (RaisesInBackward, "no backward")])
@pytest.mark.parametrize("way", STUDIES)
def test_a_model_whose_own_backward_fails_is_named(cls, told, way):
    with pytest.raises(rpp.ModelGradientError, match=rf"{cls.__name__} has no gradient.*{told}"):
        GRADIENTS[way](rpp.unravel(made(cls), X))


@pytest.mark.parametrize("cls", [Overwrites, RaisesInBackward])
@pytest.mark.parametrize("verify", [True, False])
def test_a_model_whose_own_backward_fails_is_named_with_and_without_the_check(cls, verify):
    with pytest.raises(rpp.ModelGradientError, match=f"{cls.__name__} has no gradient"):
        rpp.PathLengthGradient(made(cls)).attribute(X, 0, run=rpp.RunOptions(verify=verify))


def test_the_network_of_a_model_that_overwrites_what_it_reads_has_a_gradient():
    class Careful(Net):
        def branch(self, f, x):
            return torch.sigmoid(f(x)) ** 2

    x = X.clone().requires_grad_()
    ours, wanted = (
        torch.autograd.grad(call(x).sum(), x)[0] for call in (rpp.unravel(made(Overwrites), X), made(Careful))
    )
    torch.testing.assert_close(ours, wanted)
