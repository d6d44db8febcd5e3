"""The check of a network against its model: every later change of the model is seen, and nothing else is refused.

The oracle is the model itself: either the network's outputs are those that it has now, or the check refuses.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import resnet_paths_plugin as rpp

pytestmark = pytest.mark.slow

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Three residual blocks and a head."""

    def __init__(self):
        super().__init__()
        self.f = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.h = nn.Linear(5, 4)
        self.scale = 1.0
        self.register_buffer("shift", torch.zeros(5))

    def forward(self, x):
        x = x + self.shift
        for f in self.f:
            x = x + torch.tanh(f(x)) * self.scale
        return self.h(x)


class Adapted(nn.Module):
    """A linear layer with a low-rank update."""

    def __init__(self, base):
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(5, 2, bias=False), nn.Linear(2, 5, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def made(cls=Net):
    torch.manual_seed(0)
    return cls().eval()


def merged(weight):
    with torch.no_grad():
        weight += torch.randn(5, 5)


def changed_forward(model):
    model.h.forward = lambda x: 2 * nn.functional.linear(x, model.h.weight, model.h.bias)


CHANGES = {
    "pruned": lambda m: prune.l1_unstructured(m.f[0], "weight", 0.5),
    "parametrized": lambda m: parametrize.register_parametrization(m.f[1], "weight", Halved()),
    "spectral norm": lambda m: parametrizations.spectral_norm(m.f[1]),
    "low-rank update": lambda m: setattr(m.f, "1", Adapted(m.f[1])),
    "no bias": lambda m: setattr(m.h, "bias", None),
    "another activation in a module": lambda m: setattr(m, "h", nn.Sequential(m.h, nn.ReLU())),
    "forward hook": lambda m: m.h.register_forward_hook(lambda _m, _i, y: 2 * y),
    "forward pre-hook": lambda m: m.h.register_forward_pre_hook(lambda _m, i: (2 * i[0],)),
    "forward replaced": changed_forward,
    "attribute": lambda m: setattr(m, "scale", 0.5),
    "block gone": lambda m: setattr(m, "f", m.f[:2]),
}
FOLLOWED = {
    "weights merged in place": lambda m: merged(m.f[0].weight),
    "a new head of the same form": lambda m: setattr(m, "h", nn.Linear(5, 4)),
    "a buffer replaced": lambda m: setattr(m, "shift", torch.ones(5)),
    "a hook that changes nothing": lambda m: m.h.register_forward_hook(lambda _m, _i, y: None),
    "training mode": lambda m: m.train(),
}
WAYS = {
    "called": lambda net: net(X),
    "lesioned": lambda net: net.lesioned([0])(X),
    "scheduled": lambda net: net.scheduled(rpp.Schedule.identity(net))(X),
    "restricted": lambda net: net.restricted([1])(X),
    "lesion study": lambda net: rpp.BlockLesion(net).attribute(X, 0),
    "reordering study": lambda net: rpp.BlockReordering(net).attribute(X, 0),
    "schedule study": lambda net: rpp.BlockSchedules(net).attribute(X, 0, schedules=rpp.schedules.adjacent_swaps),
    "path study": lambda net: rpp.PathLengthGradient(net).attribute(X, 0),
    "influence study": lambda net: rpp.BlockInfluence(net).attribute(X, 0),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("called_before", [False, True])
def test_a_network_whose_model_was_changed_is_refused(change, called_before):
    model = made()
    net = rpp.unravel(model, X)
    if called_before:
        net(X)
    before = model(X)
    CHANGES[change](model)
    assert not torch.equal(before, model(X))
    with pytest.raises(rpp.CaptureMismatchError, match="was changed since it was unraveled"):
        net(X)


@pytest.mark.parametrize("change", FOLLOWED)
def test_a_change_that_the_network_follows_is_not_refused(change):
    model = made()
    net = rpp.unravel(model, X)
    net(X)
    FOLLOWED[change](model)
    assert torch.equal(net(X), model.eval()(X))


def test_weight_norm_that_came_later_is_refused_for_the_weights_that_are_gone():
    model = made()
    net = rpp.unravel(model, X)
    parametrizations.weight_norm(model.f[1])
    merged(model.f[1].parametrizations.weight.original1)
    with pytest.raises(rpp.CaptureMismatchError, match=r"'f.1' has become a ParametrizedLinear"):
        net(X)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_run_a_network_refuses_a_changed_model(way):
    model = made()
    net = rpp.unravel(model, X)
    prune.l1_unstructured(model.f[0], "weight", 0.5)
    with pytest.raises(rpp.CaptureMismatchError, match=r"tensor 'f.0.weight' is gone"):
        WAYS[way](net)


def test_sampling_refuses_a_changed_model():
    model = made()
    sampling = rpp.unravel(model, X).sampling(n_active=2)
    sampling(X)
    model.h.register_forward_hook(lambda _m, _i, y: 2 * y)
    with pytest.raises(rpp.CaptureMismatchError, match="a forward hook of module 'h' was added"):
        sampling(X)
    sampling.eval()
    with pytest.raises(rpp.CaptureMismatchError, match="a forward hook of module 'h' was added"):
        sampling(X)


@pytest.mark.parametrize("change", CHANGES)
def test_an_analyzer_captures_its_model_again_when_it_was_changed(change):
    model = made()
    lesion = rpp.BlockLesion(model)
    lesion.attribute(X, 0)
    CHANGES[change](model)
    found = lesion.attribute(X, 0).intact_target_score.values
    np.testing.assert_array_equal(found, model(X)[:, 0].detach().numpy())


def test_a_change_of_attributes_that_are_no_plain_values_is_seen_by_a_study():
    class Listed(Net):
        def __init__(self):
            super().__init__()
            self.factors = [1.0]

        def forward(self, x):
            return super().forward(x) * self.factors[0]

    model = made(Listed)
    net, lesion = rpp.unravel(model, X), rpp.BlockLesion(model)
    lesion.attribute(X, 0)
    model.factors[0] = 3.0
    with pytest.raises(rpp.CaptureMismatchError, match="a value that the capture took as fixed"):
        rpp.BlockLesion(net).attribute(X, 0)
    found = lesion.attribute(X, 0).intact_target_score.values
    np.testing.assert_array_equal(found, model(X)[:, 0].detach().numpy())


class OneAlone(Net):
    def forward(self, x):
        return super().forward(x * 2 if x.shape[0] > 1 else x)


class Odd(Net):
    def forward(self, x):
        return super().forward(x * 2 if x.shape[0] % 2 else x)


@pytest.mark.parametrize(("cls", "size"), [(OneAlone, 1), (Odd, 3)])
def test_a_batch_size_for_which_the_model_does_something_else_is_refused(cls, size):
    model = made(cls)
    net = rpp.unravel(model, X)
    with pytest.raises(rpp.ResnetPathsError, match=r"samples"):
        net(X[:size])
    with pytest.raises(rpp.ResnetPathsError, match=r"samples"):
        rpp.BlockLesion(net).attribute(X[:size], 0)
    np.testing.assert_array_equal(net(X).detach(), model(X).detach())


def test_a_first_batch_of_one_sample_is_checked_again():
    net = rpp.unravel(made(OneAlone), X)
    net(X)
    with pytest.raises(rpp.ResnetPathsError, match="samples"):
        net(X[:1])


def test_a_model_that_draws_numbers_outside_of_torch_is_called_random():
    class Noisy(Net):
        def forward(self, x):
            return super().forward(x) + np.random.default_rng().normal()

    net = rpp.unravel(made(Noisy), X)
    with pytest.raises(rpp.CaptureMismatchError, match="the model is random"):
        net(X)


class Masked(Net):
    """Traced, it adds a mask to scores that are normalised, as transformers' BEiT does: the same but for rounding."""

    def __init__(self):
        super().__init__()
        self.factors = [1.0]

    def forward(self, x):
        scores = super().forward(x) * self.factors[0]
        return torch.softmax(scores + 1 if torch.compiler.is_compiling() else scores, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_that_adds_otherwise_while_it_is_traced_is_equal_within_rounding(dtype):
    model, x = made(Masked).to(dtype), X.to(dtype)
    net = rpp.unravel(model, x)
    assert not torch.equal(net(x), model(x))
    torch.testing.assert_close(net(x), model(x), rtol=4 * torch.finfo(dtype).eps, atol=0)
    assert rpp.BlockLesion(net).attribute(x, 0).attrs["verified"] == "outputs within rounding"
    assert rpp.BlockInfluence(net).attribute(x, 0).attrs["verified"] == "outputs within rounding and gradients"
    model.factors[0] = 1 + 100 * torch.finfo(dtype).eps
    with pytest.raises(rpp.CaptureMismatchError, match="a value that the capture took as fixed"):
        rpp.BlockLesion(net).attribute(x, 0)


def test_verify_false_turns_the_check_off_for_a_network_or_a_study():
    model = made()
    net, unverified = rpp.unravel(model, X), rpp.unravel(model, X, verify=False)
    model.h.register_forward_hook(lambda _m, _i, y: 2 * y)
    torch.testing.assert_close(unverified(X) * 2, model(X), rtol=0, atol=0)
    assert rpp.BlockLesion(unverified).attribute(X, 0).attrs["verified"] == "no"
    assert rpp.BlockLesion(net).attribute(X, 0, run=rpp.RunOptions(verify=False)).attrs["verified"] == "no"
    with pytest.raises(rpp.CaptureMismatchError):
        rpp.BlockLesion(net).attribute(X, 0)
    with pytest.raises(rpp.CaptureMismatchError):
        rpp.BlockLesion(unverified).attribute(X, 0, run=rpp.RunOptions(verify=True))
    with pytest.raises(rpp.ResnetPathsError, match="verify must be"):
        rpp.RunOptions(verify=1)


def test_results_say_what_was_verified(tmp_path):
    model = made()
    lesions = rpp.BlockLesion(model).attribute(X, 0)
    assert lesions.attrs["verified"] == "outputs"
    assert rpp.PathLengthGradient(model).attribute(X, 0).attrs["verified"] == "outputs and gradients"
    rpp.save(lesions, tmp_path / "lesions.nc")
    assert rpp.load(tmp_path / "lesions.nc").attrs["verified"] == "outputs"


@pytest.mark.parametrize("optimize", ["fold_batch_norm", "channels_last"])
def test_an_optimized_network_is_checked_within_rounding(optimize):
    torch.manual_seed(0)

    class Convolutions(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.n, self.h = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 4)
            self.n.running_var.uniform_(0.5, 2)

        def forward(self, x):
            return self.h((x + self.n(self.f(x)).relu()).mean((2, 3)))

    model, x = Convolutions().eval(), torch.randn(4, 3, 6, 6)
    net = rpp.unravel(model, x, optimize=[optimize])
    torch.testing.assert_close(net(x), model(x))
    model.n.eps = 0.5
    with pytest.raises(rpp.CaptureMismatchError, match=r"n.eps was 1e-05 and is 0.5"):
        net(x)


def test_compiled_and_parallel_wrappers_are_not_compiled_for_the_check(monkeypatch):
    model = nn.DataParallel(made())
    assert torch.equal(rpp.unravel(model, X)(X), model(X))
    plain = made()
    calls = []
    plain.compile(backend=lambda graph, _: calls.append(graph) or graph)
    net = rpp.unravel(plain, X)
    assert torch.equal(net(X), copy.deepcopy(made())(X))
    assert not calls
