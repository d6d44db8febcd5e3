"""The backward walk against every path one by one: exact banks, counts, single paths, sampling, random signs.

The oracle is `path_enumeration`: the network written down by hand and gated autograd, one path at a time.
"""

import itertools
import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from path_enumeration import CHAINS, OUTPUT, TWINS, squared_norms, summed, twin
from scipy import stats
from torch import nn
from torch.utils import _pytree as pytree

import resnet_paths_plugin as rpp
from resnet_paths_plugin import demo
from resnet_paths_plugin.engine import linearised_pass
from resnet_paths_plugin.engine.backward import BackwardWalk
from resnet_paths_plugin.engine.keys import TAIL, Edge
from resnet_paths_plugin.engine.path_graph import PathGraph
from resnet_paths_plugin.engine.routing import AlongPaths, ByLength, WithSigns

pytestmark = pytest.mark.slow

NAMES = sorted(TWINS)
_networks = {}


def network(name):
    """Return the captured network of a twin, made once."""
    if name not in _networks:
        _networks[name] = rpp.unravel(twin(name).model, twin(name).inputs)
    return _networks[name]


def walk(name, routing, graph=None, **options):
    """Walk back with a rule; return the rows at each tap by key."""
    net, known = network(name), twin(name)
    program = net.program
    inputs = dict(zip(program.inputs, known.inputs, strict=True))
    graph = graph or net.path_graph()
    walk = BackwardWalk(graph, inputs, program.parameters(), dtype=torch.float64, **options)
    leaves = [value.detach().requires_grad_() if isinstance(value, torch.Tensor) else value for value in walk.outputs]
    tracked = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    gradients = torch.autograd.grad(known.objective(tracked).sum(), tracked, allow_unused=True)
    places = [at for at, leaf in zip(program.outputs, leaves, strict=True) if isinstance(leaf, torch.Tensor)]
    banks = walk.run({at: g for at, g in zip(places, gradients, strict=True) if g is not None}, routing)
    rows = {}
    for number, tap in enumerate(graph.taps):
        if tap in banks:
            for key, row in zip(banks[tap].keys, banks[tap].rows, strict=True):
                rows.setdefault(key, {})[number] = row
    like = [known.inputs[program.inputs.index(tap)] if tap in program.inputs else None for tap in graph.taps]
    return {
        key: tuple(found.get(number, torch.zeros_like(x) if x is not None else None) for number, x in enumerate(like))
        for key, found in rows.items()
    }


def ones(name):
    return [(1,)] * len(network(name).blocks)


def edges_of(name, graph=None):
    """Translate the ways of the wiring by hand into edges of the graph: sums and terms stand in the same order."""
    net, wiring = network(name), twin(name).wiring
    program = net.program
    nodes = dict(zip(wiring.inputs, program.inputs, strict=True))
    nodes |= {name: total.root for name, total in zip(wiring.sums, program.sums, strict=True)}
    values = {name: [t.value for t in total.terms] for name, total in zip(wiring.sums, program.sums, strict=True)}
    leaves = [at for at in program.outputs if at is not None]
    values[OUTPUT] = leaves
    blocks = {block.name: block.index for block in net.blocks}

    def edge(way):
        origin, number, node = way
        term = wiring.terms(origin)[number]
        return Edge(
            None if origin == OUTPUT else nodes[origin],
            values[origin][number],
            None if term.block is None else blocks[term.block],
            nodes[node],
        )

    return edge


def scale_of(name):
    """Return the norm of the ordinary gradient: what rounding errors are measured against."""
    total = summed(twin(name).paths, key=lambda _: 0)[0]
    return squared_norms(total).max().sqrt().item()


def assert_same_gradients(ours, theirs, scale):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12 * scale)


# The oracle itself


@pytest.mark.parametrize("name", NAMES)
def test_the_wiring_by_hand_has_the_networks_outputs_and_blocks(name):
    known, net = twin(name), network(name)
    ours, _ = known.wiring.run(known.inputs)
    theirs = [leaf for leaf in pytree.tree_leaves(known.model(*known.inputs)) if isinstance(leaf, torch.Tensor)]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
    written = {term.block for terms in known.wiring.sums.values() for term in terms} - {None}
    assert written == {block.name for block in net.blocks}
    assert len(known.paths) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_enumerated_paths_sum_to_the_models_own_gradient(name):
    known = twin(name)
    inputs = [x.clone().requires_grad_() for x in known.inputs]
    leaves = [leaf for leaf in pytree.tree_leaves(known.model(*inputs)) if isinstance(leaf, torch.Tensor)]
    gradients = torch.autograd.grad(known.objective(leaves).sum(), inputs)
    assert_same_gradients(summed(known.paths, key=lambda _: 0)[0], gradients, scale_of(name))


# Exact, by length


