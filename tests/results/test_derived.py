"""What is derived over samples is that of the samples that a result holds, or is left out or refused with advice.

The oracle is the same study run on just those samples.
"""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from shaped_outputs import Shaped

import resnet_paths_plugin as rpp
from resnet_paths_plugin import paths
from resnet_paths_plugin.errors import InputError, StaleResultWarning
from resnet_paths_plugin.plotting.proxies import describe_influence
from resnet_paths_plugin.results import derived
from resnet_paths_plugin.results.derived import refreshed
from resnet_paths_plugin.results.schema import OVER_SAMPLES, PER_SAMPLE, QUANTITIES

pytestmark = pytest.mark.filterwarnings("ignore:In a future version of xarray the default:FutureWarning")
X = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % 5
NET = rpp.unravel(Shaped((5,)).eval(), X)
LESIONS = rpp.BlockLesion(NET).attribute(X, target=LABELS)

STUDIES = {
    "lesions": lambda at: rpp.BlockLesion(NET).attribute(X[at], target=LABELS[at]),
    "reorderings": lambda at: rpp.BlockReordering(NET).attribute(X[at], target=LABELS[at]),
    "schedules": lambda at: rpp.BlockSchedules(NET).attribute(
        X[at], target=LABELS[at], schedules=[rpp.schedules.adjacent_swaps]
    ),
    "influence": lambda at: rpp.BlockInfluence(NET).attribute(X[at], target=LABELS[at], lesions=LESIONS),
    "path lengths": lambda at: rpp.PathLengthGradient(NET).attribute(
        X[at], target=LABELS[at], estimator=("exact", "signs"), keep_maps=True
    ),
    "sampled paths": lambda at: rpp.PathLengthGradient(NET).attribute(
        X[at], target=LABELS[at], estimator=("exact", "sampled"), draws=3, shared_paths=True
    ),
}
"""Studies of some samples."""

SHARED = {
    "what was changed": {
        "lesion", "deleted", "n_deleted", "n_deleted_units", "draw", "reordering", "position", "order", "kendall_tau",
        "kendall_tau_all_blocks", "n_swaps", "schedule", "family", "changed", "n_changed", "constant_added", "entry",
        "entry_schedule", "entry_place", "entry_branch", "entry_weight", "training", "linear_added",
    },
    "sets of blocks, searched and measured on samples that the result does not hold": {
        "selection", "method", "searched_effect", "held_out_effect", "held_out_effect_stderr", "held_out_error",
        "parameters", "multiply_adds", "latency", "n_tried", "search_cost", "n_searched_samples", "n_held_out_samples",
        "step_deleted", "step_effect", "step_left_out", "step_method", "step_n_samples", "random_deleted",
        "random_n_deleted", "random_n_deleted_units", "random_searched_effect", "random_held_out_effect",
        "random_held_out_effect_stderr", "random_held_out_error", "random_parameters", "random_multiply_adds",
        "random_latency",
    },
    "the reference of stand-ins": {"explained_variance"},
    "the network": {
        "block", "block_index", "block_stage", "block_skip_kind", "block_branch_type", "block_group", "block_module",
        "block_depth", "stage", "skip_kind", "branch_type", "path_length",
        "path_count", "log10_path_count", "other_block", "n_parameters",
    },
    "the study": {"proxy", "measure", "n_draws", "n_orders", "n_coalitions", "n_samples"},
    "the samples of another study": {"lesion_effect", "lesion_effect_by_sample"},
    "models side by side, summarised": {
        "model", "replicate", "n_replicates", "architecture", "weights_digest", "n_blocks", "block_name",
        "relative_depth", "share_of_blocks", "chance_error", "normalised_effect", "mean_lesion_effect",
        "mean_normalised_effect", "notable_share", "gradient_norm_share",
    },
}  # fmt: skip
"""What is said of all samples together and depends on none of them here, by what it is said of."""


