"""Searches find the best set where they must, obey their constraints, and measure nothing twice."""

from itertools import combinations, islice
from math import comb

import numpy as np
import pytest

from resnet_paths_plugin.analyzers.coalitions import searches
from resnet_paths_plugin.analyzers.coalitions.sample_parts import SampleParts
from resnet_paths_plugin.analyzers.coalitions.searches import Judge, KnownEffects
from resnet_paths_plugin.analyzers.coalitions.set_space import SetSpace
from resnet_paths_plugin.errors import InputError

N = 9
STAGES = np.repeat([0, 1, 2], 3)


class Additive:
    """Effects that add, with a bonus for one pair; each sample sees them with noise of its own that sums to 0."""

    def __init__(self, n_samples=8, seed=0, pair=(2, 7), bonus=-3.0):
        generator = np.random.default_rng(seed)
        self.single = generator.uniform(0.5, 2.0, N)
        self.pair, self.bonus = list(pair), bonus
        noise = generator.normal(size=n_samples)
        self.noise = noise - noise.mean()
        self.asked = []

    def of(self, sets):
        return sets @ self.single + self.bonus * sets[:, self.pair].all(axis=1)

    def effects(self, rounds=1):
        parts = np.array_split(np.arange(len(self.noise)), rounds)

        def sums(sets, part):
            self.asked += [(part, row.tobytes()) for row in sets]
            each = self.of(sets)[:, np.newaxis] + self.noise[parts[part]]
            return each.sum(axis=1), len(parts[part])

        return KnownEffects(sums, rounds)


def space(free=None, per_stage=None):
    free = np.ones(N, dtype=bool) if free is None else np.isin(np.arange(N), free)
    return SetSpace(tuple(f"b{index}" for index in range(N)), free, STAGES, per_stage)


def best_by_hand(game, size, free=range(N), per_stage=N):
    fitting = [
        chosen
        for chosen in combinations(free, size)
        if all(sum(STAGES[unit] == stage for unit in chosen) <= per_stage for stage in set(STAGES))
    ]
    rows = np.array([[unit in chosen for unit in range(N)] for chosen in fitting])
    return set(fitting[int(np.argmin(game.of(rows)))])


def found(method, game, size, where, rounds=1, **options):
    judge = Judge(method, game.effects(rounds))
    if method == "exhaustive":
        (result,) = searches.exhaustive(judge, where, size)
    elif method == "evolutionary":
        numbers = {"population": 12, "generations": 12} | options
        (result,) = searches.evolutionary(judge, where, size, **numbers, generator=np.random.default_rng(0))
    else:
        result = searches.beam(judge, where, [size], {"greedy": 1, "beam": 6}[method])[size]
    return judge, result


@pytest.mark.parametrize(
    ("free", "per_stage"), [(range(N), N), ([0, 1, 4, 5, 8], N), (range(N), 1)], ids=["all", "some kept", "per stage"]
)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_exhaustive_search_finds_the_best_of_all(size, free, per_stage):
    game = Additive()
    _, result = found("exhaustive", game, size, space(free, None if per_stage == N else per_stage))
    assert set(np.flatnonzero(result.chosen)) == best_by_hand(game, size, free, per_stage)
    assert result.effect == pytest.approx(game.of(result.chosen[np.newaxis])[0])
    if per_stage == N:
        assert result.n_tried == comb(len(free), size)


def test_a_beam_finds_a_pair_that_greedy_search_misses():
    game = Additive()
    want = best_by_hand(game, 2)
    assert want == {2, 7}
    assert set(np.flatnonzero(found("greedy", game, 2, space())[1].chosen)) != want
    assert set(np.flatnonzero(found("beam", game, 2, space())[1].chosen)) == want
    assert set(np.flatnonzero(found("evolutionary", game, 2, space())[1].chosen)) == want


