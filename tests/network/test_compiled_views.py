"""Views in what `torch.compile` compiles: they run as they do elsewhere, checked and differentiated.

The oracles are the same view without compilation, and the model.
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

    def forward(self, x):
        for f in self.f:
            x = x + torch.tanh(f(x))
        return self.h(x)


class Around(nn.Module):
    """A user's module that calls a view."""

    def __init__(self, view):
        super().__init__()
        self.view = (view,)

    def forward(self, x):
        return self.view[0](2 * x) + 1


VIEWS = {
    "unraveled": lambda net: net,
    "lesioned": lambda net: net.lesioned([0]),
    "restricted": lambda net: net.restricted([1]),
    "sampling": lambda net: net.sampling(n_active=3),
}


@pytest.fixture(autouse=True)
def compilers_cache():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def made():
    torch.manual_seed(0)
    model = Net().eval()
    return model, rpp.unravel(model, X)


@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("name", VIEWS)
def test_a_compiled_view_is_the_view(name, called_before):
    _, net = made()
    view = VIEWS[name](net)
    if called_before:
        view(X)
    x, y = (X.clone().requires_grad_() for _ in range(2))
    compiled = torch.compile(view, backend="eager")
    for _ in range(2):
        found = compiled(x)
        expected = view(y)
        assert torch.equal(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(x.grad, y.grad)


@torch.no_grad()  # with gradients torch itself warns of the graph that goes on after a view
def test_a_view_runs_within_what_is_compiled():
    model, net = made()
    assert torch.equal(torch.compile(Around(net), backend="eager")(X), model(2 * X) + 1)


def test_a_compiled_network_is_held_against_its_model():
    model, net = made()
    compiled = torch.compile(net, backend="eager")
    model.h.register_forward_hook(lambda _m, _i, y: 2 * y)
    with pytest.raises(rpp.CaptureMismatchError, match="a forward hook of module 'h' was added"):
        compiled(X)


def test_one_graph_of_a_view_is_refused_with_what_compiles():
    _, net = made()
    with pytest.raises(Exception, match=r"optimize=\['compile'\]"):
        torch.compile(net, backend="eager", fullgraph=True)(X)
