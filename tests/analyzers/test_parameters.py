"""PathLengthGradient at the parameters: against every path one by one, autograd, and numbers walked by hand."""

from functools import cache

import cifar
import numpy as np
import pytest
import torch
from networks import assert_same_state, state_of
from path_enumeration import TWINS, twin
from torch import nn
from torch.nn import functional

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
    return rpp.PathLengthGradient(network(name)).attribute(inputs, TARGET, tap="parameters", **options)


class Chain(nn.Module):
    """A chain of blocks whose branches can let a part `t` of their gradient through, with values as they are."""

    def __init__(self, n_blocks=4, width=5):
        super().__init__()
        self.t = 1.0
        self.stem, self.head = nn.Linear(3, width), nn.Linear(width, 4)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 6), nn.Tanh(), nn.Linear(6, width))
            for _ in range(n_blocks)
        )

    def forward(self, x):
        x = self.stem(x)
        for branch in self.branches:
            f = branch(x)
            x = x + (f if self.t == 1 else self.t * f + (1 - self.t) * f.detach())
        return self.head(x.tanh())


def by_length(model, total, names):
    """Return the gradient at some parameters by path length, `[K + 1, P]`: coefficients of a polynomial in `t`."""
    n = len(model.branches)
    nodes = np.cos(np.pi * (np.arange(n + 1) + 0.5) / (n + 1))
    rows = []
    for t in nodes:
        model.t = float(t)
        found = torch.autograd.grad(total(), [model.get_parameter(name) for name in names])
        rows.append(torch.cat([one.flatten() for one in found]).numpy())
    model.t = 1.0
    return np.linalg.solve(np.vander(nodes, increasing=True), np.stack(rows))


@pytest.mark.parametrize("objective", ["score", "cross_entropy"])
def test_norms_and_shares_equal_those_of_scaled_branches(objective):
    torch.manual_seed(0)
    model, x, y = Chain().double(), torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 4, (6,))
    before = state_of(model)
    ds = rpp.PathLengthGradient(model).attribute(x, y, tap="parameters", objective=objective, per_sample=True)
    assert_same_state(before, state_of(model))
    assert ds.parameter_gradient_norm.dims == ("block", "path_length")
    groups = {
        f"branches.{i}": [f"branches.{i}.{name}" for name, _ in model.branches[i].named_parameters()] for i in range(4)
    }
    groups |= {"stem": ["stem.weight", "stem.bias"], "head": ["head.weight", "head.bias"]}
    parts = [*ds.block.values.tolist()]
    assert parts[4:] == ["stem", "head"]

    def total(chosen):
        outputs = model(x[chosen])
        if objective == "score":
            return outputs.gather(1, y[chosen, None]).sum()
        return functional.cross_entropy(outputs, y[chosen], reduction="sum")

    for part, names in zip(parts, groups.values(), strict=True):
        for number, chosen in enumerate([slice(None), *([at] for at in range(6))]):
            rows = by_length(model, lambda chosen=chosen: total(chosen), names)
            whole = rows.sum(0)
            one = ds.sel(block=part)
            ours = (one.parameter_gradient_norm, one.parameter_gradient_share)
            if number:
                at = number - 1
                ours = [one[f"parameter_gradient_{name}_per_sample"].isel(sample=at) for name in ("norm", "share")]
            np.testing.assert_allclose(ours[0], np.linalg.norm(rows, axis=1), atol=1e-11)
            np.testing.assert_allclose(ours[1], rows @ whole / (whole @ whole), atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OUTPUT)
def test_all_lengths_together_are_autograds_gradient(name):
    ds = attribute(name)
    assert (ds.completeness_error < 1e-12).all()
    assert int(ds.n_parameters.sum()) >= sum(p.numel() for p in twin(name).model.parameters())
    np.testing.assert_allclose(
        ds.parameter_gradient_share.sum("path_length").where(ds.parameter_gradient_norm.sum("path_length") > 0, 1), 1
    )


def test_the_rest_behind_the_longest_length_is_kept():
    torch.manual_seed(0)
    net, x = rpp.unravel(Chain().double(), torch.randn(4, 3).double()), torch.randn(4, 3).double()
    whole = rpp.PathLengthGradient(net).attribute(x, 1, tap="parameters")
    ds = rpp.PathLengthGradient(net).attribute(x, 1, tap="parameters", max_length=2)
    np.testing.assert_allclose(ds.parameter_gradient_norm, whole.parameter_gradient_norm[:, :3], rtol=1e-10)
    assert (ds.completeness_error < 1e-12).all()
    assert "mean_path_length" not in ds
    last = ds.sel(block="branches.3")
    assert last.tail_parameter_gradient_norm == 0
    assert (ds.tail_parameter_gradient_norm[:2] > 0).all()


