"""The reordering study against hand-permuted copies of models, and orders against their definitions."""

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
import torchvision
from networks import (
    Highway,
    PostActivation,
    PreActivation,
    Residual,
    Transformer,
    Vectors,
    assert_same_state,
    mlp,
    randomised,
    state_of,
)
from torch import nn
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError, ScheduleError, UnknownBlockError

LABELS = torch.tensor([0, 3, 1, 4, 4])


def batch(*shape, dtype=torch.float32):
    return torch.randn(5, *shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@functools.cache
def chain():
    """Six pre-activation blocks that may all trade places, in float64, and images."""
    torch.manual_seed(0)
    model = PreActivation()
    model.blocks = nn.Sequential(*(copy.deepcopy(model.blocks[0]) for _ in range(6)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model = randomised(model).double().eval()
    x = batch(3, 6, 6, dtype=torch.float64)
    return rpp.unravel(model, x), model, x


def permuted(model, path, order):
    """Return a copy of a model whose sequential has its children in another order."""
    changed = copy.deepcopy(model).eval()
    children = list(changed.get_submodule(path))
    changed.set_submodule(path, nn.Sequential(*(children[at] for at in order)))
    return changed


def discordant_pairs(order):
    return sum(a > b for a, b in itertools.combinations(order, 2))


def test_an_order_equals_a_hand_permuted_copy():
    net, model, x = chain()
    orders = [[1, 0, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 0, 1, 4, 5, 3]]
    found = rpp.BlockReordering(net).attribute(x, LABELS, orders=orders)
    with torch.no_grad():
        for row, order in enumerate(orders):
            logits = permuted(model, "blocks", order)(x)
            loss = functional.cross_entropy(logits, LABELS, reduction="none")
            np.testing.assert_allclose(found.loss[row], loss, rtol=1e-6)
            np.testing.assert_array_equal(found.prediction[row], logits.argmax(1))
    np.testing.assert_array_equal(found.order, orders)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("stage", "places"), [("layer2", (1, 3)), ("layer3", (2, 5))])
def test_swapped_bottlenecks_of_torchvision_equal_a_hand_permuted_copy(stage, places):
    model = randomised(torchvision.models.resnet50(num_classes=7)).eval()
    x = batch(3, 64, 64)
    a, b = places
    order = list(range(len(getattr(model, stage))))
    order[a], order[b] = b, a
    net = rpp.unravel(model, x)
    names = [block.name for block in net.blocks]
    one, other = names.index(f"{stage}.{a}"), names.index(f"{stage}.{b}")
    names[one], names[other] = names[other], names[one]
    with torch.no_grad():
        expected = permuted(model, stage, order)(x)
        assert torch.equal(net.scheduled(rpp.Schedule.order(net, names))(x), expected)
    found = rpp.BlockReordering(net).attribute(x, LABELS, orders=[names])
    np.testing.assert_allclose(found.target_score[0], expected[range(5), LABELS], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_swapped_layers_of_vit_b_16_equal_a_hand_permuted_copy():
    torch.manual_seed(0)
    model = torchvision.models.vit_b_16(image_size=32, num_classes=7).eval()
    nn.init.normal_(model.heads.head.weight)
    x = batch(3, 32, 32)
    net = rpp.unravel(model, x)
    order = list(range(12))
    order[3], order[8] = 8, 3
    groups = [f"encoder.layers.encoder_layer_{at}" for at in order]
    found = rpp.BlockReordering(net).attribute(x, LABELS, orders=[groups, order], level="group")
    with torch.enable_grad():  # without it torch takes another kernel for attention
        expected = permuted(model, "encoder.layers", order)(x).detach()
    for row in range(2):
        np.testing.assert_allclose(found.target_score[row], expected[range(5), LABELS], rtol=1e-4, atol=1e-5)
    blocks = found.order.values[0]
    assert blocks[[6, 7, 16, 17]].tolist() == [16, 17, 6, 7]
    assert np.delete(blocks, [6, 7, 16, 17]).tolist() == np.delete(np.arange(24), [6, 7, 16, 17]).tolist()


def test_kendalls_tau_counts_discordant_pairs():
    net, _, x = chain()
    orders = [[0, 1, 2, 3, 4, 5], [1, 0, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 1, 5, 0, 2, 4]]
    found = rpp.BlockReordering(net).attribute(x, LABELS, orders=orders)
    expected = [1 - 2 * discordant_pairs(order) / 15 for order in orders]
    np.testing.assert_allclose(found.kendall_tau_all_blocks, expected)
    np.testing.assert_allclose(found.kendall_tau, expected)


def test_kendalls_tau_of_movable_blocks_leaves_projections_out():
    torch.manual_seed(0)
    model = randomised(torchvision.models.resnet18(num_classes=7))
    found = rpp.BlockReordering(model).attribute(batch(3, 32, 32), LABELS, orders=[[1, 0, *range(2, 8)]])
    assert float(found.kendall_tau[0]) == pytest.approx(1 - 2 / 10)  # 5 movable blocks
    assert float(found.kendall_tau_all_blocks[0]) == pytest.approx(1 - 2 / 28)


def test_random_swaps_are_reproducible_permutations_within_their_number_of_swaps():
    net, _, x = chain()
    options = {"n_swaps": [0, 1, 3], "draws": 4}
    one, again, other = (rpp.BlockReordering(net).attribute(x, LABELS, seed=seed, **options) for seed in (5, 5, 6))
    assert one.drop_attrs().identical(again.drop_attrs())
    assert not np.array_equal(one.order, other.order)
    assert one.n_swaps.values.tolist() == [0] * 4 + [1] * 4 + [3] * 4
    assert one.draw.values.tolist() == [0, 1, 2, 3] * 3
    for order, swaps in zip(one.order.values, one.n_swaps.values, strict=True):
        assert sorted(order) == list(range(6))
        cycles = 6 - len(_cycles_of(order))
        assert cycles <= swaps  # a product of k swaps has at least n - k cycles
        assert cycles % 2 == swaps % 2
    assert (one.kendall_tau[:4] == 1).all()
    assert (one.kendall_tau[4:8] < 1).all()


def _cycles_of(order):
    left, cycles = set(range(len(order))), []
    while left:
        at, cycle = min(left), []
        while at in left:
            left.remove(at)
            cycle.append(at)
            at = order[at]
        cycles.append(cycle)
    return cycles


def test_random_swaps_keep_every_block_where_it_fits():
    torch.manual_seed(0)
    model = randomised(torchvision.models.resnet18(num_classes=7))
    found = rpp.BlockReordering(model).attribute(batch(3, 32, 32), LABELS, n_swaps=[4], draws=6)
    for order in found.order.values:
        np.testing.assert_array_equal(order[2:], range(2, 8))  # one movable block to a stage, but for the first
        assert sorted(order[:2]) == [0, 1]


def test_by_default_all_neighbours_that_may_trade_places_do():
    net, _, x = chain()
    found = rpp.BlockReordering(net).attribute(x, LABELS)
    assert found.sizes["reordering"] == 5
    assert found["reordering"].values[2] == "(blocks.2 blocks.3)"
    assert found.order.values[2].tolist() == [0, 1, 3, 2, 4, 5]
    assert (found.n_swaps == 1).all()


def test_an_order_is_labelled_by_its_cycles():
    net, _, x = chain()
    found = rpp.BlockReordering(net).attribute(x, LABELS, orders=[[1, 2, 0, 4, 3, 5], range(6)])
    assert list(found["reordering"].values) == ["(blocks.0 blocks.1 blocks.2)(blocks.3 blocks.4)", "intact"]


def test_an_order_that_does_not_fit_names_both_blocks_and_both_shapes():
    model = randomised(torchvision.models.resnet18(num_classes=7))
    net = rpp.unravel(model, batch(3, 32, 32))
    order = [*range(8)]
    order[1], order[3] = 3, 1
    with pytest.raises(ScheduleError) as caught:
        rpp.BlockReordering(net).attribute(batch(3, 32, 32), LABELS, orders=[order])
    for part in ("'layer2.1'", "'layer1.1'", "[128, 4, 4]", "[64, 8, 8]"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"orders": [[0, 1, 2]]}, InputError, "each of the 6 blocks"),
        ({"orders": [[0, 0, 1, 2, 3, 4]]}, InputError, "5 different"),
        ({"orders": ["blocks.0"]}, InputError, "an order is a list"),
        ({"orders": [["blocks.9"] * 6]}, UnknownBlockError, "blocks.9"),
        ({"orders": [range(6)], "n_swaps": 2}, InputError, "not both"),
        ({"orders": []}, InputError, "no order"),
        ({"n_swaps": -1}, InputError, "n_swaps"),
        ({"n_swaps": 1, "draws": 0}, InputError, "draws"),
        ({"level": "layer"}, InputError, "level"),
        ({"batch_norm": "live"}, InputError, "batch_norm"),
    ],
)
def test_what_is_no_order_is_refused(options, error, message):
    net, _, x = chain()
    with pytest.raises(error, match=message):
        rpp.BlockReordering(net).attribute(x, LABELS, **options)


