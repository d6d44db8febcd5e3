"""Layers of plain networks: which can be deleted, and that deleting one makes it the identity."""

import copy
import functools

import numpy as np
import pytest
import torch
import torchvision
from networks import Dense, Plain, assert_same_state, randomised, state_of
from torch import nn
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin import demo
from resnet_paths_plugin.errors import InputError, NoResidualBlocksError

LABELS = torch.tensor([0, 3, 1, 4])


def images(*shape):
    return torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))


@functools.cache
def vgg():
    """Return configuration A of Simonyan and Zisserman 2015, with 64 in the place of its 4,096 hidden features."""
    torch.manual_seed(0)
    model = torchvision.models.VGG(torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"], True), 7)
    model.classifier[0], model.classifier[3] = nn.Linear(512 * 49, 64), nn.Linear(64, 64)
    model.classifier[6] = nn.Linear(64, 7)
    return randomised(model).eval()


@functools.cache
def unraveled_vgg():
    return rpp.unravel(vgg(), images(3, 32, 32), units="layers")


def with_identity(model, *paths):
    changed = copy.deepcopy(model)
    for path in paths:
        changed.set_submodule(path, nn.Identity())
    return changed


def test_the_layers_of_vgg_that_keep_their_shape_are_found():
    # The second of three linear layers is the last.
    net = unraveled_vgg()
    assert [layer.name for layer in net.blocks] == [
        "features.11", "features.18", "features.22", "features.25", "classifier.3",
    ]  # fmt: skip
    assert {layer.skip_kind for layer in net.blocks} == {"none"}
    assert [layer.branch_type for layer in net.blocks] == ["convolution"] * 4 + ["mlp"]


def test_outputs_are_the_models_bit_for_bit():
    model, x, net = vgg(), images(3, 32, 32), unraveled_vgg()
    with torch.no_grad():
        assert torch.equal(net(x), model(x))


@pytest.mark.parametrize("first", [11, 18, 22, 25])
def test_a_deleted_layer_is_an_identity(first):
    model, x, net = vgg(), images(3, 32, 32), unraveled_vgg()
    without = with_identity(model, *(f"features.{at}" for at in range(first, first + 3)))  # norm and ReLU with it
    with torch.no_grad():
        np.testing.assert_allclose(net.lesioned(f"features.{first}")(x), without(x), rtol=1e-5, atol=1e-6)


def test_all_layers_are_deleted_at_once_and_side_by_side():
    model, x, net = vgg(), images(3, 32, 32), unraveled_vgg()
    paths = [f"features.{first + at}" for first in (11, 18, 22, 25) for at in range(3)]
    sets = [[0], [1, 2], [0, 1, 2, 3], []]
    for width in (1, 4):
        found = rpp.BlockLesion(net).attribute(x, LABELS, lesions=sets, perturbations_per_eval=width)
        with torch.no_grad():
            logits = with_identity(model, *paths)(x)
            np.testing.assert_allclose(
                found.loss[2], functional.cross_entropy(logits, LABELS, reduction="none"), rtol=1e-4
            )
        np.testing.assert_allclose(found.loss[3], found.intact_loss, rtol=1e-5)


def test_layers_of_one_shape_trade_places_and_run_in_parallel():
    model, x, net = vgg(), images(3, 32, 32), unraveled_vgg()
    swapped = copy.deepcopy(model)
    for at in range(3):
        one, other = swapped.features[22 + at], swapped.features[25 + at]
        swapped.features[22 + at], swapped.features[25 + at] = other, one
    layers = [nn.Sequential(*model.features[first : first + 3]) for first in (22, 25)]
    with torch.no_grad():
        order = rpp.Schedule.order(net, [0, 1, 3, 2, 4])
        np.testing.assert_allclose(net.scheduled(order)(x), swapped(x), rtol=1e-5, atol=1e-6)
        h = model.features[:22](x)
        h = model.features[28]((layers[0](h) + layers[1](h)) / 2)
        expected = model.classifier(torch.flatten(model.avgpool(h), 1))
        parallel = net.scheduled(rpp.Schedule.parallel(net, [2, 3]))(x)
        np.testing.assert_allclose(parallel, expected, rtol=1e-4, atol=1e-5)


class Activations(nn.Module):
    """Layers whose norm or activation is not theirs alone, or changes the shape."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(6, 6)
        self.normed = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.wide = nn.Linear(6, 12)
        self.narrow = nn.Linear(12, 5)

    def forward(self, x):
        h = self.shared(x)
        h = functional.relu(h) * h
        h = functional.dropout(functional.gelu(self.norm(self.normed(h))), training=self.training)
        return self.narrow(self.wide(h))


def test_a_layer_ends_where_its_value_is_read_twice():
    torch.manual_seed(0)
    model = Activations().eval()
    x = images(6)
    net = rpp.unravel(model, x, units="layers")
    assert [layer.name for layer in net.blocks] == ["shared", "normed"]
    with torch.no_grad():
        h = functional.relu(x) * x
        np.testing.assert_allclose(
            net.lesioned("shared")(x), model.narrow(model.wide(functional.gelu(model.norm(model.normed(h))))), rtol=1e-5
        )
        h = model.shared(x)
        h = functional.relu(h) * h
        np.testing.assert_allclose(net.lesioned("normed")(x), model.narrow(model.wide(h)), rtol=1e-5)


@pytest.mark.parametrize("model", [Plain, Dense])
def test_a_network_without_such_layers_is_refused(model):
    x = images(3, 6, 6)
    net = rpp.unravel(randomised(model()).eval(), x, units="layers")
    assert not net.blocks
    with pytest.raises(NoResidualBlocksError, match="no layer that can be deleted"):
        rpp.BlockLesion(net).attribute(x, LABELS)


class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return torch.einsum("bi,ij->bj", x, self.weight)


def test_a_product_with_a_parameter_is_a_layer():
    torch.manual_seed(0)
    model = nn.Sequential(Einsum(), nn.Linear(6, 5))
    net = rpp.unravel(model, images(6), units="layers")
    assert [layer.name for layer in net.blocks] == ["0"]
    with torch.no_grad():
        assert torch.equal(net.lesioned("0")(images(6)), model[1](images(6)))


def test_scaled_and_summed_layers_have_no_identity_beside_them():
    model, x, net = vgg(), images(3, 32, 32), unraveled_vgg()
    layers = [nn.Sequential(*model.features[first : first + 3]) for first in (22, 25)]

    def rest(h):
        return model.classifier(torch.flatten(model.avgpool(model.features[28](h)), 1))

    with torch.no_grad():
        h = model.features[:22](x)
        scaled = net.scheduled(rpp.Schedule.scaled(net, 0.3, [2]))(x)
        np.testing.assert_allclose(scaled, rest(layers[1](0.3 * layers[0](h))), rtol=1e-4, atol=1e-5)
        summed = net.scheduled(rpp.Schedule.parallel(net, [2, 3], reduction="sum"))(x)
        np.testing.assert_allclose(summed, rest(layers[0](h) + layers[1](h)), rtol=1e-4, atol=1e-5)


def test_layers_come_in_no_groups():
    net = unraveled_vgg()
    with pytest.raises(InputError, match="no groups"):
        rpp.BlockLesion(net).attribute(images(3, 32, 32), LABELS, level="group")


@pytest.mark.slow
def test_the_plain_net_of_the_demo_falls_apart_and_the_residual_one_does_not():
    x, y = (part[::3] for part in demo.load_digits("held_out"))
    plain = rpp.BlockLesion(rpp.unravel(demo.load_plain_network(), units="layers")).attribute(x, y)
    residual = rpp.BlockLesion(demo.load_network()).attribute(x, y)
    assert plain.sizes["lesion"] == 11
    assert float(plain.intact_error) < 0.05
    assert float(plain.error.min()) > 0.5
    assert float(residual.error.median()) < 0.05
    assert plain.attrs["units"] == "layers"
    assert residual.attrs["units"] == "blocks"


def test_layers_have_no_paths():
    x, net = images(3, 32, 32), unraveled_vgg()
    for call in (
        net.path_counts,
        lambda: net.restricted(1),
        lambda: rpp.PathLengthGradient(net).attribute(x, target=LABELS),
    ):
        with pytest.raises(NoResidualBlocksError, match="units='blocks'"):
            call()


def test_units_are_told_apart():
    x, net = images(3, 32, 32), unraveled_vgg()
    assert "5 layers that can be deleted" in repr(net)
    with pytest.raises(InputError, match="unravel the model itself"):
        rpp.unravel(net, x)
    assert rpp.unravel(net, units="layers") is net
    with pytest.raises(InputError, match="units must be"):
        rpp.unravel(vgg(), x, units="modules")
    with pytest.raises(InputError, match="ablation"):
        rpp.BlockLesion(net).attribute(x, LABELS, ablation="mean")


def test_the_model_is_as_it_was():
    model = copy.deepcopy(vgg()).train()
    before = state_of(model)
    rpp.BlockLesion(rpp.unravel(model, images(3, 32, 32), units="layers")).attribute(images(3, 32, 32), LABELS)
    assert_same_state(before, state_of(model))
