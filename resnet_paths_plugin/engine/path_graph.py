"""PathGraph: the sums of a network as nodes, and the ways back from each. Paths are routes through it.

A path leads from the output back to the tap: at each sum it chooses a term, and for that term one node that the
term reads directly, that is, without passing another sum. Its length counts the branches chosen.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from resnet_paths_plugin.engine.keys import Edge, Lengths
from resnet_paths_plugin.engine.program import Program, positions_of

Counts = dict[Lengths, int]
"""How many paths have each length; exact."""


class PathGraph:
    """The routes of a program from its output back to a tap.

    Attributes:
        program: the program.
        taps: positions of the values at which paths end; several where the model has several inputs.
        nodes: mask of the taps and of the sums that are computed from one.
        parameters: positions of parameters, and of what is computed from them alone, at which paths end as well.
        ends: positions of the values at which paths begin, on their way back.

    Args:
        program: the program.
        taps: positions of the values at which paths end.
        parameters: positions of parameters, and of what is computed from them alone, at which paths end as well.
        ends: positions of the values at which paths begin; None for the outputs.
    """

    def __init__(
        self,
        program: Program,
        taps: Sequence[int],
        *,
        parameters: Collection[int] = (),
        ends: Sequence[int] | None = None,
    ) -> None:
        self.program = program
        self.taps = tuple(taps)
        self.parameters = frozenset(parameters)
        given = program.outputs if ends is None else ends
        self.ends = tuple(dict.fromkeys(at for at in given if at is not None))
        self.nodes = sum(1 << at for at in self.taps)
        for total in program.sums:
            if self.leads_to_tap(total.root):
                self.nodes |= 1 << total.root

    def leads_to_tap(self, at: int) -> bool:
        """Whether a value is computed from a tap or a parameter at which paths end, or is a tap."""
        return bool(self._led >> at & 1)

    def reads_parameters(self, at: int) -> bool:
        """Whether an operator reads a parameter at which paths end."""
        return at in self._reading

    @cached_property
    def _reading(self) -> frozenset[int]:
        if not self.parameters:
            return frozenset()
        order, nodes = self.program.flow.order, self.program.nodes
        return frozenset(
            at
            for at in self.program.dynamic
            if any(order[other] in self.parameters for other in nodes[at].all_input_nodes)
        )

    @cached_property
    def _led(self) -> int:
        flow, nodes = self.program.flow, self.program.nodes
        led = sum(1 << at for at in self.taps)
        for at in self.program.dynamic:
            if nodes[at] not in flow.data:
                continue
            if at in self._reading or any(
                led >> flow.order[other] & 1 for other in nodes[at].all_input_nodes if other in flow.data
            ):
                led |= 1 << at
        return led

    @cached_property
    def outputs(self) -> tuple[Edge, ...]:
        """The ways back from the output."""
        return tuple(Edge(None, at, None, node) for at in self.ends for node in self.read_by(at))

    @cached_property
    def edges(self) -> dict[int, tuple[Edge, ...]]:
        """The ways back from each sum, by its position."""
        found: dict[int, tuple[Edge, ...]] = {}
        for total in self.program.sums:
            if self.nodes >> total.root & 1 and total.root not in self.taps:
                found[total.root] = tuple(
                    Edge(total.root, term.value, term.block, node)
                    for term in total.terms
                    for node in self.read_by(term.value)
                )
        return found

    def read_by(self, at: int) -> tuple[int, ...]:
        """Return the nodes that a value reads directly, itself if it is one."""
        return tuple(positions_of(self._reads.get(at, 0)))

    def counts(self, grades: Sequence[Lengths]) -> Counts:
        """Count the paths by length, exactly.

        Args:
            grades: for each block, what its branch adds to the length on each axis.
        """
        return _added(self._routes(grades)[edge.node] for edge in self.outputs)

    def sample(
        self, length: Lengths, draws: int, grades: Sequence[Lengths], generator: np.random.Generator
    ) -> list[frozenset[Edge]]:
        """Draw paths uniformly among those of one length; in a chain: `k` of the `n` blocks.

        Args:
            length: the length on each axis.
            draws: number of paths, drawn independently.
            grades: for each block, what its branch adds to the length.
            generator: source of randomness.
        """
        routes = self._routes(grades)
        chosen: list[set[Edge]] = [set() for _ in range(draws)]
        # Walkers at a node that still have a length to go, from the last node to the first.
        waiting: dict[int, dict[Lengths, list[int]]] = {}
        places = [(self.outputs, {length: list(range(draws))})]
        order = sorted(self.edges, reverse=True)
        while True:
            for ways, groups in places:
                for remaining, walkers in groups.items():
                    for walker, edge, left in _steps(ways, remaining, walkers, routes, grades, generator):
                        chosen[walker].add(edge)
                        waiting.setdefault(edge.node, {}).setdefault(left, []).append(walker)
            if not order:
                return [frozenset(path) for path in chosen]
            node = order.pop(0)
            places = [(self.edges[node], waiting.pop(node, {}))]

    def draw_ways(
        self, lengths: Sequence[Lengths], grades: Sequence[Lengths], generators: Sequence[np.random.Generator]
    ) -> dict[int | None, NDArray[np.int64]]:
        """Draw paths as `sample` does, for each of several samples by a generator of its own.

        Args:
            lengths: the length of each of the `R` paths of a sample.
            grades: for each block, what its branch adds to the length.
            generators: sources of randomness, one for each of `B` samples.

        Returns:
            For the output (None) and each sum, which of the ways back (`outputs`, `edges`) each path takes, -1 where
            it does not come by, shape `[R, B]`.
        """
        routes = self._routes(grades)
        nodes = [None, *sorted(self.edges, reverse=True)]
        uniform = np.stack([generator.random((len(nodes), len(lengths))) for generator in generators], axis=-1)
        shape = uniform.shape[1:]
        # Lengths that walkers still have to go, by number; -1 where a walker does not come by.
        known: dict[Lengths, int] = {}
        numbers = [known.setdefault(length, len(known)) for length in lengths]
        left: dict[int | None, NDArray[np.int64]] = {None: np.repeat(np.array(numbers)[:, None], shape[1], axis=1)}
        found: dict[int | None, NDArray[np.int64]] = {}
        for node, chance in zip(nodes, uniform, strict=True):
            ways = self.outputs if node is None else self.edges[node]
            here = left.pop(node, np.full(shape, -1))
            found[node] = np.full(shape, -1)
            for remaining, number in list(known.items()):
                walkers = here == number
                if not walkers.any():
                    continue
                lefts, shares = _shares(ways, remaining, routes, grades)
                last = int(np.flatnonzero(shares)[-1])  # also where the shares add up to less than 1 in floats
                chosen = np.minimum(np.searchsorted(np.cumsum(shares), chance[walkers], side="right"), last)
                found[node][walkers] = chosen
                for way in np.unique(chosen).tolist():
                    at = left.setdefault(ways[way].node, np.full(shape, -1))
                    at[walkers & (found[node] == way)] = known.setdefault(lefts[way], len(known))
        return found

    def draw_signs(self, generator: np.random.Generator) -> dict[Edge, int]:
        """Draw +1 or -1 for every edge but the first way back from each node, which keeps its sign."""
        edges = [edge for ways in (self.outputs, *self.edges.values()) for edge in ways[1:]]
        return dict(zip(edges, (2 * generator.integers(0, 2, len(edges)) - 1).tolist(), strict=True))

    def enumerate(self) -> Iterator[tuple[Edge, ...]]:
        """Yield every path, as its edges from the output to the tap; there may be very many."""
        pending: list[tuple[Edge, ...]] = [(edge,) for edge in self.outputs]
        while pending:
            path = pending.pop()
            node = path[-1].node
            if node in self.taps:
                yield path
            else:
                pending.extend((*path, edge) for edge in self.edges[node])

    @cached_property
    def _reads(self) -> dict[int, int]:
        program = self.program
        reads: dict[int, int] = {}
        for at in (*program.inputs, *program.dynamic):
            if program.nodes[at] not in program.flow.data:
                continue  # a size, which carries no gradient
            if self.nodes >> at & 1:
                reads[at] = 1 << at
            else:
                reads[at] = 0
                for operand in positions_of(program.reads[at]):
                    reads[at] |= reads.get(operand, 0)
        return reads

    def _routes(self, grades: Sequence[Lengths]) -> dict[int, Counts]:
        """Return, for each node, how many routes lead from it to a tap, by length."""
        axes = len(grades[0]) if grades else 1
        routes: dict[int, Counts] = {tap: {(0,) * axes: 1} for tap in self.taps}
        for node in sorted(self.edges):
            routes[node] = _added(_longer(routes[edge.node], _grade(edge, grades)) for edge in self.edges[node])
        return routes


def _grade(edge: Edge, grades: Sequence[Lengths]) -> Lengths | None:
    return None if edge.block is None else grades[edge.block]


def _longer(counts: Counts, grade: Lengths | None) -> Counts:
    if grade is None:
        return counts
    return {tuple(k + g for k, g in zip(length, grade, strict=True)): count for length, count in counts.items()}


def _added(parts: Iterator[Counts]) -> Counts:
    total: Counts = {}
    for counts in parts:
        for length, count in counts.items():
            total[length] = total.get(length, 0) + count
    return dict(sorted(total.items()))


def _steps(
    ways: Sequence[Edge],
    remaining: Lengths,
    walkers: Sequence[int],
    routes: dict[int, Counts],
    grades: Sequence[Lengths],
    generator: np.random.Generator,
) -> Iterator[tuple[int, Edge, Lengths]]:
    """Choose one way for each walker, in proportion to the routes that go on from there."""
    lefts, shares = _shares(ways, remaining, routes, grades)
    for walker, way in zip(walkers, generator.choice(len(ways), size=len(walkers), p=shares), strict=True):
        yield walker, ways[way], lefts[way]


def _shares(
    ways: Sequence[Edge], remaining: Lengths, routes: dict[int, Counts], grades: Sequence[Lengths]
) -> tuple[list[Lengths], NDArray[np.float64]]:
    """Return the length that is left after each way, and the way's share of the routes that go on from there."""
    lefts = [
        remaining if edge.block is None else tuple(k - g for k, g in zip(remaining, grades[edge.block], strict=True))
        for edge in ways
    ]
    weights = [routes[edge.node].get(left, 0) for edge, left in zip(ways, lefts, strict=True)]
    total = sum(weights)
    # Exact integers, far beyond float range, become shares only here.
    return lefts, np.array([weight / total for weight in weights])
