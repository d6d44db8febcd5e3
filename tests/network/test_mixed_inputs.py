"""Integer inputs beside floating-point ones, and batches that are dicts. The oracle is autograd through the model."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import CaptureError, InputError, UnsupportedMethodError


class Mixed(nn.Module):
    """Token ids and features; `first` says which input comes first."""

    def __init__(self, first="ids"):
        super().__init__()
        self.first, self.table = first, nn.Embedding(7, 5)
        self.f, self.h = nn.ModuleList(nn.Linear(5, 5) for _ in range(2)), nn.Linear(5, 4)

    def forward(self, one, other):
        ids, x = (one, other) if self.first == "ids" else (other, one)
        x = x + self.table(ids)
        for f in self.f:
            x = x + torch.tanh(f(x))
        return self.h(x)


def made(first):
    torch.manual_seed(0)
    model = Mixed(first).double().eval()
    ids, x = torch.randint(0, 7, (4,)), torch.randn(4, 5, dtype=torch.float64)
    return model, ((ids, x) if first == "ids" else (x, ids)), x


def gradient(model, inputs, x):
    x = x.clone().requires_grad_()
    given = [x if one.is_floating_point() else one for one in inputs]
    return torch.autograd.grad(model(*given)[:, 0].sum(), x)[0]


@pytest.mark.parametrize("first", ["ids", "features"])
def test_gradients_go_to_the_floating_point_input(first):
    model, inputs, x = made(first)
    found = rpp.PathLengthGradient(model).attribute(inputs, target=0, keep_maps=True)
    np.testing.assert_allclose(found.gradient.values.sum(0), gradient(model, inputs, x), rtol=1e-5)
    np.testing.assert_allclose(found.input, x, rtol=1e-6)
    assert found.path_count.values.tolist() == [1, 2, 1]
    assert found.completeness_error.max() < 1e-12


@pytest.mark.parametrize("first", ["ids", "features"])
def test_a_restricted_view_gives_them_too(first):
    model, inputs, x = made(first)
    view = rpp.unravel(model, inputs).restricted(range(3))
    torch.testing.assert_close(gradient(view, inputs, x), gradient(model, inputs, x))


def test_integers_alone_need_a_tap():
    class Tokens(Mixed):
        def forward(self, ids):
            return super().forward(ids, torch.zeros(ids.shape[0], 5, dtype=torch.float64))

    model = Tokens().double().eval()
    ids = torch.randint(0, 7, (4,))
    with pytest.raises(InputError, match="take tap='stem'"):
        rpp.PathLengthGradient(model).attribute(ids, target=0)
    assert rpp.PathLengthGradient(model).attribute(ids, target=0, tap="stem").completeness_error.max() < 1e-12


def test_batches_may_be_dicts_of_inputs_and_target():
    model, inputs, _ = made("ids")
    target = torch.tensor([0, 1, 2, 3])
    pairs = rpp.BlockLesion(model).attribute([(inputs, target)])
    dicts = rpp.BlockLesion(model).attribute([{"inputs": inputs, "target": target}])
    np.testing.assert_array_equal(pairs.target_score, dicts.target_score)
    assert rpp.BlockLesion(model).attribute([{"inputs": inputs}]).prediction.shape == (2, 4)


def test_a_dict_of_other_keys_than_the_arguments_is_refused_with_their_names():
    model, (ids, x), _ = made("ids")
    with pytest.raises(CaptureError, match="dict of arguments by name: 'one', 'other'"):
        rpp.BlockLesion(model).attribute([{"ids": ids, "x": x}])


def test_what_copies_or_exports_a_view_is_told_what_to_take():
    model, inputs, _ = made("ids")
    view = rpp.unravel(model, inputs).lesioned([0])
    with pytest.raises(UnsupportedMethodError, match=r"copy\.deepcopy"):
        copy.deepcopy(view)
    with pytest.raises(UnsupportedMethodError, match=r"torch\.export"):
        view.apply(lambda _: None)
