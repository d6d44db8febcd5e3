"""The study over named schedules against loops written by hand, and the families of schedules."""

import copy
import functools
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from networks import Residual, Transformer, Vectors, mlp, randomised, without
from torch import nn
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin import schedules
from resnet_paths_plugin.errors import InputError, ScheduleError

LABELS = torch.tensor([0, 3, 1, 4, 4])
N = 6


@functools.cache
def chain():
    """Six residual MLPs in float64, and vectors."""
    torch.manual_seed(0)
    model = Vectors(*(Residual(mlp()) for _ in range(N))).double().eval()
    x = torch.randn(5, 7, dtype=torch.float64)
    return rpp.unravel(model, x), model, x


def by_hand(step):
    """Run the chain with `step(h, branches)` in place of its blocks."""
    _, model, x = chain()
    with torch.no_grad():
        return model.head(step(model.stem(x), [block.branch for block in model.middle]))


def under(schedule):
    net, _, x = chain()
    with torch.no_grad():
        return net.scheduled(schedule)(x)


def one_after_the_other(branches, h):
    for branch in branches:
        h = h + branch(h)
    return h


def test_repeating_a_block_equals_a_loop():
    net, _, _ = chain()
    found = under(rpp.Schedule.repeated(net, 3, [1, 2, 3, 4]))
    expected = by_hand(lambda h, f: one_after_the_other([f[0], f[3], f[3], f[3], f[3], f[5]], h))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(("reduction", "weight"), [("mean", 1 / 3), ("sum", 1.0)])
def test_running_blocks_in_parallel_equals_a_loop(reduction, weight):
    net, _, _ = chain()

    def step(h, f):
        h = h + f[0](h)
        h = h + weight * (f[1](h) + f[2](h) + f[3](h))
        return one_after_the_other(f[4:], h)

    found = under(rpp.Schedule.parallel(net, [1, 2, 3], reduction=reduction))
    np.testing.assert_allclose(found, by_hand(step), rtol=1e-12)


@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0, 2.0])
def test_scaling_all_branches_equals_a_loop(factor):
    net, _, _ = chain()

    def step(h, f):
        for branch in f:
            h = h + factor * branch(h)
        return h

    np.testing.assert_allclose(under(rpp.Schedule.scaled(net, factor)), by_hand(step), rtol=1e-12)