def test_a_network_whose_blocks_cannot_move_is_refused():
    model = randomised(PostActivation())
    with pytest.raises(InputError, match="no two blocks of PostActivation may trade places"):
        rpp.BlockReordering(model).attribute(batch(3, 8, 8), LABELS[:5] % 2, n_swaps=1)


def test_groups_trade_places_whole():
    model = randomised(Transformer())
    net = rpp.unravel(model, batch(3, 6, 6))
    found = rpp.BlockReordering(net).attribute(batch(3, 6, 6), LABELS, orders=[[1, 0]], level="group")
    assert found.order.values.tolist() == [[2, 3, 0, 1]]


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.g = mlp(), mlp()

    def forward(self, x):
        x = x + self.f(x)
        return x + self.g(x)


def test_groups_of_another_number_of_blocks_do_not_trade_places():
    model = Vectors(Pair(), Residual(mlp()))
    with pytest.raises(InputError, match=r"'middle.1' has 1 blocks and group 'middle.0' 2"):
        rpp.BlockReordering(model).attribute(batch(7), LABELS, orders=[["middle.1", "middle.0"]], level="group")
    with pytest.raises(InputError, match="no two blocks"):
        rpp.BlockReordering(model).attribute(batch(7), LABELS, n_swaps=1, level="group")


