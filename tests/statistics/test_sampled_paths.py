"""Intervals over draws of sampled paths: of the mean norm, and of each length's share in the total."""

import numpy as np
import pytest
import synthetic_studies as synthetic
import xarray as xr

import resnet_paths_plugin as rpp
from resnet_paths_plugin import demo, statistics
from resnet_paths_plugin.errors import InputError

N = 9


def drawn(norms, log_counts=None):
    """A study of so many draws of each length, `[lengths, draws]`."""
    norms = np.asarray(norms, dtype=float)
    counts = np.zeros(len(norms)) if log_counts is None else log_counts
    return xr.Dataset(
        {"path_gradient_norm_draws": (("path_length", "draw"), norms), "log10_path_count": ("path_length", counts)},
        coords={"path_length": np.arange(len(norms))},
    )


def test_means_and_shares_are_those_of_the_study():
    ds = synthetic.path_lengths(N)
    found = statistics.sampled_paths(ds)
    np.testing.assert_allclose(found.path_gradient_norm, ds.path_gradient_norm)
    np.testing.assert_allclose(found.total_share, ds.total_path_gradient / ds.total_path_gradient.sum())
    draws = ds.path_gradient_norm_draws
    np.testing.assert_allclose(found.heaviest_draw_share, draws.max("draw") / draws.sum("draw"))
    np.testing.assert_allclose(found.heaviest_total_share, found.heaviest_draw_share * found.total_share)
    assert int(found.n_draws) == 20
    for name in ("path_gradient_norm", "total_share"):
        assert (found[f"{name}_low"] < found[name]).all()
        assert (found[name] < found[f"{name}_high"]).all()


@pytest.mark.parametrize(("spread", "some"), [(0.5, 1.0), (2.5, 1.0), (2.0, 0.7)])
def test_intervals_hold_the_true_mean_of_heavy_tailed_norms(spread, some):
    generator = np.random.default_rng(0)
    norms = generator.lognormal(0, spread, (1000, 50)) * (generator.random((1000, 50)) < some)
    found = statistics.sampled_paths(drawn(norms), n_resamples=1000)
    truth = some * np.exp(spread**2 / 2)
    held = (found.path_gradient_norm_low <= truth) & (truth <= found.path_gradient_norm_high)
    assert 0.93 <= float(held.mean()) <= 0.99


def test_many_draws_give_the_interval_of_the_central_limit():
    norms = np.random.default_rng(0).lognormal(0, 0.3, (1, 20_000))
    found = statistics.sampled_paths(drawn(norms), n_resamples=20_000)
    width = 1.96 * norms.std() / 20_000**0.5
    np.testing.assert_allclose(found.path_gradient_norm_low, norms.mean() - width, rtol=3e-4)
    np.testing.assert_allclose(found.path_gradient_norm_high, norms.mean() + width, rtol=3e-4)


def test_numbers_of_paths_beyond_floats_are_no_matter():
    norms = np.random.default_rng(0).lognormal(0, 1, (3, 30))
    plain = statistics.sampled_paths(drawn(norms, np.array([0.0, 1.0, 2.0])))
    deep = statistics.sampled_paths(drawn(norms * 1e-200, np.array([500.0, 501.0, 502.0])))
    for name in ("total_share", "total_share_low", "total_share_high", "heaviest_total_share"):
        np.testing.assert_allclose(deep[name], plain[name])


def test_what_has_no_interval_has_none():
    found = statistics.sampled_paths(drawn([[0, 0, 0], [1, 2, 3]], np.array([-np.inf, 0.0])))
    assert float(found.total_share[0]) == 0
    assert np.isnan(found.path_gradient_norm_low[0])
    assert np.isnan(found.total_share_low[0])
    np.testing.assert_allclose(found.total_share[1], 1)
    one = statistics.sampled_paths(drawn([[1.0], [2.0]]))
    assert one.path_gradient_norm_low.isnull().all()
    np.testing.assert_allclose(one.total_share, [1 / 3, 2 / 3])
    few = statistics.sampled_paths(drawn([[0, 0, 3], [1, 2, 3]]))
    np.testing.assert_array_equal(few.path_gradient_norm_low.isnull(), [True, False])
    assert few.total_share_low.isnull().all()
    np.testing.assert_allclose(few.total_share, [1 / 3, 2 / 3])


@pytest.mark.parametrize("lacking", ["path_gradient_norm_draws", "log10_path_count"])
def test_a_study_without_draws_is_refused(lacking):
    with pytest.raises(InputError, match="need 'path_gradient_norm_draws' along 'path_length' and 'draw'"):
        statistics.sampled_paths(synthetic.path_lengths(N).drop_vars(lacking))


def coverage(draws, log_counts, n_studies):
    """The share of lengths whose band holds what all draws together give, for each part of the draws as a study."""
    whole = statistics.sampled_paths(drawn(draws, log_counts), n_resamples=1)
    held = []
    for own in np.split(draws, n_studies, axis=1):
        found = statistics.sampled_paths(drawn(own, log_counts))
        low, high = (found[f"total_share_{end}"] / whole.total_share for end in ("low", "high"))
        held.append(((low <= 1 + 1e-9) & (high >= 1 - 1e-9)).values)  # the paths of length 0 are all the same
    return np.array(held)


@pytest.mark.slow
def test_bands_of_the_embedded_network_hold_what_many_more_draws_give():
    """20 studies of 50 draws each of the embedded network, against their 1,000 draws together."""
    images, labels = demo.load_digits()
    found = rpp.PathLengthGradient(demo.load_network()).attribute(
        images[:2], labels[:2], estimator="sampled", draws=1000, max_length=20
    )
    held = coverage(found.path_gradient_norm_draws.values, found.log10_path_count.values, 20)
    assert held.shape == (20, 21)
    assert held.mean() >= 0.9
