"""The model is after every study as it was before: the oracle is a deep snapshot of all of its state."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import resnet_paths_plugin as rpp

pytestmark = pytest.mark.slow

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Three residual blocks, a batch norm in each, and a head."""

    def __init__(self):
        super().__init__()
        self.f = nn.ModuleList(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)) for _ in range(3))
        self.h = nn.Linear(5, 4)
        self.register_buffer("seen", torch.zeros(5))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.calls, self.kept = 0, []

    def forward(self, x):
        for f in self.f:
            x = x + torch.tanh(f(x))
        return self.h(x)


class InPlace(Net):
    def forward(self, x):
        self.seen.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return super().forward(x - self.seen)


class Replaced(Net):
    def forward(self, x):
        self.seen = self.seen * 0.9 + x.detach().mean(0) * 0.1
        return super().forward(x - self.seen)


class Sliced(Net):
    def forward(self, x):
        self.seen[1:3] = x.detach().mean(0)[1:3]
        self.count += 1
        return super().forward(x - self.seen)


class WithGradient(Net):
    def forward(self, x):
        self.seen.copy_(x.mean(0))
        return super().forward(x - self.seen)


class OnAttributes(Net):
    def forward(self, x):
        self.calls += 1
        self.kept.append(self.calls)
        return super().forward(x)


MODELS = [Net, InPlace, Replaced, Sliced, WithGradient, OnAttributes]


def made(cls, *, training=False):
    torch.manual_seed(0)
    model = cls()
    model.f[0].register_forward_hook(lambda _m, _i, y: None)
    model.h.bias.requires_grad_(False)
    model.f[1][0].weight.grad = torch.ones(5, 5)
    return model.train(training)


def snapshot(model):
    """Return all that a run could change of a model and of the generators."""
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict(keep_vars=True).items()}
    about = {
        name: (id(one), one.requires_grad, one.grad_fn, None if one.grad is None else one.grad.clone())
        for name, one in model.state_dict(keep_vars=True).items()
    }
    modules = [(id(part), part.training, tuple(part._forward_hooks)) for part in model.modules()]
    own = (model.calls, list(model.kept))
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002 - the one that models draw from
    return tensors, about, modules, own, drawn, torch.is_grad_enabled()


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


WAYS = {
    "lesions": lambda net: rpp.BlockLesion(net).attribute(X, 0).target_score,
    "lesions, recalibrated": lambda net: rpp.BlockLesion(net).attribute(X, 0, batch_norm="recalibrated").target_score,
    "means": lambda net: rpp.BlockLesion(net).attribute(X, 0, ablation="mean").target_score,
    "reorderings": lambda net: rpp.BlockReordering(net).attribute(X, 0).target_score,
    "path lengths": lambda net: rpp.PathLengthGradient(net).attribute(X, 0).gradient_norm,
    "all estimators": lambda net: (
        rpp.PathLengthGradient(net).attribute(X, 0, estimator=("sampled", "signs"), draws=2).path_gradient_rms
    ),
    "influence": lambda net: rpp.BlockInfluence(net).attribute(X, 0).branch_to_source_norm,
    "called": lambda net: net(X),
    "restricted": lambda net: torch.autograd.grad(net.restricted([1])(y := X.clone().requires_grad_()).sum(), y)[0],
    "lesioned": lambda net: net.lesioned([0])(X),
}


def every_way():
    """Yield all models, ways and flags; by default each way runs with two models, and each model in two ways."""
    for training in (False, True):
        for cls in MODELS:
            for way in WAYS:
                chosen = (cls is InPlace and training) or (cls is Net and not training)
                chosen |= way == ("lesions" if training else "path lengths")
                marks = () if chosen else pytest.mark.zoo
                yield pytest.param(cls, way, training, marks=marks, id=f"{training}-{cls.__name__}-{way}")


@pytest.mark.parametrize(("cls", "way", "training"), [*every_way()])
def test_a_model_is_as_before_and_two_runs_are_equal(cls, way, training):
    model = made(cls, training=training)
    net = rpp.unravel(model, X)
    before = snapshot(model)
    one = WAYS[way](net)
    assert same(before, snapshot(model))
    other = WAYS[way](net)
    assert same(before, snapshot(model))
    np.testing.assert_array_equal(np.asarray(one.data.detach() if torch.is_tensor(one) else one), other.data.detach()
                                  if torch.is_tensor(other) else other)  # fmt: skip


@pytest.mark.parametrize("cls", [InPlace, Replaced, Sliced])
def test_each_run_reads_the_buffers_as_they_are_before(cls):
    model = made(cls)
    net = rpp.unravel(model, X)
    net(X)
    found = rpp.BlockLesion(net).attribute(X, 0).intact_target_score.values
    with torch.no_grad():
        np.testing.assert_array_equal(found, model(X)[:, 0].numpy())
        model.seen += 1
        found = rpp.BlockLesion(net).attribute(X, 0).intact_target_score.values
        np.testing.assert_array_equal(found, model(X)[:, 0].numpy())


@pytest.mark.parametrize("cls", MODELS)
def test_sampling_in_eval_mode_leaves_the_model(cls):
    model = made(cls)
    try:
        sampling = rpp.unravel(model, X).sampling(n_active=2).eval()
    except rpp.ResnetPathsError:
        assert cls in {InPlace, Replaced, Sliced, WithGradient}  # it writes more than statistics in training mode
        return
    before = snapshot(model)
    sampling(X)
    assert same(before, snapshot(model))


def test_the_check_of_a_training_graph_moves_no_statistics_and_draws_nothing():
    """After one batch with all blocks the model's state is what the model's own forward makes of it."""
    model, twin = made(Net, training=True), made(Net, training=True)
    sampling = rpp.unravel(model, X).sampling(n_active=3)
    before = torch.get_rng_state()
    sampling(X)
    twin(X)
    for one, other in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("cls", MODELS)
def test_a_model_is_as_before_after_an_error_in_a_measure_or_an_objective(cls, error):
    def fails(outputs, target):
        torch.rand(1)
        raise error("stop")

    model = made(cls, training=True)
    net = rpp.unravel(model, X)
    before = snapshot(model)
    with pytest.raises(error):
        rpp.BlockLesion(net).attribute(X, 0, measures={"own": fails})
    assert same(before, snapshot(model))
    with pytest.raises(error):
        rpp.PathLengthGradient(net).attribute(X, 0, objective=fails)
    assert same(before, snapshot(model))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_model_is_as_before_after_an_error_of_its_own(error):
    class Fails(InPlace):
        def forward(self, x):
            outputs = super().forward(x)
            if armed and not torch.compiler.is_compiling() and torch.is_grad_enabled() is False:
                torch.rand(1)
                raise error("stop")
            return outputs

    armed: list[bool] = []
    model = made(Fails, training=True)
    net = rpp.unravel(model, X)
    armed.append(True)
    before = snapshot(model)
    with pytest.raises(rpp.CaptureMismatchError if error is ValueError else error, match="stop"):
        net(X)
    assert same(before, snapshot(model))


def test_generators_are_as_before_a_study_of_a_model_that_draws():
    class Dropping(Net):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.5, training=True))

    model = made(Dropping)
    with pytest.warns(Warning, match="draws random numbers"):
        net = rpp.unravel(model, X)
    before = snapshot(model)
    one, two = (rpp.BlockLesion(net).attribute(X, 0).target_score.values for _ in range(2))
    assert same(before, snapshot(model))
    np.testing.assert_array_equal(one, two)