def test_the_table_of_what_is_derived_from_what_is_whole():
    parts = [PER_SAMPLE, set(OVER_SAMPLES), *SHARED.values()]
    recomputed = {name for name in derived.FROM_SAMPLES if not name.startswith("intact_")}
    names = [*itertools.chain(*parts), *recomputed]
    assert sorted(names) == sorted(QUANTITIES)
    sources = {source.removeprefix("intact_") for source in derived.FROM_SAMPLES.values()} - {"proxy"}
    assert sources <= PER_SAMPLE


def assert_same(found, wanted):
    assert set(found.data_vars) == set(wanted.data_vars)
    for name in wanted.data_vars:
        values = found[name].transpose(*wanted[name].dims)
        if wanted[name].dtype.kind in "OUSTb":
            np.testing.assert_array_equal(values, wanted[name], err_msg=name)
        else:
            np.testing.assert_allclose(values, wanted[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("chosen", [[0, 1, 5], [7], [2, 0, 0]])
@pytest.mark.parametrize("study", STUDIES)
def test_a_selection_is_as_a_study_of_those_samples(study, chosen):
    found = refreshed(STUDIES[study](slice(None)).isel(sample=chosen))
    assert_same(found, STUDIES[study](chosen))


@pytest.mark.parametrize("study", STUDIES)
def test_one_sample_picked_by_its_number_is_as_a_study_of_it(study):
    assert_same(refreshed(STUDIES[study](slice(None)).isel(sample=3)), STUDIES[study]([3]))


@pytest.mark.parametrize("how", [{}, {"data_vars": "all"}, {"data_vars": "minimal", "compat": "override"}])
@pytest.mark.parametrize("study", STUDIES)
def test_results_that_are_joined_are_as_one_study(study, how):
    some, others = STUDIES[study](slice(0, 3)), STUDIES[study](slice(3, 8))
    found = xr.concat([some, others], "sample", coords="minimal", **how)
    assert_same(refreshed(found), STUDIES[study](slice(None)))
    found.resnet_paths.plot()
    plt.close("all")


@pytest.mark.parametrize("study", STUDIES)
def test_a_selection_that_xarray_wrote_shows_its_own_samples(study, tmp_path):
    STUDIES[study](slice(None)).isel(sample=[0, 1, 5]).to_netcdf(tmp_path / "again.nc")
    assert_same(refreshed(rpp.load(tmp_path / "again.nc")), STUDIES[study]([0, 1, 5]))


@pytest.mark.parametrize("study", STUDIES)
def test_a_whole_result_stays_as_it_is(study):
    whole = STUDIES[study](slice(None))
    xr.testing.assert_allclose(refreshed(whole), whole)
    assert set(refreshed(whole).variables) == set(whole.variables)


def test_a_figure_and_its_sentence_show_the_correlation_of_the_selection():
    some = STUDIES["influence"](slice(None)).isel(sample=[0, 1, 5])
    wanted = STUDIES["influence"]([0, 1, 5])
    ax = some.resnet_paths.plot(proxy="lesion_estimate")
    own = wanted.resnet_paths.plot(proxy="lesion_estimate")
    told, right = ([text.get_text() for text in a.get_legend().get_texts()] for a in (ax, own))
    assert told == right
    assert describe_influence(refreshed(some)) == describe_influence(wanted)
    plt.close("all")


def test_lesions_of_some_samples_are_the_truth_of_those_samples():
    labels = {"target": LABELS, "effect": "error"}
    some = rpp.BlockInfluence(NET).attribute(X, **labels, lesions=LESIONS.isel(sample=[0, 4, 5]))
    own = rpp.BlockLesion(NET).attribute(X[[0, 4, 5]], target=LABELS[[0, 4, 5]])
    np.testing.assert_allclose(some.lesion_effect, own.error - own.intact_error)


SAMPLED = {"estimator": ("exact", "sampled"), "draws": 3}


@pytest.mark.parametrize("change", [
    lambda ds: ds.isel(sample=[0, 1]),
    lambda ds: ds.isel(sample=slice(0, 4)),
    lambda ds: ds.isel(sample=[1, 0, 2, 3, 4, 5, 6, 7]),
    lambda ds: ds.isel(sample=2),
    lambda ds: xr.concat([ds, ds], "sample"),
    lambda ds: xr.concat([ds, ds], "sample").drop_vars("sample"),
])  # fmt: skip
def test_means_over_other_samples_are_left_out_with_a_warning(change):
    """A study of other order is left out as well: what samples there are shows in their numbers alone."""
    whole = rpp.PathLengthGradient(NET).attribute(X, target=0, **SAMPLED)
    changed = change(whole.drop_vars("path_gradient_norm_draws"))  # as 0.1.0 had it
    with pytest.warns(StaleResultWarning, match=r"path_gradient_norm.* left out. Run the study on these samples"):
        found = refreshed(changed)
    assert not {*OVER_SAMPLES} & {*found.variables}
    assert found.measure.values.tolist() == ["gradient_norm", "gradient_share"]
    for name in found.measure.values.tolist():
        mean = changed[name].mean([d for d in changed[name].dims if d == "sample"])
        bounds = paths.effective_range(mean, signed=name == "gradient_share")
        own = found.sel(measure=name)
        assert (own.effective_length_low.item(), own.effective_length_high.item()) == bounds
    with pytest.warns(StaleResultWarning):
        panels = changed.resnet_paths.plot()
    assert [line.get_label().partition(",")[0] for line in panels[2].lines][:1] == ["exact"]
    assert not any("sampled" in line.get_label() for line in panels[2].lines)
    plt.close("all")


@pytest.mark.parametrize("dropped", [[], ["parameter_gradient_norm_per_sample", "parameter_gradient_share_per_sample"]])
@pytest.mark.parametrize("chosen", [slice(0, 4), 0], ids=["some", "one"])
def test_gradients_of_parameters_are_those_of_all_samples_or_left_out(chosen, dropped):
    whole = rpp.PathLengthGradient(NET).attribute(X, target=0, tap="parameters", per_sample=True).drop_vars(dropped)
    xr.testing.assert_identical(refreshed(whole), whole)
    some = whole.isel(sample=chosen)
    with pytest.warns(StaleResultWarning, match="parameter_gradient_norm.*mean_path_length.*completeness_error"):
        found = refreshed(some)
    assert not {*OVER_SAMPLES, "completeness_error"} & {*found.variables}
    for name in {*whole.data_vars} & PER_SAMPLE - {"completeness_error"}:
        wanted = some[name] if "sample" in some.dims else some[name].expand_dims(sample=1, axis=-1)
        np.testing.assert_array_equal(found[name], wanted)
    with pytest.warns(StaleResultWarning), pytest.raises(InputError, match="no figure fits"):
        some.resnet_paths.plot()


def test_an_error_whose_samples_are_gone_is_left_out():
    some = LESIONS.drop_vars(["correct", "intact_correct"]).isel(sample=[1, 4])
    with pytest.warns(StaleResultWarning, match=r"error, intact_error: taken over other samples"):
        assert not {"error", "intact_error"} & {*refreshed(some).variables}


def test_sampled_paths_of_all_samples_are_kept():
    whole = rpp.PathLengthGradient(NET).attribute(X, target=0, **SAMPLED)
    assert whole.n_samples == len(X)
    xr.testing.assert_identical(refreshed(whole), whole)


def test_what_cannot_be_joined_is_refused():
    other = (
        rpp.BlockLesion(NET)
        .attribute(X, target=LABELS, lesions=[[0, 1], [1, 2], [0, 2]])
        .assign_coords(lesion=LESIONS.lesion)
    )
    with pytest.raises(InputError, match=r"differ in 'deleted'.* join results of one study, or run it once"):
        xr.concat([LESIONS, other], "sample").resnet_paths.plot()
    with pytest.raises(InputError, match="holds no sample any more: select at least one"):
        LESIONS.isel(sample=[]).resnet_paths.plot()


def test_every_figure_of_a_tree_shows_the_selection():
    tree = xr.DataTree.from_dict({"lesions": LESIONS.isel(sample=[0, 1, 5])})
    (figure,) = tree.resnet_paths.plot().values()
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), STUDIES["lesions"]([0, 1, 5]).error)
    plt.close("all")
