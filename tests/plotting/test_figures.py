"""The figures of reorderings, trainings, classes, influence, gates, schedules and survival show their Datasets."""

import importlib
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import synthetic_studies as synthetic
import xarray as xr
from matplotlib.collections import LineCollection
from matplotlib.text import Text
from scipy import stats

from resnet_paths_plugin import plotting, statistics
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting import effects, labels, style
from resnet_paths_plugin.results import datasets

N = 9


def labelled(ax, beginning):
    """The one drawn line whose legend entry begins so."""
    (found,) = [line for line in ax.get_lines() if str(line.get_label()).startswith(beginning)]
    return found


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def bar_of(ax):
    """The colour bar beside a map."""
    return ax.images[0].colorbar


class TestPlainNetwork:
    def test_its_layers_are_spread_evenly_over_the_axis_and_the_legend_says_so(self):
        plain = synthetic.plain_lesions(3)
        ax = plotting.plot_single_lesions(synthetic.single_lesions(N), plain=plain)
        line = labelled(ax, "plain net, one of 3 layers deleted (spread over the axis)")
        np.testing.assert_allclose(line.get_xdata(), [1, 4, 7])  # the middles of thirds of nine places
        np.testing.assert_array_equal(line.get_ydata(), plain["error"].values)
        assert set(labelled(ax, "plain net, intact").get_ydata()) == {float(plain["intact_error"])}
        assert line.get_linestyle() != labelled(ax, "one block deleted").get_linestyle()

    def test_layers_that_cannot_be_deleted_keep_their_place(self):
        plain = synthetic.plain_lesions(3).isel(lesion=[0, 2])
        line = labelled(plotting.plot_single_lesions(synthetic.single_lesions(N), plain=plain), "plain net, one of 3")
        np.testing.assert_allclose(line.get_xdata(), [1, 7])

    def test_the_same_measure_is_drawn_of_both(self):
        ds, plain = synthetic.single_lesions(N), synthetic.plain_lesions(3)
        ax = plotting.plot_single_lesions(ds, measure="loss", plain=plain)
        line = labelled(ax, "plain net, one of 3")
        np.testing.assert_allclose(line.get_ydata(), plain["loss"].mean("sample").values, rtol=1e-6)
        with pytest.raises(InputError, match=r"plain=.* finds no 'loss'"):
            plotting.plot_single_lesions(ds, measure="loss", plain=plain.drop_vars("loss"))

    def test_what_is_not_drawn_beside_it_stays_as_it_was(self):
        ax = plotting.plot_single_lesions(synthetic.single_lesions(N), plain=synthetic.plain_lesions(3))
        np.testing.assert_array_equal(labelled(ax, "one block deleted").get_xdata(), np.arange(N))


class TestTrainings:
    def test_each_training_is_the_mean_over_seeds_with_its_range(self):
        ds = synthetic.trainings(N, seeds=3)
        ax = plotting.plot_training_lesions(ds, chance=0.9)
        for index, name in enumerate(ds["training"].values):
            error = ds["error"].values[index]
            line = labelled(ax, f"training: {name} (mean, range of 3 seeds)")
            np.testing.assert_allclose(line.get_ydata(), error.mean(axis=0))
            band = ax.collections[index].get_paths()[0].vertices
            for place in range(N):
                heights = band[band[:, 0] == place, 1]
                assert {heights.min(), heights.max()} == {error[:, place].min(), error[:, place].max()}
        assert set(labelled(ax, "chance").get_ydata()) == {0.9}

    def test_trainings_differ_in_more_than_colour(self):
        ax = plotting.plot_training_lesions(synthetic.trainings(N))
        lines = [labelled(ax, f"training: {name}") for name in ("ordinary", "stochastic depth")]
        assert len({line.get_linestyle() for line in lines}) == len({line.get_marker() for line in lines}) == 2

    def test_intact_networks_are_lines_of_their_trainings_colour(self):
        ds = synthetic.trainings(N)
        ds["intact_error"][1] = 0.2
        ax = plotting.plot_training_lesions(ds)
        for name, level in (("ordinary", 0.04), ("stochastic depth", 0.2)):
            colour = labelled(ax, f"training: {name}").get_color()
            levels = [line for line in ax.get_lines() if len(set(line.get_ydata())) == 1 and len(line.get_xdata()) == 2]
            assert [line.get_ydata()[0] for line in levels if line.get_color() == colour] == [pytest.approx(level)]

    def test_a_single_seed_needs_no_dimension_and_lesions_may_be_named_only(self):
        ds = synthetic.trainings(N, seeds=0).drop_vars("deleted")
        ax = plotting.plot_training_lesions(ds)
        np.testing.assert_array_equal(labelled(ax, "training: ordinary").get_ydata(), ds["error"].values[0])
        assert "seeds" not in " ".join(legend(ax))

    def test_the_callers_axes_are_used(self):
        ax = plt.figure().subplots()
        assert plotting.plot_training_lesions(synthetic.trainings(N), ax) is ax
        assert len(plt.get_fignums()) == 1

    def test_what_is_missing_is_named(self):
        with pytest.raises(InputError, match="needs the variable 'training'"):
            plotting.plot_training_lesions(synthetic.single_lesions(N))
        with pytest.raises(InputError, match="finds no measure"):
            plotting.plot_training_lesions(synthetic.trainings(N).drop_vars("error"))


