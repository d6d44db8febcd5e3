"""PathLengthGradient by sampled paths and random signs: against the norms of every path."""

import math

import numpy as np
import pytest
import xarray as xr
from path_enumeration import twin
from path_length_studies import attribute

pytestmark = pytest.mark.slow


# Sampled paths


def path_norms(name, length):
    return np.stack([path.squared_norms().sqrt() for path in twin(name).paths if path.length == length])


@pytest.mark.parametrize("shared", [True, False], ids=["shared paths", "own paths"])
@pytest.mark.parametrize("name", ["pre-activation", "nested", "two streams"])
def test_sampled_norms_are_the_mean_over_paths_within_their_standard_error(name, shared):
    draws = 500
    ds = attribute(name, estimator="sampled", draws=draws, shared_paths=shared)
    for length, count in enumerate(twin(name).counts):
        each = path_norms(name, length)
        norms = each.mean(1)
        found = ds.sel(path_length=length)
        variance = norms.var() if shared else each.var(0).sum() / each.shape[1] ** 2
        spread = math.sqrt(variance / draws)
        assert abs(found["path_gradient_norm"] - norms.mean()) <= 4.5 * spread + 1e-12
        np.testing.assert_allclose(found["path_gradient_norm_stderr"], spread, rtol=0.25, atol=1e-14)
        np.testing.assert_allclose(found["total_path_gradient"], count * found["path_gradient_norm"], rtol=1e-12)
        np.testing.assert_allclose(
            found["log10_total_path_gradient"], np.log10(found["total_path_gradient"]), rtol=1e-12
        )
    assert ds["n_draws"] == draws
    assert "gradient_norm" not in ds
    assert "completeness_error" not in ds


@pytest.mark.parametrize("shared", [True, False], ids=["shared paths", "own paths"])
def test_the_standard_error_is_that_of_the_drawn_paths(shared):
    """Two draws tell it exactly: half their difference."""
    each = path_norms("pre-activation", 1)
    known = each.mean(1) if shared else [(a + b) / 2 for a in each[:, 0] for b in each[:, 1]]
    pairs = {(round((a + b) / 2, 9), round(abs(a - b) / 2, 9)) for a in known for b in known}
    for seed in range(4):
        ds = attribute("pre-activation", estimator="sampled", draws=2, seed=seed, shared_paths=shared)
        ds = ds.sel(path_length=1)
        found = (round(ds["path_gradient_norm"].item(), 9), round(ds["path_gradient_norm_stderr"].item(), 9))
        assert found in pairs


def test_one_draw_has_no_standard_error():
    ds = attribute("pre-activation", estimator="sampled", draws=1)
    assert np.isnan(ds["path_gradient_norm_stderr"]).all()
    assert np.isfinite(ds["path_gradient_norm"]).all()


def test_totals_of_single_paths_bound_the_exact_norms():
    ds = attribute("transformer", estimator=["exact", "sampled"], draws=300)
    exact = ds["gradient_norm"].mean("sample")
    assert (ds["total_path_gradient"] >= exact * 0.9).all()
    assert ds["total_path_gradient"].sum() > 1.1 * exact.sum()


# Random signs


@pytest.mark.parametrize("name", ["pre-activation", "two streams", "nested"])
def test_signs_estimate_the_root_mean_square_norm_of_single_paths(name):
    ds = attribute(name, estimator="signs", draws=400)
    for length in range(len(twin(name).counts)):
        expected = np.sqrt((path_norms(name, length) ** 2).mean(0))
        found = ds["path_gradient_rms"].sel(path_length=length)
        tolerance = 1e-11 if twin(name).counts[length] == 1 else 0.15
        np.testing.assert_allclose(found, expected, rtol=tolerance)
    assert ds["path_gradient_rms"].dims == ("path_length", "sample")


# Several estimators, seeds, batches


def test_estimators_together_are_what_each_is_alone():
    together = attribute("two streams", estimator=["exact", "sampled", "signs"], draws=7, seed=3)
    for estimator, names in (
        ("exact", ["gradient_norm", "completeness_error"]),
        ("sampled", ["path_gradient_norm", "path_gradient_norm_stderr", "total_path_gradient", "n_draws"]),
        ("signs", ["path_gradient_rms"]),
    ):
        alone = attribute("two streams", estimator=estimator, draws=7, seed=3)
        for name in names:
            xr.testing.assert_equal(together[name], alone[name])


def test_equal_seeds_give_equal_results_and_others_do_not():
    one, same, other = (
        attribute("transformer", estimator=["sampled", "signs"], draws=4, seed=seed) for seed in (1, 1, 2)
    )
    xr.testing.assert_equal(one, same)
    for name in ("path_gradient_norm", "path_gradient_rms"):
        assert (one[name] != other[name]).any()
