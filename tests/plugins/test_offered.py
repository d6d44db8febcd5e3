"""Figures and measures of plugins that fail are reported and left out; the rest goes on."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin import report
from resnet_paths_plugin.plotting.registry import FIGURES, all_figures
from resnet_paths_plugin.plugins import manager as plugins

HOLDS = xr.Dataset({"tide": ("sample", [1.0, 2.0])})
ANYTHING = [SystemExit(0), GeneratorExit(), BaseException("odd"), ZeroDivisionError("no luck")]


class Tide(rpp.Figure):
    name, title = "tide", "The tide"

    def __init__(self, **raising):
        self.raising = raising

    def _raise(self, where):
        if where in self.raising:
            raise self.raising[where]

    def fits(self, ds):
        self._raise("fits")
        return "tide" in ds

    def draw(self, ds, *, ax=None):
        self._raise("draw")
        ax = ax or plt.subplots()[1]
        ax.plot(ds["tide"])
        return ax

    def sentence(self, ds):
        self._raise("sentence")
        return f"High at {float(ds['tide'].max())}."


def manager(**hooks):
    class Plugin:
        pass

    for hook, function in hooks.items():
        setattr(Plugin, f"resnet_paths_{hook}", staticmethod(rpp.hookimpl(function)))
    made = rpp.create_plugin_manager(entry_points=False)
    made.register(Plugin(), name="stranger")
    return made


def offering(*figures):
    return manager(figures=lambda: figures)


def test_this_packages_figures_come_through_the_hook_as_well():
    offered = plugins.figures(rpp.create_plugin_manager())
    assert [figure for plugin, figure in offered if plugin == "resnet_paths_plugin"] == list(FIGURES)


def test_a_figure_is_drawn_with_its_title_and_sentence():
    (figure,) = report.figures(HOLDS, offering(Tide()))
    assert (figure.name, figure.title, figure.sentence) == ("tide", "The tide", "High at 2.0.")
    canvas = figure.draw()
    assert canvas.axes[0].lines[0].get_ydata().tolist() == [1.0, 2.0]
    plt.close(canvas)
    assert report.figures(xr.Dataset({"other": 3}), offering(Tide())) == []


def test_a_second_figure_of_a_study_is_named_after_itself():
    class Ebb(Tide):
        name = "ebb"

    assert [one.name for one in report.figures(HOLDS, offering(Tide(), Ebb()))] == ["tide", "tide-ebb"]


@pytest.mark.parametrize("error", ANYTHING, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["fits", "sentence"])
def test_a_figure_may_raise_anything_and_is_left_out(where, error):
    made = offering(Tide(**{where: error}))
    with pytest.warns(rpp.PluginWarning, match=f"'tide' of plugin 'stranger' failed to .*: {type(error).__name__}"):
        assert report.figures(HOLDS, made) == []


@pytest.mark.parametrize("error", ANYTHING, ids=lambda error: type(error).__name__)
def test_a_figure_that_cannot_be_drawn_says_so_on_the_page(error):
    page = report.report_html(HOLDS, offering(Tide(draw=error)))
    assert f"could not be drawn: {type(error).__name__}" in page
    assert "High at 2.0." in page


@pytest.mark.parametrize("where", ["fits", "sentence", "draw"])
def test_an_interruption_inside_a_figure_stays_one(where):
    with pytest.raises(KeyboardInterrupt):
        report.report_html(HOLDS, offering(Tide(**{where: KeyboardInterrupt()})))


@pytest.mark.parametrize(
    ("figure", "why"),
    [
        (3, "it is no rpp.Figure"),
        (plt.plot, "it is no rpp.Figure"),
        (type("Taken", (Tide,), {"name": "gates"})(), "taken"),
    ],
    ids=["number", "function", "taken"],
)
def test_what_is_no_figure_of_its_own_is_left_out(figure, why):
    with pytest.warns(rpp.PluginWarning, match=f"a figure of plugin 'stranger' is left out: .*{why}"):
        assert [one.name for one in all_figures(offering(figure, Tide()))][len(FIGURES) :] == ["tide"]


@pytest.mark.parametrize("answer", [3, {"tide": 1}])
def test_answers_that_list_no_figures_are_left_out(answer):
    with pytest.warns(rpp.PluginWarning, match=r"answered figures with .*: its figures are left out"):
        assert all_figures(manager(figures=lambda: answer)) == FIGURES


class Block(nn.Linear):
    def forward(self, x):
        return x + super().forward(x).tanh()


def lesions(made):
    torch.manual_seed(0)
    net = rpp.unravel(nn.Sequential(Block(4, 4), Block(4, 4)), torch.randn(3, 4), plugin_manager=made)
    return rpp.BlockLesion(net).attribute(torch.ones(2, 4))


def first_score(outputs, target):
    return outputs[:, 0]


def test_a_plugin_that_fails_to_offer_measures_is_reported_and_left_out():
    def fail():
        raise SystemExit(0)

    with pytest.warns(rpp.PluginWarning, match=r"'stranger' failed to offer measures, .*: SystemExit\(0\)"):
        assert "kl_divergence" in lesions(manager(measures=fail))


def test_a_measure_whose_name_is_a_results_own_is_left_out():
    made = manager(measures=lambda: {"loss": first_score, "first_score": first_score})
    with pytest.warns(rpp.PluginWarning, match="measure 'loss' of a plugin is left out"):
        result = lesions(made)
    assert "loss" not in result
    assert np.isfinite(result["first_score"]).all()


def test_measures_are_functions_by_name():
    with pytest.raises(rpp.errors.PluginError, match="answered measures with 3, not with Callable"):
        plugins.measures(nn.Linear(2, 2), manager(measures=lambda: {"three": 3}))


def test_layers_ask_the_same_plugins():
    torch.manual_seed(0)
    made = manager(measures=lambda: {"first_score": first_score})
    net = rpp.unravel(
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.ones(2, 4), units="layers", plugin_manager=made
    )
    assert "first_score" in rpp.BlockLesion(net).attribute(torch.ones(2, 4))


def score_norm(outputs, target):
    return outputs.flatten(1).norm(dim=1)


def single_column(made):
    torch.manual_seed(0)
    layers = nn.Sequential(Block(4, 4), Block(4, 4), nn.Linear(4, 1))
    return rpp.unravel(layers.double(), torch.randn(3, 4).double(), plugin_manager=made)


def test_a_plugins_measure_comes_beside_the_built_in_ones_and_changes_none():
    inputs = torch.randn(5, 4).double()
    bare = rpp.BlockLesion(single_column(manager())).attribute(inputs, target=0)
    beside = rpp.BlockLesion(single_column(manager(measures=lambda: {"score_norm": score_norm}))).attribute(
        inputs, target=0
    )
    assert "target_score" in bare
    assert set(beside.data_vars) == {*bare.data_vars, "score_norm", "intact_score_norm"}
    xr.testing.assert_equal(bare, beside[list(bare.data_vars)])


def test_a_target_out_of_range_is_refused_beside_a_plugins_measure_as_without():
    net = single_column(manager(measures=lambda: {"score_norm": score_norm}))
    with pytest.raises(rpp.errors.InputError, match=r"target 7 is out of range"):
        rpp.BlockLesion(net).attribute(torch.randn(5, 4).double(), target=7)


def test_a_plugins_measure_may_read_targets_that_name_no_output():
    def squared_error(outputs, target):
        return (outputs[:, 0] - target) ** 2

    net = single_column(manager(measures=lambda: {"squared_error": squared_error}))
    inputs, wanted = torch.randn(5, 4).double(), torch.randn(5).double()
    found = rpp.BlockLesion(net).attribute(inputs, target=wanted)
    by_hand = (net.model(inputs)[:, 0] - wanted) ** 2
    np.testing.assert_allclose(found["intact_squared_error"], by_hand.detach())
    assert "target_score" not in found