class TestReorderings:
    def test_every_order_is_a_point_and_corruption_grows_to_the_right(self):
        ds = synthetic.reorderings(N)
        ax = plotting.plot_reorderings(ds, chance=0.9)
        points = labelled(ax, "one order")
        np.testing.assert_array_equal(points.get_xdata(), ds["kendall_tau"].values)
        np.testing.assert_array_equal(points.get_ydata(), ds["error"].values)
        left, right = ax.get_xlim()
        assert left > right
        assert left >= 1
        assert "movable blocks" in ax.get_xlabel()
        assert ax.get_ylabel() == "error (%)"

    def test_the_intact_order_is_on_the_axis_even_if_no_order_is_near(self):
        ds = synthetic.reorderings(N)
        far = ds.isel(reordering=ds["kendall_tau"].values < 0.8)
        assert plotting.plot_reorderings(far).get_xlim()[0] >= 1

    def test_the_legend_states_the_rank_correlation(self):
        ds = synthetic.reorderings(N)
        told = stats.spearmanr(ds["kendall_tau"], ds["error"]).statistic
        entry = legend(plotting.plot_reorderings(ds))[0]
        assert entry.startswith(f"one order, Spearman's \N{GREEK SMALL LETTER RHO} \N{MINUS SIGN}{-told:.2f} (")

    def test_means_of_similar_orders_are_joined(self):
        ds = synthetic.reorderings(N)
        tau = np.random.default_rng(0).uniform(-0.2, 1, ds.sizes["reordering"])
        ds["kendall_tau"][:] = tau
        line = labelled(plotting.plot_reorderings(ds), "mean of similar tau")
        assert len(line.get_xdata()) == 8
        for x, y in zip(*line.get_data(), strict=True):
            width = np.ptp(tau) / 8
            low = tau.min() + np.clip(np.floor((x - tau.min()) / width + 1e-9), 0, 7) * width
            inside = (tau >= low - 1e-9) & ((tau < low + width - 1e-9) | (low + width > tau.max() - 1e-9))
            assert x == pytest.approx(tau[inside].mean())
            assert y == pytest.approx(ds["error"].values[inside].mean())

    def test_over_all_blocks(self):
        ds = synthetic.reorderings(N)
        ax = plotting.plot_reorderings(ds, over="all")
        np.testing.assert_array_equal(labelled(ax, "one order").get_xdata(), ds["kendall_tau_all_blocks"].values)
        assert "over all blocks" in ax.get_xlabel()

    def test_without_targets_changed_predictions_are_drawn(self):
        ax = plotting.plot_reorderings(synthetic.reorderings(N, targets=False))
        assert ax.get_ylabel() == "changed predictions (%)"

    def test_equal_damage_and_few_orders_are_points_only(self):
        ds = synthetic.reorderings(N, draws=1, swaps=(1, 2))
        ds["error"][:] = 0.1
        assert legend(plotting.plot_reorderings(ds)) == ["one order", "intact network"]

    def test_orders_without_a_tau_are_left_out(self):
        ds = synthetic.reorderings(N)
        ds["kendall_tau"][0] = np.nan
        line = labelled(plotting.plot_reorderings(ds), "one order")
        np.testing.assert_array_equal(line.get_ydata(), ds["error"].values[1:])
        with pytest.raises(InputError, match="no order with a 'kendall_tau'"):
            plotting.plot_reorderings(ds.assign(kendall_tau=ds["kendall_tau"] * np.nan))

    def test_a_second_study_fits_into_the_same_axes(self):
        ax = plotting.plot_reorderings(synthetic.reorderings(N))
        assert plotting.plot_reorderings(synthetic.reorderings(N, seed=1), ax) is ax
        assert ax.get_xlim()[0] > ax.get_xlim()[1]

    def test_what_is_missing_is_named(self):
        ds = synthetic.reorderings(N)
        with pytest.raises(InputError, match="needs the variable 'kendall_tau'"):
            plotting.plot_reorderings(ds.drop_vars("kendall_tau"))
        with pytest.raises(InputError, match="no 'loss2' along 'reordering'"):
            plotting.plot_reorderings(ds, measure="loss2")
        with pytest.raises(InputError, match="expected 'movable' or 'all'"):
            plotting.plot_reorderings(ds, over="both")
        assert not plt.get_fignums()


