"""Which blocks a batch runs, how often, and how eval mode scales them: against closed forms."""

import copy
import math

import pytest
import torch
from dropping_networks import Block, dropping, generator, images, names, unraveled
from known_networks import CASES
from networks import assert_same_state, state_of
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError, NoResidualBlocksError

pytestmark = pytest.mark.slow


PROJECTED = "blocks.2"
MOVABLE = ["blocks.0", "blocks.1", "blocks.3", "blocks.4"]


# --- what is drawn


def test_each_batch_runs_exactly_m_blocks_each_equally_often_and_projections_always():
    model, batches, m = dropping(), 400, 3
    sampler = rpp.unravel(model, images()).sampling(m, generator=generator(3))
    assert names(sampler.sampled) == MOVABLE
    assert sampler.survival == (m / 4,) * 4
    assert sampler.active == ()
    drawn = []
    with torch.no_grad():
        for _ in range(batches):
            sampler(images(batch=2))
            drawn.append(tuple(names(sampler.active)))
    assert {len(set(each)) for each in drawn} == {m}
    assert all(sorted(each) == list(each) for each in drawn), "in execution order"
    assert len(set(drawn)) == math.comb(4, m)
    for subset in set(drawn):
        expected = batches / math.comb(4, m)
        assert abs(drawn.count(subset) - expected) < 4 * math.sqrt(expected)
    counted = [int(block.norm1.num_batches_tracked) for block in model.blocks]
    assert counted == [
        batches if name == PROJECTED else sum(name in each for each in drawn)
        for name in (f"blocks.{at}" for at in range(5))
    ]


def test_stochastic_depth_decays_linearly_and_draws_each_block_on_its_own():
    sampler = unraveled().sampling(survival=0.2, generator=generator(4))
    expected = [1 - place / 4 * 0.8 for place in (1, 2, 3, 4)]
    assert sampler.survival == pytest.approx([0.8, 0.6, 0.4, 0.2])
    batches = 300
    runs = torch.zeros(batches, 4)
    with torch.no_grad():
        for batch in range(batches):
            sampler(images(batch=2))
            runs[batch] = torch.tensor([float(block in sampler.active) for block in sampler.sampled])
    for place, probability in enumerate(expected):
        sigma = math.sqrt(probability * (1 - probability) / batches)
        assert abs(runs[:, place].mean() - probability) < 4 * sigma
    correlation = torch.corrcoef(runs.T) - torch.eye(4)
    assert correlation.abs().max() < 4 / math.sqrt(batches)


def test_given_probabilities_are_those_of_the_sampled_blocks_in_order():
    sampler = unraveled().sampling(survival=[1, 0.5, 0.25, 1.0])
    assert sampler.survival == (1, 0.5, 0.25, 1)
    with torch.no_grad():
        for _ in range(20):
            sampler(images(batch=2))
            assert {"blocks.0", "blocks.4"} <= set(names(sampler.active))


def test_one_generator_draws_the_same_subsets_again_and_none_draws_from_torchs_own():
    net = unraveled()

    def drawn(source, seed):
        if source is None:
            torch.manual_seed(seed)
        sampler = net.sampling(2, generator=source)
        subsets = []
        with torch.no_grad():
            for _ in range(12):
                sampler(images(batch=2))
                subsets.append(tuple(names(sampler.active)))
        return subsets

    before = torch.get_rng_state()
    assert drawn(generator(1), 1) == drawn(generator(1), 2) != drawn(generator(2), 1)
    assert torch.equal(before, torch.get_rng_state())
    assert drawn(None, 1) == drawn(None, 1) != drawn(None, 2)


# --- eval mode


@pytest.mark.parametrize("options", [{"n_active": 3}, {"survival": 0.5}], ids=["m of n", "stochastic depth"])
def test_eval_mode_runs_all_blocks_scaled_by_how_often_they_ran(options):
    model = dropping()
    probabilities = [0.75] * 4 if "n_active" in options else [0.875, 0.75, 0.625, 0.5]
    source = generator()
    sampler = rpp.unravel(model, images()).sampling(**options, generator=source).eval()
    by_hand = copy.deepcopy(model).eval()
    by_hand.scale = dict(zip(MOVABLE, probabilities, strict=True))
    before, drawn = state_of(model), source.get_state()
    torch.testing.assert_close(sampler(images()), by_hand(images()), rtol=1e-12, atol=1e-12)
    assert_same_state(before, state_of(model))
    assert torch.equal(drawn, source.get_state())
    assert sampler.active == ()


def test_eval_mode_without_scaling_is_the_model_itself():
    model = dropping()
    sampler = rpp.unravel(model, images()).sampling(survival=0.5, scale_in_eval=False).eval()
    assert torch.equal(sampler(images()), copy.deepcopy(model).eval()(images()))


def test_wrong_inputs_are_refused_before_anything_is_drawn_or_moved():
    model, source = dropping(), generator()
    sampler = rpp.unravel(model, images()).sampling(2, generator=source)
    before, drawn = state_of(model), source.get_state()
    for wrong in (images(size=9), images().float()):
        with pytest.raises(InputError):
            sampler(wrong)
    assert_same_state(before, state_of(model))
    assert torch.equal(drawn, source.get_state())
    assert sampler.active == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either"),
        ({"n_active": 2, "survival": 0.5}, "give either"),
        ({"n_active": 0}, "from 1 to 4"),
        ({"n_active": 5}, "from 1 to 4"),
        ({"n_active": 2.0}, "from 1 to 4"),
        ({"n_active": True}, "from 1 to 4"),
        ({"survival": 0}, "above 0 and at most 1"),
        ({"survival": 1.1}, "above 0 and at most 1"),
        ({"survival": float("nan")}, "above 0 and at most 1"),
        ({"survival": "half"}, "a number or a sequence"),
        ({"survival": 0.5j}, "a number or a sequence"),
        ({"survival": [0.5, 0.5]}, "2 probabilities, and 4 blocks"),
        ({"survival": [0.5, 0.5, "a", 1]}, "above 0 and at most 1"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, message):
    net = unraveled()
    with pytest.raises(InputError, match=message):
        net.sampling(**options)


def test_networks_without_blocks_to_sample_are_refused():
    plain = CASES["plain"]
    with pytest.raises(NoResidualBlocksError):
        rpp.unravel(plain.model(), plain.inputs()).sampling(1)
    with pytest.raises(NoResidualBlocksError, match="layers"):
        rpp.unravel(dropping(), images(), units="layers").sampling(1)

    class OnlyProjected(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block(3, 4, 2)

        def forward(self, x):
            return self.block(x)

    net = rpp.unravel(OnlyProjected().double(), images())
    with pytest.raises(InputError, match="include_projections"):
        net.sampling(1)
    assert names(net.sampling(1, include_projections=True).sampled) == ["block"]


def test_blocks_are_those_that_plugins_name():
    class Renamed:
        @rpp.hookimpl
        def resnet_paths_review_blocks(self, model, blocks):
            from dataclasses import replace

            return [replace(block, name=f"unit{block.index}") for block in blocks]

    manager = rpp.create_plugin_manager()
    manager.register(Renamed())
    sampler = rpp.unravel(dropping(), images(), plugin_manager=manager).sampling(4)
    sampler(images())
    assert names(sampler.active) == ["unit0", "unit1", "unit3", "unit4"]


def test_repr_tells_the_rule():
    net = unraveled()
    assert repr(net.sampling(2)) == "SamplingNetwork(Dropping, 2 of 4 blocks per batch)"
    assert "survival 0.875 to 0.5" in repr(net.sampling(survival=0.5))
