"""PathParticipation against every path one by one, integrated gradients, and the identity that it rests on."""

from collections import defaultdict
from functools import cache

import captum.attr
import cifar
import numpy as np
import pytest
import torch
from networks import assert_same_state, state_of
from path_enumeration import OUTPUT, TWINS, twin
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError

TARGET = 2
ONE_OUTPUT = sorted(name for name, made in TWINS.items() if len(made) == 2)


@cache
def network(name):
    return rpp.unravel(twin(name).model, twin(name).inputs)


def attribute(name, **options):
    known = twin(name)
    inputs = known.inputs if len(known.inputs) > 1 else known.inputs[0]
    return rpp.PathParticipation(network(name)).attribute(inputs, TARGET, **options)


def along(path, directions):
    return sum((g * u).flatten(1).sum(1) for g, u in zip(path.gradients, directions, strict=True))


def assert_equals(ds, paths, directions, rtol=1e-10):
    """Compare with the sum over enumerated paths; scale errors by what the paths add up to without their signs."""
    zero = torch.zeros(ds.sizes["sample"], dtype=torch.float64)
    through, whole = defaultdict(lambda: zero), defaultdict(lambda: zero)
    scale = float(sum(along(path, directions).abs() for path in paths).max())
    for path in paths:
        one = along(path, directions)
        whole[path.length] = whole[path.length] + one
        for block in path.blocks:
            through[block, path.length] = through[block, path.length] + one
    for length in ds.path_length.values.tolist():
        ours = ds.directional_derivative.sel(path_length=length)
        np.testing.assert_allclose(ours, whole[length], rtol=0, atol=1e-12 * scale)
        for block in ds.block.values.tolist():
            ours = ds.participation.sel(block=block, path_length=length)
            np.testing.assert_allclose(ours, through[block, length], rtol=0, atol=1e-12 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["input", "gradient"])
@pytest.mark.parametrize("name", ONE_OUTPUT)
def test_participation_equals_the_enumeration(name, direction):
    known = twin(name)
    ds = attribute(name, direction=direction)
    gradient = tuple(sum(parts) for parts in zip(*(path.gradients for path in known.paths), strict=True))
    assert_equals(ds, known.paths, known.inputs if direction == "input" else gradient)
    assert ds.participation.dims == ("block", "path_length", "sample")
    assert (ds.completeness_error < 1e-12).all()