class TestClassLesions:
    def test_colours_are_the_rises_in_percentage_points(self):
        ds = synthetic.single_lesions(N)
        ax = plotting.plot_class_lesions(ds)
        label = ds["label"].values
        rise = np.array(
            [
                [
                    ds["intact_correct"].values[label == one].mean() - ds["correct"].values[lesion, label == one].mean()
                    for lesion in range(N)
                ]
                for one in range(10)
            ]
        )
        np.testing.assert_allclose(ax.images[0].get_array(), 100 * rise, atol=1e-9)
        assert "percentage points" in bar_of(ax).ax.get_ylabel()
        assert ax.get_yticklabels()[3].get_text() == "3 (20)"
        assert ax.get_ylabel() == "class (samples)"

    def test_white_is_zero_and_the_bar_ends_where_the_colours_do(self):
        ds = synthetic.single_lesions(N)
        ds["correct"][0] = True
        ax = plotting.plot_class_lesions(ds)
        low, high = ax.images[0].get_clim()
        points = np.asarray(ax.images[0].get_array())
        assert low == -high
        assert high == np.abs(points).max()
        assert points.min() < 0
        assert bar_of(ax).ax.get_ylim() == (points.min(), points.max())

    def test_columns_stand_at_the_blocks_places(self):
        ds = synthetic.single_lesions(N).isel(lesion=[5, 2])
        shown = np.asarray(plotting.plot_class_lesions(ds).images[0].get_array().filled(np.nan))
        assert np.isnan(shown).all(axis=0).tolist() == [place not in {2, 5} for place in range(N)]

    def test_projections_are_marked(self):
        ax = plotting.plot_class_lesions(synthetic.single_lesions(N))
        np.testing.assert_array_equal(labelled(ax, "projection skip").get_xdata(), [3, 6])

    def test_classes_are_named(self):
        ax = plotting.plot_class_lesions(synthetic.single_lesions(N), class_names=[f"na${i}$me" for i in range(10)])
        assert ax.get_yticklabels()[3].get_text() == r"na\$3\$me (20)"
        with pytest.raises(InputError, match="class_names has 2 names, and labels go from 0 to 9"):
            plotting.plot_class_lesions(synthetic.single_lesions(N), class_names=["a", "b"])

    def test_no_damage_at_all_is_white(self):
        ds = synthetic.single_lesions(N)
        ds["correct"] = ds["correct"] | True
        ds["intact_correct"] = ds["intact_correct"] | True
        ax = plotting.plot_class_lesions(ds)
        assert ax.images[0].get_clim() == (-1, 1)

    def test_a_thousand_classes_have_no_names(self):
        ds = synthetic.single_lesions(N)
        ds["label"] = ("sample", np.arange(ds.sizes["sample"]))
        assert plotting.plot_class_lesions(ds).get_ylabel().startswith("class (200")

    def test_what_is_missing_is_named(self):
        ds = synthetic.single_lesions(N)
        for name in ("label", "correct", "intact_correct"):
            with pytest.raises(InputError, match=f"needs the variable '{name}'"):
                plotting.plot_class_lesions(ds.drop_vars(name))
        assert not plt.get_fignums()

    def test_the_callers_axes_are_used(self):
        ax = plt.figure().subplots()
        assert plotting.plot_class_lesions(synthetic.single_lesions(N), ax) is ax
        assert len(plt.get_fignums()) == 1


