"""Searches for the set of a size whose deletion does least harm, written against the effect of sets. Runs no model."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from resnet_paths_plugin.analyzers.coalitions.set_space import Sets, SetSpace, keys, unique

Method = Literal["exhaustive", "greedy", "beam", "evolutionary", "influence"]
"""How sets are searched for; `"influence"` ranks blocks by what predicts their effect."""

Array = NDArray[np.float64]

_TRIES = 10
"""Times that a child is drawn again that was seen before or may not be deleted."""


class KnownEffects:
    """The effects of sets, each measured once.

    Args:
        sums: measures sets on the samples of one round: called with sets `[m, units]`, each once, and the round from
            0; returns the sum of the effect over its samples, `[m]`, and their number.
        n_rounds: the number of rounds, each on samples of its own.
    """

    def __init__(self, sums: Callable[[Sets, int], tuple[Array, int]], n_rounds: int = 1) -> None:
        self._measure = sums
        self._sums: list[dict[bytes, float]] = [{} for _ in range(n_rounds)]
        self._n_samples = [0] * n_rounds

    @property
    def n_rounds(self) -> int:
        """The number of rounds."""
        return len(self._sums)

    def __call__(self, sets: Sets, rounds: int) -> Array:
        """Return the mean effect of each set over the samples of the first rounds, `[m]`."""
        found, n_samples = np.zeros(len(sets)), 0
        names = keys(sets)
        for place, known in enumerate(self._sums[:rounds]):
            missing = unique(sets[[name not in known for name in names]])
            if len(missing):
                sums, self._n_samples[place] = self._measure(missing, place)
                known.update(zip(keys(missing), sums.tolist(), strict=True))
            found += [known[name] for name in names]
            n_samples += self._n_samples[place]
        return found / max(n_samples, 1)

    def n_samples(self, rounds: int) -> int:
        """Return how many samples the first rounds have, once something was measured on them."""
        return sum(self._n_samples[:rounds])


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A set that a search measured.

    Attributes:
        method: the search.
        chosen: which units it deletes, bool `[units]`.
        effect: its mean effect over some samples.
        n_samples: their number.
    """

    method: str
    chosen: NDArray[np.bool_]
    effect: float
    n_samples: int


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The best set of a size that a search found.

    Attributes:
        method: the search.
        chosen: which units it deletes, bool `[units]`.
        effect: its mean effect over the samples searched.
        n_tried: how many sets the search had measured by then, on some samples at least.
        cost: what that cost, in evaluations on all samples.
    """

    method: str
    chosen: NDArray[np.bool_]
    effect: float
    n_tried: int
    cost: float


class Judge:
    """Tells the best of some sets for one search, and keeps what it measured.

    With several rounds, sets are halved: each round leaves the better half, and adds samples.

    Args:
        method: the search.
        effects: the effects.
    """

    def __init__(self, method: str, effects: KnownEffects) -> None:
        self.method = method
        self.steps: list[Step] = []
        self._effects = effects
        self._rounds: dict[bytes, int] = {}

    def best(self, sets: Sets, count: int) -> tuple[Sets, Array]:
        """Return at most so many of the sets and their effects on all samples, least effect first.

        Sets whose effect is NaN or infinite are left out, so that there may be fewer, or none.
        """
        sets = unique(sets)
        halved = sets[:0]
        for rounds in range(1, self._effects.n_rounds):
            if len(sets) <= count:
                break
            order = _ranked(self._of(sets, rounds))
            kept = max(count, math.ceil(len(sets) / 2))
            halved = np.concatenate([sets[order[kept:]], halved])
            sets = sets[order[:kept]]
        effects = self._of(sets, self._effects.n_rounds)
        order = _ranked(effects)[:count]
        if not len(order) and len(halved):
            return self.best(halved, count)
        return sets[order], effects[order]

    def found(self, sets: Sets, effects: Array) -> list[Found]:
        """Return the first of some sets as what the search found, with what it took up to here; none of no sets."""
        whole = self._effects.n_samples(self._effects.n_rounds)
        samples = sum(self._effects.n_samples(rounds) for rounds in self._rounds.values())
        return [
            Found(self.method, chosen, float(effect), len(self._rounds), samples / max(whole, 1))
            for chosen, effect in zip(sets[:1], effects[:1], strict=True)
        ]

    def has_seen(self, chosen: NDArray[np.bool_]) -> bool:
        """Whether a set was measured for this search."""
        return keys(chosen[np.newaxis])[0] in self._rounds

    def _of(self, sets: Sets, rounds: int) -> Array:
        effects = self._effects(sets, rounds)
        for key, chosen, effect in zip(keys(sets), sets, effects.tolist(), strict=True):
            if self._rounds.get(key, 0) < rounds:
                self._rounds[key] = rounds
                self.steps.append(Step(self.method, chosen, effect, self._effects.n_samples(rounds)))
        return effects


def exhaustive(judge: Judge, space: SetSpace, size: int) -> list[Found]:
    """Return the best of all sets of a size; nothing where none has a finite effect."""
    return judge.found(*judge.best(np.concatenate(list(space.of_size(size, 4096))), 1))


def beam(judge: Judge, space: SetSpace, sizes: Collection[int], width: int) -> Mapping[int, Found]:
    """Return a set of each size: from size to size one more unit, and so many of the best sets go on.

    With a width of 1 this is greedy search. It ends at the first size of which no set has a finite effect.
    """
    sets = np.zeros((1, len(space.names)), dtype=bool)
    found: dict[int, Found] = {}
    for size in range(1, max(sizes) + 1):
        sets, effects = judge.best(space.larger(sets), width)
        if not len(sets):
            break
        if size in sizes:
            (found[size],) = judge.found(sets, effects)
    return found


def evolutionary(
    judge: Judge, space: SetSpace, size: int, population: int, generations: int, generator: np.random.Generator
) -> list[Found]:
    """Return the best set that so many generations of random sets and their children hold; nothing if none is finite.

    A child takes what both parents delete and some of what one of them does, or trades one unit or more of one parent
    for others. No child is a set that was measured before.
    """
    members = np.stack([space.random(size, generator) for _ in range(population)])
    members, effects = judge.best(members, population)
    for _ in range(generations):
        children = _children(judge, space, members, size, population, generator)
        if not children:
            break
        members, effects = judge.best(np.concatenate([members, np.stack(children)]), population)
    return judge.found(members, effects)


def _children(
    judge: Judge, space: SetSpace, members: Sets, size: int, count: int, generator: np.random.Generator
) -> list[NDArray[np.bool_]]:
    children: dict[bytes, NDArray[np.bool_]] = {}
    for _ in range(count):
        for _ in range(_TRIES):
            child = _child(space, members, size, generator)
            key = keys(child[np.newaxis])[0]
            if key not in children and not judge.has_seen(child) and space.allowed(child[np.newaxis])[0]:
                children[key] = child
                break
    return list(children.values())


def _child(space: SetSpace, members: Sets, size: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    if not len(members):  # no set had a finite effect
        return space.random(size, generator)
    # The better of two is a parent.
    one, other = (members[generator.integers(len(members), size=2).min()] for _ in range(2))
    if generator.random() < 0.5:
        child = space.joined(one, other, generator)
        return space.mutated(child, 1, generator) if generator.random() < 0.5 else child
    return space.mutated(one, int(generator.geometric(0.5)), generator)


def _ranked(effects: Array) -> NDArray[np.intp]:
    """Return the places of finite effects, from the least up."""
    order = np.argsort(effects, kind="stable")
    return order[np.isfinite(effects[order])]
