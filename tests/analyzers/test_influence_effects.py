"""Influence beside the true effects of lesions: rank correlations against scipy."""

import copy
import math

import numpy as np
import pytest
import torch
import xarray as xr
from influence_studies import LABELS, assert_same_values, lesions, network, study
from networks import PostActivationBlock, PreActivation, Shortcut, randomised
from scipy import stats
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers.gradients.influence import BlockInfluence
from resnet_paths_plugin.errors import InputError, NonFiniteInputWarning

PROXIES = [
    "branch_to_source_norm", "block_influence", "angular_distance", "branch_descent_cosine", "lesion_estimate",
]  # fmt: skip


def test_the_true_effect_is_the_mean_rise_of_the_measure():
    result = study(lesions=lesions())
    for at, block in enumerate(result.block.values):
        rise = lesions()["loss"].sel(lesion=block) - lesions()["intact_loss"]
        assert float(result["lesion_effect"][at]) == pytest.approx(float(rise.mean()), rel=1e-6)
    assert result["lesion_effect"].attrs["measure"] == "loss"
    assert result["lesion_effect"].attrs["units"] == "nat"
    assert list(result.proxy.values) == PROXIES
    truth = ["lesion_effect", "lesion_effect_by_sample", "rank_correlation"]
    assert_same_values(result.drop_vars(truth), study())


@pytest.mark.parametrize("effect", ["error", "target_score", "target_score_drop", "kl_divergence", "correct"])
def test_any_measure_may_be_the_effect(effect):
    result = study(lesions=lesions(), effect=effect)
    expected = lesions()[effect].values.astype(float)
    if f"intact_{effect}" in lesions():
        expected = expected - lesions()[f"intact_{effect}"].values
    expected = expected.mean(1) if expected.ndim == 2 else expected
    np.testing.assert_allclose(result["lesion_effect"], expected, rtol=1e-6, atol=1e-7)
    assert result["lesion_effect"].attrs["measure"] == effect
    each = result["lesion_effect_by_sample"]
    assert each.dims == ("block", "lesion_sample")
    assert each.attrs["measure"] == effect
    np.testing.assert_allclose(each.mean("lesion_sample"), result["lesion_effect"], rtol=1e-6, atol=1e-7)
    if effect in {"kl_divergence", "target_score_drop"}:
        np.testing.assert_allclose(each, lesions()[effect].transpose("lesion", "sample"))
    if effect == "error":
        rise = lesions().intact_correct.astype(float) - lesions().correct
        np.testing.assert_array_equal(each, rise.transpose("lesion", "sample"))


def test_the_effect_on_a_sample_is_one_where_the_deletion_alone_makes_it_wrong():
    truth = lesions().copy(deep=True)
    for name in ("correct", "intact_correct"):
        truth[name][:] = True
    wrong = {"lesion": 1, "sample": 2}
    truth["correct"][wrong] = False
    result = study(lesions=truth, effect="error")
    expected = np.zeros((3, 7))
    expected[1, 2] = 1
    np.testing.assert_array_equal(result["lesion_effect_by_sample"], expected)
    np.testing.assert_allclose(result["lesion_effect"], expected.mean(axis=1))


def longer():
    """A network of six blocks, its images and the lesions of single blocks with made-up losses."""
    torch.manual_seed(0)
    model = randomised(PreActivation(blocks=6)).eval().double()
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    net = rpp.unravel(model, x)
    made = rpp.BlockLesion(net).attribute(x, LABELS[:5])
    rises = np.array([0.3, -0.2, 0.9, 0.1, 0.5, 0.4])
    losses = made["intact_loss"].values + rises[:, None] + np.linspace(-0.01, 0.01, 5)
    return net, x, made.assign(loss=(("lesion", "sample"), losses.astype(np.float32), made["loss"].attrs)), rises


def test_rank_correlations_are_scipys():
    net, x, made, rises = longer()
    result = BlockInfluence(net).attribute(x, LABELS[:5], lesions=made)
    np.testing.assert_allclose(result["lesion_effect"], rises, rtol=1e-5)
    for proxy in PROXIES:
        expected = stats.spearmanr(result[proxy].mean("sample"), rises).statistic
        assert float(result["rank_correlation"].sel(proxy=proxy)) == pytest.approx(expected, rel=1e-12)
        assert abs(expected) < 1


def test_blocks_that_are_not_deleted_alone_are_left_out():
    net, x, made, rises = longer()
    some = made.isel(lesion=[0, 2, 3, 5])
    result = BlockInfluence(net).attribute(x, LABELS[:5], lesions=some)
    np.testing.assert_array_equal(result["lesion_effect"].isnull(), [False, True, False, False, True, False])
    kept = [0, 2, 3, 5]
    for proxy in PROXIES:
        expected = stats.spearmanr(result[proxy].mean("sample")[kept], rises[kept]).statistic
        assert float(result["rank_correlation"].sel(proxy=proxy)) == pytest.approx(expected, rel=1e-12)
    few = BlockInfluence(net).attribute(x, LABELS[:5], lesions=made.isel(lesion=[1, 4]))
    assert few["rank_correlation"].isnull().all()


def test_lesions_of_several_blocks_are_passed_over_and_repeated_ones_averaged():
    net, _, x = network()
    both = rpp.BlockLesion(net).attribute(
        x, LABELS, lesions=[["blocks.0", "blocks.1"], "blocks.1", [], "blocks.1", "blocks.2"]
    )
    both["loss"][3] += 1.0
    result = study(lesions=both)
    np.testing.assert_array_equal(result["lesion_effect"].isnull(), [True, False, False])
    alone = study(lesions=lesions())["lesion_effect"]
    np.testing.assert_allclose(result["lesion_effect"][1:], [alone[1] + 0.5, alone[2]], rtol=1e-5)


