"""Random residual networks: what is found, run and counted is what their own code says.

The oracles are the random modules themselves, which record their blocks while they run eagerly and can multiply a
branch by zero, and `path_enumeration`, which takes their paths one by one. `--hypothesis-profile=search` looks longer.
"""

from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
import xarray as xr
from hypothesis import assume, event, example, given
from path_enumeration import summed
from random_building import build
from random_networks import Block, Body, Layer, Network, Pooling, Position, networks
from random_recording import names_of
from searching import examples

import resnet_paths_plugin as rpp
from resnet_paths_plugin.engine.backward import BackwardWalk
from resnet_paths_plugin.engine.routing import ByLength
from resnet_paths_plugin.results.datasets import build_tree

pytestmark = pytest.mark.slow

MOST_PATHS = 80
"""The slow twin runs the network once for each path."""


ALWAYS = (
    Network((Block(branches=(Body((Layer(), Block(post="none")), last=None),)), Position())),
    Network((Block(branches=(Body(), Body(scale="alpha"), Pooling()), order=(1, -1, 2), bracket="halves"),)),
)
"""A branch that ends in a block, and parallel branches of which one is scaled by their sum: rare among random ones."""


def on_networks(count, **limits):
    """Run a test on those that always are, and on `count` random ones."""

    def decorate(test):
        test = given(networks(**limits))(test)
        for description in ALWAYS:
            test = example(description)(test)
        return examples(count)(test)

    return decorate


def values_of(net, x):
    """Return every value of the captured graph by its name."""
    program = net.program
    static = program.prepare(program.parameters(), net.inputs((x,)))
    values = net.inputs((x,))
    for at in program.dynamic:
        values[at] = program.operators[at](static, values)
    return {program.nodes[at].name: value for at, value in values.items()}


def same(values, known):
    return values.shape == known.shape and torch.equal(values, known)


def assert_close(ours, theirs):
    scale = max(theirs.abs().max().item(), 1e-300)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * scale)


@on_networks(8)
def test_detection_finds_exactly_the_blocks_that_were_written(description):
    model = build(description)
    x = model.inputs()
    output, run = model.run(x)
    net = rpp.unravel(model, x)
    event(f"{min(len(run.blocks), 6)} blocks")
    assert torch.equal(net(x), output)
    assert [(b.module, b.skip_kind) for b in net.blocks] == [(k.owner, k.skip_kind) for k in run.blocks]
    assert [b.name for b in net.blocks] == names_of(run.blocks)
    assert [b.depth for b in net.blocks] == [known.depth for known in run.blocks]
    determined = [(b.branch_type, k.branch_type) for b, k in zip(net.blocks, run.blocks, strict=True) if k.branch_type]
    assert all(found == known for found, known in determined), determined
    for block, known in zip(net.blocks, run.blocks, strict=True):
        assert block.source_shape == tuple(known.source.shape[1:])
        assert block.sum_shape == tuple(known.sum.shape[1:])


@on_networks(8)
def test_source_branch_and_sum_have_the_values_that_the_module_computes(description):
    model = build(description)
    x = model.inputs()
    with torch.no_grad():
        _, run = model.run(x)
        net = rpp.unravel(model, x)
        values = values_of(net, x)
    for block, known in zip(net.blocks, run.blocks, strict=True):
        assert same(values[block.source], known.source), block.name
        assert same(values[block.branch], known.branch), block.name
        assert same(values[block.sum], known.sum), block.name


@on_networks(8)
def test_parallel_blocks_share_a_sum_and_nested_ones_lie_in_the_branch(description):
    model = build(description)
    x = model.inputs()
    _, run = model.run(x)
    net = rpp.unravel(model, x)
    program = net.program
    sums = [program.branches[block.index].sum for block in net.blocks]
    first = {joint: place for place, joint in reversed(list(enumerate(known.joint for known in run.blocks)))}
    expected = [sums[first[known.joint]] for known in run.blocks]
    assert sums == expected
    assert len(set(sums)) == len(first)
    for branch, known in zip(program.branches, run.blocks, strict=True):
        region = set(branch.region)
        assert [i for i, total in enumerate(sums) if program.sums[total].root in region] == list(known.inside)