class TestInfluence:
    def test_points_are_means_over_samples_against_the_effect(self):
        ds = synthetic.influence(N)
        ax = plotting.plot_influence(ds, proxy="block_influence")
        plain = [0, 1, 2, 4, 5, 7, 8]
        mean = ds["block_influence"].mean("sample").values
        np.testing.assert_allclose(labelled(ax, "one block").get_xdata(), mean[plain])
        np.testing.assert_allclose(labelled(ax, "one block").get_ydata(), ds["lesion_effect"].values[plain])
        np.testing.assert_allclose(labelled(ax, "with a projection skip").get_xdata(), mean[[3, 6]])
        assert ax.get_ylabel().replace("\n", " ") == "rise of error when deleted alone (percentage points)"
        assert ax.get_xlabel() == "1 minus the cosine of source and sum"
        assert ax.yaxis.get_major_formatter()(0.07) == "7"

    def test_by_default_the_proxy_of_the_largest_correlation_is_drawn_whatever_its_sign(self):
        ds = synthetic.correlated(synthetic.influence(N), [0.1, -0.9, 0.5, np.nan, 0.2])
        ax = plotting.plot_influence(ds)
        assert ax.get_xlabel() == "cosine of source and sum"
        assert legend(ax)[0] == "one block, Spearman's rank correlation \N{MINUS SIGN}0.90"

    def test_the_worst_blocks_are_named_beside_their_points(self):
        ds = synthetic.influence(N)
        ax = plotting.plot_influence(ds)
        worst = ds["lesion_effect"].sortby(ds["lesion_effect"], ascending=False)["block"].values[:3]
        assert set(texts(ax)) == set(worst)
        ax.figure.canvas.draw()
        boxes = [Text.get_window_extent(text) for text in ax.texts]  # without the line to the point
        assert not any(one.overlaps(other) for one in boxes for other in boxes if one is not other)

    def test_blocks_without_a_value_are_left_out_and_counted(self):
        ds = synthetic.influence(N)
        ds["block_influence"][[3, 6]] = np.nan  # shapes differ at projections
        ax = plotting.plot_influence(ds, proxy="block_influence")
        assert len(labelled(ax, "one block").get_xdata()) == 7
        assert legend(ax)[1] == "2 of 9 blocks have no value"
        assert "with a projection skip" not in legend(ax)
        assert not set(texts(ax)) & {"layer2.3", "layer3.6"}
        assert len(texts(ax)) == 3

    def test_effects_that_span_decades_are_told_apart(self):
        ds = synthetic.influence(54)
        ds["lesion_effect"][:] = 10.0 ** np.linspace(-5, 0, 54)
        assert plotting.plot_influence(ds).get_yscale() == "symlog"
        assert plotting.plot_influence(synthetic.influence(N)).get_yscale() == "linear"

    def test_all_proxies_one_panel_each_best_first(self):
        ds = synthetic.correlated(synthetic.influence(N), [0.1, -0.9, 0.5, np.nan, 0.2])
        panels = plotting.plot_influences(ds)
        assert panels.shape == (5,)
        assert [ax.get_title()[-5:] for ax in panels[:4]] == ["\N{MINUS SIGN}0.90", "+0.50", "+0.20", "+0.10"]
        assert panels[4].get_title() == "no rank correlation"
        assert len(panels[0].figure.axes) == 5

    def test_the_callers_axes_are_used(self):
        ds = synthetic.influence(N)
        axes = plt.figure().subplots(5)
        assert plotting.plot_influences(ds, axes).tolist() == axes.tolist()
        with pytest.raises(InputError, match="4 Axes were given"):
            plotting.plot_influences(ds, axes[:4])
        assert plotting.plot_influence(ds, axes[0]) is axes[0]
        assert len(plt.get_fignums()) == 1

    def test_what_is_missing_is_named(self):
        ds = synthetic.influence(N)
        for draw in (plotting.plot_influence, plotting.plot_influences):
            with pytest.raises(InputError, match="'lesion_effect'"):
                draw(synthetic.influence(N, lesions=False))
            with pytest.raises(InputError, match="'rank_correlation'"):
                draw(ds.drop_vars("rank_correlation"))
        with pytest.raises(InputError, match="no proxy 'size'"):
            plotting.plot_influence(ds, proxy="size")
        assert not plt.get_fignums()


