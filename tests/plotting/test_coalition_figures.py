"""The figures of Shapley values and interactions show what their Datasets hold."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import synthetic_studies as synthetic
from scipy import stats

import resnet_paths_plugin as rpp
from resnet_paths_plugin import plotting
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting.interactions import Interactions, describe_interactions
from resnet_paths_plugin.plotting.registry import FIGURES, figure_of, fitting
from resnet_paths_plugin.plotting.shares import Shares
from resnet_paths_plugin.plotting.wording import number
from resnet_paths_plugin.results import datasets
from resnet_paths_plugin.results.block_coords import block_coords

N = 9
MEASURE = {"measure": "loss", "units": "nat", "higher_is_better": 0}


def built(variables, **attrs):
    blocks = block_coords(synthetic.blocks(N))
    other = {"other_block": ("other_block", blocks["block"][1])}
    return datasets.build(variables, coords=blocks | other, attrs=synthetic.attrs(**attrs))


def shares(orders=20, **more):
    draws = np.random.default_rng(0)
    variables = {
        "shapley_value": ("block", -draws.normal(1, 1, N), MEASURE),
        "shapley_stderr": ("block", draws.uniform(0.05, 0.2, N)),
        "single_effect": ("block", draws.normal(1, 1, N), MEASURE),
    }
    return built(variables | ({"n_orders": ((), orders)} if orders else {}), **more)


def interactions(n_sets=40):
    draws = np.random.default_rng(1)
    values = np.full((N, N), np.nan)
    upper = np.triu_indices(N, 1)
    values[upper] = draws.normal(size=len(upper[0]))
    values = np.where(np.isnan(values), values.T, values)
    effect = draws.normal(size=n_sets)
    return built(
        {
            "interaction": (("block", "other_block"), values, MEASURE),
            "single_effect": ("block", draws.normal(1, 1, N), MEASURE),
            "set_effect": ("random_set", effect),
            "additive_share": ((), 0.75),
            "additive_share_low": ((), 0.5),
            "additive_share_high": ((), 0.875),
        }
    )


def test_interactions_are_resolved_by_their_own_samples():
    ds = interactions()
    spread = np.where(np.indices((N, N)).sum(0) % 2, 3.0, 0.01)
    noise = np.random.default_rng(0).normal(size=(N, N, 12)) * spread[..., None]
    each = ds.interaction.values[..., None] + noise - noise.mean(-1, keepdims=True)
    ds = ds.assign(interaction_per_sample=(("block", "other_block", "sample"), each), n_samples=12)
    told = describe_interactions(ds)
    table = rpp.statistics.bootstrap(ds, "interaction_per_sample", n_resamples=1000)
    upper = np.triu_indices(N, 1)
    low, high = (table[f"interaction_per_sample_{end}"].values[upper] for end in ("low", "high"))
    more, less = (low > 0).sum(), (high < 0).sum()
    assert 0 < more < (ds.interaction.values[upper] > 0).sum()
    assert f"Of {len(low)} pairs {more} harm the loss more" in told
    assert f"{less} less, and {len(low) - more - less} are not resolved (95 % intervals over 12 samples)" in told
    strongest = np.abs(ds.interaction.values[upper]).argmax()
    assert f"({number(ds.interaction.values[upper][strongest])}, {number(low[strongest])[:4]}" in told


class TestShares:
    def test_a_block_that_lowers_the_loss_has_a_bar_upwards(self):
        ds = shares()
        ax = plotting.plot_shapley_values(ds)
        bars = [bar for container in ax.containers for bar in container if hasattr(bar, "get_height")]
        np.testing.assert_allclose([bar.get_height() for bar in bars], -ds["shapley_value"])
        (alone,) = [line for line in ax.get_lines() if line.get_label() == "deleted alone"]
        np.testing.assert_allclose(alone.get_ydata(), ds["single_effect"])
        assert ax.get_ylabel() == "fall of loss by the block (nat)"

    def test_a_measure_of_no_known_direction_is_neither_good_nor_bad(self):
        ds = shares().drop_vars("single_effect")
        ds["shapley_value"].attrs.update(measure="mine", units="1")
        del ds["shapley_value"].attrs["higher_is_better"]
        ax = plotting.plot_shapley_values(ds)
        bars = [bar for container in ax.containers for bar in container if hasattr(bar, "get_height")]
        np.testing.assert_allclose([bar.get_height() for bar in bars], ds["shapley_value"])
        assert ax.get_ylabel() == "change of mine by the block"
        told = Shares().sentence(ds)
        assert "negative" in told
        assert "better" not in told

    def test_the_sum_for_a_loss_is_that_of_its_fall(self):
        ds = shares()
        total = -float(ds["shapley_value"].sum())
        assert f"in the fall of the loss add up to {total:.3g}" in Shares().sentence(ds)

    def test_a_score_is_drawn_as_it_is(self):
        ds = shares()
        ds["shapley_value"].attrs.update(measure="target_score", units="1", higher_is_better=1)
        ax = plotting.plot_shapley_values(ds)
        heights = [bar.get_height() for bar in ax.containers[0]]
        np.testing.assert_allclose(heights, ds["shapley_value"])
        assert ax.get_ylabel() == "gain of target score by the block"

    def test_whiskers_are_95_percent_intervals_of_pairs_of_orders(self):
        ds = shares(orders=20)
        ax = plotting.plot_shapley_values(ds)
        (whiskers,) = [one for one in ax.collections if len(one.get_segments()) == N]
        lengths = [segment[1][1] - segment[0][1] for segment in whiskers.get_segments()]
        np.testing.assert_allclose(lengths, 2 * stats.t.ppf(0.975, 9) * ds["shapley_stderr"])

    def test_exact_values_have_no_whiskers(self):
        ax = plotting.plot_shapley_values(shares(orders=0))
        assert "its 95 % interval" not in [text.get_text() for text in ax.get_legend().get_texts()]

    def test_the_sentence_adds_up(self):
        ds = shares()
        told = Shares().sentence(ds)
        assert f"add up to {float(-ds['shapley_value'].sum()):.3g}" in told
        assert str(ds["block"].values[int(ds["shapley_value"].values.argmin())]) in told
        assert f"alone add up to {float(ds['single_effect'].sum()):.3g}." in told


class TestInteractions:
    def test_the_matrix_and_the_bars_hold_the_values(self):
        ds = interactions()
        matrix, beside = plotting.plot_interactions(ds)
        np.testing.assert_allclose(np.ma.filled(matrix.images[0].get_array(), np.nan), ds["interaction"])
        low, high = matrix.images[0].get_clim()
        assert -low == high == pytest.approx(float(np.abs(ds["interaction"]).max()))
        np.testing.assert_allclose([bar.get_width() for bar in beside.containers[0]], ds["single_effect"])
        assert matrix.get_ylim() == beside.get_ylim()

    def test_stages_are_separated_and_numbered(self):
        matrix, beside = plotting.plot_interactions(interactions())
        across = [line.get_ydata()[0] for line in matrix.get_lines() if len(set(line.get_ydata())) == 1]
        assert across[:2] == [2.5, 5.5]
        assert [text.get_text() for text in beside.texts] == ["stage 0", "stage 1", "stage 2"]

    def test_blocks_without_stages_have_no_lines(self):
        ds = interactions().drop_vars("block_stage")
        matrix, beside = plotting.plot_interactions(ds)
        assert len(matrix.get_lines()) == 1  # the diagonal
        assert not beside.texts

    def test_the_callers_axes_are_used(self):
        given = plt.figure().subplots(1, 2)
        assert plotting.plot_interactions(interactions(), given).tolist() == given.tolist()
        with pytest.raises(InputError, match="needs 1 x 2"):
            plotting.plot_interactions(interactions(), plt.figure().subplots(1, 3))

    def test_the_sentence_names_the_strongest_pair_and_the_additive_share(self):
        ds = interactions()
        told = Interactions().sentence(ds)
        at = np.unravel_index(int(np.nanargmax(np.abs(ds["interaction"].values))), (N, N))
        names = ds["block"].values[list(at)]
        assert f"{names[0]} with {names[1]}" in told
        assert f"{int((ds['interaction'] > 0).sum()) // 2} harm the loss" in told
        assert "explains 0.75 (R squared, 95 % interval 0.5 to 0.875) of the effects of 40 random sets" in told


def test_each_result_has_its_figure():
    for ds, name in ((shares(), "shapley"), (interactions(), "interactions")):
        assert [figure.name for figure in fitting(ds, FIGURES)] == [name]
        assert figure_of(ds) is not None


def test_what_is_missing_is_named():
    with pytest.raises(InputError, match="needs the variable 'shapley_value'"):
        plotting.plot_shapley_values(interactions())
    with pytest.raises(InputError, match="needs the variable 'interaction'"):
        plotting.plot_interactions(shares())