@on_networks(8)
def test_a_lesion_is_the_network_with_that_branch_multiplied_by_zero(description):
    model = build(description)
    x = model.inputs()
    _, run = model.run(x)
    net = rpp.unravel(model, x)
    assert len(net.blocks) == len(run.blocks)
    with torch.no_grad():
        for index in range(len(net.blocks)):
            assert_close(net.lesioned(index)(x), model.run(x, off=[index])[0])
        every = range(len(net.blocks))
        assert_close(net.lesioned(every)(x), model.run(x, off=every)[0])


@on_networks(8, size=3)
def test_path_gradients_and_counts_equal_the_enumeration_of_every_path(description):
    model = build(description)
    wiring = model.wiring()
    number = sum(1 for _, _ in zip(wiring.ways(), range(MOST_PATHS + 1), strict=False))
    assume(wiring.sums and number <= MOST_PATHS)
    x = model.inputs()
    net = rpp.unravel(model, x)
    event(f"{len(net.blocks)} blocks")

    def objective(outputs):
        return outputs[0].flatten(1).sin().sum(1)

    paths = wiring.enumerate((x,), objective)
    counts = Counter(path.length for path in paths)
    assert net.path_counts() == [counts[length] for length in range(max(counts) + 1)]
    rows = bank(net, x, objective)
    assert rows.keys() == set(counts)
    gradient = torch.autograd.grad(objective([model(leaf := x.clone().requires_grad_())]).sum(), leaf)[0]
    scale = gradient.norm().item()
    torch.testing.assert_close(sum(rows.values()), gradient, rtol=0, atol=1e-12 * scale)
    for length, (expected,) in summed(paths).items():
        torch.testing.assert_close(rows[length], expected, rtol=0, atol=1e-12 * scale)


def bank(net, x, objective):
    """Return the exact gradient of each length."""
    graph, program = net.path_graph(), net.program
    walk = BackwardWalk(graph, net.inputs((x,)), program.parameters(), dtype=torch.float64)
    output = walk.outputs[0].detach().requires_grad_()
    seed = torch.autograd.grad(objective([output]).sum(), output)[0]
    banks = walk.run({program.outputs[0]: seed}, ByLength([(1,)] * len(net.blocks)))
    arrived = banks[graph.taps[0]]
    return {length: row for (length,), row in zip(arrived.keys, arrived.rows, strict=True)}


def nan_and_infinite(outputs, _target):
    return torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=outputs.dtype)[: len(outputs)]


def studies_of(net, x, labels):
    """Run every analyzer once, with targets or without."""
    lesion = rpp.BlockLesion(net).attribute(x, labels, n_deleted=[1, len(net.blocks)], draws=1)
    keep = {"keep_maps": True, "estimator": ("exact", "sampled", "signs"), "draws": 2}
    return {
        "lesion": lesion,
        "odd_measure": rpp.BlockLesion(net).attribute(x, measures={"größe": nan_and_infinite}),
        "reordering": rpp.BlockReordering(net).attribute(x, labels, orders=[list(range(len(net.blocks)))]),
        "path_length": rpp.PathLengthGradient(net).attribute(x, 2, **keep),
        "stages": rpp.PathLengthGradient(net).attribute(x, 2, grade="stages", max_length=1),
        "influence": rpp.BlockInfluence(net).attribute(x, labels),
    }


@examples(4)
@given(networks(size=2, nesting=1, head=True), st.integers(1, 3), st.booleans())
def test_every_study_of_any_network_comes_back_identical(tmp_path_factory, description, batch, labelled):
    model = build(description)
    x = model.inputs(batch)
    net = rpp.unravel(model, x)
    assume(net.blocks)
    folder = tmp_path_factory.mktemp("studies")
    studies = studies_of(net, x, torch.arange(batch) if labelled else None)
    for name, study in studies.items():
        loaded = rpp.load(rpp.save(study, folder / f"{name}.nc"))
        xr.testing.assert_identical(loaded, study)
    tree = build_tree(studies)
    xr.testing.assert_identical(rpp.load(rpp.save(tree, folder / "tree.nc")), tree)
