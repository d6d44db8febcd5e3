"""Figures of models side by side: what is drawn is what the comparison holds, a look and an entry for each model."""

import functools

import numpy as np
import pytest
import synthetic_studies as synthetic
from matplotlib.collections import FillBetweenPolyCollection

import resnet_paths_plugin as rpp
from resnet_paths_plugin import plotting
from resnet_paths_plugin.errors import InputError, OmittedStudyWarning
from resnet_paths_plugin.plotting import model_curves
from resnet_paths_plugin.plotting.figure import FigureStudy
from resnet_paths_plugin.plotting.registry import FIGURES, fitting
from resnet_paths_plugin.results import datasets


def lesions(n, seed=0):
    return synthetic.single_lesions(n, seed).assign_attrs(n_classes=10)


def compared(kind="single_lesions", **models):
    return (rpp.compare(models, n_resamples=50) if models else small_and_large())[kind].to_dataset()


@functools.cache
def small_and_large():
    return rpp.compare({"small": lesions(4), "large": lesions(9)}, n_resamples=50)


def line_of(ax, name):
    (found,) = [line for line in ax.get_lines() if str(line.get_gid()).partition(": ")[2] == name]
    return found


def entries(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def bands(ax):
    return [one for one in ax.collections if isinstance(one, FillBetweenPolyCollection) and one.get_paths()]


def corners(band):
    vertices = band.get_paths()[0].vertices
    return vertices[:, 1].min(), vertices[:, 1].max()


def test_many_models_have_looks_that_differ():
    looks = [model_curves._look(place) for place in range(49)]
    assert len({(look["color"], look["marker"], str(look["linestyle"])) for look in looks}) == 49
    assert [look["color"] for look in looks[:7]] == [look["color"] for look in looks[7:14]]


class TestLesions:
    def test_each_model_is_a_line_with_its_interval_as_a_band(self):
        ds = compared()
        ax = plotting.plot_compared_lesions(ds)
        for name, n in (("small", 4), ("large", 9)):
            own = ds.sel(model=name).isel(position=slice(0, n))
            np.testing.assert_array_equal(line_of(ax, name).get_ydata(), own["error"])
            np.testing.assert_allclose(line_of(ax, name).get_xdata(), (np.arange(n) + 0.5) / n)
        for band, name in zip(bands(ax), ("small", "large"), strict=True):
            own = ds.sel(model=name)
            np.testing.assert_allclose(corners(band), (own["error_low"].min(), own["error_high"].max()))
        assert entries(ax) == ["small", "large", "horizontal: intact network", "band: 95 % interval", "chance"]

    def test_models_differ_in_colour_marker_and_line(self):
        ds = compared(**{f"model {number}": lesions(3, number) for number in range(7)})
        ax = plotting.plot_compared_lesions(ds)
        lines = [line_of(ax, name) for name in ds["model"].values]
        for look in ("get_color", "get_marker"):
            assert len({getattr(line, look)() for line in lines}) == 7
        assert len({str(line._dash_pattern) for line in lines}) == 7  # where get_linestyle says "--" of any dashes

    def test_the_intact_networks_are_horizontal_lines_of_the_same_colour(self):
        ds = compared()
        ax = plotting.plot_compared_lesions(ds)
        for name in ("small", "large"):
            level = ds["intact_error"].sel(model=name).item()
            colour = line_of(ax, name).get_color()
            assert [line for line in ax.get_lines() if line.get_color() == colour and set(line.get_ydata()) == {level}]

    @pytest.mark.parametrize("by", ["index", "stage"])
    def test_the_axis_may_be_another(self, by):
        ax = plotting.plot_compared_lesions(compared(), by=by)
        found = line_of(ax, "small").get_xdata()
        expected = {"index": [0, 1, 2, 3], "stage": [0.25, 0.75, 1.5, 2.5]}[by]  # of two, one and one block
        np.testing.assert_allclose(found, expected)
        if by == "stage":
            assert [tick.get_text() for tick in ax.get_xticklabels()] == ["stage 0", "stage 1", "stage 2"]

    def test_stages_that_are_not_known_are_refused_by_name(self):
        ds = lesions(4)
        ds["block_stage"] = ds["block_stage"] * 0 - 1
        with pytest.raises(InputError, match=r"stages of 'odd' are not known: draw by='relative_depth'"):
            plotting.plot_compared_lesions(compared(odd=ds, even=lesions(4)), by="stage")

    def test_any_measure_of_the_comparison_can_be_drawn(self):
        ds = compared()
        ax = plotting.plot_compared_lesions(ds, measure="normalised_effect")
        np.testing.assert_allclose(
            line_of(ax, "large").get_ydata(), (ds["error"] - ds["intact_error"]).sel(model="large") / 0.86
        )
        assert "chance" not in entries(ax)
        assert "normalised effect" in ax.get_ylabel()
        with pytest.raises(InputError, match="finds no 'nothing': measure must be one of error, error_effect, loss"):
            plotting.plot_compared_lesions(ds, measure="nothing")

    def test_replicates_are_counted_in_the_legend(self):
        ax = plotting.plot_compared_lesions(compared(three=[lesions(4, seed) for seed in range(3)], one=lesions(4)))
        assert entries(ax)[:2] == ["three (3 trainings)", "one"]

    def test_a_model_without_the_measure_keeps_its_colour_for_others(self):
        trees = {
            name: datasets.build_tree({"single_lesions": lesions(4), **more})
            for name, more in (
                ("without", {}),
                ("one", {"random_lesions": synthetic.random_lesions(4)}),
                ("other", {"random_lesions": synthetic.random_lesions(5)}),
            )
        }
        with pytest.warns(OmittedStudyWarning, match="random_lesions: 'without' has none"):
            tree = rpp.compare(trees)
        single = plotting.plot_compared_lesions(tree["single_lesions"].to_dataset())
        random = plotting.plot_compared_curves(tree["random_lesions"].to_dataset())
        assert line_of(random, "one").get_color() == line_of(single, "one").get_color()
        assert "without" not in entries(random)

    def test_a_second_comparison_fits_into_the_same_axes(self):
        ax = plotting.plot_compared_lesions(compared())
        before = {name: line_of(ax, name).get_color() for name in ("small", "large")}
        plotting.plot_compared_lesions(compared(third=lesions(6), fourth=lesions(5)), ax=ax)
        plotting.plot_compared_lesions(compared(), ax=ax, measure="prediction_changed")
        found = [line.get_color() for line in ax.get_lines() if line.get_gid()]
        assert len(set(found[:4])) == 4
        assert found[4:] == list(before.values()) == found[:2]
        assert entries(ax) == ["small", "large", "horizontal: intact network", "band: 95 % interval", "chance",
                               "third", "fourth"]  # fmt: skip

    def test_a_dollar_sign_in_a_name_starts_no_formula(self):
        ax = plotting.plot_compared_lesions(compared(**{"a$b": lesions(4), "c$": lesions(4)}))
        assert entries(ax)[:2] == [r"a\$b", r"c\$"]


class TestCurves:
    @pytest.mark.parametrize(("kind", "size"), [("random_lesions", "n_deleted"), ("reorderings", "n_swaps")])
    def test_means_over_draws_are_drawn_by_size(self, kind, size):
        make = getattr(synthetic, kind)
        ds = compared(kind, one=make(6), other=make(9))
        ax = plotting.plot_compared_curves(ds)
        for name in ("one", "other"):
            own = ds["error"].sel(model=name).dropna(size)
            np.testing.assert_array_equal(line_of(ax, name).get_ydata(), own)
            np.testing.assert_array_equal(line_of(ax, name).get_xdata(), own[size])
        assert ax.get_ylabel() == "error (%)"

    def test_path_lengths_show_the_share_of_the_gradient(self):
        ds = compared("path_lengths", one=synthetic.path_lengths(5), other=synthetic.path_lengths(9))
        ax = plotting.plot_compared_curves(ds, by="share")
        np.testing.assert_allclose(line_of(ax, "one").get_xdata(), np.arange(6) / 5)
        np.testing.assert_array_equal(line_of(ax, "one").get_ydata(), ds["gradient_norm_share"].sel(model="one")[:6])

    def test_what_does_not_fit_is_refused(self):
        ds = compared("reorderings", one=synthetic.reorderings(6), other=synthetic.reorderings(9))
        with pytest.raises(InputError, match="number of swaps has no share of the network's blocks"):
            plotting.plot_compared_curves(ds, by="share")
        with pytest.raises(InputError, match="by must be 'size' or 'share', not 'depth'"):
            plotting.plot_compared_curves(ds, by="depth")
        with pytest.raises(InputError, match="needs group 'random_lesions', 'reorderings' or 'path_lengths'"):
            plotting.plot_compared_curves(lesions(4))
        with pytest.raises(InputError, match=r"needs a group of rpp\.compare with a measure along 'model'"):
            plotting.plot_compared_lesions(lesions(4))
        with pytest.raises(InputError, match="by must be 'relative_depth', 'index' or 'stage', not 'depth'"):
            plotting.plot_compared_lesions(compared(), by="depth")


class TestFigures:
    @pytest.fixture(scope="class")
    @staticmethod
    def tree():
        with pytest.warns(OmittedStudyWarning):
            return rpp.compare({"small": synthetic.tree(4), "large": synthetic.tree(9)}, n_resamples=50)

    @pytest.mark.parametrize(("kind", "name"), [
        ("single_lesions", "compared_lesions"), ("random_lesions", "compared_curves"),
        ("reorderings", "compared_curves"), ("path_lengths", "compared_curves"),
    ])  # fmt: skip
    def test_one_figure_fits_a_group(self, tree, kind, name):
        ds = tree[kind].to_dataset()
        assert [figure.name for figure in fitting(ds, FIGURES)] == [name]
        assert ds.resnet_paths.kind == name

    def test_a_tree_draws_every_group_with_an_axis(self, tree):
        assert sorted(tree.resnet_paths.plot()) == ["path_lengths", "random_lesions", "reorderings", "single_lesions"]

    def test_sentences_tell_the_numbers(self):
        ds = compared()
        (figure,) = fitting(ds, FIGURES)
        mean, intact = (100 * float(ds[name].sel(model="small").mean()) for name in ("error", "intact_error"))
        assert f"{mean:.1f} % in small (intact {intact:.1f} %)" in figure.sentence(ds)
        titles = [drawing.title for drawing in figure.drawings(FigureStudy(dataset=ds))]
        assert titles == [figure.title, f"{figure.title}, relative to guessing"]
        assert len(list(figure.drawings(FigureStudy(dataset=ds.drop_vars("normalised_effect"))))) == 1

    def test_an_effect_that_no_model_has_is_not_drawn(self):
        ds = compared()
        ds["normalised_effect"] = ds["normalised_effect"] * np.nan
        (figure,) = fitting(ds, FIGURES)
        assert len(list(figure.drawings(FigureStudy(dataset=ds)))) == 1

    def test_curves_tell_the_largest_size_that_all_models_have(self):
        random = {"one": synthetic.random_lesions(4), "other": synthetic.random_lesions(9)}
        ds = compared("random_lesions", **random)
        (figure,) = fitting(ds, FIGURES)
        value = random["other"]["error"].values[random["other"]["n_deleted"].values == 4].mean()
        assert f"with 4 blocks deleted, on average over draws, is {100 * float(ds['error'][0, 3]):.1f} % in one" in (
            figure.sentence(ds)
        )
        assert f"{100 * value:.1f} % in other" in figure.sentence(ds)

    def test_path_lengths_tell_their_mean(self):
        study = synthetic.path_lengths(5)
        ds = compared("path_lengths", one=study, other=synthetic.path_lengths(9))
        (figure,) = fitting(ds, FIGURES)
        norms = study["gradient_norm"].values
        mean = ((norms / norms.sum(axis=0)).mean(axis=1) * np.arange(6)).sum()
        assert f"is {mean:.3g} in one and" in figure.sentence(ds)
