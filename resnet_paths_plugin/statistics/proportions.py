"""Score intervals for shares of samples, which do not shrink to a point where no sample differs."""

import numpy as np
import scipy
from numpy.typing import NDArray

Values = NDArray[np.float64]


def wilson(successes: NDArray[np.int64], n: int, level: float) -> tuple[Values, Values]:
    """Return the ends of Wilson's score interval of a share (Wilson 1927).

    Args:
        successes: how many of the samples, any shape.
        n: number of samples.
        level: level of confidence.
    """
    z = scipy.stats.norm.ppf((1 + level) / 2)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # Rounding must not leave the share outside at 0 and 1.
    return np.minimum(np.maximum(centre - half, 0), share), np.maximum(np.minimum(centre + half, 1), share)


def paired_difference(one: NDArray[np.bool_], other: NDArray[np.bool_], level: float) -> tuple[Values, Values]:
    """Return the ends of the score interval of a difference of two shares of the same samples.

    It is Newcombe's hybrid of two Wilson intervals with their correlation (Newcombe 1998, Statistics in Medicine 17,
    2635-2650, method 10).

    Args:
        one: whether each sample counts, `[..., n]`.
        other: the same under the other condition; its share is subtracted.
        level: level of confidence.
    """
    n = one.shape[-1]
    first, second = one.sum(axis=-1), other.sum(axis=-1)
    both = (one & other).sum(axis=-1)
    only_one, only_other = first - both, second - both
    neither = n - both - only_one - only_other
    (low_one, high_one), (low_other, high_other) = (wilson(count, n, level) for count in (first, second))
    correlation = _correlation(both, only_one, only_other, neither)
    difference = (first - second) / n
    down, up = first / n - low_one, high_other - second / n
    low = difference - np.sqrt(np.maximum(down**2 - 2 * correlation * down * up + up**2, 0))
    up, down = high_one - first / n, second / n - low_other
    high = difference + np.sqrt(np.maximum(up**2 - 2 * correlation * up * down + down**2, 0))
    return low, high


def _correlation(
    both: NDArray[np.int64], only_one: NDArray[np.int64], only_other: NDArray[np.int64], neither: NDArray[np.int64]
) -> Values:
    """Return the correlation of two binary variables, corrected for continuity where it is positive; 0 if undefined."""
    n = both + only_one + only_other + neither
    cross = (both * neither - only_one * only_other).astype(np.float64)
    corrected = np.where(cross > 0, np.maximum(cross - n / 2, 0), cross)
    margins = [both + only_one, only_other + neither, both + only_other, only_one + neither]
    spread = np.sqrt(np.prod(np.array(margins, dtype=np.float64), axis=0))
    found: Values = np.divide(corrected, spread, out=np.zeros_like(spread), where=spread > 0)
    return found
