"""Intervals against scipy, against published figures and against known truth."""

import numpy as np
import pytest
import scipy
import xarray as xr
from synthetic_studies import random_lesions, single_lesions

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.statistics.proportions import Cells, paired_difference, wilson

EXPANDED_80 = np.sqrt(80 / 79) * scipy.stats.t.ppf(0.975, 79) / scipy.stats.norm.ppf(0.975)
"""How much wider intervals of 80 samples are made."""


def study(values, dim="lesion", name="loss", **variables):
    return xr.Dataset({name: ((dim, "sample"), np.asarray(values)), **variables})


def drawn(rng, sizes, draws, samples):
    """Draws of some sizes whose values have a part of the draw, one of the sample, and noise."""
    rows = len(sizes) * draws
    values = rng.normal(size=(rows, 1)) + rng.normal(size=samples) + rng.normal(size=(rows, samples))
    return study(
        values + 1,
        n_deleted=("lesion", np.repeat(sizes, draws)),
        draw=("lesion", np.tile(np.arange(draws), len(sizes))),
    )


def test_the_bootstrap_agrees_with_scipys():
    values = np.random.default_rng(0).gamma(2.0, size=(3, 80))
    ours = rpp.statistics.bootstrap(study(values), n_resamples=20_000)
    for row, one in enumerate(values):
        theirs = scipy.stats.bootstrap((one,), np.mean, n_resamples=20_000, method="percentile", rng=1)
        for end in ("low", "high"):
            width = ours.loss_high[row] - ours.loss_low[row]
            expected = one.mean() + (getattr(theirs.confidence_interval, end) - one.mean()) * EXPANDED_80
            assert abs(ours[f"loss_{end}"][row] - expected) < 0.03 * width
    np.testing.assert_allclose(ours.loss, values.mean(axis=1), rtol=1e-12)
    assert int(ours.n_samples) == 80
    assert int(ours.n_draws) == 1


def test_rows_share_their_resamples():
    values = np.random.default_rng(0).normal(size=(1, 50))
    found = rpp.statistics.bootstrap(study(np.concatenate([values, values, values + 1])))
    assert found.loss_low[0] == found.loss_low[1]
    np.testing.assert_allclose(found.loss_low[2], found.loss_low[0] + 1)


def test_many_samples_are_resampled_in_parts(monkeypatch):
    monkeypatch.setattr("resnet_paths_plugin.statistics.resampling._BYTES_AT_ONCE", 8 * 50 * 100)
    values = np.random.default_rng(0).normal(size=(2, 50))
    found = rpp.statistics.bootstrap(study(values), n_resamples=1000)
    error = scipy.stats.sem(values, axis=1)
    np.testing.assert_allclose((found.loss_high - found.loss_low) / 2, 1.96 * error, rtol=0.12)
    assert found.identical(rpp.statistics.bootstrap(study(values), n_resamples=1000))


def test_draws_are_averaged_by_their_size():
    ds = drawn(np.random.default_rng(3), sizes=[4, 1], draws=5, samples=40)
    found = rpp.statistics.bootstrap(ds)
    assert found.loss.dims == ("n_deleted",)
    assert found.n_deleted.values.tolist() == [1, 4]
    assert found.n_draws.values.tolist() == [5, 5]
    np.testing.assert_allclose(found.loss.sel(n_deleted=4), ds.loss[:5].mean())
    np.testing.assert_allclose(found.loss.sel(n_deleted=1), ds.loss[5:].mean())


def test_other_dims_are_kept_beside_draws():
    ds = drawn(np.random.default_rng(3), sizes=[1, 2, 3], draws=4, samples=30)
    ds["both"] = ds.loss.expand_dims(part=["a", "b"], axis=1) * xr.DataArray([1.0, 10.0], dims="part")
    found = rpp.statistics.bootstrap(ds)
    assert found.both.dims == ("part", "n_deleted")
    for end in ("", "_low", "_high"):
        np.testing.assert_allclose(found[f"both{end}"].sel(part="a"), found[f"loss{end}"])
        np.testing.assert_allclose(found[f"both{end}"].sel(part="b"), 10 * found[f"loss{end}"])


@pytest.mark.zoo
def test_intervals_over_samples_cover_the_truth():
    rng, covered = np.random.default_rng(7), 0
    for _ in range(1000):
        found = rpp.statistics.bootstrap(study(rng.gamma(4.0, 0.25, size=(1, 100))), n_resamples=400)
        covered += bool(found.loss_low[0] <= 1 <= found.loss_high[0])
    assert 900 <= covered <= 980


