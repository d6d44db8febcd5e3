"""Shapley values and interactions of a game from the values of coalitions: exactly, or from sampled orders.

Both are linear in the values, so that means over samples and single samples go the same way. Runs no network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from resnet_paths_plugin.analyzers.coalitions.evaluated import Coalitions

FloatArray = NDArray[np.float64]
Game = Callable[[Coalitions], FloatArray]
"""Gives coalitions `[m, players]` their values, `[m]`, or `[m, B]` for each sample."""


def all_coalitions(n_players: int) -> Coalitions:
    """Return all coalitions, `[2**n, n]`: player `i` is in number `b` where bit `i` of `b` is set."""
    numbers = np.arange(2**n_players)
    found: Coalitions = (numbers[:, None] >> np.arange(n_players) & 1).astype(bool)
    return found


def shapley_values(values: FloatArray) -> FloatArray:
    """Return the exact Shapley values.

    `phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S))` (Shapley 1953).

    Args:
        values: the value of each coalition in the order of `all_coalitions`, `[2**n, *]`.

    Returns:
        The value of each player, `[n, *]`.
    """
    coalitions = all_coalitions(_n_players(values))
    n = coalitions.shape[1]
    size = coalitions.sum(axis=1)
    # |S|! (n - |S| - 1)! / n! for the coalition that the player joins
    weights = np.array([1 / (n * comb(n - 1, joined)) for joined in range(n)])
    gains = np.where(coalitions.T, weights[np.maximum(size - 1, 0)], -weights[np.minimum(size, n - 1)])
    found: FloatArray = gains @ values
    return found


def shapley_interactions(values: FloatArray) -> FloatArray:
    """Return the exact Shapley interaction index of each pair (Grabisch and Roubens 1999).

    The mean second difference `v(S + i + j) - v(S + i) - v(S + j) + v(S)` with weights
    `|S|! (n - |S| - 2)! / (n - 1)!`.

    Args:
        values: the value of each coalition in the order of `all_coalitions`, `[2**n]`.

    Returns:
        The indices, `[n, n]`, symmetric, with NaN on the diagonal.
    """
    coalitions = all_coalitions(_n_players(values))
    n = coalitions.shape[1]
    size = coalitions.sum(axis=1)
    weights = np.array([1 / ((n - 1) * comb(n - 2, left)) for left in range(n - 1)])
    found = np.full((n, n), np.nan)
    for i in range(n):
        for j in range(i):
            inside = coalitions[:, i].astype(np.int64) + coalitions[:, j]
            found[i, j] = found[j, i] = (np.where(inside == 1, -1, 1) * weights[size - inside]) @ values
    return found


@dataclass(frozen=True, eq=False)
class Estimate:
    """Estimates from sampled orders.

    Attributes:
        values: Shapley value of each player, `[n, *]`.
        stderr: standard errors of their means over samples, `[n]`.
        interactions: Shapley interaction index of each pair, `[n, n]`, NaN on the diagonal and where no order has the
            pair side by side; None where it was not asked for.
        interactions_stderr: their standard errors, NaN also where one pair of orders alone has the pair.
    """

    values: FloatArray
    stderr: FloatArray
    interactions: FloatArray | None
    interactions_stderr: FloatArray | None


@dataclass(frozen=True, eq=False)
class SampledOrders:
    """Random orders in which players come in, each beside its reverse.

    A player's gain in a random order is an unbiased estimate of its Shapley value (Castro et al. 2009); in the reverse
    order it meets the players that it did not meet, so that the mean of both varies less (Mitchell et al. 2022). The
    second difference of two players who come in one after the other is one of their interaction index.

    Attributes:
        orders: the orders, `[pairs, n]`; the reverse ones are not listed.
    """

    orders: NDArray[np.intp]

    @classmethod
    def drawn(cls, n_players: int, n_pairs: int, seed: int) -> "SampledOrders":
        """Draw pairs of orders."""
        generator = np.random.default_rng(seed)
        return cls(np.stack([generator.permutation(n_players) for _ in range(n_pairs)]))

    def coalitions(self, order: int) -> Coalitions:
        """Return the coalitions that estimates up to an order (1 or 2) are made of."""
        both = self._both()
        found = [self._grown(both)] if order == 1 else [self._grown(both), self._skipping(both)]
        return np.concatenate([one.reshape(-1, both.shape[1]) for one in found])

    def estimate(self, game: Game, order: int) -> Estimate:
        """Return the estimates up to an order (1 or 2).

        Args:
            game: gives coalitions their values.
            order: 2 for interactions too, which need values `[m]`.
        """
        n_pairs, n = self.orders.shape
        both = self._both()
        grown = self._grown(both)
        values = game(grown.reshape(-1, n)).reshape(len(both), n + 1, -1)
        gains = np.empty((len(both), n, values.shape[2]))
        np.put_along_axis(gains, both[:, :, None], np.diff(values, axis=1), axis=1)
        of_pairs = gains.reshape(2, n_pairs, n, -1).mean(axis=0)
        stderr = of_pairs.mean(axis=2).std(axis=0, ddof=1) / np.sqrt(n_pairs)
        found = of_pairs.mean(axis=0)
        if order == 1:
            return Estimate(found, stderr, None, None)
        means = values.mean(axis=2)
        if n == 1:
            return Estimate(found, stderr, np.full((1, 1), np.nan), np.full((1, 1), np.nan))
        skipped = game(self._skipping(both).reshape(-1, n)).reshape(len(both), n - 1, -1).mean(axis=2)
        second = means[:, 2:] - means[:, 1:-1] - skipped + means[:, :-2]
        return Estimate(found, stderr, *self._interactions(second))

    def _both(self) -> NDArray[np.intp]:
        return np.concatenate([self.orders, self.orders[:, ::-1]])

    def _grown(self, orders: NDArray[np.intp]) -> Coalitions:
        """Return the coalitions of the first 0 to n players of each order, `[orders, n + 1, n]`."""
        arrival = np.argsort(orders, axis=1)
        found: Coalitions = arrival[:, None, :] < np.arange(orders.shape[1] + 1)[:, None]
        return found

    def _skipping(self, orders: NDArray[np.intp]) -> Coalitions:
        """Return the coalitions of the first players of each order and the next but one, `[orders, n - 1, n]`."""
        found = self._grown(orders)[:, :-2].copy()
        np.put_along_axis(found, orders[:, 1:, None], values=True, axis=2)
        return found

    def _interactions(self, second: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the mean over pairs of orders of second differences, `[orders, n - 1]`, and their standard errors."""
        n_pairs, n = self.orders.shape
        # The players that are side by side in an order are so in the reverse one, from its other end.
        of_pairs = (second[:n_pairs] + second[n_pairs:, ::-1]) / 2
        first, other = self.orders[:, :-1].ravel(), self.orders[:, 1:].ravel()
        low, high = np.minimum(first, other), np.maximum(first, other)
        place = low * n + high
        count = np.bincount(place, minlength=n * n)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.bincount(place, of_pairs.ravel(), n * n) / count
            squares = np.bincount(place, (of_pairs.ravel() - mean[place]) ** 2, n * n)
            stderr = np.where(count > 1, np.sqrt(squares / (count - 1) / count), np.nan)
        return _symmetric(mean.reshape(n, n)), _symmetric(stderr.reshape(n, n))


def pairs_within(budget: int, n_players: int, order: int) -> int:
    """Return how many pairs of orders a budget of coalitions allows."""
    each = 2 * (n_players - 1) * order
    return (budget - 2) // each if each else budget


def _symmetric(upper: FloatArray) -> FloatArray:
    known = np.triu(np.ones(upper.shape, dtype=bool), 1)
    found: FloatArray = np.where(known, upper, np.where(known.T, upper.T, np.nan))
    return found


def _n_players(values: FloatArray) -> int:
    return len(values).bit_length() - 1
