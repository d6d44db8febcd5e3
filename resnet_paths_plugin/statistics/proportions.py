"""Score intervals for shares of samples, which do not shrink to a point where no sample differs."""

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

Values = NDArray[np.float64]


def wilson(successes: Values, n: int, level: float) -> tuple[Values, Values]:
    """Return the ends of Wilson's score interval of a share (Wilson 1927).

    Args:
        successes: how many of the samples, any shape; means over draws may be fractions.
        n: number of samples.
        level: level of confidence.
    """
    z = scipy.stats.norm.ppf((1 + level) / 2)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # Rounding must not leave the share outside at 0 and 1.
    return np.minimum(np.maximum(centre - half, 0), share), np.maximum(np.minimum(centre + half, 1), share)


@dataclass(frozen=True, eq=False)
class Cells:
    """How many of n samples count under two conditions, any shape; means over draws may be fractions.

    Attributes:
        both: number of samples that count under both.
        only_one: under the first alone.
        only_other: under the second alone.
        n: number of samples.
    """

    both: Values
    only_one: Values
    only_other: Values
    n: int

    @classmethod
    def of(cls, one: NDArray[np.bool_], other: NDArray[np.bool_]) -> "Cells":
        """Count the samples, along the last axis."""
        return cls(
            (one & other).sum(axis=-1) * 1.0, (one & ~other).sum(axis=-1) * 1.0, (~one & other).sum(axis=-1) * 1.0,
            one.shape[-1],
        )  # fmt: skip


def paired_difference(cells: Cells, level: float) -> tuple[Values, Values]:
    """Return the ends of the score interval of a difference of two shares of the same samples.

    It is Newcombe's hybrid of two Wilson intervals with their correlation (Newcombe 1998, Statistics in Medicine 17,
    2635-2650, method 10).

    Args:
        cells: how many samples count under each condition; the second one's share is subtracted.
        level: level of confidence.
    """
    n, first, second = cells.n, cells.both + cells.only_one, cells.both + cells.only_other
    (low_one, high_one), (low_other, high_other) = (wilson(count, n, level) for count in (first, second))
    correlation = _correlation(cells)
    difference = (first - second) / n
    down, up = first / n - low_one, high_other - second / n
    low = difference - np.sqrt(np.maximum(down**2 - 2 * correlation * down * up + up**2, 0))
    up, down = high_one - first / n, second / n - low_other
    high = difference + np.sqrt(np.maximum(up**2 - 2 * correlation * up * down + down**2, 0))
    return low, high


def _correlation(cells: Cells) -> Values:
    """Return the correlation of two binary variables, corrected for continuity where it is positive; 0 if undefined."""
    neither = cells.n - cells.both - cells.only_one - cells.only_other
    cross = cells.both * neither - cells.only_one * cells.only_other
    corrected = np.where(cross > 0, np.maximum(cross - cells.n / 2, 0), cross)
    first, second = cells.both + cells.only_one, cells.both + cells.only_other
    spread = np.sqrt(first * (cells.n - first) * second * (cells.n - second))
    found: Values = np.divide(corrected, spread, out=np.zeros_like(spread), where=spread > 0)
    return found
