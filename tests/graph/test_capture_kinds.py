"""Kinds of forwards that a capture reads: function transforms, dead values beside regions, scripted parts."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import resnet_paths_plugin as rpp

Branch = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """Three residual blocks whose branches are given, and a head."""

    def __init__(self, branch: Branch) -> None:
        super().__init__()
        self.branch = branch
        self.f = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.h: nn.Module = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        for f in self.f:
            x = x + self.branch(f, x)
        return self.h(x)  # type: ignore[no-any-return]  # torch's


def _plain(f: nn.Module, x: Tensor) -> Tensor:
    return torch.tanh(f(x))


def _dead(f: nn.Module, x: Tensor) -> Tensor:
    unused = f(x)  # noqa: F841 - the dead value is the point
    with torch.no_grad():
        gate = torch.sigmoid(f(x))
    return gate * torch.tanh(f(x))


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
BRANCHES: dict[str, Branch] = {
    "vmap": lambda f, x: torch.vmap(f)(x),
    "vmap of vmap": lambda f, x: torch.vmap(torch.vmap(f))(x.unsqueeze(1)).squeeze(1),
    "vmap and more": lambda f, x: torch.tanh(torch.vmap(lambda row: f(row) * row.sum())(x)),
    "jvp": lambda f, x: torch.func.jvp(lambda t: torch.tanh(f(t)), (x,), (x,))[1],
    "dead": _dead,
}


@pytest.mark.parametrize("branch", BRANCHES.values(), ids=BRANCHES)
def test_outputs_and_gradients_equal_the_models(branch: Branch) -> None:
    torch.manual_seed(0)
    model = Net(branch).eval()
    net = rpp.unravel(model, X)
    assert len(net.blocks) == 3
    assert torch.allclose(net(X), model(X), rtol=0, atol=1e-6)
    inputs = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(inputs).square().sum(), inputs)
    (found,) = torch.autograd.grad(net(inputs).square().sum(), inputs)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", ["head traced", "block traced"])
def test_scripted_parts_run_with_every_study(kind: str) -> None:
    torch.manual_seed(0)
    model = Net(_plain).eval()
    expected = model(X)
    if kind == "head traced":
        model.h = torch.jit.trace(model.h, X)  # type: ignore[no-untyped-call]  # torch's
    else:
        model.f[1] = torch.jit.trace(model.f[1], X)  # type: ignore[no-untyped-call]  # torch's
    net = rpp.unravel(model, X)
    assert torch.equal(net(X), expected)
    assert rpp.BlockLesion(net).attribute(X, 0).sizes["lesion"] == 3