@pytest.mark.parametrize("name", NAMES)
def test_exact_bank_equals_the_enumeration_by_length(name):
    expected = summed(twin(name).paths)
    rows = walk(name, ByLength(ones(name)))
    assert rows.keys() == {(length,) for length in expected}
    for length, gradients in expected.items():
        assert_same_gradients(rows[length,], gradients, scale_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_path_counts_equal_the_enumerations(name):
    known, net = twin(name), network(name)
    assert net.path_counts() == known.counts
    counts = net.path_graph().counts(ones(name))
    assert {length: count for (length,), count in counts.items()} == dict(Counter(p.length for p in known.paths))
    if name in CHAINS:
        n = len(net.blocks)
        assert net.path_counts() == [math.comb(n, k) for k in range(n + 1)]
    else:
        n = len(net.blocks)
        assert net.path_counts() != [math.comb(n, k) for k in range(n + 1)]


@pytest.mark.parametrize("name", NAMES)
def test_rows_taken_a_few_at_a_time_are_the_same(name):
    together, apart = (walk(name, ByLength(ones(name)), bank_bytes=size) for size in (2**30, 1))
    assert together.keys() == apart.keys()
    for key, rows in together.items():
        assert_same_gradients(apart[key], rows, scale_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_exact_bank_equals_the_enumeration_where_no_values_are_kept(name, monkeypatch):
    monkeypatch.setattr(linearised_pass, "KEPT_BYTES", -1)
    expected = summed(twin(name).paths)
    rows = walk(name, ByLength(ones(name)), bank_bytes=1)
    assert rows.keys() == {(length,) for length in expected}
    for length, gradients in expected.items():
        assert_same_gradients(rows[length,], gradients, scale_of(name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", [0, 1, 2])
def test_a_cut_bank_is_exact_up_to_the_cut_and_its_tail_is_the_rest(name, limit):
    expected = summed(twin(name).paths, key=lambda path: (path.length,) if path.length <= limit else TAIL)
    for tail in (True, False):
        rows = walk(name, ByLength(ones(name), (limit,), tail=tail))
        assert rows.keys() == (expected.keys() if tail else expected.keys() - {TAIL})
        for key, found in rows.items():
            assert_same_gradients(found, expected[key], scale_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_graded_bank_with_two_axes_equals_the_enumeration(name):
    net = network(name)
    # The second axis counts every block with its own weight, zero and more than one among them.
    grades = [(index % 2, index) for index in range(len(net.blocks))]
    grade_of = {block.name: grade for block, grade in zip(net.blocks, grades, strict=True)}

    def length(path):
        return tuple(sum(grade_of[block][axis] for block in path.blocks) for axis in range(2))

    expected = summed(twin(name).paths, key=length)
    rows = walk(name, ByLength(grades))
    assert rows.keys() == expected.keys()
    for key, gradients in expected.items():
        assert_same_gradients(rows[key], gradients, scale_of(name))
    assert net.path_graph().counts(grades) == dict(Counter(map(length, twin(name).paths)))


INSIDE = [("pre-activation", "y0"), ("transformer", "y1"), ("nested", "a0"), ("nested", "y0"), ("long skip", "y1")]


@pytest.mark.parametrize(("name", "tap"), [*INSIDE, ("two streams", "a"), ("class attention", "patches")])
def test_bank_at_a_sum_inside_the_network_equals_the_enumeration(name, tap):
    net, known = network(name), twin(name).at(tap)
    position = net.program.sums[list(known.wiring.sums).index(tap)].root
    graph = PathGraph(net.program, [position])
    expected = summed(known.paths)
    rows = walk(name, ByLength(ones(name)), graph)
    assert rows.keys() == {(length,) for length in expected}
    for length, gradients in expected.items():
        for one, other in zip(rows[length,], gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12 * other.norm().item())
    counts = graph.counts(ones(name))
    assert {length: count for (length,), count in counts.items()} == dict(Counter(p.length for p in known.paths))


# Single paths


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_enumerates_the_paths_of_the_wiring_by_hand(name):
    edge = edges_of(name)
    expected = [tuple(map(edge, path.ways)) for path in twin(name).paths]
    found = list(network(name).path_graph().enumerate())
    assert len(found) == len(set(found))
    assert set(found) == set(expected)


@pytest.mark.parametrize("name", NAMES)
def test_rows_along_single_paths_equal_the_enumerated_paths(name):
    paths, edge = twin(name).paths, edges_of(name)
    rows = walk(name, AlongPaths([frozenset(map(edge, path.ways)) for path in paths]))
    zero = tuple(torch.zeros_like(x) for x in twin(name).inputs)
    for number, path in enumerate(paths):
        assert_same_gradients(rows.get((number,), zero), path.gradients, scale_of(name))
    assert sum((number,) in rows for number in range(len(paths))) > len(paths) / 2


SAMPLED = ["pre-activation", "transformer", "parallel", "nested", "two streams", "class attention", "long skip"]


@pytest.mark.parametrize("name", SAMPLED)
def test_sampling_is_uniform_over_the_paths_of_each_length(name):
    edge, draws = edges_of(name), 4000
    graph, grades = network(name).path_graph(), ones(name)
    tested = 0
    for length in range(len(twin(name).counts)):
        known = {frozenset(map(edge, path.ways)) for path in twin(name).paths if path.length == length}
        if not known:
            continue
        drawn = Counter(graph.sample((length,), draws, grades, np.random.default_rng(1)))
        assert set(drawn) <= known
        if len(known) > 1:
            assert stats.chisquare([drawn[path] for path in known]).pvalue > 1e-3
            tested += 1
    assert tested >= 2


def test_sampling_is_uniform_where_terms_lead_to_unequal_numbers_of_paths():
    """A walk that chose each way alike would fail here: the test can tell."""
    name, length = "nested", 3
    edge = edges_of(name)
    graph = network(name).path_graph()
    known = [frozenset(map(edge, path.ways)) for path in twin(name).paths if path.length == length]
    ways = [[way.block for way in path] for path in known]
    outermost = network(name).block("middle.1").index
    share = np.mean([outermost in blocks for blocks in ways])
    assert abs(share - 0.5) > 0.1
    drawn = graph.sample((length,), 4000, ones(name), np.random.default_rng(2))
    through = sum(any(way.block == outermost for way in path) for path in drawn)
    assert stats.binomtest(through, 4000, share).pvalue > 1e-3


def test_paths_sampled_in_a_deep_chain_take_every_block_equally_often():
    """C(54, 27), about 2e15 paths, cannot be enumerated: each block is on half of them."""
    net = rpp.unravel(demo.load_network(), torch.zeros(2, 1, 8, 8))
    draws = 400
    paths = net.path_graph().sample((27,), draws, [(1,)] * 54, np.random.default_rng(0))
    taken = [[edge.block for edge in path if edge.block is not None] for path in paths]
    assert all(len(set(blocks)) == len(blocks) == 27 for blocks in taken)
    counts = np.bincount(np.concatenate(taken), minlength=54)
    assert np.abs(counts - draws / 2).max() < 5 * math.sqrt(draws / 4)
    assert len(set(paths)) == draws


# Random signs


class FixedBits:
    """A generator that draws given bits."""

    def __init__(self, bits):
        self.bits = bits

    def integers(self, low, high, size):
        assert (low, high, size) == (0, 2, len(self.bits))
        return np.array(self.bits)


def free_edges(name):
    graph = network(name).path_graph()
    return sum(len(ways) - 1 for ways in (graph.outputs, *graph.edges.values()))


@pytest.mark.parametrize(
    "name", ["pre-activation", "post-activation", "transformer", "parallel", "nested", "two inputs", "two streams",
             "class attention", "long skip", "dual path", "feature pyramid"]
)  # fmt: skip
def test_the_mean_over_all_sign_patterns_is_the_sum_of_squared_path_norms(name):
    graph, free = network(name).path_graph(), free_edges(name)
    assert free <= 8
    lengths = ByLength(ones(name))
    mean = Counter()
    for bits in itertools.product((0, 1), repeat=free):
        for (length,), gradients in walk(name, WithSigns(lengths, graph.draw_signs(FixedBits(bits)))).items():
            mean[length] = mean[length] + squared_norms(gradients) / 2**free
    expected = Counter()
    for path in twin(name).paths:
        expected[path.length] = expected[path.length] + path.squared_norms()
    assert mean.keys() == expected.keys()
    for length, value in expected.items():
        torch.testing.assert_close(mean[length], value, rtol=1e-12, atol=1e-12 * scale_of(name) ** 2)


def test_paths_interfere_without_signs():
    """The mean over sign patterns would prove nothing if the paths' gradients were orthogonal."""
    paths = [path for path in twin("pre-activation").paths if path.length == 1]
    apart = sum(path.squared_norms() for path in paths)
    together = squared_norms(summed(paths)[1])
    assert ((together - apart).abs() > 0.05 * apart).all()


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d, partial(nn.BatchNorm2d, track_running_stats=False)])
@pytest.mark.parametrize("size", [1, 3])
def test_norms_with_statistics_of_the_batch_are_exact_behind_convolutions_for_a_batch_of_any_size(norm, size):
    """torch's own backward of such norms errs where a single sample has its channels last."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)
            self.branches = nn.ModuleList(nn.Sequential(norm(4), nn.Conv2d(4, 4, 3, padding=1)) for _ in range(2))

        def forward(self, x):
            x = self.stem(x)
            for branch in self.branches:
                x = x + branch(x)
            return self.head(x.relu().mean((2, 3)))

    torch.manual_seed(0)
    images = torch.randn(size, 3, 6, 6)
    found = rpp.PathLengthGradient(Model().eval()).attribute(images, target=0)
    assert found.completeness_error.max() < 1e-5