class TestProxies:
    def test_every_proxy_has_a_row_with_the_range_that_resampling_gives(self):
        ds = synthetic.influence(N, samples=50)
        ax = plotting.plot_proxies(ds)
        found = ds["rank_correlation"].to_series()
        ranked = found.reindex(found.abs().sort_values(ascending=False).index)
        assert [text.get_text().replace(" ", "_") for text in ax.get_yticklabels()] == list(ranked.index)
        np.testing.assert_allclose(labelled(ax, "rank correlation").get_xdata(), ranked)
        assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first row is on top
        (lines,) = [one for one in ax.collections if one.get_label() == "95 % of resamples"]
        effect = ds["lesion_effect_by_sample"].rename(lesion_sample="sample").assign_coords(sample=ds["sample"])
        for name, segment in zip(ranked.index, lines.get_segments(), strict=True):
            expected = statistics.rank_correlation(ds[name], effect, n_resamples=1000)
            ends = expected["rank_correlation_low"], expected["rank_correlation_high"]
            np.testing.assert_allclose(segment[:, 0], ends)
        assert "over 9 blocks; 50 samples" in ax.get_xlabel().replace("\n", " ")
        assert "effect with itself" in legend(ax)

    def test_without_effects_on_each_sample_or_on_other_samples_there_are_points_alone(self):
        ds = synthetic.influence(N)
        for some in (ds.drop_vars("lesion_effect_by_sample"), ds.isel(lesion_sample=slice(1, None))):
            ax = plotting.plot_proxies(some)
            assert legend(ax) == ["rank correlation"]
            assert "samples" not in ax.get_xlabel()

    def test_the_study_draws_it_and_one_proxy_where_it_is_asked_for(self):
        ds = synthetic.influence(N)
        assert len(ds.resnet_paths.plot().get_yticks()) == 5
        assert ds.resnet_paths.plot(proxy="lesion_estimate").get_xlabel()[:5] != "Spear"

    def test_what_is_missing_is_named(self):
        with pytest.raises(InputError, match="no proxy whose rank correlation is defined"):
            plotting.plot_proxies(synthetic.correlated(synthetic.influence(N), [np.nan] * 5))
        with pytest.raises(InputError, match="'lesion_effect'"):
            plotting.plot_proxies(synthetic.influence(N, lesions=False))


class TestGates:
    def test_mean_and_spread_over_samples(self):
        ds = synthetic.influence(N, samples=40, gated=True)
        ds["gate_openness"][4] = np.nan
        ax = plotting.plot_gates(ds)
        there = [place for place in range(N) if place != 4]
        gates = ds["gate_openness"].values[there]
        np.testing.assert_array_equal(labelled(ax, "mean over samples").get_xdata(), there)
        np.testing.assert_allclose(labelled(ax, "mean over samples").get_ydata(), gates.mean(axis=1))
        (bars,) = [one for one in ax.collections if isinstance(one, LineCollection)]
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends, np.percentile(gates, [5, 95], axis=1).T)
        assert ax.get_ylim()[0] == 0

    def test_networks_without_gates_are_refused(self):
        with pytest.raises(InputError, match="needs the variable 'gate_openness'"):
            plotting.plot_gates(synthetic.influence(N))
        ds = synthetic.influence(N, gated=True)
        with pytest.raises(InputError, match="no gated block"):
            plotting.plot_gates(ds.assign(gate_openness=ds["gate_openness"] * np.nan))


