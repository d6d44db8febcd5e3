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
    assert 0.93 <= float(held.mean()) <= 0.98


def test_many_draws_give_the_interval_of_the_central_limit():
    norms = np.random.default_rng(0).lognormal(0, 0.3, (1, 5_000))
    found = statistics.sampled_paths(drawn(norms), n_resamples=10_000)
    width = 1.96 * norms.std() / 5_000**0.5
    np.testing.assert_allclose(found.path_gradient_norm_low, norms.mean() - width, rtol=6e-4)
    np.testing.assert_allclose(found.path_gradient_norm_high, norms.mean() + width, rtol=6e-4)


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


def by_sample(generator, spreads, centres, n_studies, draws):
    """Log-normal norms of each sample's own paths, `[studies, draws, samples]`, and their true mean."""
    centres, spreads = np.asarray(centres, float), np.asarray(spreads, float)
    norms = np.exp(centres + spreads * generator.normal(size=(n_studies, draws, len(centres))))
    return norms, np.exp(centres + spreads**2 / 2).mean()


def of_own_paths(norms):
    found = drawn(np.zeros((len(norms), norms.shape[1])))
    found["path_gradient_norm_draws"] = (("path_length", "draw", "sample"), norms)
    return found.assign_attrs(sampled_paths="own")


@pytest.mark.parametrize("draws", [20, 50])
def test_intervals_of_samples_with_paths_of_their_own_hold_the_true_mean(draws):
    norms, truth = by_sample(np.random.default_rng(0), [1, 1.5, 2, 2.5], [0, 1, -1, 2], 400, draws)
    found = statistics.sampled_paths(of_own_paths(norms), n_resamples=500)
    held = (found.path_gradient_norm_low <= truth) & (truth <= found.path_gradient_norm_high)
    assert 0.92 <= float(held.mean()) <= 0.99


def test_paths_that_samples_share_are_independent_by_draw_alone():
    norms, _ = by_sample(np.random.default_rng(0), [1, 1, 1], [0, 0, 0], 5, 40)
    shared = of_own_paths(norms).assign_attrs(sampled_paths="shared")
    over_samples = drawn(norms.mean(-1))
    for name in ("path_gradient_norm", "path_gradient_norm_low", "total_share_high"):
        np.testing.assert_allclose(statistics.sampled_paths(shared)[name], statistics.sampled_paths(over_samples)[name])


def test_a_sample_with_a_single_draw_above_0_leaves_its_length_an_interval():
    norms, _ = by_sample(np.random.default_rng(0), [1, 1], [0, 0], 2, 20)
    norms[1, 1:, 1] = 0
    found = statistics.sampled_paths(of_own_paths(norms))
    assert found.path_gradient_norm_low.notnull().all()
    np.testing.assert_allclose(found.path_gradient_norm, norms.mean((1, 2)))


def coverage(found, n_studies):
    """The share of lengths whose bands hold what all draws together give, for each part of the draws as a study."""
    whole = statistics.sampled_paths(found, n_resamples=1)
    held = {"path_gradient_norm": [], "total_share": []}
    size = found.sizes["draw"] // n_studies
    for start in range(0, found.sizes["draw"], size):
        own = statistics.sampled_paths(found.isel(draw=slice(start, start + size)))
        for name, each in held.items():
            low, high = (own[f"{name}_{end}"] / whole[name] for end in ("low", "high"))
            each.append(((low <= 1 + 1e-9) & (high >= 1 - 1e-9)).values)  # the paths of length 0 are all the same
    return {name: np.array(each) for name, each in held.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("first", "n", "objective"), [(0, 2, "score"), (20, 8, "cross_entropy")])
def test_bands_of_the_embedded_network_hold_what_many_more_draws_give(first, n, objective):
    """20 studies of 50 draws each of the embedded network, against their 1,000 draws together."""
    images, labels = (part[first : first + n] for part in demo.load_digits())
    found = rpp.PathLengthGradient(demo.load_network()).attribute(
        images, labels, estimator="sampled", draws=1000, max_length=20, objective=objective
    )
    assert found.sampled_paths == "own"
    for held in coverage(found, 20).values():
        assert held.shape == (20, 21)
        assert held.mean() >= 0.9
