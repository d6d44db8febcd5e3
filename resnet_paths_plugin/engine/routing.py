"""How a walk over paths is routed at each sum: what its skip, its branches and its trunk terms pass on.

A row of a bank has a key. A routing says which key a row has after an edge (a term of a sum and one node that the
term reads), or that the row does not take the edge.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from resnet_paths_plugin.engine.banks import Bank
from resnet_paths_plugin.engine.keys import TAIL, Edge, Key, Lengths


class Routing(Protocol):
    """What a walk asks at every edge."""

    @property
    def by_edge(self) -> bool:
        """Whether edges of one term differ, so that a term that reads several nodes is walked once for each."""

    def start(self) -> Sequence[Key]:
        """Return the keys of the rows that leave the output; forget what an earlier walk has noted."""

    def along(self, edge: Edge, key: Key) -> Key | None:
        """Return a row's key after an edge; None where the row does not take it."""

    def factor(self, _edge: Edge, /) -> float:
        """Return what all rows are multiplied by on an edge."""
        return 1.0

    def at_sum(self, arrived: Sequence[Bank], _node: int, /) -> list[Bank]:
        """Return the banks that go on from a sum for those that have arrived, which have no row in common."""
        return [bank.settled() for bank in arrived]

    def taken(self, bank: Bank, edge: Edge) -> Bank | None:
        """Return the rows of a bank that take an edge; None where none does."""
        factor = self.factor(edge)
        scaled = bank if factor == 1 else Bank(bank.keys, bank.rows * factor)
        return scaled.renamed([self.along(edge, key) for key in bank.keys])


@dataclass(frozen=True)
class ByLength(Routing):
    """Exact gradients by length: a branch shifts a row by its grade (G_k <- s'G_k + f'G_(k-1)).

    Attributes:
        grades: for each block, how much its branch adds to the length on each axis.
        limits: longest length with a row of its own on each axis; None for no limit.
        tail: whether longer paths go on in one row, or are dropped.
    """

    grades: Sequence[Lengths]
    limits: Lengths | None = None
    tail: bool = True
    by_edge: bool = field(default=False, init=False)

    def start(self) -> Sequence[Key]:
        """One row, of length 0 on each axis."""
        return [(0,) * len(self.grades[0])]

    def along(self, edge: Edge, key: Key) -> Key | None:
        """Add the branch's grade."""
        if edge.block is None or key == TAIL:
            return key
        lengths = tuple(length + grade for length, grade in zip(key, self.grades[edge.block], strict=True))
        if self.limits is not None and any(k > limit for k, limit in zip(lengths, self.limits, strict=True)):
            return TAIL if self.tail else None
        return lengths


@dataclass(frozen=True)
class AlongPaths(Routing):
    """Gradients of single paths: row `(r,)` goes along path r only.

    A long path's gradient can be smaller than the smallest float32, so rows are rescaled by powers of two.

    Attributes:
        paths: the edges of each path.
        shifts: filled by a walk: keys of rows, and the powers of two that each was divided by.
    """

    paths: Sequence[frozenset[Edge]]
    shifts: list[tuple[tuple[Key, ...], Tensor]] = field(default_factory=list)
    by_edge: bool = field(default=True, init=False)

    def start(self) -> Sequence[Key]:
        """One row per path, not divided by anything yet."""
        self.shifts.clear()
        return [(path,) for path in range(len(self.paths))]

    def along(self, edge: Edge, key: Key) -> Key | None:
        """Keep the rows whose path takes the edge."""
        return key if key != TAIL and edge in self.paths[key[0]] else None

    def at_sum(self, arrived: Sequence[Bank], _node: int, /) -> list[Bank]:
        """Rescale what is small."""
        return [bank.settled().rescaled(self.shifts) for bank in arrived]

    def exponents(self) -> list[int]:
        """Return the power of two that each path's row has been divided by in all."""
        total: Counter[Key] = Counter()
        for keys, shifts in self.shifts:
            total.update(dict(zip(keys, shifts.tolist(), strict=True)))
        return [total[path,] for path in range(len(self.paths))]


@dataclass(frozen=True)
class WithSigns(Routing):
    """Sign-randomised gradients by length: `||G_k||^2` estimates the sum of squared norms of the paths of length k.

    One edge of each sum can keep its sign: two paths differ, where they part, in an edge that has a random one.

    Attributes:
        lengths: how lengths are counted.
        signs: +1 or -1 for each edge with a random sign.
        exponent: rows are multiplied by two to this power for each unit of length, so that those of long paths,
            which may be smaller than the smallest float32, stay in its range; no digit of them changes.
    """

    lengths: ByLength
    signs: Mapping[Edge, int]
    exponent: int = 0
    by_edge: bool = field(default=True, init=False)

    def start(self) -> Sequence[Key]:
        """One row, of length 0."""
        return self.lengths.start()

    def along(self, edge: Edge, key: Key) -> Key | None:
        """Add the branch's grade."""
        return self.lengths.along(edge, key)

    def factor(self, edge: Edge) -> float:
        """The edge's sign, and the power of two of its branch."""
        grade = 0 if edge.block is None else sum(self.lengths.grades[edge.block])
        return math.ldexp(self.signs.get(edge, 1), self.exponent * grade)
