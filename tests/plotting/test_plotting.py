"""The figures show what the Dataset holds, say what it lacks, and leave nothing behind."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import synthetic_studies as synthetic
import xarray as xr

from resnet_paths_plugin import paths, plotting, statistics
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.statistics.resampling import Resampling

N = 6
STAGES = [0, 0, 1, 1, 2, 2]
SKIPS = ["identity", "identity", "projection", "identity", "projection", "identity"]
COUNTS = np.array([1.0, 4.0, 6.0, 4.0, 1.0])
DECAY = 10.0 ** -np.arange(5)
TOTAL_SHARES = COUNTS * DECAY / (COUNTS * DECAY).sum()


def lesions(deleted, error=None, **measures):
    """A study of those lesions, each a set of block indices, as BlockLesion lays it out."""
    rows = np.array([[block in row for block in range(N)] for row in deleted])
    ds = xr.Dataset(
        {"deleted": (("lesion", "block"), rows), "n_deleted": ("lesion", rows.sum(axis=1))},
        coords={
            "block": [f"layer{stage}.{block}" for block, stage in enumerate(STAGES)],
            "block_stage": ("block", STAGES),
            "block_skip_kind": ("block", SKIPS),
            "block_group": ("block", [f"group{stage}" for stage in STAGES]),
        },
    )
    if error is not None:
        ds["error"] = ("lesion", np.asarray(error, dtype=float))
        ds["intact_error"] = 0.05
    for name, values in measures.items():
        ds[name] = (("lesion", "sample"), np.asarray(values))
    return ds


def assert_band(drawn, low, high):
    """Whether a filled area has these ends, in the order of its axis."""
    (path,) = drawn.get_paths()
    count = len(low)
    np.testing.assert_allclose(path.vertices[1 : count + 1, 1], low)
    np.testing.assert_allclose(path.vertices[count + 2 : 2 * count + 2, 1][::-1], high)


def single_lesions(order=range(N), **kwargs):
    return lesions([{block} for block in order], **kwargs)


def path_lengths(estimators=("exact", "sampled", "signs")):
    """A study of four blocks as PathLengthGradient lays it out; the norms are made up."""
    by_length, by_sample = "path_length", ("path_length", "sample")
    ds = xr.Dataset({"path_count": (by_length, COUNTS)}, coords={"path_length": np.arange(5)})
    ds["log10_path_count"] = np.log10(ds["path_count"])
    measures = []
    if "exact" in estimators:
        ds["gradient_norm"] = (by_sample, np.arange(5)[:, None] + [0.5, 1.5])
        measures.append("gradient_norm")
    if "sampled" in estimators:
        ds["path_gradient_norm"] = (by_length, DECAY)
        ds["path_gradient_norm_stderr"] = (by_length, DECAY * [0.1, 2, 0.1, 2, 0.1])
        ds["total_path_gradient"] = (by_length, COUNTS * DECAY)
        ds["log10_total_path_gradient"] = np.log10(ds["total_path_gradient"])
        measures.append("total_path_gradient")
    if "signs" in estimators:
        ds["path_gradient_rms"] = (by_sample, np.outer(DECAY, [3.0, 4.0]))
    if measures:
        ds["effective_length_low"] = ("measure", [1.0, 0.0][: len(measures)])
        ds["effective_length_high"] = ("measure", [4.0, 2.0][: len(measures)])
        ds = ds.assign_coords(measure=measures)
    return ds


def maps(shape=(3, 2, 3, 5, 4)):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    dims = ("path_length", "sample", "channel", "height", "width")[: len(shape)]
    return xr.Dataset({"gradient": (dims, values)}, coords={"path_length": np.arange(shape[0])})


def labelled(ax):
    """The drawn lines by their legend entry, up to a comma or colon."""
    return {line.get_label().split(",")[0].split(":")[0]: line for line in ax.get_lines()}


def texts(ax):
    return " ".join(text.get_text() for text in ax.texts)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


class TestSingleLesions:
    def test_each_block_is_drawn_at_its_place_whatever_the_order_of_lesions(self):
        order = [3, 0, 5, 1, 4, 2]
        error = np.array([0.3, 0.0, 0.5, 0.1, 0.4, 0.2])
        ax = plotting.plot_single_lesions(single_lesions(order, error=error))
        line = labelled(ax)["one block deleted"]
        np.testing.assert_array_equal(line.get_xdata(), np.arange(N))
        np.testing.assert_allclose(line.get_ydata(), np.arange(N) / 10)

    def test_projections_the_intact_error_and_chance_are_marked(self):
        ds = single_lesions(error=np.arange(N) / 10)
        lines = labelled(plotting.plot_single_lesions(ds, chance=0.9))
        np.testing.assert_array_equal(lines["with a projection skip"].get_xdata(), [2, 4])
        np.testing.assert_allclose(lines["with a projection skip"].get_ydata(), [0.2, 0.4])
        assert set(lines["intact network"].get_ydata()) == {0.05}
        assert lines["with a projection skip"].get_linestyle() == "None"
        assert lines["intact network"].get_linestyle() == "--"
        assert set(lines["chance"].get_ydata()) == {0.9}

    def test_blocks_are_named_and_stages_numbered(self):
        ds = single_lesions(error=np.zeros(N))
        ax = plotting.plot_single_lesions(ds)
        assert [label.get_text() for label in ax.get_xticklabels()] == list(ds["block"].values)
        assert texts(ax) == "stage 0 stage 1 stage 2"
        assert ax.get_ylabel() == "error (%)"

    def test_names_too_long_to_read_give_way_to_indices(self):
        ds = single_lesions(error=np.zeros(N)).assign_coords(block=[f"a.very.long.block.name.{i}" for i in range(N)])
        assert "index" in plotting.plot_single_lesions(ds).get_xlabel()

    def test_fractions_read_as_percent(self):
        ax = plotting.plot_single_lesions(single_lesions(error=np.full(N, 0.07)))
        assert ax.yaxis.get_major_formatter()(0.07) == "7"
        assert ax.get_ylim()[0] == 0

    def test_unknown_stages_are_not_drawn(self):
        ds = single_lesions(error=np.zeros(N)).assign_coords(block_stage=("block", [-1, -1, 0, 0, 1, 1]))
        assert texts(plotting.plot_single_lesions(ds)) == "stage 0 stage 1"

    def test_without_targets_changed_predictions_are_drawn(self):
        changed = np.arange(N)[:, None] > np.arange(N)
        ax = plotting.plot_single_lesions(single_lesions(prediction_changed=changed))
        np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), np.arange(N) / N)
        assert ax.get_ylabel() == "changed predictions (%)"
        assert "intact network" not in legend(ax)

    def test_a_measure_of_the_users_own_is_drawn_where_there_is_no_error(self):
        heat = np.arange(2 * N, dtype=float).reshape(N, 2)
        ax = plotting.plot_single_lesions(single_lesions(heat=heat))
        assert ax.get_ylabel() == "heat"
        np.testing.assert_allclose(ax.lines[0].get_ydata(), heat.mean(1))

    def test_a_measure_of_the_users_own_is_averaged_over_samples(self):
        ds = single_lesions(depth_error=np.arange(2.0 * N).reshape(N, 2))
        ds["depth_error"].attrs = {"long_name": "error of depth", "units": "m"}
        ds["intact_depth_error"] = ("sample", [3.0, 5.0])
        ax = plotting.plot_single_lesions(ds, measure="depth_error")
        np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), 2 * np.arange(N) + 0.5)
        assert set(labelled(ax)["intact network"].get_ydata()) == {4.0}
        assert ax.get_ylabel() == "error of depth (m)"

    def test_lesions_of_several_blocks_and_repeated_draws_are_left_out(self):
        ds = lesions([{1}, {2, 3}, {4}, {1}, {2, 4}], error=[0.1, 0.9, 0.4, 0.1, 0.8])
        line = plotting.plot_single_lesions(ds).get_lines()[0]
        np.testing.assert_array_equal(line.get_xdata(), [1, 4])
        np.testing.assert_array_equal(line.get_ydata(), [0.1, 0.4])

    def test_lesions_of_whole_groups_are_drawn_by_group(self):
        ax = plotting.plot_single_lesions(lesions([{2, 3}, {0, 1}, {4, 5}], error=[0.2, 0.1, 0.3]))
        line = labelled(ax)["one group deleted"]
        np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2])
        np.testing.assert_array_equal(line.get_ydata(), [0.1, 0.2, 0.3])
        assert [label.get_text() for label in ax.get_xticklabels()] == ["group0", "group1", "group2"]

    def test_a_second_study_fits_into_the_same_axes(self):
        ax = plotting.plot_single_lesions(single_lesions(error=np.full(N, 0.1)))
        assert plotting.plot_single_lesions(single_lesions(error=np.full(N, 0.8)), ax) is ax
        assert ax.get_ylim()[1] > 0.8
        assert len(plt.get_fignums()) == 1

    @pytest.mark.parametrize(
        ("ds", "kwargs", "message"),
        [
            (single_lesions(), {}, "finds no measure along 'lesion'"),
            (single_lesions(heat=np.zeros((N, 2))), {"measure": "cold"}, "pass measure= one of: heat"),
            (single_lesions(error=np.zeros(N)), {"measure": "loss"}, "no 'loss' along 'lesion'"),
            (single_lesions(error=np.zeros(N)), {"measure": "deleted"}, "no 'deleted'"),
            (lesions([{0, 2}, {1, 3}], error=[0.1, 0.2]), {}, "lesions of one block each"),
            (single_lesions(error=np.zeros(N)).drop_vars("deleted"), {}, "needs the variable 'deleted'"),
        ],
    )
    def test_what_is_missing_is_said_and_no_figure_made(self, ds, kwargs, message):
        with pytest.raises(InputError, match=message):
            plotting.plot_single_lesions(ds, **kwargs)
        assert not plt.get_fignums()


class TestRandomLesions:
    ERRORS = ([0.1, 0.2, 0.6], [0.3, 0.4, 0.5])

    def dataset(self):
        deleted = [{0}, {0, 1, 2}, {3}, {1, 2, 3}, {5}, {3, 4, 5}]
        return lesions(deleted, error=np.array(self.ERRORS).T.ravel())

    def test_the_mean_over_draws_is_drawn_against_the_number_of_deletions(self):
        lines = labelled(plotting.plot_random_lesions(self.dataset(), chance=0.9))
        np.testing.assert_allclose(lines["mean over draws"].get_xydata(), [[1, 0.3], [3, 0.4]])
        assert set(lines["intact network"].get_ydata()) == {0.05}
        assert set(lines["chance"].get_ydata()) == {0.9}

    def test_boxes_show_the_quartiles_and_whiskers_every_draw(self):
        ax = plotting.plot_random_lesions(self.dataset())
        for patch, number, errors in zip(ax.patches, [1, 3], self.ERRORS, strict=True):
            corners = patch.get_path().vertices
            assert corners[:, 0].mean() == pytest.approx(number, abs=0.5)
            assert (corners[:, 1].min(), corners[:, 1].max()) == tuple(np.percentile(errors, [25, 75]))
            drawn = [line.get_ydata() for line in ax.get_lines() if abs(np.mean(line.get_xdata()) - number) < 0.1]
            assert (np.concatenate(drawn).min(), np.concatenate(drawn).max()) == (min(errors), max(errors))
        assert ax.get_xlabel() == "number of deleted blocks"
        assert legend(ax) == ["quartiles, range", "mean over draws", "intact network"]

    def test_single_draws_are_a_line_without_boxes(self):
        ax = plotting.plot_random_lesions(lesions([{0}, {1, 2}], error=[0.1, 0.2]))
        assert not ax.patches
        np.testing.assert_array_equal(labelled(ax)["one draw"].get_ydata(), [0.1, 0.2])

    def test_without_the_number_of_deletions_there_is_no_figure(self):
        with pytest.raises(InputError, match="needs the variable 'n_deleted'"):
            plotting.plot_random_lesions(self.dataset().drop_vars("n_deleted"))
        assert not plt.get_fignums()


class TestPathLengths:
    def test_the_three_panels_show_the_datas_numbers(self):
        counted, single, total = plotting.plot_path_lengths(path_lengths())
        np.testing.assert_allclose([bar.get_height() for bar in counted.patches], COUNTS / 16)
        np.testing.assert_allclose([bar.get_center()[0] for bar in counted.patches], range(5))
        np.testing.assert_allclose(single.containers[0].lines[0].get_ydata(), DECAY)
        np.testing.assert_allclose(labelled(single)["random signs"].get_ydata(), np.sqrt(12.5) * DECAY)
        np.testing.assert_allclose(labelled(total)["exact"].get_ydata(), np.arange(1, 6) / 15)
        np.testing.assert_allclose(labelled(total)["sampled"].get_ydata(), TOTAL_SHARES)
        assert "exact" not in labelled(single)
        assert single.get_yscale() == "log"
        assert counted.get_xlabel() == "path length (blocks)"
        assert {ax.get_xlabel() for ax in (single, total)} == {"path length (blocks)\n2 samples"}
        assert all(ax.get_ylabel() for ax in (counted, single, total))

    def test_bands_are_intervals_over_samples_of_what_is_exact_and_over_draws_of_what_is_sampled(self):
        ds = synthetic.path_lengths(9, samples=12)
        _, single, total = plotting.plot_path_lengths(ds)
        found = statistics.sampled_paths(ds, n_resamples=1000)
        (own,) = single.collections
        assert_band(own, found.path_gradient_norm_low, found.path_gradient_norm_high)
        exact, sampled = total.collections
        assert_band(sampled, found.total_share_low, found.total_share_high)
        means = Resampling(12, 1000, 0).means(ds.gradient_norm.values)
        ends = np.quantile(means / means.sum(axis=1, keepdims=True), [0.025, 0.975], axis=0)
        assert_band(exact, *ends)
        assert total.get_xlabel().endswith("\n12 samples\n20 paths of each length")
        assert not single.containers  # no bars of standard errors

    def test_shares_along_the_gradient_are_drawn_where_the_study_has_them_below_zero_too(self):
        ds = synthetic.path_lengths(9, samples=12)
        shares = (ds.gradient_norm / ds.gradient_norm.sum("path_length")) * 1.5 - 0.05
        total = plotting.plot_path_lengths(ds.assign(gradient_share=shares))[2]
        line = next(line for line in total.get_lines() if "m_k" in str(line.get_label()))
        np.testing.assert_allclose(line.get_ydata(), shares.mean("sample"))
        assert total.get_ylim()[0] < float(shares.mean("sample").min())
        found = statistics.bootstrap(xr.Dataset({"gradient_share": shares}), "gradient_share", n_resamples=1000)
        assert_band(total.collections[2], found.gradient_share_low, found.gradient_share_high)

    def test_error_bars_end_where_the_logarithm_does(self):
        single = plotting.plot_path_lengths(path_lengths())[1]
        bars = single.containers[0].lines[2][0].get_segments()
        np.testing.assert_allclose([bar[0][1] for bar in bars], DECAY * [0.9, 1, 0.9, 1, 0.9])
        np.testing.assert_allclose([bar[1][1] for bar in bars], DECAY * [1.1, 3, 1.1, 3, 1.1])

    def test_effective_ranges_are_drawn_and_named(self):
        total = plotting.plot_path_lengths(path_lengths())[2]
        # Of the shares 1/15, ..., 5/15 none is as small as the 2.5 % that either end may leave out.
        assert legend(total) == ["exact, 95 % in 0\N{EN DASH}4", "sampled, 95 % in 0\N{EN DASH}2"]
        bars = [list(line.get_xdata()) for line in total.get_lines() if len(line.get_xdata()) == 2]
        assert bars == [[0, 4], [0, 2]]

    def test_a_range_that_does_not_exist_is_not_drawn(self):
        nowhere = {f"effective_length_{end}": ("measure", [np.nan]) for end in ("low", "high")}
        ds = path_lengths(estimators=["exact"]).assign(nowhere)
        total = plotting.plot_path_lengths(ds.assign(gradient_norm=0 * ds["gradient_norm"]))[2]
        assert legend(total) == ["exact"]
        assert len(total.get_lines()) == 1

    def test_exact_alone_shows_the_mean_path(self):
        single, total = plotting.plot_path_lengths(path_lengths(estimators=["exact"]))[1:]
        np.testing.assert_allclose(labelled(single)["exact"].get_ydata(), np.arange(1, 6) / COUNTS)
        assert next(iter(labelled(total))) == "exact"

    def test_signs_alone_give_a_total(self):
        total = plotting.plot_path_lengths(path_lengths(estimators=["signs"]))[2]
        np.testing.assert_allclose(labelled(total)["random signs"].get_ydata(), TOTAL_SHARES)

    def test_counts_alone_leave_panels_that_say_what_to_run(self):
        counted, single, total = plotting.plot_path_lengths(path_lengths(estimators=[]))
        assert counted.patches
        assert 'estimator "sampled" or "signs"' in texts(single)
        assert 'estimator "exact" or "sampled"' in texts(total)

    def test_without_counts_the_rest_is_drawn(self):
        ds = path_lengths().drop_vars(["path_count", "log10_path_count"])
        counted, single, total = plotting.plot_path_lengths(ds)
        assert "path_count" in texts(counted)
        assert len(single.get_lines()) == 2
        assert {"exact", "sampled"} <= set(labelled(total))

    def test_hundreds_of_decades_are_drawn(self):
        k = np.arange(401)
        ds = xr.Dataset(coords={"path_length": k})
        ds["log10_path_count"] = ("path_length", paths.log10_counts([10**1000] * 401))
        ds["path_gradient_rms"] = (("path_length", "sample"), np.outer(10.0 ** (-0.75 * k), [3.0, 4.0]))
        ds["log10_total_path_gradient"] = ("path_length", np.where(k < 2, 900.0, -900.0))
        counted, single, total = plotting.plot_path_lengths(ds)
        np.testing.assert_allclose([bar.get_height() for bar in counted.patches], 1 / 401)
        rms = labelled(single)["random signs"].get_ydata()
        np.testing.assert_allclose(rms, np.sqrt(12.5) * 10.0 ** (-0.75 * k), rtol=1e-6)
        np.testing.assert_array_equal(labelled(total)["sampled"].get_ydata(), np.where(k < 2, 0.5, 0))

    def test_zeros_leave_gaps_on_the_logarithmic_axis(self):
        ds = path_lengths(estimators=["signs"])
        ds["path_gradient_rms"][2] = 0
        single, total = plotting.plot_path_lengths(ds)[1:]
        np.testing.assert_array_equal(np.isnan(labelled(single)["random signs"].get_ydata()), np.arange(5) == 2)
        assert labelled(total)["random signs"].get_ydata()[2] == 0

    def test_the_callers_three_axes_are_used(self):
        axes = plt.figure().subplots(3)
        assert plotting.plot_path_lengths(path_lengths(), axes).tolist() == axes.tolist()
        with pytest.raises(InputError, match="2 Axes were given"):
            plotting.plot_path_lengths(path_lengths(), axes[:2])
        assert len(plt.get_fignums()) == 1

    @pytest.mark.parametrize(("grade", "label"), [("layers", "path length (layers)"), ("f", "path length")])
    def test_lengths_are_in_the_units_of_their_grade(self, grade, label):
        for ax in plotting.plot_path_lengths(path_lengths().assign_attrs(argument_grade=grade)):
            assert ax.get_xlabel().splitlines()[0] == label

    def test_another_study_is_refused(self):
        with pytest.raises(InputError, match="dimension 'path_length'"):
            plotting.plot_path_lengths(single_lesions(error=np.zeros(N)))
        assert not plt.get_fignums()


class TestPathSurvival:
    def test_lines_are_the_survival_by_length(self):
        ax = plotting.plot_path_survival(54, deletions=[1, 10])
        one, ten = ax.get_lines()
        np.testing.assert_allclose(one.get_ydata(), 1 - np.arange(55) / 54)
        np.testing.assert_allclose(ten.get_ydata()[[5, 11, 17]], [0.34, 0.080, 0.015], rtol=0.03)
        assert "10 of 54 blocks deleted: $2^{44}$ paths left" in legend(ax)
        assert one.get_linestyle() != ten.get_linestyle()

    @pytest.mark.parametrize("deletions", [[], [3, 11], [-1]])
    def test_bad_deletions_are_refused(self, deletions):
        with pytest.raises(InputError, match="expected"):
            plotting.plot_path_survival(10, deletions)
        assert not plt.get_fignums()


class TestPathAttribution:
    def test_maps_are_the_gradients_summed_over_channels(self):
        ds = maps()
        axes = plotting.plot_path_attribution(ds, samples=[1, 0], lengths=[2, 0])
        assert axes.shape == (2, 3)
        assert [ax.get_title() for ax in axes[0]] == ["all paths", "length 2", "length 0"]
        for row, sample in zip(axes, [1, 0], strict=True):
            gradient = ds["gradient"].values[:, sample].sum(axis=1, dtype=np.float64)
            for ax, expected in zip(row, [gradient.sum(axis=0), gradient[2], gradient[0]], strict=True):
                np.testing.assert_allclose(ax.images[0].get_array(), expected)

    def test_each_map_has_its_own_symmetric_scale_and_states_it(self):
        for ax in plotting.plot_path_attribution(maps()).ravel():
            low, high = ax.images[0].get_clim()
            assert high == -low == np.percentile(np.abs(np.asarray(ax.images[0].get_array())), 99)
            assert float(ax.get_xlabel().lstrip("\N{PLUS-MINUS SIGN}")) == pytest.approx(high, rel=0.05)

    def test_a_map_of_zeros_is_white(self):
        axes = plotting.plot_path_attribution(maps() * 0)
        assert axes[0, 0].images[0].get_clim() == (-1, 1)

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_images_come_first(self, channels_last):
        images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
        given = images if channels_last else np.moveaxis(images, 3, 1)
        axes = plotting.plot_path_attribution(maps(), given)
        assert [ax.get_title() for ax in axes[0]][:2] == ["image", "all paths"]
        for ax, image in zip(axes[:, 0], images, strict=True):
            np.testing.assert_allclose(ax.images[0].get_array(), image / 255)

    def test_normalised_images_are_stretched_and_left_as_they_were(self):
        images = np.random.default_rng(0).normal(size=(2, 1, 5, 4))
        before = images.copy()
        shown = plotting.plot_path_attribution(maps(), images)[0, 0].images[0].get_array()
        low, high = images[0].min(), images[0].max()
        np.testing.assert_allclose(shown, (images[0, 0] - low) / (high - low))
        np.testing.assert_array_equal(images, before)

    def test_with_a_cut_bank_the_sum_is_not_called_all_paths(self):
        ds = maps().assign(tail_gradient_norm=("sample", [1.0, 1.0]))
        assert plotting.plot_path_attribution(ds)[0, 0].get_title() == "lengths 0\N{EN DASH}2"

    @pytest.mark.parametrize(
        ("ds", "kwargs", "message"),
        [
            (path_lengths(), {}, "keep_maps"),
            (maps((3, 2, 4)), {}, "expected path_length, sample, channel, height, width"),
            (maps(), {"samples": [2]}, "sample 2 is not in this dataset: it has 0 to 1"),
            (maps(), {"lengths": [3]}, "path length 3 is not in this dataset"),
            (maps(), {"lengths": []}, "no path length was chosen"),
            (maps(), {"images": np.zeros((3, 3, 5, 4))}, "B = 2"),
            (maps(), {"images": np.zeros((2, 5, 4))}, "images have shape"),
            (maps(), {"axes": []}, "0 Axes were given"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, ds, kwargs, message):
        with pytest.raises(InputError, match=message):
            plotting.plot_path_attribution(ds, **kwargs)
        assert not plt.get_fignums()
