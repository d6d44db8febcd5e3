"""Resampling: how often each sample, and each random draw, counts in each bootstrap resample; the same for all rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_BYTES_AT_ONCE = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Resampling:
    """Resamples of samples and draws, with replacement.

    All rows share the resampled samples and draws, so that differences between rows are those of pairs.

    Attributes:
        n_samples: number of samples.
        n_resamples: number of resamples.
        seed: seed of their choice.
        groups: for each size the positions of its draws among the changes, which are resampled too; empty where changes
            stand for themselves.
    """

    n_samples: int
    n_resamples: int
    seed: int
    groups: Sequence[NDArray[np.intp]] = field(default_factory=tuple)

    def means(self, values: Values) -> Values:
        """Return the mean of each resample, `[n_resamples, rows]`; with groups, these stand for the changes.

        Args:
            values: float64 `[rows, n_samples]`; with groups, the changes are the innermost part of the rows.
        """
        parts = [self._grouped(weights @ values.T / self.n_samples, begun) for begun, weights in self._weights()]
        return np.concatenate(parts)

    def _weights(self) -> Iterator[tuple[int, Values]]:
        """Yield the number of a resample and how often each sample counts in it and those after it."""
        at_once = max(1, _BYTES_AT_ONCE // (8 * self.n_samples))
        for begun in range(0, self.n_resamples, at_once):
            count = min(at_once, self.n_resamples - begun)
            yield begun, _counts([self.seed, 0, begun], count, self.n_samples)

    def _grouped(self, means: Values, begun: int) -> Values:
        """Average the draws of each group over those that are resampled."""
        if not self.groups:
            return means
        changes = means.reshape(len(means), -1, sum(map(len, self.groups)))
        found = np.empty((*changes.shape[:2], len(self.groups)))
        for place, draws in enumerate(self.groups):
            weights = _counts([self.seed, place + 1, begun], len(means), len(draws))
            found[..., place] = np.einsum("rd,rod->ro", weights, changes[..., draws]) / len(draws)
        return found.reshape(len(means), -1)


def _counts(seed: Sequence[int], n_resamples: int, size: int) -> Values:
    """Return how often each of `size` things is drawn in each resample, `[n_resamples, size]`."""
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, size, (n_resamples, size))
    chosen += np.arange(n_resamples)[:, np.newaxis] * size
    return np.bincount(chosen.ravel(), minlength=n_resamples * size).reshape(n_resamples, size).astype(np.float64)