def test_batches_add_up_as_one_batch_does():
    torch.manual_seed(0)
    net, x = rpp.unravel(Chain().double(), torch.randn(4, 3).double()), torch.randn(7, 3).double()
    whole = rpp.PathLengthGradient(net).attribute(x, 1, tap="parameters")
    parts = rpp.PathLengthGradient(net).attribute(
        [(x[:3], torch.ones(3, dtype=torch.long)), (x[3:], torch.ones(4, dtype=torch.long))], tap="parameters"
    )
    for name in ("parameter_gradient_norm", "parameter_gradient_share", "mean_path_length"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-9, atol=1e-13)
    assert int(parts.n_samples) == int(whole.n_samples) == 7


class Shared(nn.Module):
    """One branch that two blocks run, weights that are computed from others, and a frozen head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 3, padding=1))
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Tanh())
        self.down = nn.Conv2d(4, 6, 1, stride=2)
        self.last = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(6, 6, 1))
        self.scale = nn.Parameter(torch.rand(6, 1, 1))
        self.head = nn.Linear(6, 3).requires_grad_(False)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.branch(x)
        x = x + self.branch(x)
        x = self.down(x) + self.scale * self.last(x)
        return self.head(x.relu().mean((2, 3)))


def test_shared_branches_derived_weights_and_skips_have_their_own_parts():
    torch.manual_seed(0)
    model, x = Shared().double(), torch.randn(3, 2, 6, 6).double()
    ds = rpp.PathLengthGradient(model).attribute(x, 1, tap="parameters")
    first, second, last = ds.block.values.tolist()[:3]
    assert ds.block.values.tolist()[3:] == ["stem", f"{last} (skip)", "head"]
    assert ds.block_index.values.tolist() == [0, 1, 2, -1, -1, -1]
    assert (ds.completeness_error < 1e-12).all()
    np.testing.assert_allclose(ds.parameter_gradient_share.sum("path_length"), 1, rtol=1e-10)
    n_branch = sum(p.numel() for p in model.branch.parameters())
    assert ds.n_parameters.sel(block=[first, second]).values.tolist() == [n_branch] * 2
    assert int(ds.n_parameters.sel(block="head")) == 21
    assert int(ds.n_parameters.sel(block=f"{last} (skip)")) == sum(p.numel() for p in model.down.parameters())


def test_shared_numbers_of_trained_networks():
    """Walked by hand in float64 on the first 8 images, cross-entropy summed (the numbers of issue 16)."""
    images, labels = cifar.images_and_labels()
    x, y = images[:8].double(), labels[:8]

    def measured(depth):
        net = rpp.unravel(cifar.trained(depth).double(), x[:2])
        return rpp.PathLengthGradient(net).attribute(x, y, tap="parameters", objective="cross_entropy")

    ds = measured(20)
    assert ds.block.values.tolist()[9:] == ["stem", "head"]
    norms = ds.parameter_gradient_norm
    expected = [0.0040, 0.0272, 0.0767, 0.1176, 0.1842, 0.1374, 0.1139, 0.0280, 0.0052]
    np.testing.assert_allclose(norms[0, 1:], expected, atol=5e-5)
    by_norms = (norms * ds.path_length).sum("path_length") / norms.sum("path_length")
    np.testing.assert_allclose(by_norms[:9], [5.146, 4.635, 4.284, 3.740, 3.467, 3.145, 2.422, 1.897, 1], atol=5e-4)
    by_shares = [5.686, 4.695, 3.822, 3.873, 3.571, 3.212, 2.479, 1.938, 1]
    np.testing.assert_allclose(ds.mean_path_length[:9], by_shares, atol=5e-4)
    assert (ds.completeness_error < 1e-12).all()
    deep = measured(56)
    np.testing.assert_allclose(deep.mean_path_length[[0, 9, 18, 24]], [5.294, 4.253, 2.881, 2.018], atol=5e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "sampled"}, "estimator='exact' only"),
        ({"keep_maps": True}, "keeps no maps"),
        ({"grade": "branch_type"}, "on one axis"),
        ({"max_length": -1}, "max_length must be"),
        ({"tap": "input", "per_sample": True}, "per_sample goes with tap='parameters'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    known = twin("transformer")
    analyzer = rpp.PathLengthGradient(network("transformer"))
    with pytest.raises(InputError, match=message):
        analyzer.attribute(known.inputs[0], TARGET, **{"tap": "parameters", **options})