class TestSchedules:
    def test_skipped_ranges_are_a_map_of_first_and_last_block(self):
        ds = synthetic.schedules(N, families={"skipped_ranges", "adjacent_swaps"})
        ax = plotting.plot_schedules(ds, family="skipped_ranges", chance=0.9)
        shown = ax.images[0].get_array().filled(np.nan)
        for changed, family, error in zip(ds["changed"].values, ds["family"].values, ds["error"].values, strict=True):
            if family == "skipped_ranges":
                places = np.flatnonzero(changed)
                assert shown[places[-1], places[0]] == error
        assert np.isnan(shown[np.tril_indices(N, -1)[::-1]]).all()
        assert np.isfinite(shown).sum() == N * (N + 1) / 2
        assert bar_of(ax).ax.get_ylabel() == "error (%)"
        assert texts(bar_of(ax).ax) == ["intact", "chance"]
        assert (ax.get_xlabel(), ax.get_ylabel()) == (
            "index of the first block skipped",
            "index of the last block skipped",
        )

    def test_scaled_branches_are_a_curve_over_their_weight(self):
        ds = synthetic.schedules(N, families={"scaled_branches"})
        ax = plotting.plot_schedules(ds)
        line = labelled(ax, "branches scaled")
        np.testing.assert_allclose(line.get_xdata(), np.linspace(0, 1.5, 7))
        np.testing.assert_array_equal(line.get_ydata(), ds["error"].values)

    def test_other_families_are_bars_over_the_blocks_that_they_change(self):
        ds = synthetic.schedules(N, families={"adjacent_swaps"})
        ax = plotting.plot_schedules(ds, chance=0.9)
        (bars,) = [one for one in ax.collections if isinstance(one, LineCollection)]
        expected = [[(a, error), (a + 1, error)] for a, error in enumerate(ds["error"].values)]
        np.testing.assert_array_equal(bars.get_segments(), expected)
        assert legend(ax) == ["one schedule: neighbours trade places", "intact network", "chance"]
        worst = [str(ds["schedule"].values[place]) for place in effects.worst(ds["error"].values, 3)]
        assert worst
        assert set(worst) <= set(texts(ax))

    def test_changes_of_one_block_are_points(self):
        ds = synthetic.schedules(N, families={"repeated_blocks"})
        line = labelled(plotting.plot_schedules(ds), "one schedule")
        np.testing.assert_array_equal(line.get_xdata(), np.arange(N))
        np.testing.assert_array_equal(line.get_ydata(), ds["error"].values)

    def test_schedules_that_change_nothing_have_no_place(self):
        ds = synthetic.schedules(N, families={"repeated_blocks"})
        ds["changed"][2] = False
        assert len(labelled(plotting.plot_schedules(ds), "one schedule").get_xdata()) == N - 1
        with pytest.raises(InputError, match="changes any block"):
            plotting.plot_schedules(ds.assign(changed=ds["changed"] & False))

    def test_the_family_is_asked_for_and_checked(self):
        ds = synthetic.schedules(N)
        with pytest.raises(InputError, match=r"6 families .* pass family= one of adjacent_swaps, "):
            plotting.plot_schedules(ds)
        with pytest.raises(InputError, match="no schedules of the family 'x'"):
            plotting.plot_schedules(ds, family="x")
        with pytest.raises(InputError, match="'family'"):
            plotting.plot_schedules(ds.drop_vars("family"))
        with pytest.raises(InputError, match="'entry_schedule'"):
            plotting.plot_schedules(ds.drop_vars("entry_schedule"), family="scaled_branches")
        assert not plt.get_fignums()

    @pytest.mark.parametrize("family", ["skipped_ranges", "scaled_branches", "reversed_ranges"])
    def test_the_callers_axes_are_used(self, family):
        ax = plt.figure().subplots()
        assert plotting.plot_schedules(synthetic.schedules(N), ax, family=family) is ax
        assert len(plt.get_fignums()) == 1