def test_without_interactions_greedy_search_is_exact():
    game = Additive(bonus=0.0)
    for size in (1, 4, 7):
        assert set(np.flatnonzero(found("greedy", game, size, space())[1].chosen)) == best_by_hand(game, size)


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("method", ["exhaustive", "greedy", "beam", "evolutionary"])
def test_no_set_is_measured_twice_on_a_sample_and_all_obey_the_constraints(method, rounds):
    game, where = Additive(), space([0, 1, 2, 4, 5, 7, 8], per_stage=2)
    judge, result = found(method, game, 4, where, rounds)
    assert len(game.asked) == len(set(game.asked))
    sets = np.stack([step.chosen for step in judge.steps])
    assert where.allowed(sets).all()
    assert not sets[:, [3, 6]].any()
    assert all(sets[:, stage == STAGES].sum(axis=1).max() <= 2 for stage in range(3))
    assert result.chosen.sum() == 4
    assert result.n_tried == len({row.tobytes() for row in sets})
    # Each part of the samples was asked for once: what they sum to is the cost.
    assert result.cost == pytest.approx(sum(1 / 8 * _size(part, rounds) for part, _ in game.asked))


def _size(part, rounds):
    return len(np.array_split(np.arange(8), rounds)[part])


def test_halving_measures_few_sets_on_all_samples():
    game = Additive()
    game.noise[:] = 0
    judge, result = found("exhaustive", game, 3, space(), rounds=3)
    whole = [step for step in judge.steps if step.n_samples == 8]
    assert len(whole) == comb(9, 3) / 4
    assert result.cost < 0.65 * comb(9, 3)
    assert set(np.flatnonzero(result.chosen)) == best_by_hand(game, 3)


def test_searches_share_what_is_measured():
    game = Additive()
    effects = game.effects()
    searches.exhaustive(Judge("exhaustive", effects), space(), 2)
    before = len(game.asked)
    second = Judge("beam", effects)
    beam = searches.beam(second, space(), [1, 2], 100)
    assert len(game.asked) == before + N  # the single ones
    assert beam[2].n_tried == comb(N, 2) + N


def search(method, judge, size):
    if method == "exhaustive":
        return searches.exhaustive(judge, space(), size)
    if method == "evolutionary":
        return searches.evolutionary(judge, space(), size, 4, 12, np.random.default_rng(0))
    return [*searches.beam(judge, space(), [size], {"greedy": 1, "beam": 6}[method]).values()]


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("method", ["exhaustive", "greedy", "beam", "evolutionary"])
def test_a_set_without_a_finite_effect_is_never_chosen(method, rounds, odd):
    """Half of the sets have none, and it shows on the last samples only."""

    def sums(sets, part):
        spoils = sets[:, ::2].any(axis=1) & (part == rounds - 1)
        return np.where(spoils, odd, sets @ np.arange(1.0, N + 1)), 1

    judge = Judge(method, KnownEffects(sums, rounds))
    (found,) = search(method, judge, 2)
    assert not found.chosen[::2].any()
    assert np.isfinite(found.effect)
    assert any(not np.isfinite(step.effect) for step in judge.steps)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", ["exhaustive", "greedy", "beam", "evolutionary"])
def test_where_no_effect_is_finite_nothing_is_chosen(method, odd):
    judge = Judge(method, KnownEffects(lambda sets, _: (np.full(len(sets), odd), 1)))
    assert search(method, judge, 2) == []
    assert judge.steps


def test_samples_are_dealt_evenly_once_and_the_same_each_time():
    parts = SampleParts([0.25, 0.25, 0.5], seed=3)
    labels = np.repeat(np.arange(10), 40)  # class by class
    dealt = list(islice(parts._dealt(), len(labels)))
    assert dealt == list(islice(parts._dealt(), len(labels)))
    for part, share in enumerate([0.25, 0.25, 0.5]):
        np.testing.assert_array_equal(np.bincount(labels[np.array(dealt) == part], minlength=10), 40 * share)
    assert parts.sizes(len(labels)).tolist() == [100, 100, 200]
    assert dealt != list(islice(SampleParts([0.25, 0.25, 0.5], seed=4)._dealt(), len(labels)))


@pytest.mark.parametrize("size", [-1, 0, N, N + 1])
def test_sizes_that_no_set_has_are_refused(size):
    with pytest.raises(InputError, match="k"):
        space().check(size)


def test_no_more_than_the_constraints_leave_can_be_deleted():
    with pytest.raises(InputError, match="at most 3"):
        space(per_stage=1).check(4)
    with pytest.raises(InputError, match="at most 2"):
        space([1, 2]).check(3)
