"""How nearly the effects of deletions add: the best additive model of sets' effects, judged on sets not fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

FloatArray = NDArray[np.float64]
Sets = NDArray[np.bool_]
"""Which players each set holds, `[m, players]`."""

FOLDS = 5
"""Parts of the sets; each part's effects are predicted by a model that is fitted to the others."""

LEVEL = 0.95

FEWEST_SAMPLES = 10
"""Samples from which on the share has an interval."""


@dataclass(frozen=True, eq=False)
class AdditiveShare:
    """How much of the sets' effects an additive model explains.

    Attributes:
        share: R^2 of effects that were not fitted to, freed from the noise of few samples, at most 1; negative where
            the mean effect tells more.
        low: lower end of its 95 % interval, which holds it.
        high: upper end of it, at most 1.
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
    """Fit `d(T) = sum of b_i over i in T` to sets, and judge it on others, as if by samples without end.

    Effects are means over samples, and the noise of few samples, which no model predicts, would lower R^2. It does not
    here: squares of residuals and of effects are means over all pairs of different samples, of the product of one's
    and the other's, whose expectation holds no noise. The interval is that of the share, by Student's t, with the
    standard error of the jackknife over samples and of the linearised share over sets.

    Args:
        sets: the sets, `[m, players]`.
        effects: the effect of deleting each set on each sample, `[m, B]`.
        seed: seed of the folds.

    Returns:
        The share: NaN of one sample, and where noise hides that effects differ. Its interval is NaN with fewer than
        10 samples.
    """
    generator = np.random.default_rng([seed, 3])
    hat = _predictor(sets, generator.permutation(len(sets)) % FOLDS)
    predicted = hat @ effects
    rest, total = effects - predicted, effects - effects.mean(axis=0)
    share = _share(_squares(rest).sum(), _squares(total).sum())
    reach = _reach(rest, total, share)
    low, point, high = np.minimum([share - reach, share, share + reach], 1.0).tolist()
    return AdditiveShare(point, low, high, predicted.mean(axis=1))


def _squares(values: FloatArray) -> FloatArray:
    """Return the square of each row's mean without the noise of samples: the mean product of two different ones."""
    n = values.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        found: FloatArray = (values.sum(axis=1) ** 2 - (values**2).sum(axis=1)) / np.float64(n * (n - 1))
    return found


def _share(rest: FloatArray, total: FloatArray) -> FloatArray:
    """Return R^2 of the sums of squares; NaN where there is no difference to explain."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: FloatArray = np.where(total > 0, 1 - rest / total, np.nan)
    return found


def _reach(rest: FloatArray, total: FloatArray, share: FloatArray) -> float:
    """Return half the width of the share's interval."""
    n_sets, n = rest.shape
    if n < FEWEST_SAMPLES or not np.isfinite(share):
        return np.nan
    again = _share(_without_each(rest), _without_each(total))
    of_samples = (n - 1) / n * ((again - again.mean()) ** 2).sum()
    pull = _squares(rest) - (1 - share) * _squares(total)
    of_sets = n_sets / (n_sets - 1) * ((pull - pull.mean()) ** 2).sum() / _squares(total).sum() ** 2
    degrees = min(n, n_sets) - 1
    return float(stdtrit(degrees, (1 + LEVEL) / 2) * np.sqrt(of_samples + of_sets))


def _without_each(values: FloatArray) -> FloatArray:
    """Return the sum over rows of `_squares`, without each of the samples, `[B]`."""
    n = values.shape[1]
    whole, own = values.sum(axis=1), (values**2).sum(axis=0)
    found: FloatArray = ((whole**2).sum() - 2 * whole @ values + own - (own.sum() - own)) / ((n - 1) * (n - 2))
    return found


def _predictor(sets: Sets, fold: NDArray[np.intp]) -> FloatArray:
    """Return the matrix that takes effects to predictions, each from the effects of other folds, `[m, m]`."""
    rows = sets.astype(np.float64)
    hat = np.zeros((len(sets), len(sets)))
    for one in range(FOLDS):
        mine, others = np.flatnonzero(fold == one), np.flatnonzero(fold != one)
        hat[np.ix_(mine, others)] = rows[mine] @ np.linalg.pinv(rows[others])
    return hat