def test_of_a_highway_layer_only_the_gated_branch_moves():
    torch.manual_seed(0)
    model = Vectors(Highway(), Highway()).double().eval()
    x = batch(7, dtype=torch.float64)
    net = rpp.unravel(model, x)
    first, second = model.middle
    with torch.no_grad():
        h = model.stem(x)
        for place, moved in ((first, second), (second, first)):
            h = moved.gate(h) * moved.transform(h) + (1 - place.gate(h)) * h
        swapped = net.scheduled(rpp.Schedule.order(net, [1, 0]))(x)
        np.testing.assert_allclose(swapped, model.head(h), rtol=1e-10)


def test_the_model_is_as_it_was():
    torch.manual_seed(0)
    model = randomised(PreActivation()).train()
    before = state_of(model)
    x = batch(3, 6, 6)
    rpp.BlockReordering(model).attribute(x, LABELS, n_swaps=2, batch_norm="recalibrated")
    with pytest.raises(InputError):
        rpp.BlockReordering(model).attribute(x, LABELS, orders=[[0]])
    assert_same_state(before, state_of(model))


def test_a_result_survives_its_file(tmp_path):
    net, _, x = chain()
    found = rpp.BlockReordering(net).attribute(x, LABELS, n_swaps=range(3), draws=2)
    assert rpp.load(rpp.save(found, tmp_path / "r.nc")).identical(found)
    assert found.attrs["seed"] == 0
    assert found.label.values.tolist() == LABELS.tolist()