def test_a_baseline_moves_the_direction():
    known = twin("pre-activation")
    baseline = torch.randn(3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ds = attribute("pre-activation", baselines=baseline[None])
    assert_equals(ds, known.paths, [known.inputs[0] - baseline])


def test_along_the_line_from_a_baseline_it_splits_integrated_gradients():
    known = twin("post-activation")
    x = known.inputs[0]
    ds = attribute("post-activation", baselines=0.5, n_steps=7)
    theirs = captum.attr.IntegratedGradients(known.model).attribute(x, 0.5 * torch.ones_like(x), TARGET, n_steps=7)
    # Captum keeps the points on its line in float32.
    np.testing.assert_allclose(
        ds.directional_derivative.sum("path_length"), theirs.flatten(1).sum(1).detach(), rtol=1e-8
    )
    assert (ds.completeness_error < 1e-12).all()


@pytest.mark.parametrize("name", ["pre-activation", "post-activation", "transformer"])
def test_between_two_sums_of_a_chain_it_equals_the_paths_between_them(name):
    """Paths from the output to the earlier sum, cut at the later one, whose blocks before it do not count."""
    known, net = twin(name), network(name)
    wiring = known.wiring
    names = [*wiring.sums]
    early, late = names[0], names[-1]
    blocks = {node: next(t.block for t in terms if t.block) for node, terms in wiring.sums.items()}
    ds = attribute(name, between=(blocks[early], blocks[late]))
    at_early = known.at(early)
    values = dict(zip(wiring.inputs, known.inputs, strict=True))
    for node, terms in wiring.sums.items():
        values[node] = sum(t.function(*(values[read] for read in t.reads)) for t in terms).detach()
    assert_equals(ds, at_early.paths, [values[early]])
    middle = names[-2]
    # From a sum that is not the first one.
    later = attribute(name, between=(blocks[names[1]], blocks[late]))
    assert_equals(later, known.at(names[1]).paths, [values[names[1]]])
    inner = attribute(name, between=(blocks[early], blocks[middle]))
    outside = [block for node, block in blocks.items() if node in {early, late}]
    assert (inner.participation.sel(block=outside) == 0).all()
    whole = sum(along(path, [values[early]]) for path in at_early.paths)
    np.testing.assert_allclose(inner.directional_derivative.sum("path_length"), whole, rtol=1e-10)
    assert net.blocks[0].name == blocks[early]
    assert OUTPUT not in names


def test_shared_numbers_of_a_trained_network():
    """ResNet-20 on the first four images, walked by hand in float64 (the numbers of issue 16)."""
    images, labels = cifar.images_and_labels()
    net = rpp.unravel(cifar.trained(20).double(), images[:2].double())
    ds = rpp.PathParticipation(net).attribute(images[:4].double(), labels[:4])
    per_length = (ds.participation / ds.path_length.where(ds.path_length > 0)).sum("path_length").mean("sample")
    np.testing.assert_allclose(per_length, [0.40, -0.58, -0.59, 0.38, 0.42, 0.20, 0.38, 0.10, 1.35], atol=5e-3)
    expected = [0.12, 1.10, 0.53, 0.10, -0.85, 0.79, 0.21, 0.20, 0.02, -0.03]
    np.testing.assert_allclose(ds.directional_derivative.mean("sample"), expected, atol=5e-3)


def test_short_lengths_do_not_depend_on_longer_ones():
    ds, whole = attribute("transformer", max_length=2), attribute("transformer")
    assert ds.sizes["path_length"] == 3
    np.testing.assert_allclose(ds.participation, whole.participation[:, :3], rtol=1e-11, atol=1e-13)


def test_samples_do_not_depend_on_those_beside_them():
    whole, single = attribute("pre-activation"), attribute("pre-activation", internal_batch_size=1)
    np.testing.assert_allclose(whole.participation, single.participation, rtol=1e-10, atol=1e-13)


class Root(nn.Module):
    """A root at 0 has no finite slope; what `where` passes nothing on to there, the branch must not see."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.head = (nn.Linear(4, 4, dtype=torch.float64) for _ in range(3))

    def middle(self, x):
        positive = torch.relu(x)
        return self.branch(torch.where(positive > 0, positive, 1.0).sqrt() * torch.sign(positive))

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.middle(x))


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    model, x = Root().train(), torch.randn(3, 4, dtype=torch.float64)
    before = state_of(model)
    ds = rpp.PathParticipation(model).attribute(x, 1)
    assert_same_state(before, state_of(model))
    assert (ds.completeness_error < 1e-12).all()


def test_the_gradient_is_the_ordinary_one_where_lengths_are_cut():
    ds, whole = (attribute("transformer", direction="gradient", **more) for more in ({"max_length": 2}, {}))
    np.testing.assert_allclose(ds.participation, whole.participation[:, :3], rtol=1e-9, atol=1e-12)


class Conditioned(nn.Module):
    """An input with one number for each sample, such as a time."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x, time):
        x = self.stem(x) + time[:, None]
        return self.head(x + torch.tanh(self.branch(x)))


def test_an_input_of_one_number_for_each_sample_has_gradients_too():
    torch.manual_seed(0)
    model, inputs = Conditioned().double(), (torch.randn(4, 4).double(), torch.randn(4).double())
    ds = rpp.PathParticipation(model).attribute(inputs, 1)
    assert (ds.completeness_error < 1e-12).all()
    lengths = rpp.PathLengthGradient(model).attribute(inputs, 1)
    np.testing.assert_allclose(lengths.gradient_share.sum("path_length"), 1, rtol=1e-12)


def test_tangents_that_meet_slopes_of_zero_times_infinity_are_left_to_autograd():
    class Rooted(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.f, self.norm, self.head = (
                nn.Linear(4, 5), nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 3),
            )  # fmt: skip

        def forward(self, x):
            x = self.stem(x)
            x = x + self.norm(torch.sqrt(torch.relu(self.f(x))))
            return self.head(x + torch.tanh(self.f(x)))

    torch.manual_seed(0)
    model, x = Rooted().double(), torch.randn(3, 4).double()
    gradient = torch.autograd.grad(model(x.requires_grad_())[:, 1].sum(), x)[0]
    ds = rpp.PathParticipation(model).attribute(x.detach(), 1)
    assert gradient.isfinite().all()
    assert ds.participation.notnull().all()
    assert (ds.completeness_error < 1e-12).all()


class Towers(nn.Module):
    """Two towers of different depth, of token ids or of numbers."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 5), nn.Embedding(7, 5)
        self.a = nn.ModuleList([nn.Linear(5, 5)])
        self.b = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.head = nn.Linear(5, 4)

    def forward(self, x, tokens):
        x, y = self.left(x), self.right(tokens).mean(1)
        for f in self.a:
            x = x + torch.tanh(f(x))
        for f in self.b:
            y = y + torch.tanh(f(y))
        return self.head(x * y)


def test_a_tower_of_token_ids_may_be_deeper_than_that_of_numbers():
    torch.manual_seed(0)
    model, inputs = Towers().double(), (torch.randn(4, 3).double(), torch.randint(0, 7, (4, 2)))
    parameters = rpp.PathLengthGradient(model).attribute(inputs, 1, tap="parameters")
    assert (parameters.completeness_error < 1e-12).all()
    assert rpp.BlockContribution(model).attribute(inputs, 1).sizes["block"] == 4
    names = [str(name) for name in parameters.block.values if str(name).startswith("b.")]
    ds = rpp.PathParticipation(model).attribute(inputs, 1, between=(names[0], names[-1]))
    assert (ds.completeness_error < 1e-12).all()


def test_token_ids_have_directions_between_sums_only():
    torch.manual_seed(0)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)
            self.branches = nn.ModuleList(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)) for _ in range(3))

        def forward(self, tokens):
            x = self.embedding(tokens)
            for branch in self.branches:
                x = x + branch(x)
            return self.head(x.mean(1))

    model, tokens = Tokens().double(), torch.randint(0, 9, (4, 6))
    with pytest.raises(InputError, match="pass between="):
        rpp.PathParticipation(model).attribute(tokens, 1)
    ds = rpp.PathParticipation(model).attribute(tokens, 1, between=(0, 2))
    assert (ds.completeness_error < 1e-12).all()
    assert (ds.participation[0] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "up"}, "direction must be"),
        ({"direction": "gradient", "baselines": 0}, "go with direction='input'"),
        ({"baselines": (0, 0)}, "2 entries for 1 inputs"),
        ({"baselines": "zero"}, "a number or a tensor"),
        ({"baselines": torch.zeros(2, 3, 6, 6)}, "the same for all samples"),
        ({"baselines": torch.zeros(1, 5)}, "does not broadcast"),
        ({"n_steps": 1, "method": "riemann_trapezoid"}, "does not work with n_steps=1"),
        ({"n_steps": 0}, "n_steps"),
        ({"n_steps": 3, "method": "none"}, "chooses no points"),
        ({"between": "blocks.0"}, "takes two blocks"),
        ({"between": ("blocks.1", "blocks.0")}, "no path leads from the sum of"),
        ({"between": ("blocks.0", "blocks.0")}, "no path leads from the sum of"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        attribute("pre-activation", **options)
