"""Sampled paths of which each sample has its own: uniform, exact gradients, the same however samples are cut.

The oracle is `path_enumeration`: every path of a network that is written down by hand, by gated autograd.
"""

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from path_enumeration import TWINS, twin
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.engine.backward import BackwardWalk
from resnet_paths_plugin.engine.own_paths import DRAWN_TOGETHER, PathDraws, has_own_paths
from resnet_paths_plugin.engine.routing import AlongPaths

NAMES = sorted(TWINS)
_networks = {}


def network(name):
    """Return the captured network of a twin, made once."""
    if name not in _networks:
        _networks[name] = rpp.unravel(twin(name).model, twin(name).inputs)
    return _networks[name]


def walked(name):
    """Return a walk of a twin, and the objective's gradient at its outputs."""
    net, known = network(name), twin(name)
    program = net.program
    walk = BackwardWalk(
        net.path_graph(),
        dict(zip(program.inputs, known.inputs, strict=True)),
        program.parameters(),
        dtype=torch.float64,
    )
    leaves = {
        at: value.detach().requires_grad_()
        for at, value in zip(program.outputs, walk.outputs, strict=True)
        if isinstance(value, torch.Tensor)
    }
    gradients = torch.autograd.grad(known.objective([*leaves.values()]).sum(), [*leaves.values()], allow_unused=True)
    return walk, {at: g for at, g in zip(leaves, gradients, strict=True) if g is not None}


def draws_of(net, copies, seed=0):
    grades = [(1,)] * len(net.blocks)
    lengths = [length for length in net.path_graph().counts(grades) for _ in range(copies)]
    return PathDraws(tuple(lengths), tuple(grades), seed)


def edges_of(routing, row, sample):
    """Return the edges of one path, followed from the output."""
    graph, node, found = routing.graph, None, []
    while node not in graph.taps:
        ways = graph.outputs if node is None else graph.edges[node]
        found.append(ways[routing.ways[node][row, sample]])
        node = found[-1].node
    return frozenset(found)


def norms(walk, seeds, routing):
    """Return the norm of each path's gradient over all taps, `[R, B]`."""
    squares = np.zeros(routing.ways[None].shape)
    for tap, bank in walk.gradients(seeds, routing).items():
        squares += routing.at_tap(tap, bank, bank.rows.flatten(2).square().sum(2))
    return np.ldexp(np.sqrt(squares), routing.exponents())


@pytest.mark.parametrize("name", NAMES)
def test_each_sample_gets_the_gradient_along_its_own_path(name):
    net, known = network(name), twin(name)
    walk, seeds = walked(name)
    routing = draws_of(net, 4).drawn(net.path_graph(), 0, range(2))
    assert has_own_paths(net.path_graph())
    found = norms(walk, seeds, routing)
    every = [frozenset(path) for path in net.path_graph().enumerate()]
    along = AlongPaths(every)
    banks = walk.gradients(seeds, along)
    single = np.zeros((len(every), 2))
    for bank in banks.values():
        for (path,), row in zip(bank.keys, bank.rows, strict=True):
            single[path] += row.flatten(1).square().sum(1).numpy()
    single = np.ldexp(np.sqrt(single), np.array(along.exponents())[:, None])
    for row in range(len(found)):
        for sample in range(2):
            want = single[every.index(edges_of(routing, row, sample)), sample]
            assert found[row, sample] == pytest.approx(want, rel=1e-12, abs=1e-300)
    twins = sorted(float(path.squared_norms().sum()) for path in known.paths)
    np.testing.assert_allclose(sorted((single**2).sum(1)), twins, rtol=1e-9, atol=1e-25)


@pytest.mark.parametrize("name", NAMES)
def test_the_path_of_each_sample_is_uniform_among_those_of_its_length(name):
    net = network(name)
    copies = 60
    draws = draws_of(net, copies)
    seen = defaultdict(Counter)
    for start in draws.starts:
        routing = draws.drawn(net.path_graph(), start, range(40))
        for row, length in enumerate(draws.lengths[start : start + DRAWN_TOGETHER]):
            for sample in range(40):
                path = edges_of(routing, row, sample)
                seen[length][path] += 1
                assert sum(edge.block is not None for edge in path) == length[0]
    for length, count in net.path_graph().counts(draws.grades).items():
        expected = 40 * copies / count
        assert len(seen[length]) == count or expected < 20
        chi = sum((seen[length][path] - expected) ** 2 / expected for path in seen[length])
        assert chi < count - 1 + 5 * np.sqrt(2 * count) + 1, length


def test_paths_depend_on_the_seed_and_on_the_samples_number_alone():
    net = network("transformer")
    graph, draws = net.path_graph(), draws_of(net, 40)
    for start in draws.starts:
        whole = draws.drawn(graph, start, range(6)).ways
        parts = [draws.drawn(graph, start, part).ways for part in (range(2), range(2, 3), range(3, 6))]
        for node, ways in whole.items():
            assert np.array_equal(ways, np.concatenate([part[node] for part in parts], axis=1))
    other = draws_of(net, 40, seed=1).drawn(graph, 0, range(6)).ways
    first = draws.drawn(graph, 0, range(6)).ways
    assert any(not np.array_equal(first[node], other[node]) for node in first)
    assert any((ways != ways[:, :1]).any() for ways in first.values()), "samples differ"


class Halting(nn.Module):
    """Three blocks; the skip of the second passes no gradient on."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        first, second, third = self.blocks
        x = x + first(x)
        y = x.detach() + second(x)
        return self.head(y + third(y))


def test_paths_that_meet_a_way_without_gradient_are_zero_and_the_others_are_not():
    torch.manual_seed(0)
    model, x = Halting().double(), torch.randn(3, 4, dtype=torch.float64)
    net = rpp.unravel(model, x, verify=False)
    assert net.path_counts() == [1, 3, 3, 1]
    found = rpp.PathLengthGradient(net).attribute(x, 0, estimator=("exact", "sampled"), draws=200)
    exact = found.gradient_norm.mean("sample").values
    sampled = found.total_path_gradient.values
    assert np.isfinite(sampled).all()
    assert ((sampled > 0) == (exact > 0)).all()
    assert exact[0] == 0
    assert (sampled >= 0.7 * exact).all()


class Folded(nn.Module):
    """A sum whose first dimension is samples and positions together."""

    def __init__(self):
        super().__init__()
        self.branch, self.head = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 3)

    def forward(self, x):
        y = x.reshape(-1, 4)
        return self.head(y + self.branch(y)).reshape(x.shape[0], -1, 3).mean(1)


def test_where_a_sum_mixes_the_batch_with_another_dimension_all_samples_share_paths():
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    net = rpp.unravel(Folded(), x)
    assert not has_own_paths(net.path_graph())
    analyzer = rpp.PathLengthGradient(net)
    own, shared = (analyzer.attribute(x, 0, estimator="sampled", draws=4, shared_paths=one) for one in (False, True))
    assert own.path_gradient_norm.equals(shared.path_gradient_norm)


def test_samples_have_paths_of_their_own_unless_they_are_to_share_them():
    (x,) = twin("transformer").inputs
    analyzer = rpp.PathLengthGradient(network("transformer"))
    twice = torch.cat([x[:1], x[:1]])
    options = {"estimator": "sampled", "draws": 3}
    for shared in (True, False):
        one = analyzer.attribute(x[:1], 0, shared_paths=shared, **options).path_gradient_norm
        two = analyzer.attribute(twice, 0, shared_paths=shared, **options).path_gradient_norm
        assert np.allclose(one, two, rtol=1e-9) is shared