@pytest.mark.zoo
@pytest.mark.parametrize("draws", [2, 3, 5, 20])
def test_intervals_over_draws_and_samples_cover_the_truth(draws):
    rng, covered = np.random.default_rng(7), 0
    for _ in range(1000):
        found = rpp.statistics.bootstrap(drawn(rng, sizes=[1], draws=draws, samples=100), n_resamples=400)
        covered += bool(found.loss_low[0] <= 1 <= found.loss_high[0])
    assert covered >= 900


@pytest.mark.zoo
@pytest.mark.parametrize("rates", [(0.05, 0.06, 0.04), (0.2, 0.25, 0.18), (0.5, 0.6, 0.4)])
def test_intervals_of_shares_cover_the_truth(rates):
    """Two shares of 200 samples, and how many are in both."""
    (first, second, both), rng, n = rates, np.random.default_rng(7), 200
    cells = rng.choice(4, p=[both, first - both, second - both, 1 - first - second + both], size=(1000, n))
    one, other = cells < 2, (cells == 0) | (cells == 2)
    low, high = paired_difference(Cells.of(one, other), 0.95)
    assert ((low <= first - second) & (first - second <= high)).sum() >= 900
    low, high = wilson(one.sum(axis=1), n, 0.95)
    assert ((low <= first) & (first <= high)).sum() >= 900


@pytest.mark.parametrize(("successes", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611)])
def test_wilsons_interval_is_the_published_one(successes, n, low, high):
    """Table I of Newcombe 1998, Statistics in Medicine 17, 857-872."""
    np.testing.assert_allclose(wilson(np.array(successes), n, 0.95), (low, high), atol=6e-5)
    theirs = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson(np.array(successes), n, 0.95), theirs, atol=1e-12)