def test_a_measure_that_is_not_a_number_gives_no_effect():
    broken = lesions().copy(deep=True)
    broken["loss"][1, 3] = np.nan
    result = study(lesions=broken)
    np.testing.assert_array_equal(result["lesion_effect"].isnull(), [False, True, False])


def test_equal_effects_have_no_ranks():
    net, x, made, _ = longer()
    equal = made.assign(loss=made["intact_loss"].expand_dims(lesion=made.lesion))
    result = BlockInfluence(net).attribute(x, LABELS[:5], lesions=equal)
    assert (result["lesion_effect"] == 0).all()
    assert result["rank_correlation"].isnull().all()


def test_blocks_without_a_proxy_are_left_out_of_its_correlation():
    def blocks():
        yield nn.Conv2d(3, 4, 3, padding=1)
        yield PostActivationBlock(4, 8, 2, Shortcut())
        yield from (PostActivationBlock(8, 8, 1, nn.Identity()) for _ in range(4))
        yield from (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    torch.manual_seed(0)
    model, x = randomised(nn.Sequential(*blocks())).eval().double(), torch.randn(7, 3, 8, 8, dtype=torch.float64)
    net = rpp.unravel(model, x)
    result = BlockInfluence(net).attribute(x, LABELS, lesions=rpp.BlockLesion(net).attribute(x, LABELS))
    assert result["block_influence"][0].isnull().all()
    for proxy, kept in (("block_influence", slice(1, None)), ("lesion_estimate", slice(None))):
        expected = stats.spearmanr(result[proxy].mean("sample")[kept], result["lesion_effect"][kept]).statistic
        assert float(result["rank_correlation"].sel(proxy=proxy)) == pytest.approx(expected)


def test_without_a_target_the_other_proxies_are_ranked():
    result = study(None, lesions=lesions())
    assert list(result.proxy.values) == PROXIES[:3]


def test_samples_without_a_value_are_left_out_of_a_proxys_mean():
    net, x, made, rises = longer()
    x = x.clone()
    x[2] = math.inf
    with pytest.warns(NonFiniteInputWarning):
        result = BlockInfluence(net).attribute(x, lesions=made)
    assert result["block_influence"][:, 2].isnull().all()
    known = result["block_influence"][:, [0, 1, 3, 4]].mean("sample")
    expected = stats.spearmanr(known, rises).statistic
    assert float(result["rank_correlation"].sel(proxy="block_influence")) == pytest.approx(expected)


def test_lesions_of_a_file_serve_as_well(tmp_path):
    stored = rpp.load(rpp.save(lesions(), tmp_path / "lesions.nc"))
    xr.testing.assert_equal(study(lesions=stored), study(lesions=lesions()))


def test_lesions_of_another_network_are_refused():
    _, model, x = network()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.bias += 1
    with pytest.raises(InputError, match=r"other weights .* weights_digest is sha256:\w+ there and sha256:\w+ here"):
        BlockInfluence(other).attribute(x, LABELS, lesions=lesions())
    with pytest.raises(InputError, match="they have 3 blocks, it has 4"):
        BlockInfluence(randomised(PreActivation(blocks=4)).double()).attribute(x, LABELS, lesions=lesions())
    renamed = lesions().assign_coords(block=["blocks.0", "middle", "blocks.2"])
    with pytest.raises(InputError, match=r"their block 1 is 'middle', its is 'blocks\.1'"):
        study(lesions=renamed)


def test_what_is_no_lesion_study_is_refused():
    for wrong in (study(), 3, xr.DataTree.from_dict({"lesions": lesions()})):
        with pytest.raises(InputError, match="lesions must be a Dataset that BlockLesion returned"):
            study(lesions=wrong)
    net, _, x = network()
    pairs = rpp.BlockLesion(net).attribute(x, LABELS, n_deleted=2)
    with pytest.raises(InputError, match="no block alone"):
        study(lesions=pairs)
    for effect in ("prediction", "deleted", "n_deleted", "intact_loss", "margin"):
        with pytest.raises(InputError, match=rf"no measure '{effect}' .* one of \['"):
            study(lesions=lesions(), effect=effect)


def test_lesions_are_judged_before_anything_is_run():
    net, _, x = network()

    def batches():
        yield x, LABELS
        raise AssertionError

    with pytest.raises(InputError, match="no measure"):
        BlockInfluence(net).attribute(batches(), lesions=lesions(), effect="?")


def test_the_effect_is_the_objectives_own_unless_another_is_named():
    found = study(objective="score", lesions=lesions())
    named = study(objective="score", lesions=lesions(), effect="target_score")
    assert found.lesion_effect.attrs["measure"] == "target_score"
    np.testing.assert_array_equal(found.lesion_effect, named.lesion_effect)
    assert study(lesions=lesions()).lesion_effect.attrs["measure"] == "loss"
    with pytest.raises(InputError, match="effect="):
        study(objective=lambda outputs, _: outputs[:, 0], lesions=lesions())


def test_how_the_lesions_were_made_stands_beside_their_effect():
    net, _, x = network()
    mean = rpp.BlockLesion(net).attribute(x, LABELS, ablation="mean")
    attrs = study(lesions=mean).lesion_effect.attrs
    assert (attrs["lesions_ablation"], attrs["lesions_batch_norm"]) == ("mean", "frozen")
