"""Rank correlations against scipy, a bootstrap by hand and known truth."""

import numpy as np
import pytest
import scipy
import xarray as xr
from synthetic_studies import reorderings

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting.reorderings import describe_reorderings

rank_correlation = rpp.statistics.rank_correlation


def noisy(rng, ranked=20, samples=60, noise=2.0):
    truth = np.arange(ranked) / ranked
    values = truth[:, np.newaxis] + noise * rng.normal(size=(ranked, samples))
    return xr.DataArray(truth, dims="lesion"), xr.DataArray(values, dims=("lesion", "sample"))


def test_the_correlation_is_scipys_with_ties_too():
    rng = np.random.default_rng(0)
    one = xr.DataArray(rng.integers(0, 4, 15), dims="reordering")
    other = xr.DataArray(rng.integers(0, 2, (15, 30)).astype(bool), dims=("reordering", "sample"))
    found = rank_correlation(one, other)
    expected = scipy.stats.spearmanr(one, other.mean("sample")).statistic
    assert float(found.rank_correlation) == pytest.approx(expected)
    assert (int(found.n_samples), int(found.n_ranked)) == (30, 15)


def test_the_interval_is_that_of_a_bootstrap_by_hand():
    rng = np.random.default_rng(0)
    one, other = noisy(rng)
    picks = rng.integers(0, 60, (4000, 60))
    means = other.values[:, picks].mean(-1).T
    by_hand = np.quantile([scipy.stats.spearmanr(one, row).statistic for row in means], [0.025, 0.975])
    found = rank_correlation(one, other, n_resamples=4000)
    assert abs(float(found.rank_correlation_low) - by_hand[0]) < 0.04
    assert abs(float(found.rank_correlation_high) - by_hand[1]) < 0.04


def test_both_variables_of_the_same_samples_are_resampled_together():
    _, values = noisy(np.random.default_rng(0))
    found = rank_correlation(values, values * 2 + 1)
    assert float(found.rank_correlation_low) == pytest.approx(1)
    assert float(found.rank_correlation_high) == pytest.approx(1)


def test_the_reliability_is_that_of_halves():
    rng = np.random.default_rng(0)
    one, other = noisy(rng, samples=400)
    halves = []
    for _ in range(300):
        order = rng.permutation(400)
        halves.append(
            scipy.stats.spearmanr(other[:, order[:200]].mean("sample"), other[:, order[200:]].mean("sample")).statistic
        )
    found = rank_correlation(one, other)
    assert float(found.reliability_of_other) == pytest.approx(np.mean(halves), abs=0.02)
    assert np.isnan(found.reliability_of_one)


def test_the_range_holds_the_correlation():
    for seed in range(20):
        found = rank_correlation(*noisy(np.random.default_rng(seed), noise=0.3), n_resamples=200)
        assert found.rank_correlation_low <= found.rank_correlation <= found.rank_correlation_high


def test_the_range_leans_towards_0_as_the_docstring_says():
    found = [rank_correlation(*noisy(np.random.default_rng(seed))) for seed in range(30)]
    middle = np.mean([float(one.rank_correlation_low + one.rank_correlation_high) / 2 for one in found])
    assert middle < np.mean([float(one.rank_correlation) for one in found]) - 0.02


def test_what_is_not_finite_is_left_out_and_equal_values_have_no_correlation():
    one, other = noisy(np.random.default_rng(0))
    one[3] = np.nan
    found = rank_correlation(one, other)
    assert int(found.n_ranked) == 19
    rest = [place for place in range(20) if place != 3]
    assert float(found.rank_correlation) == pytest.approx(
        scipy.stats.spearmanr(one[rest], other.mean("sample")[rest]).statistic
    )
    assert np.isnan(rank_correlation(one * 0, other).rank_correlation)


def test_values_are_matched_by_their_labels():
    _, other = noisy(np.random.default_rng(0))
    other = other.assign_coords(lesion=[f"b{place}" for place in range(20)])
    found = rank_correlation(other.mean("sample")[::-1], other)
    assert float(found.rank_correlation) == pytest.approx(1)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (("lesion", [1, 2, 3]), ("block", [1, 2, 3]), "these have lesion and block"),
        (((), 1.0), ("block", [1, 2, 3]), "these have none and block"),
        (("lesion", [1, 2, 3]), ("lesion", [1, 2, 3]), "needs values of samples"),
        (("lesion", [1, 2]), (("lesion", "sample"), [[1, 2], [3, 4]]), "needs 3 finite values"),
        (("lesion", ["a", "b", "c"]), (("lesion", "sample"), [[1, 2]] * 3), "numbers are ranked"),
        (("lesion", [1, 2, 3, 4]), (("lesion", "sample"), [[1, 2]] * 3), "cannot be matched"),
    ],
)
def test_what_cannot_be_ranked_is_refused(one, other, message):
    with pytest.raises(InputError, match=message):
        rank_correlation(xr.DataArray(one[1], dims=one[0]), xr.DataArray(other[1], dims=other[0]))


def test_the_figure_and_the_sentence_of_reorderings_quote_it():
    ds = reorderings(9)
    found = rank_correlation(ds.kendall_tau, 1 - ds.correct.astype(float), n_resamples=1000)
    ends = [f"{float(found[f'rank_correlation_{end}']):+.2f}".replace("-", "\N{MINUS SIGN}") for end in ("low", "high")]
    ax = rpp.plotting.plot_reorderings(ds)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert any(f"({ends[0]} to {ends[1]})" in text for text in texts)
    assert "200 samples" in " ".join(ax.get_xlabel().split())
    told = describe_reorderings(ds)
    assert f"({ends[0]} to {ends[1]} when the 200 samples are resampled, which leans towards 0; on halves of" in told
    assert f"agrees with itself by {float(found.reliability_of_other):+.2f})." in told