def cells(both, only_one, only_other, neither):
    """Return two conditions on the same samples, by how many samples are in each cell."""
    counts = [both, only_one, only_other, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_the_paired_interval_is_the_published_one():
    """Newcombe 1998, Statistics in Medicine 17, 2635-2650, table II, method 10, first example."""
    np.testing.assert_allclose(paired_difference(Cells.of(*cells(36, 12, 2, 0)), 0.95), (0.0569, 0.3404), atol=6e-5)


def test_the_paired_interval_turns_with_its_sides():
    one, other = cells(30, 9, 4, 7)
    low, high = paired_difference(Cells.of(one, other), 0.95)
    np.testing.assert_allclose(paired_difference(Cells.of(other, one), 0.95), (-high, -low), atol=1e-12)
    np.testing.assert_allclose(paired_difference(Cells.of(~one, ~other), 0.95), (-high, -low), atol=1e-12)


def test_the_correlation_of_a_pair_is_corrected_for_continuity():
    """By hand: the cells' cross product is 20 * 20 - 5 * 5 = 375, corrected 375 - 50 / 2, and all margins are 25."""
    low, high = paired_difference(Cells.of(*cells(20, 5, 5, 20)), 0.95)
    down, up = 0.5 - wilson(np.array(25), 50, 0.95)[0], wilson(np.array(25), 50, 0.95)[1] - 0.5
    expected = np.sqrt(down**2 - 2 * 350 / 625 * down * up + up**2)
    np.testing.assert_allclose((low, high), (-expected, expected), atol=1e-12)


def test_draws_of_each_size_are_resampled_on_their_own():
    ds = drawn(np.random.default_rng(3), sizes=[1, 2], draws=6, samples=40)
    ds.loss[6:] = ds.loss[:6].values
    found = rpp.statistics.bootstrap(ds)
    assert found.loss[0] == found.loss[1]
    assert found.loss_low[0] != found.loss_low[1]


def test_a_share_of_no_samples_is_not_known_exactly():
    low, high = paired_difference(Cells.of(np.zeros((1, 50), bool), np.zeros((1, 50), bool)), 0.95)
    assert low[0] < 0 < high[0]


def test_a_summary_has_each_measure_with_its_interval():
    ds = single_lesions()
    found = ds.resnet_paths.summary()
    for name in ("error", "loss", "intact_error", "error_effect", "loss_effect"):
        assert (found[f"{name}_low"] <= found[name]).all()
        assert (found[name] <= found[f"{name}_high"]).all()
    np.testing.assert_allclose(found.error, ds.error)
    np.testing.assert_allclose(found.error_effect, ds.error - ds.intact_error, atol=1e-12)
    assert found.error.dims == ("lesion",)
    assert found.attrs["level"] == 0.95
    theirs = scipy.stats.binomtest(int((~ds.correct[0]).sum()), ds.sizes["sample"]).proportion_ci(method="wilson")
    np.testing.assert_allclose((found.error_low[0], found.error_high[0]), theirs)


def test_a_selection_has_its_own_summary():
    ds = single_lesions()
    some = ds.isel(sample=slice(0, 10))
    found = some.resnet_paths.summary()
    np.testing.assert_allclose(found.error, 1 - some.correct.mean("sample"))
    assert int(found.n_samples) == 10


def test_a_summary_of_random_lesions_is_by_their_number(tmp_path):
    found = random_lesions().resnet_paths.summary(level=0.9, n_resamples=200)
    assert "n_deleted" in found.error.dims
    assert (found.n_draws > 1).all()
    found.to_netcdf(tmp_path / "summary.nc")
    assert xr.load_dataset(tmp_path / "summary.nc").identical(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 95}, "between 0 and 1"),
        ({"n_resamples": 0}, "between 1 and"),
        ({"seed": -1}, "from 0 on"),
        ({"names": "accuracy"}, "'accuracy' is no measure with a value"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        rpp.statistics.bootstrap(single_lesions(), **options)


def test_a_dataset_without_measures_is_refused():
    with pytest.raises(InputError, match="holds no measure"):
        xr.Dataset({"error": ("lesion", [0.1])}).resnet_paths.summary()


def test_groups_are_averaged_by_their_number():
    rng = np.random.default_rng(0)
    ds = drawn(rng, sizes=[2], draws=3, samples=20)
    ds["n_deleted"], ds["n_deleted_units"] = ("lesion", [3, 4, 5]), ("lesion", [2, 2, 2])
    found = rpp.statistics.bootstrap(ds)
    assert found.loss.dims == ("n_deleted_units",)
    assert found.n_draws.values.tolist() == [3]


def test_studies_of_two_seeds_are_averaged_together():
    rng = np.random.default_rng(0)
    both = xr.concat([drawn(rng, sizes=[1, 2], draws=3, samples=20) for _ in range(2)], "lesion")
    assert rpp.statistics.bootstrap(both).n_draws.values.tolist() == [6, 6]


def test_a_single_draw_or_sample_has_no_interval():
    rng = np.random.default_rng(0)
    ds = drawn(rng, sizes=[1, 2], draws=3, samples=20).isel(lesion=[0, 1, 2, 3])
    found = rpp.statistics.bootstrap(ds)
    assert np.isnan(found.loss_low).values.tolist() == [False, True]
    assert np.isnan(rpp.statistics.bootstrap(study(np.ones((2, 1)))).loss_low).all()


def test_no_change_of_a_random_lesion_is_not_known_exactly():
    right = np.ones((4, 60), dtype=bool)
    ds = study(right, name="correct", intact_correct=("sample", right[0]))
    ds = ds.assign(n_deleted=("lesion", [1, 1, 2, 2]), draw=("lesion", [0, 1, 0, 1]))
    found = ds.resnet_paths.summary()
    theirs = scipy.stats.binomtest(0, 60).proportion_ci(method="wilson")
    np.testing.assert_allclose(found.error_high, theirs.high)
    assert (found.error_effect_low < 0).all()
    assert (found.error_effect_high > 0).all()


def test_samples_that_are_masked_are_left_out():
    ds = single_lesions()
    chosen = np.arange(ds.sizes["sample"]) % 5 == 0
    masked = ds.where(xr.DataArray(chosen, dims="sample"))
    found, wanted = masked.resnet_paths.summary(), ds.isel(sample=chosen).resnet_paths.summary()
    for name in ("error", "error_low", "loss", "error_effect_high", "n_samples"):
        np.testing.assert_allclose(found[name], wanted[name], err_msg=name)
    assert rpp.statistics.mcnemar(masked).equals(rpp.statistics.mcnemar(ds.isel(sample=chosen)))


def test_shares_of_a_samples_tokens_are_no_predictions():
    ds = study([[0.4, 1.0, 0.6]], name="correct", intact_correct=("sample", [1.0, 1.0, 1.0]))
    np.testing.assert_allclose(ds.resnet_paths.summary().error, [1 / 3])
    with pytest.raises(InputError, match="shares"):
        rpp.statistics.mcnemar(ds)


def test_whole_numbers_are_measured_and_classes_are_not():
    ds = study(np.array([[1, 2, 3]]), name="rank", prediction=(("lesion", "sample"), [[0, 1, 2]]))
    found = ds.resnet_paths.summary()
    assert found["rank"].item() == 2
    assert "prediction" not in found


def test_no_sample_is_refused():
    with pytest.raises(InputError, match="at least one"):
        single_lesions().isel(sample=slice(0, 0)).resnet_paths.summary()


def test_a_summary_is_saved_as_any_result(tmp_path):
    found = single_lesions().resnet_paths.summary()
    rpp.save(found, tmp_path / "summary.nc")
    assert rpp.load(tmp_path / "summary.nc").identical(found)
