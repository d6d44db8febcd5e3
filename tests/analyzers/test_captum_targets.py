"""Targets as in Captum, one index or a tuple of them, for every analyzer. Oracle: the number indexed by hand."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from shaped_outputs import Shaped

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError

SHAPES = {"[B, C, H, W]": (4, 2, 3), "[B, T, C]": (3, 4), "[B, 1]": (1,), "[B, C]": (5,)}


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


def targets_of(shape):
    """Return targets by what they are: one for all samples, and one for each."""
    last = tuple(size - 1 for size in shape)
    each = [tuple(at % size for size in shape) for at in range(len(X))]
    found = {"one tuple": last, "a tuple for each": each}
    if len(shape) == 1:
        found |= {"an integer": last[0], "a tensor": torch.tensor([index[0] for index in each])}
    return found


CASES = [
    pytest.param(shape, target, id=f"{name}, {kind}")
    for name, shape in SHAPES.items()
    for kind, target in targets_of(shape).items()
]


def picked(outputs, target):
    rows = [target] * len(X) if isinstance(target, int | tuple) else target
    rows = [row if isinstance(row, tuple) else (int(row),) for row in rows]
    return torch.stack([outputs[(at, *row)] for at, row in enumerate(rows)])


@pytest.fixture(scope="module")
def nets():
    return {shape: rpp.unravel(Shaped(shape).eval(), X) for shape in SHAPES.values()}


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "target"), CASES)
def test_lesions_measure_what_the_target_picks(nets, shape, target):
    net = nets[shape]
    study = rpp.BlockLesion(net).attribute(X, target=target, internal_batch_size=3)
    model = Shaped(shape).eval()
    with torch.no_grad():
        intact = picked(model(X), target)
        np.testing.assert_allclose(study.intact_target_score, intact, rtol=1e-5)
        for model.gone in range(3):
            score = picked(model(X), target)
            np.testing.assert_allclose(study.target_score[model.gone], score, rtol=1e-5)
            np.testing.assert_allclose(study.target_score_drop[model.gone], intact - score, rtol=1e-4, atol=1e-6)
    assert ("error" in study) == (shape == SHAPES["[B, C]"])
    plt.close(study.resnet_paths.plot().figure)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "target"), CASES)
def test_reorderings_and_schedules_measure_what_the_target_picks(nets, shape, target):
    net = nets[shape]
    orders = rpp.BlockReordering(net).attribute(X, target=target, orders=[[2, 1, 0]])
    schedules = rpp.BlockSchedules(net).attribute(X, target=target, schedules=[rpp.schedules.adjacent_swaps])
    model = Shaped(shape).eval()
    with torch.no_grad():
        model.order = (2, 1, 0)
        np.testing.assert_allclose(orders.target_score[0], picked(model(X), target), rtol=1e-5)
        model.order = (1, 0, 2)
        np.testing.assert_allclose(schedules.target_score[0], picked(model(X), target), rtol=1e-5)
    for study in (orders, schedules):
        plt.close(study.resnet_paths.plot().figure)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "target"), CASES)
def test_gradients_are_those_of_what_the_target_picks(nets, shape, target):
    net, given = nets[shape], X.clone().requires_grad_()
    paths = rpp.PathLengthGradient(net).attribute(X, target=target, keep_maps=True, internal_batch_size=3)
    (own,) = torch.autograd.grad(picked(Shaped(shape).eval()(given), target).sum(), given)
    np.testing.assert_allclose(paths.gradient.sum("path_length"), own, rtol=1e-4, atol=1e-6)
    lesions = rpp.BlockLesion(net).attribute(X, target=target)
    influence = rpp.BlockInfluence(net).attribute(X, target=target, objective="score", lesions=lesions)
    for at in range(3):
        y = X
        with torch.no_grad():
            for f in list(net.model.f)[:at]:
                y = y + torch.tanh(f(y))
            branch = torch.tanh(net.model.f[at](y))
        total = (y + branch).requires_grad_()
        z = total
        for f in list(net.model.f)[at + 1 :]:
            z = z + torch.tanh(f(z))
        (slope,) = torch.autograd.grad(picked(net.model.h(z).unflatten(1, shape), target).sum(), total)
        np.testing.assert_allclose(influence.lesion_estimate[at], -(slope * branch).sum(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ask", [
    lambda net, target: rpp.BlockLesion(net).attribute(X, target=target),
    lambda net, target: rpp.BlockReordering(net).attribute(X, target=target),
    lambda net, target: rpp.BlockInfluence(net).attribute(X, target=target, objective="score"),
    lambda net, target: rpp.PathLengthGradient(net).attribute(X, target=target),
])  # fmt: skip
def test_targets_that_pick_no_number_are_refused_before_anything_runs(nets, ask):
    net = nets[SHAPES["[B, C, H, W]"]]
    with pytest.raises(InputError, match=r"out of range: the model has outputs of shape \(4, 2, 3\)"):
        ask(net, (3, 2, 0))
    with pytest.raises(InputError, match="must be a tuple of 3 indices: the model's outputs have 3 dimensions"):
        ask(net, [(0, 0)] * 4)
    with pytest.raises(InputError, match="3 indices"):
        ask(net, 1)
    with pytest.raises(InputError, match=r"outputs.* \(0, 0, 0\)|index, or a tuple of 3|a target of 3 indices"):
        ask(net, None)


def test_the_loss_of_other_outputs_is_refused_with_the_score(nets):
    with pytest.raises(InputError, match="objective='score' takes the number that the target picks"):
        rpp.BlockInfluence(nets[(3, 4)]).attribute(X, target=(0, 0))


def test_a_tuple_of_one_index_is_a_label_as_the_index_is(nets):
    net = nets[SHAPES["[B, C]"]]
    one, other = (rpp.BlockLesion(net).attribute(X, target=target) for target in (3, (3,)))
    assert one.drop_attrs().equals(other.drop_attrs())
    assert "loss" in other


def test_measures_of_the_users_own_read_targets_as_they_like(nets):
    net = nets[SHAPES["[B, T, C]"]]

    def reads(outputs, target):
        return outputs[:, target[0], target[1]] * target[2]

    study = rpp.BlockLesion(net).attribute(X, target=(0, 1, 7), measures={"mine": reads})
    assert {"mine", "intact_mine"} <= set(study)
    assert "target_score" not in study
