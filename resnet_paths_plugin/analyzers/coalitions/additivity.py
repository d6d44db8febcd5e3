"""How nearly the effects of deletions add: the best additive model of sets' effects, judged on sets not fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Sets = NDArray[np.bool_]
"""Which players each set holds, `[m, players]`."""

FOLDS = 5
"""Parts of the sets; each part's effects are predicted by a model that is fitted to the others."""

REPETITIONS = 1000
"""Draws of the bootstrap."""

LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class AdditiveShare:
    """How much of the sets' effects an additive model explains.

    Attributes:
        share: R^2 of effects that were not fitted to; negative where the mean effect tells more.
        low: lower end of its 95 % interval.
        high: upper end of it.
        predicted: each set's effect under the model fitted to other sets, `[m]`.
    """

    share: float
    low: float
    high: float
    predicted: FloatArray


def random_sets(n_players: int, sizes: Sequence[int], count: int, seed: int) -> Sets:
    """Draw different sets of players, their sizes uniformly among those that have a set left; all where there are few.

    Args:
        n_players: the number of players.
        sizes: sizes of the sets.
        count: how many sets to draw.
        seed: seed of the draws.
    """
    generator = np.random.default_rng([seed, 2])  # a stream of its own beside that of orders
    left = {size: comb(n_players, size) for size in sizes}
    found: dict[bytes, Sets] = {}
    while len(found) < count and any(left.values()):
        size = int(generator.choice([one for one, sets in left.items() if sets]))
        row = np.zeros(n_players, dtype=bool)
        row[generator.choice(n_players, size, replace=False)] = True
        if row.tobytes() not in found:
            found[row.tobytes()] = row
            left[size] -= 1
    return np.stack(list(found.values())) if found else np.zeros((0, n_players), dtype=bool)


def additive_share(sets: Sets, effects: FloatArray, seed: int) -> AdditiveShare:
    """Fit `d(T) = sum of b_i over i in T` to sets, and judge it on others.

    The interval is a basic bootstrap over samples and sets together: effects are means over samples drawn again, models
    are fitted to these, and R^2 is that of sets drawn again. Samples drawn again lower R^2 as few samples do, and the
    basic interval, which reflects the draws at the share, makes up for both.

    Args:
        sets: the sets, `[m, players]`.
        effects: the effect of deleting each set on each sample, `[m, B]`.
        seed: seed of the folds and of the bootstrap.
    """
    generator = np.random.default_rng([seed, 3])
    n_sets, n_samples = effects.shape
    hat = _predictor(sets, generator.permutation(n_sets) % FOLDS)
    measured = effects.mean(axis=1)
    predicted = hat @ measured
    drawn_samples = generator.multinomial(n_samples, np.full(n_samples, 1 / n_samples), REPETITIONS) / n_samples
    drawn_sets = generator.integers(n_sets, size=(n_sets, REPETITIONS))
    again = effects @ drawn_samples.T if n_samples > 1 else np.repeat(effects, REPETITIONS, axis=1)
    shares = _r_squared(
        np.take_along_axis(again, drawn_sets, axis=0), np.take_along_axis(hat @ again, drawn_sets, axis=0)
    )
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(shares, [tail, 1 - tail]) if np.isfinite(shares).any() else (np.nan, np.nan)
    share = float(_r_squared(measured[:, None], predicted[:, None])[0])
    return AdditiveShare(share, float(2 * share - high), float(np.minimum(2 * share - low, 1)), predicted)


def _predictor(sets: Sets, fold: NDArray[np.intp]) -> FloatArray:
    """Return the matrix that takes effects to predictions, each from the effects of other folds, `[m, m]`."""
    rows = sets.astype(np.float64)
    hat = np.zeros((len(sets), len(sets)))
    for one in range(FOLDS):
        mine, others = np.flatnonzero(fold == one), np.flatnonzero(fold != one)
        hat[np.ix_(mine, others)] = rows[mine] @ np.linalg.pinv(rows[others])
    return hat


def _r_squared(measured: FloatArray, predicted: FloatArray) -> FloatArray:
    """Return R^2 of each column; NaN where all effects are equal."""
    rest = ((measured - predicted) ** 2).sum(axis=0)
    total = ((measured - measured.mean(axis=0)) ** 2).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: FloatArray = np.where(total > 0, 1 - rest / total, np.nan)
    return found