class TestSurvivalOfAStudy:
    @pytest.mark.parametrize(
        "ds", [synthetic.path_lengths(N), synthetic.path_lengths(N, max_length=3), synthetic.single_lesions(N)]
    )
    def test_blocks_are_counted_in_the_study(self, ds):
        lines = plotting.plot_path_survival(ds, [2]).get_lines()
        np.testing.assert_allclose(lines[0].get_ydata()[:2], [1, 7 / 9])
        assert len(lines[0].get_ydata()) == N + 1

    @pytest.mark.parametrize(("n", "deletions"), [(54, [1, 10, 20]), (9, [1, 2, 3]), (2, [1]), (1, [1]), (0, [0])])
    def test_default_deletions_are_the_papers_scaled(self, n, deletions):
        told = legend(plotting.plot_path_survival(n))
        assert [int(entry.split()[0]) for entry in told] == deletions

    def test_what_is_no_chain_of_blocks_is_refused(self):
        with pytest.raises(InputError, match="chains of blocks only"):
            plotting.plot_path_survival(synthetic.path_lengths(N, chain=False))
        with pytest.raises(InputError, match="chains of blocks only"):
            plotting.plot_path_survival(synthetic.path_lengths(N).isel(path_length=slice(5)))
        with pytest.raises(InputError, match="a network's layers"):
            plotting.plot_path_survival(synthetic.plain_lesions())
        with pytest.raises(InputError, match="no dimension 'block'"):
            plotting.plot_path_survival(xr.Dataset({"x": 1}))
        assert not plt.get_fignums()


STUDIES = {
    "trainings": (synthetic.trainings, plotting.plot_training_lesions),
    "single_lesions": (synthetic.single_lesions, plotting.plot_single_lesions),
    "random_lesions": (synthetic.random_lesions, plotting.plot_random_lesions),
    "reorderings": (synthetic.reorderings, plotting.plot_reorderings),
    "schedules": (lambda: synthetic.schedules(N, families={"reversed_ranges"}), plotting.plot_schedules),
    "influence": (synthetic.influence, plotting.plot_proxies),
    "gates": (lambda: synthetic.influence(N, lesions=False, gated=True), plotting.plot_gates),
    "path_maps": (synthetic.path_maps, plotting.plot_path_attribution),
    "path_lengths": (synthetic.path_lengths, plotting.plot_path_lengths),
}


def content(axes):
    """All that a figure shows: data, colours and texts."""
    shown = []
    for ax in np.asarray(axes, dtype=object).flat[0].figure.axes:
        shown += [line.get_xydata().tolist() for line in ax.get_lines()]
        shown += [np.asarray(image.get_array().filled(-1)).tolist() for image in ax.images]
        shown += [ax.get_xlabel(), ax.get_ylabel(), ax.get_title(), texts(ax)]
    return repr(shown)


