"""SampleParts: deals the samples of batches out to parts, such as those to search on and those to report on."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from resnet_paths_plugin.execution.batches import Batch

_STREAM = 2
"""Begins a stream of random numbers of its own, beside those of random sets and of other samples."""


class SampleParts:
    """Deals samples out to parts, at random and each to one part, as they come.

    Of any samples in a row each part gets its share, to within a few samples, so that it has its share of each class
    where samples come class by class. The same samples in the same order are dealt in the same way.

    Args:
        shares: the share of each part; they sum to 1.
        seed: seed of the random numbers.
        unit: samples that stay together: the batch size of a network that takes no other.
    """

    def __init__(self, shares: Sequence[float], seed: int, unit: int = 1) -> None:
        self._shares = np.asarray(shares, dtype=np.float64)
        self._seed = seed
        self._unit = unit
        self._window = int(np.ceil(1 / self._shares[self._shares > 0].min()))

    def of(self, batches: Iterable[Batch], parts: Iterable[int]) -> Iterator[Batch]:
        """Yield the samples of some parts, those of a batch in a batch."""
        wanted = list(parts)
        dealt = self._dealt()
        for batch in batches:
            count = -(-batch.size // self._unit)
            found = np.repeat([next(dealt) for _ in range(count)], self._unit)[: batch.size]
            chosen = np.flatnonzero(np.isin(found, wanted))
            if len(chosen) == batch.size:
                yield batch
            elif len(chosen):
                yield batch.take(torch.from_numpy(chosen))

    def sizes(self, n_samples: int) -> NDArray[np.int64]:
        """Return how many of so many samples each part gets."""
        dealt = self._dealt()
        units = [next(dealt) for _ in range(-(-n_samples // self._unit))]
        counts: NDArray[np.int64] = np.bincount(units, minlength=len(self._shares)) * self._unit
        return counts

    def _dealt(self) -> Iterator[int]:
        """Yield the part of each sample (or unit of them), without end."""
        generator = np.random.default_rng([self._seed, _STREAM])
        counts = np.zeros(len(self._shares), dtype=np.int64)
        while True:
            window = []
            for _ in range(self._window):
                part = int(np.argmax(self._shares * (counts.sum() + 1) - counts))
                counts[part] += 1
                window.append(part)
            yield from generator.permutation(window).tolist()