@pytest.mark.slow
def test_repeated_layers_of_vit_b_16_equal_a_model_with_that_layer_at_every_place():
    torch.manual_seed(0)
    model = torchvision.models.vit_b_16(image_size=32, num_classes=7).eval()
    nn.init.normal_(model.heads.head.weight)
    x = torch.randn(3, 3, 32, 32)
    net = rpp.unravel(model, x)
    found = schedules.repeated_blocks(net, lengths=4, level="group")
    assert len(found) == 9
    changed = copy.deepcopy(model)
    layers = list(changed.encoder.layers)
    layers[2:6] = [layers[4]] * 4
    changed.encoder.layers = nn.Sequential(*layers)
    name = "repeat encoder.layers.encoder_layer_4 at encoder.layers.encoder_layer_2..encoder.layers.encoder_layer_5"
    with torch.enable_grad():  # without it torch takes another kernel for attention
        np.testing.assert_allclose(net.scheduled(found[name])(x).detach(), changed(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_branches_of_torchvision_resnet50_in_parallel_and_scaled_equal_a_loop():
    model = randomised(torchvision.models.resnet50(num_classes=7)).eval()
    x = torch.randn(2, 3, 32, 32)
    net = rpp.unravel(model, x)

    def branch(block, h):
        h = block.relu(block.bn1(block.conv1(h)))
        return block.bn3(block.conv3(block.relu(block.bn2(block.conv2(h)))))

    def run(third_stage):
        h = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        h = third_stage(model.layer2(model.layer1(h)))
        return model.fc(torch.flatten(model.avgpool(model.layer4(h)), 1))

    def in_parallel(h):
        h = model.layer3[0](h)
        h = functional.relu(h + sum(branch(block, h) for block in model.layer3[1:]) / 5)
        return functional.relu(h)

    def scaled(h):
        h = model.layer3[0](h)
        for block in model.layer3[1:]:
            h = functional.relu(h + 0.5 * branch(block, h))
        return h

    chosen = [f"layer3.{at}" for at in range(1, 6)]
    with torch.no_grad():
        for schedule, step in (
            (rpp.Schedule.parallel(net, chosen), in_parallel),
            (rpp.Schedule.scaled(net, 0.5, chosen), scaled),
        ):
            np.testing.assert_allclose(net.scheduled(schedule)(x), run(step), rtol=1e-3, atol=1e-4)


def test_each_family_makes_the_schedules_that_it_names():
    net, _, _ = chain()
    identity = np.eye(N)

    def weights(family, name):
        return family(net)[name].weights

    swapped = identity[[0, 2, 1, 3, 4, 5]]
    np.testing.assert_array_equal(weights(schedules.adjacent_swaps, "swap middle.1 and middle.2"), swapped)
    np.testing.assert_array_equal(weights(schedules.reversed_ranges, "reverse middle.0..middle.5"), identity[::-1])
    middle = np.tile(identity[3], (N, 1))
    np.testing.assert_array_equal(weights(schedules.repeated_blocks, "repeat middle.3 at middle.0..middle.5"), middle)
    parallel = np.zeros((N, N))
    parallel[0] = 1 / N
    np.testing.assert_allclose(weights(schedules.parallel_ranges, "parallel middle.0..middle.5"), parallel)
    np.testing.assert_array_equal(weights(schedules.scaled_branches, "scale 0.25"), identity / 4)
    skipped = np.diag([1, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(weights(schedules.skipped_ranges, "skip middle.1..middle.3"), skipped)


def test_families_cover_every_place_and_length():
    net, _, _ = chain()
    assert len(schedules.adjacent_swaps(net)) == N - 1
    assert len(schedules.skipped_ranges(net)) == N * (N + 1) // 2
    assert len(schedules.reversed_ranges(net, lengths=[2, 4])) == (N - 1) + (N - 3)
    assert len(schedules.parallel_ranges(net, lengths=3)) == N - 2
    assert list(schedules.scaled_branches(net, factors=0.5)) == ["scale 0.5"]


def test_ranges_stop_where_a_block_does_not_fit():
    model = randomised(torchvision.models.resnet18(num_classes=7))
    net = rpp.unravel(model, torch.randn(2, 3, 32, 32))
    assert list(schedules.reversed_ranges(net)) == ["reverse layer1.0..layer1.1"]
    assert list(schedules.adjacent_swaps(net)) == ["swap layer1.0 and layer1.1"]
    assert len(schedules.skipped_ranges(net)) == 36


def test_whole_layers_of_a_transformer_are_reversed_and_skipped():
    net = rpp.unravel(randomised(Transformer()).eval(), torch.randn(2, 3, 6, 6))
    (found,) = schedules.reversed_ranges(net, level="group").values()
    np.testing.assert_array_equal(found.weights, np.eye(4)[[2, 3, 0, 1]])
    assert len(schedules.skipped_ranges(net, level="group")) == 3


def test_the_study_measures_every_schedule_of_every_family():
    net, model, x = chain()
    families = [schedules.adjacent_swaps, partial(schedules.skipped_ranges, lengths=1), schedules.scaled_branches]
    found = rpp.BlockSchedules(net).attribute(x, LABELS, schedules=families)
    assert found.family.values.tolist() == ["adjacent_swaps"] * 5 + ["skipped_ranges"] * 6 + ["scaled_branches"] * 7
    lesions = rpp.BlockLesion(net).attribute(x, LABELS)
    np.testing.assert_allclose(found.loss[5:11], lesions.loss, rtol=1e-6)
    with torch.no_grad():
        loss = functional.cross_entropy(without(model, "middle.2.branch")(x), LABELS, reduction="none")
    np.testing.assert_allclose(found.loss.sel(schedule="skip middle.2"), loss, rtol=1e-6)
    np.testing.assert_allclose(found.loss.sel(schedule="scale 1.0"), found.intact_loss, rtol=1e-6)


def test_the_dataset_tells_every_weight_that_was_changed(tmp_path):
    net, _, x = chain()
    given = {
        "mixed": rpp.Schedule.from_rows(net, {0: ((1, 0.5), (2, 0.25)), 4: ()}),
        "intact": rpp.Schedule.identity(net),
    }
    found = rpp.BlockSchedules(net).attribute(x, LABELS, schedules=given)
    found = rpp.load(rpp.save(found, tmp_path / "s.nc"))
    for at, schedule in enumerate(given.values()):
        weights = np.eye(N)
        weights[found.changed.values[at]] = 0
        mine = found.entry_schedule.values == at
        places, branches = found.entry_place.values[mine], found.entry_branch.values[mine]
        weights[places, branches] = found.entry_weight.values[mine]
        np.testing.assert_array_equal(weights, schedule.weights)
    assert found.n_changed.values.tolist() == [2, 0]
    assert found.family.values.tolist() == ["given", "given"]


def test_schedules_side_by_side_in_one_batch_change_nothing():
    net, _, x = chain()
    families = [schedules.parallel_ranges, schedules.repeated_blocks, partial(schedules.skipped_ranges, lengths=[1, 2])]
    one, other = (
        rpp.BlockSchedules(net).attribute(x, LABELS, schedules=families, perturbations_per_eval=width)
        for width in (1, 4)
    )
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, InputError, "no schedule to run"),
        ([], InputError, "no schedule to run"),
        ("swap", InputError, "mapping from names"),
        ({"a": rpp.Schedule(3)}, InputError, "'a' is not one for the 6 blocks"),
        ([schedules.adjacent_swaps] * 2, InputError, "one name: swap middle.0 and middle.1"),
        (lambda net: {"a": rpp.Schedule.from_rows(net, {}, {77: torch.zeros(6)})}, ScheduleError, "block 77"),
        (lambda net: {"a": rpp.Schedule.from_rows(net, {}, {0: torch.zeros(4)})}, ScheduleError, "does not broadcast"),
        (lambda net: {"a": rpp.Schedule.from_rows(net, {}, {0: torch.zeros(5, 6)})}, InputError, "for each sample"),
        (partial(schedules.skipped_ranges, lengths=9), InputError, "between 1 and 6"),
        (partial(schedules.parallel_ranges, reduction="max"), ScheduleError, "reduction"),
    ],
)
def test_what_is_no_schedule_is_refused(given, error, message):
    net, _, x = chain()
    with pytest.raises(error, match=message):
        rpp.BlockSchedules(net).attribute(x, LABELS, schedules=given)


def test_a_constant_is_added_and_told():
    net, _, x = chain()
    constant = torch.linspace(-1, 1, 6, dtype=torch.float64)
    schedule = rpp.Schedule.from_rows(net, {2: ()}, {2: constant})
    found = rpp.BlockSchedules(net).attribute(x, LABELS, schedules={"a": schedule}, internal_batch_size=2)
    expected = by_hand(lambda h, f: one_after_the_other(f[3:], one_after_the_other(f[:2], h) + constant))
    np.testing.assert_allclose(found.target_score[0], expected[range(5), LABELS], rtol=1e-6)
    assert found.constant_added.values.tolist() == [[False, False, True, False, False, False]]


def test_factors_that_look_alike_and_numpy_numbers_are_taken():
    net, _, _ = chain()
    assert len(schedules.scaled_branches(net, factors=[0.12345671, 0.12345672])) == 2
    assert len(schedules.skipped_ranges(net, lengths=np.int64(2))) == N - 1
