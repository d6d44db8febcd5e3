"""The combinatorics of paths against enumeration, scipy, brute force and the paper's numbers."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from resnet_paths_plugin import paths
from resnet_paths_plugin.errors import InputError

HUGE = 10**400
"""More paths than a float can count."""


def all_paths(n):
    """Every path of a chain, as the tuple that says of each block whether its branch is taken."""
    return list(itertools.product([False, True], repeat=n))


def shortest_interval_by_brute_force(values, share):
    """Every interval is tried, in the order of the stated rule: short, then heavy, then early."""
    total = sum(values)
    held = {
        (low, high): sum(values[low : high + 1])
        for low, high in itertools.combinations_with_replacement(range(len(values)), 2)
    }
    enough = [interval for interval, weight in held.items() if weight >= share * total]
    return min(enough, key=lambda interval: (interval[1] - interval[0], -held[interval], interval[0]))


class TestCounts:
    @pytest.mark.parametrize("n", range(9))
    def test_a_chain_has_as_many_paths_of_each_length_as_enumeration_finds(self, n):
        enumerated = Counter(sum(path) for path in all_paths(n))
        assert paths.counts(n) == [enumerated[k] for k in range(n + 1)]

    def test_counts_are_exact_beyond_floats(self):
        found = paths.counts(2000)
        assert sum(found) == 2**2000
        assert all(type(count) is int for count in found)

    def test_a_networks_own_counts_are_put_in_order(self):
        assert paths.counts({3: 7, 1: HUGE}) == [0, HUGE, 0, 7]
        assert paths.counts([1, 0, HUGE]) == [1, 0, HUGE]
        assert paths.counts(np.array([1, 2])) == [1, 2]
        assert paths.counts(np.int64(3)) == [1, 3, 3, 1]

    def test_logarithms_of_counts(self):
        np.testing.assert_allclose(10 ** paths.log10_counts(54), paths.counts(54), rtol=1e-13)
        assert paths.log10_counts({0: 1, 2: HUGE}).tolist() == [0.0, -math.inf, 400.0]

    @pytest.mark.parametrize(
        "bad", [-1, 2.0, True, "54", None, [], {}, [1, -2], [0.5], {-1: 3}, {1: 2.5}, {"1": 2}, {2: -1}]
    )
    def test_what_is_no_path_count_is_refused(self, bad):
        with pytest.raises(InputError, match=r"expected"):
            paths.counts(bad)


class TestDistribution:
    @pytest.mark.parametrize("n", [0, 1, 5, 54, 600, 3000])
    def test_a_chain_has_binomial_lengths(self, n):
        np.testing.assert_allclose(
            paths.distribution(n), stats.binom.pmf(np.arange(n + 1), n, 0.5), rtol=1e-9, atol=1e-300
        )

    def test_the_papers_middle_lengths_hold_98_percent(self):
        assert round(100 * paths.share_of_paths(54, 19, 35), 2) == 98.02
        binomial = stats.binom(54, 0.5)
        assert paths.share_of_paths(54, 19, 35) == pytest.approx(binomial.cdf(35) - binomial.cdf(18), rel=1e-12)

    def test_the_papers_effective_paths_are_half_a_percent_of_all(self):
        assert round(100 * paths.share_of_paths(54, 5, 17), 4) == 0.4537

    def test_counts_beyond_floats_give_shares(self):
        np.testing.assert_array_equal(paths.distribution({1: HUGE, 3: 3 * HUGE}), [0, 0.25, 0, 0.75])
        assert paths.share_of_paths({1: HUGE, 3: 3 * HUGE}, 2, 99) == 0.75

    @given(st.lists(st.integers(0, 10**30), min_size=1, max_size=12).filter(any))
    def test_shares_are_the_exact_ratios(self, found):
        exact = [float(Fraction(count, sum(found))) for count in found]
        assert paths.distribution(found).tolist() == exact

    def test_a_network_without_paths_has_no_distribution(self):
        with pytest.raises(InputError, match="all path counts are zero"):
            paths.distribution([0, 0])

    @pytest.mark.parametrize(("low", "high"), [(3, 2), (-1, 2), (0.5, 2)])
    def test_a_bad_range_is_refused(self, low, high):
        with pytest.raises(InputError, match="expected"):
            paths.share_of_paths(5, low, high)


class TestSurvival:
    @pytest.mark.parametrize(("n", "d"), [(1, 0), (1, 1), (4, 1), (6, 2), (6, 6), (7, 4)])
    def test_survivors_are_the_paths_that_avoid_the_deleted_blocks(self, n, d):
        deleted = range(n - d, n)
        survivors = Counter(sum(path) for path in all_paths(n) if not any(path[block] for block in deleted))
        everyone = Counter(sum(path) for path in all_paths(n))
        assert paths.remaining_counts(n, d) == [survivors[k] for k in range(n + 1)]
        assert paths.exact_survival(n, d) == [Fraction(survivors[k], everyone[k]) for k in range(n + 1)]

    def test_the_papers_ten_deletions_leave_2_to_the_44_paths(self):
        assert sum(paths.remaining_counts(54, 10)) == 2**44

    def test_the_papers_short_paths_survive_more_often(self):
        survival = paths.survival(54, 10)
        assert round(100 * survival[5]) == 34
        assert round(100 * survival[11], 1) == 8.0
        assert round(100 * survival[17], 1) == 1.5

    @given(st.integers(1, 60), st.data())
    def test_survival_is_the_chance_to_miss_every_deleted_block(self, n, data):
        d = data.draw(st.integers(0, n))
        chance = [stats.hypergeom.pmf(0, n, d, k) for k in range(n + 1)]
        np.testing.assert_allclose(paths.survival(n, d), chance, rtol=1e-9, atol=1e-300)

    @pytest.mark.parametrize(("n", "d"), [(5, 6), (5, -1), (-5, 1), (5, 1.0)])
    def test_a_bad_number_of_deletions_is_refused(self, n, d):
        with pytest.raises(InputError, match="expected"):
            paths.survival(n, d)


class TestEffectiveRange:
    @given(
        st.lists(st.integers(0, 5), min_size=1, max_size=9).filter(any),
        st.sampled_from(["0.05", "0.1", "0.5", "0.9", "0.95", "1.0"]),
    )
    def test_it_is_the_interval_that_brute_force_finds(self, values, share):
        expected = shortest_interval_by_brute_force(values, Fraction(share))
        assert paths.effective_range(values, float(share)) == expected
        assert paths.effective_range(np.array(values, dtype=np.float32), float(share)) == expected

    @given(
        st.lists(st.floats(0, 1e300, allow_subnormal=True), min_size=1, max_size=9).filter(any),
        st.sampled_from(["0.3", "0.95", "1.0"]),
    )
    def test_sums_of_floats_are_exact(self, values, share):
        expected = shortest_interval_by_brute_force([Fraction(value) for value in values], Fraction(share))
        assert paths.effective_range(values, float(share)) == expected

    @given(st.lists(st.integers(-6, 6), min_size=1, max_size=9), st.integers(-5000, 5000))
    def test_logarithms_of_any_size_give_the_same_interval(self, exponents, shift):
        values = [Fraction(10) ** exponent for exponent in exponents]
        logarithms = [float(exponent + shift) for exponent in exponents]
        # A share that no sum of powers of ten meets exactly: powers of ten are rounded in binary.
        expected = shortest_interval_by_brute_force(values, Fraction("0.937"))
        assert paths.effective_range(logarithms, 0.937, log10=True) == expected

    def test_hundreds_of_decades_do_not_disturb_it(self):
        assert paths.effective_range([-np.inf, -900.0, 0.0, 0.1, -700.0], log10=True) == (2, 3)

    def test_of_equally_short_intervals_the_heavier_wins_then_the_earlier(self):
        assert paths.effective_range([0, 4, 0, 5, 0], 0.4) == (3, 3)
        assert paths.effective_range([0, 5, 0, 5, 0], 0.4) == (1, 1)

    def test_the_share_is_the_decimal_that_was_written(self):
        assert paths.effective_range([1.0] * 20, 0.95) == (0, 18)
        assert paths.effective_range([1.0] * 10, 0.1) == (0, 0)

    def test_counts_beyond_floats_have_a_range(self):
        assert paths.effective_range([1, 30 * HUGE, 19 * HUGE, HUGE]) == (1, 2)
        assert paths.effective_range(np.array([2**60, 2**60 + 1]), 0.5) == (1, 1)

    def test_the_distribution_of_a_chain_is_centred(self):
        low, high = paths.effective_range(paths.counts(54))
        assert (low, high) == (20.0, 34.0)

    @pytest.mark.parametrize("values", [[0.0, 0.0], [0], [1.0, math.nan], [1.0, math.inf]])
    def test_without_a_finite_total_there_is_no_range(self, values):
        assert all(math.isnan(end) for end in paths.effective_range(values))

    @pytest.mark.parametrize("values", [[-math.inf], [-math.inf, -math.inf], [0.0, math.nan], [math.inf, 0.0]])
    def test_without_a_finite_total_in_logarithms_there_is_no_range(self, values):
        assert all(math.isnan(end) for end in paths.effective_range(values, log10=True))

    @pytest.mark.parametrize("share", [0, -0.1, 1.01, math.nan])
    def test_a_share_outside_0_to_1_is_refused(self, share):
        with pytest.raises(InputError, match="above 0 and at most 1"):
            paths.effective_range([1.0, 2.0], share)

    @pytest.mark.parametrize("values", [[], [[1.0]], 3.0, ["a"], [None], [1.0, -2.0]])
    def test_values_that_are_no_contributions_are_refused(self, values):
        with pytest.raises(InputError, match=r"expected|no numbers"):
            paths.effective_range(values)


class TestTotals:
    def test_the_total_is_count_times_mean(self):
        norms = np.array([0.5, 0.0, 2.0, 1e-20])
        expected = [math.log10(0.5), -math.inf, math.log10(3 * 2.0), -20.0]
        np.testing.assert_allclose(paths.log10_totals(3, norms), expected, rtol=1e-14)

    def test_a_length_without_paths_has_no_total_even_if_its_mean_is_unknown(self):
        totals = paths.log10_totals({1: 10, 2: HUGE}, [math.nan, math.nan, 0.1])
        assert totals[0] == -math.inf
        assert math.isnan(totals[1])
        assert totals[2] == pytest.approx(399.0)

    @pytest.mark.parametrize("norms", [[1.0, 2.0], [1.0, -1.0, 1.0], "abc", [[1.0, 1.0, 1.0]]])
    def test_means_that_do_not_fit_are_refused(self, norms):
        with pytest.raises(InputError, match=r"expected|negative|no numbers"):
            paths.log10_totals(2, norms)


class TestSampling:
    def test_every_path_of_a_length_is_equally_likely(self):
        generator = np.random.default_rng(0)
        draws = Counter(tuple(paths.sample_path(5, 2, generator).tolist()) for _ in range(5000))
        assert set(draws) == set(itertools.combinations(range(5), 2))
        assert stats.chisquare(list(draws.values())).pvalue > 1e-3

    @pytest.mark.parametrize("n", [0, 3])
    def test_the_longest_path_takes_every_branch_and_the_shortest_none(self, n):
        generator = np.random.default_rng(0)
        assert paths.sample_path(n, n, generator).tolist() == list(range(n))
        assert paths.sample_path(n, 0, generator).tolist() == []

    @pytest.mark.parametrize(("n", "k"), [(3, 4), (3, -1), (-1, 0), (3, 1.5)])
    def test_a_length_that_no_path_has_is_refused(self, n, k):
        with pytest.raises(InputError, match="expected"):
            paths.sample_path(n, k, np.random.default_rng(0))
