"""Interactions of pairs of blocks and the additive share, against networks patched by hand and sklearn."""

import functools
import itertools

import numpy as np
import pytest
import torch
from networks import PreActivation, Transformer, randomised, without
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers.coalitions.additivity import additive_share, random_sets
from resnet_paths_plugin.errors import InputError

LABELS = torch.tensor([0, 3, 1, 4, 4, 2, 0])
BRANCHES = ("layers.0.attn", "layers.0.mlp", "layers.1.attn", "layers.1.mlp")


@functools.cache
def network(kind):
    model = randomised(kind()).double().eval()
    x = torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(3)).double()
    return rpp.unravel(model, x), model, x


def study(kind=Transformer, **options):
    net, _, x = network(kind)
    return rpp.BlockInteraction(net).attribute(x, LABELS, **options)


@functools.cache
def by_hand(value, *gone):
    """Return the harm of deleting some branches by hand, on each sample."""
    _, model, x = network(Transformer)

    def measured(copy):
        with torch.no_grad():
            logits = copy(x)
        if value == "loss":
            return -functional.cross_entropy(logits, LABELS, reduction="none").numpy()
        return logits[torch.arange(7), LABELS].numpy()

    return measured(model) - measured(without(model, *gone))


@pytest.mark.parametrize("value", ["target_score", "loss"])
def test_interactions_are_those_of_networks_patched_by_hand(value):
    found = study(value=value, per_sample=True)
    assert found["block"].values.tolist() == found["other_block"].values.tolist() == list(BRANCHES)
    for i, j in itertools.permutations(range(4), 2):
        single, other = by_hand(value, BRANCHES[i]), by_hand(value, BRANCHES[j])
        both = by_hand(value, *(BRANCHES[at] for at in sorted((i, j))))
        np.testing.assert_allclose(found["single_effect"][i], single.mean(), rtol=1e-9)
        np.testing.assert_allclose(found["pair_effect"][i, j], both.mean(), rtol=1e-9)
        expected = both - single - other
        np.testing.assert_allclose(found["interaction_per_sample"][i, j], expected, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(found["interaction"][i, j], expected.mean(), rtol=1e-7, atol=1e-12)
    np.testing.assert_array_equal(np.diag(found["pair_effect"]), found["single_effect"])
    assert np.isnan(np.diag(found["interaction"])).all()


def test_the_additive_share_is_that_of_sets_that_were_not_fitted_to():
    found = study(value="loss", seed=2)
    sets = found["deleted"].values
    assert sorted(map(tuple, sets)) == sorted(row for row in itertools.product([False, True], repeat=4) if sum(row) > 1)
    effects = [by_hand("loss", *itertools.compress(BRANCHES, row)).mean() for row in sets]
    np.testing.assert_allclose(found["set_effect"], effects, rtol=1e-9)
    folds = np.random.default_rng([2, 3]).permutation(len(sets)) % 5
    model = LinearRegression(fit_intercept=False)
    expected = cross_val_predict(model, sets.astype(float), effects, cv=PredefinedSplit(folds))
    np.testing.assert_allclose(found["additive_effect"], expected, rtol=1e-7)
    # Noise of 7 samples hides that effects differ.
    assert np.isnan([found["additive_share"], found["additive_share_low"], found["additive_share_high"]]).all()


def test_squares_are_products_of_different_samples():
    generator = np.random.default_rng(1)
    sets = random_sets(6, range(2, 5), 30, seed=1)
    effects = sets @ generator.gamma(1.0, size=(6, 9)) + generator.normal(size=(30, 9))
    effects += 0.3 * sets.sum(axis=1, keepdims=True) ** 2
    parts = PredefinedSplit(np.random.default_rng([4, 3]).permutation(30) % 5)
    model = LinearRegression(fit_intercept=False)
    predicted = np.stack([cross_val_predict(model, sets.astype(float), one, cv=parts) for one in effects.T])
    total = effects.T - effects.mean(axis=0)[:, None]
    products = [
        sum(one @ other for one, other in itertools.permutations(values, 2))
        for values in (effects.T - predicted, total)
    ]
    found = additive_share(sets, effects, seed=4)
    assert found.share == pytest.approx(1 - products[0] / products[1])
    assert np.isnan(found.low)  # of 9 samples


def test_effects_that_add_have_a_share_of_one_and_others_less():
    generator = np.random.default_rng(0)
    sets = random_sets(12, range(2, 7), 96, seed=0)
    strengths = generator.normal(size=(12, 50)) + 2
    added = additive_share(sets, sets @ strengths, seed=0)
    assert (added.low, added.share, added.high) == pytest.approx((1, 1, 1))
    redundant = additive_share(sets, np.maximum(sets @ strengths - 6, 0) ** 2, seed=0)
    assert redundant.low < redundant.share < redundant.high < 0.98


def test_the_interval_covers_the_share_of_many_sets_and_samples():
    def effects(sets, samples, seed):
        strengths = np.random.default_rng(seed).gamma(1.0, size=(10, samples)) * np.linspace(0.5, 2, 10)[:, None]
        return sets @ strengths + 0.1 * (sets @ strengths) ** 2

    every = random_sets(10, range(2, 6), 600, seed=99)
    truth = additive_share(every, effects(every, 4000, 99), seed=0).share
    within = []
    for seed in range(40):
        sets = random_sets(10, range(2, 6), 80, seed)
        found = additive_share(sets, effects(sets, 30, seed), seed)
        within.append(found.low <= truth <= found.high)
    assert np.mean(within) >= 0.8


@pytest.mark.parametrize("n_samples", [10, 30, 300])
def test_noise_of_few_samples_does_not_lower_the_share(n_samples):
    found = []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        sets = random_sets(10, range(2, 6), 80, seed)
        additive = sets @ generator.uniform(0, 0.12, 10)
        truth = np.clip(additive + generator.normal(size=80) * 0.06, 0, 1)
        flips = generator.random((80, n_samples)) < truth[:, None]
        folds = np.random.default_rng([seed, 3]).permutation(80) % 5
        model = LinearRegression(fit_intercept=False)
        expected = r2_score(truth, cross_val_predict(model, sets.astype(float), truth, cv=PredefinedSplit(folds)))
        share = additive_share(sets, flips.astype(float), seed)
        assert not share.low > share.share
        assert not share.share > share.high
        found.append((expected, share))
    known = [(expected, share) for expected, share in found if np.isfinite(share.low)]
    assert len(known) > 20
    assert np.mean([share.low <= expected <= share.high for expected, share in known]) >= 0.9
    if n_samples >= 30:
        assert np.mean([share.share - expected for expected, share in known]) == pytest.approx(0, abs=0.1)


def test_random_sets_are_different_and_of_the_sizes_asked_for():
    sets = random_sets(9, [2, 5], 60, seed=1)
    assert len({row.tobytes() for row in sets}) == len(sets) == 60
    counts = np.bincount(sets.sum(axis=1), minlength=10)
    assert counts[2] + counts[5] == 60
    assert 15 <= counts[2] <= 36
    assert len(random_sets(4, [1], 60, seed=1)) == 4
    np.testing.assert_array_equal(sets, random_sets(9, [2, 5], 60, seed=1))


def test_too_few_blocks_have_no_additive_share():
    found = study(PreActivation)
    assert {"interaction", "pair_effect", "single_effect"} <= set(found.data_vars)
    assert "additive_share" not in found
    assert "additive_share" not in study(sets=0)


def test_groups_are_players():
    found = study(level="group", value="loss")
    expected = by_hand("loss", *BRANCHES) - by_hand("loss", *BRANCHES[:2]) - by_hand("loss", *BRANCHES[2:])
    np.testing.assert_allclose(found["interaction"][0, 1], expected.mean(), rtol=1e-7)
    assert found["block"].values.tolist() == ["layers.0", "layers.1"]


def test_a_result_is_stored_as_it_is(tmp_path):
    found = study(value="loss", per_sample=True, run=rpp.RunOptions(checkpoint=tmp_path / "pairs.nc"))
    assert found.identical(rpp.load(tmp_path / "pairs.nc"))
    plain = study(value="loss", per_sample=True)
    np.testing.assert_array_equal(found["interaction"], plain["interaction"])
    assert rpp.load(rpp.save(plain, tmp_path / "plain.nc")).identical(plain)
    found.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": 5}, "takes 8 different sets, and sets=5"),
        ({"sets": 40, "n_deleted": [1]}, r"n_deleted=\[1\] gives 4"),
        ({"sets": -1}, "sets must be an integer"),
        ({"sets": 2.5}, "sets must be an integer"),
        ({"n_deleted": [0]}, "sizes between 1 and 4"),
        ({"n_deleted": [5]}, "sizes between 1 and 4"),
        ({"n_deleted": []}, "sizes between 1 and 4"),
        ({"n_deleted": [1.5]}, "whole numbers"),
        ({"value": "own", "measures": {"own": lambda outputs, _: outputs.sum(1)}}, "pass higher_is_better=True"),
        ({"value": "nothing"}, "value must be the name of a measure"),
        ({"seed": 1.5}, "seed must be"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        study(**options)