class TestAccessor:
    @pytest.mark.parametrize("kind", STUDIES)
    def test_it_picks_the_figure_that_fits(self, kind):
        make, draw = STUDIES[kind]
        assert make().resnet_paths.kind == kind
        assert content(make().resnet_paths.plot()) == content(draw(make()))

    @pytest.mark.parametrize("kind", STUDIES)
    def test_a_loaded_study_gives_the_same_figure(self, kind, tmp_path):
        make, draw = STUDIES[kind]
        loaded = datasets.load(datasets.save(make(), tmp_path / "study.nc"))
        assert content(loaded.resnet_paths.plot()) == content(draw(make()))

    def test_options_are_handed_on(self):
        ax = plt.figure().subplots()
        assert synthetic.single_lesions().resnet_paths.plot(ax=ax, measure="loss") is ax
        assert "loss" in ax.get_ylabel()

    def test_a_dataset_that_no_figure_fits_is_refused_with_what_is_known(self):
        with pytest.raises(InputError, match=r"holds a, b\. Known are lesions of blocks \(BlockLesion\)"):
            xr.Dataset({"b": 1, "a": 2}).resnet_paths.plot()
        with pytest.raises(InputError, match="no variables at all"):
            xr.Dataset().resnet_paths.plot()

    def test_a_tree_gives_one_figure_for_each_group_that_one_fits(self):
        tree = synthetic.tree(custom=xr.Dataset({"x": 1}), schedules=synthetic.schedules(N))
        drawn = tree.resnet_paths.plot()
        assert {"single_lesions", "path_maps", "schedules/skipped_ranges"} <= set(drawn)
        assert "custom" not in drawn
        assert len({id(figure) for figure in drawn.values()}) == len(drawn) == len(plt.get_fignums())
        with pytest.raises(InputError, match="no figure fits any group"):
            xr.DataTree.from_dict({"/a": xr.Dataset({"x": 1})}).resnet_paths.plot()

    def test_a_reload_registers_again_without_a_warning(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            importlib.reload(plotting.accessor)
        assert synthetic.influence().resnet_paths.kind == "influence"


class TestNames:
    def test_dollar_signs_in_names_start_no_formula(self):
        made = synthetic.blocks(N, name=r"a$\frac{index}$b.{index}".replace("{index}$", "$", 1))
        ax = plotting.plot_single_lesions(synthetic.single_lesions(N, made=made))
        ax.figure.canvas.draw()
        assert all(r"\$" in tick.get_text() for tick in ax.get_xticklabels())

    def test_names_that_are_too_long_are_shortened_in_the_middle(self):
        assert style.shortened("a" * 40 + "z" * 40, 10) == "aaa\N{HORIZONTAL ELLIPSIS}zzzzzz"
        assert style.shortened("short") == "short"

    def test_names_of_points_at_one_place_do_not_overlap(self):
        ax = plt.figure(figsize=(5, 4)).subplots()
        points = np.array([[0.5, 0.5], [0.5, 0.5], [0.51, 0.5], [0.5, 0.51]])
        labels.place(ax, points, {index: f"block.number.{index}" for index in range(4)})
        ax.figure.canvas.draw()
        boxes = [Text.get_window_extent(text) for text in ax.texts]  # without the line to the point
        assert len(boxes) == 4
        assert not any(one.overlaps(other) for one in boxes for other in boxes if one is not other)
        frame = ax.get_window_extent()
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)

    @pytest.mark.parametrize(
        ("values", "expected"),
        [([1, 3, 2, 0], [1, 2, 0]), ([5, 5, 5], []), ([2, 1, 1, 1], [0]), ([np.nan, 2, 1], [1]), ([1], [])],
    )
    def test_the_worst_are_never_an_arbitrary_few_among_equals(self, values, expected):
        assert effects.worst(np.array(values, dtype=float), 3) == expected


@pytest.mark.parametrize("kind", ["single_lesions", "trainings", "reorderings", "schedules"])
@pytest.mark.parametrize("n", [4, 120])
def test_legends_end_within_the_figure(kind, n):
    make = {
        "single_lesions": lambda: plotting.plot_single_lesions(
            synthetic.single_lesions(n), chance=0.9, plain=synthetic.plain_lesions()
        ),
        "trainings": lambda: plotting.plot_training_lesions(synthetic.trainings(n)),
        "reorderings": lambda: plotting.plot_reorderings(synthetic.reorderings(n), chance=0.9),
        "schedules": lambda: plotting.plot_schedules(
            synthetic.schedules(min(n, 20)), family="repeated_blocks", chance=0.9
        ),
    }
    ax = make[kind]()
    ax.figure.canvas.draw()
    box = ax.get_legend().get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= ax.figure.bbox.width
    assert box.y1 <= ax.figure.bbox.height
    assert box.height < 0.2 * ax.figure.bbox.height
    assert ax.get_window_extent().width > 0.75 * ax.figure.bbox.width  # the legend has not squeezed the data
