"""SetSpace: the sets of blocks that a search may delete, and how to go from one of them to others. Runs no model."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from resnet_paths_plugin.errors import InputError

Sets = NDArray[np.bool_]
"""Which units each set deletes, `[m, units]`."""


@dataclass(frozen=True, eq=False)
class SetSpace:
    """The sets of units that may be deleted together.

    Attributes:
        names: names of the units, in execution order.
        free: whether each unit may be deleted, `[units]`.
        stages: the stage of each unit, int `[units]`.
        per_stage: the most units of one stage that a set deletes; None for any number.
    """

    names: tuple[str, ...]
    free: NDArray[np.bool_]
    stages: NDArray[np.int64]
    per_stage: int | None = None

    @property
    def most(self) -> int:
        """The size of the largest set: never all units."""
        counts = [int(self.free[self.stages == stage].sum()) for stage in np.unique(self.stages)]
        limited = sum(counts if self.per_stage is None else [min(count, self.per_stage) for count in counts])
        return min(limited, len(self.names) - 1)

    def check(self, size: int) -> None:
        """Check that there is a set of a size.

        Raises:
            InputError: if there is none.
        """
        n_units = len(self.names)
        if size < 1:
            raise InputError(
                f"k must be at least 1, the number of units to delete, not {size}: deleting none is no choice"
            )
        if size > n_units:
            raise InputError(f"k={size} is more than the network has: choose at most {n_units - 1} of its {n_units}")
        if size == n_units:
            raise InputError(
                f"k={size} deletes every one of the network's {n_units}, which leaves no choice and no network: choose "
                f"at most {n_units - 1}"
            )
        if size > self.most:
            raise InputError(
                f"k={size} is more than keep, only_movable and per_stage leave: choose at most {self.most}"
            )

    def count(self, size: int) -> int:
        """Return how many sets of a size there are, those that `per_stage` rules out included."""
        return math.comb(int(self.free.sum()), size)

    def allowed(self, sets: Sets) -> NDArray[np.bool_]:
        """Return whether each set may be deleted, `[m]`."""
        fits = [~(sets & ~self.free).any(axis=1)]
        if self.per_stage is not None:
            fits += [sets[:, self.stages == one].sum(axis=1) <= self.per_stage for one in np.unique(self.stages)]
        allowed: NDArray[np.bool_] = np.all(fits, axis=0)
        return allowed

    def of_size(self, size: int, at_once: int) -> Iterator[Sets]:
        """Yield all sets of a size, so many at once, those that begin alike one after the other."""
        free = np.flatnonzero(self.free)
        chosen = combinations(free.tolist(), size)
        while rows := list(islice(chosen, at_once)):
            sets = self._sets(rows)
            yield sets[self.allowed(sets)]

    def larger(self, sets: Sets) -> Sets:
        """Return the sets that have one unit more than one of these, each once."""
        grown = np.repeat(sets, len(self.names), axis=0)
        added = np.tile(np.arange(len(self.names)), len(sets))
        rows = np.arange(len(grown))
        is_new = ~grown[rows, added]
        grown[rows, added] = True
        return unique(grown[is_new & self.allowed(grown)])

    def first(self, order: Sequence[int], size: int) -> NDArray[np.bool_]:
        """Return the set of a size that takes units in an order, those left out that may not be deleted.

        Raises:
            InputError: if there are too few of them.
        """
        chosen = np.zeros(len(self.names), dtype=bool)
        for unit in order:
            if chosen.sum() == size:
                break
            chosen[unit] = True
            chosen[unit] = self.allowed(chosen[np.newaxis])[0]
        self.check(max(size, 1))
        return chosen

    def random(self, size: int, generator: np.random.Generator) -> NDArray[np.bool_]:
        """Return a random set of a size; with `per_stage`, units are drawn one by one among those that still fit."""
        return self.first(generator.permutation(len(self.names)).tolist(), size)

    def mutated(self, chosen: NDArray[np.bool_], swaps: int, generator: np.random.Generator) -> NDArray[np.bool_]:
        """Return a set in which some units trade places with others: it has the same size, and may not be allowed."""
        inside, outside = np.flatnonzero(chosen), np.flatnonzero(~chosen & self.free)
        swaps = min(swaps, len(inside), len(outside))
        child = chosen.copy()
        child[generator.choice(inside, swaps, replace=False)] = False
        child[generator.choice(outside, swaps, replace=False)] = True
        return child

    def joined(
        self, one: NDArray[np.bool_], other: NDArray[np.bool_], generator: np.random.Generator
    ) -> NDArray[np.bool_]:
        """Return a set of the same size of what two sets delete: all that both do, and some of what one does."""
        both, either = one & other, np.flatnonzero(one ^ other)
        child = both.copy()
        child[generator.choice(either, int(one.sum() - both.sum()), replace=False)] = True
        return child

    def _sets(self, rows: Sequence[Sequence[int]]) -> Sets:
        sets = np.zeros((len(rows), len(self.names)), dtype=bool)
        np.put_along_axis(sets, np.asarray(rows, dtype=np.int64), values=True, axis=1)
        return sets


def unique(sets: Sets) -> Sets:
    """Return the sets that there are, each once, in the order of their first."""
    first = {key: row for row, key in reversed(list(enumerate(keys(sets))))}
    return sets[sorted(first.values())]


def keys(sets: Sets) -> list[bytes]:
    """Return for each set what it can be looked up by."""
    return [row.tobytes() for row in np.packbits(sets, axis=1)]
