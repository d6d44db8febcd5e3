"""The check of gradients: it compares what a study uses, a mistake in it is refused, and what it costs is shared.

The mistakes are made here, in the code that takes gradients; the oracle is the model itself.
"""

import numpy as np
import pytest
import torch
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.engine.backward import BackwardWalk
from resnet_paths_plugin.engine.program import Program
from resnet_paths_plugin.network.model_check import OUTPUTS

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Three residual blocks, an embedding that tokens may use, and a head."""

    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(7, 5)
        self.f = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.h = nn.Linear(5, 4)

    def forward(self, x):
        x = x if x.is_floating_point() else self.e(x)
        for f in self.f:
            x = x + torch.tanh(f(x))
        return self.h(x)


def made(cls=Net, dtype=torch.float32):
    torch.manual_seed(0)
    return cls().eval().to(dtype)


def paths(inputs=X, **options):
    return lambda net: rpp.PathLengthGradient(net).attribute(inputs, 0, **options)


WALKS = {
    "exact": paths(),
    "exact, cut": paths(max_length=1),
    "exact, two axes": paths(grade="branch_type"),
    "sampled": paths(estimator="sampled", draws=2),
    "signs": paths(estimator="signs", draws=2),
    "at the stem": paths(tap="stem"),
    "at a block, sampled": paths(tap=1, estimator="sampled", draws=2),
    "at the stem, of tokens": paths(torch.arange(4), tap="stem"),
    "cross-entropy": paths(objective="cross_entropy"),
    "a function": paths(objective=lambda outputs, _: outputs.square().sum(1)),
    "restricted": lambda net: net.restricted([1])(X.clone().requires_grad_()).sum().backward(),
    "restricted to all": lambda net: net.restricted(range(4))(X.clone().requires_grad_()).sum().backward(),
}


def scaled(factor):
    """Return a walk whose rows are wrong at each sum by a factor."""
    right = BackwardWalk._of_term

    def wrong(self, rows, term, root):
        return right(self, rows, term, root) * factor

    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("way", WALKS)
def test_a_wrong_walk_is_refused(way, monkeypatch):
    inputs = torch.arange(4) if "tokens" in way else X
    net = rpp.unravel(made(), inputs)
    monkeypatch.setattr(BackwardWalk, "_of_term", scaled(1.01))
    with pytest.raises(rpp.CaptureMismatchError, match="the mistake is in how this package takes them"):
        WALKS[way](net)


@pytest.mark.slow
@pytest.mark.parametrize("way", WALKS)
def test_a_right_walk_is_not(way):
    inputs = torch.arange(4) if "tokens" in way else X
    found = WALKS[way](rpp.unravel(made(), inputs))
    assert found is None or found.attrs["verified"] == "outputs and gradients"


@pytest.mark.parametrize("inputs", [X, torch.arange(4)])
def test_wrong_gradients_of_influence_are_refused(inputs, monkeypatch):
    net = rpp.unravel(made(), inputs)
    right = Program.at_outputs
    monkeypatch.setattr(Program, "at_outputs", lambda self, found: {k: 1.01 * v for k, v in right(self, found).items()})
    with pytest.raises(rpp.CaptureMismatchError, match="the mistake is in how this package takes them"):
        rpp.BlockInfluence(net).attribute(inputs, 0)


def test_influence_without_labels_takes_no_gradient_and_says_so():
    assert rpp.BlockInfluence(made()).attribute(X).attrs["verified"] == "outputs"
    assert rpp.BlockInfluence(made()).attribute(X, 0).attrs["verified"] == "outputs and gradients"


class Counting(Net):
    """Counts how often it runs, and whether gradients are recorded then."""

    def forward(self, x):
        if not torch.compiler.is_compiling() and not isinstance(x, torch._subclasses.FakeTensor):
            RUNS.append(torch.is_grad_enabled())
        return super().forward(x)


RUNS: list[bool] = []
STUDIES = {
    "lesions": (rpp.BlockLesion, [False]),
    "reorderings": (rpp.BlockReordering, [False]),
    "paths": (rpp.PathLengthGradient, [True]),
    "influence": (rpp.BlockInfluence, [True]),
}


@pytest.mark.parametrize("study", STUDIES)
def test_the_check_runs_the_model_once_in_a_study(study):
    analyzer, runs = STUDIES[study]
    net = rpp.unravel(made(Counting), X)
    RUNS.clear()
    analyzer(net).attribute(X, 0)
    assert runs == RUNS


@pytest.mark.parametrize("study", STUDIES)
def test_the_networks_own_first_pass_is_the_checks(study, monkeypatch):
    """With the check the network runs no more often than without it."""
    analyzer, _ = STUDIES[study]
    net = rpp.unravel(made(), X)
    runs = []
    prepared = Program.prepare
    monkeypatch.setattr(Program, "prepare", lambda self, *values: runs.append(1) or prepared(self, *values))
    found = {}
    for verify in (True, False):
        runs.clear()
        found[verify] = analyzer(net).attribute(X, 0, run=rpp.RunOptions(verify=verify)), len(runs)
    assert found[True][1] == found[False][1] > 0
    assert found[True][0].drop_attrs().equals(found[False][0].drop_attrs())


def test_what_is_kept_is_of_these_inputs_and_targets_only():
    twice = torch.cat([X[:2], X[:2]])
    target = torch.tensor([0, 1, 2, 3])
    found = rpp.PathLengthGradient(made()).attribute(twice, target, internal_batch_size=2)
    alone = rpp.PathLengthGradient(made()).attribute(X[:2], target[2:])
    np.testing.assert_array_equal(found.gradient_norm[:, 2:], alone.gradient_norm)
    assert not found.gradient_norm[:, :2].equals(found.gradient_norm[:, 2:])


def test_nothing_is_kept_after_a_study():
    net = rpp.unravel(made(), X)
    for analyzer, _ in STUDIES.values():
        analyzer(net).attribute(X, 0)
        assert not net.check._kept


def test_an_objective_that_draws_numbers_draws_what_it_draws_without_the_check():
    def drawing(outputs, _):
        return outputs[:, 0] * (1 + torch.rand(()))

    net = rpp.unravel(made(), X)
    with_check, without = (
        rpp.PathLengthGradient(net).attribute(
            X, objective=drawing, internal_batch_size=2, estimator="signs", draws=2, run=rpp.RunOptions(verify=verify)
        )
        for verify in (True, False)
    )
    np.testing.assert_array_equal(with_check.path_gradient_rms, without.path_gradient_rms)


def test_gradients_that_are_at_nothing_are_not_called_verified():
    model = made().requires_grad_(requires_grad=False)
    found = rpp.PathLengthGradient(model).attribute(torch.arange(4), 0, tap="stem")
    assert found.attrs["verified"] == "outputs and gradients"  # of the walk, against autograd through the graph


def test_what_is_kept_is_not_taken_for_other_values():
    net = rpp.unravel(made(), X)
    net.check.study((X,))
    for other in ((X + 1,), (X.double(),), (X, X), (X[:2],)):
        assert net.check.take(OUTPUTS, other) is None
    assert torch.equal(net.check.take(OUTPUTS, (X.clone(),)), made()(X))
    assert net.check.take(OUTPUTS, (X,)) is None
