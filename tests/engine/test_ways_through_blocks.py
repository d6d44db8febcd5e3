"""What passes through each block, against every path one by one: gradients and tangents at branches, and parameters.

The oracle is `path_enumeration`: the network written down by hand and gated autograd, one path at a time.
"""

from collections import defaultdict

import pytest
import torch
from path_enumeration import TWINS, parameter_gradients_by_length, twin

import resnet_paths_plugin as rpp
from resnet_paths_plugin.engine.backward import BackwardWalk, Watch
from resnet_paths_plugin.engine.banks import merged
from resnet_paths_plugin.engine.forward_walk import ForwardWalk
from resnet_paths_plugin.engine.parameter_flow import ParameterBanks, ParameterFlow
from resnet_paths_plugin.engine.path_graph import PathGraph
from resnet_paths_plugin.engine.routing import ByLength

NAMES = sorted(TWINS)
_networks = {}


def network(name):
    """Return the captured network of a twin, made once."""
    if name not in _networks:
        _networks[name] = rpp.unravel(twin(name).model, twin(name).inputs)
    return _networks[name]


class Branches(Watch):
    """Keeps the gradients at each branch."""

    def __init__(self):
        self.banks = {}

    def at_branch(self, block, bank):
        self.banks[block] = merged([*([self.banks[block]] if block in self.banks else []), bank])


def walked(name, graph, watch_of, **options):
    """Walk back from the objective's gradient; return the walk, its watch and the gradients at the taps."""
    net, known = network(name), twin(name)
    program = net.program
    inputs = dict(zip(program.inputs, known.inputs, strict=True))
    walk = BackwardWalk(graph, inputs, program.parameters(), dtype=torch.float64, **options)
    leaves = {
        at: value.detach().requires_grad_()
        for at, value in zip(program.outputs, walk.outputs, strict=True)
        if isinstance(value, torch.Tensor)
    }
    gradients = torch.autograd.grad(known.objective([*leaves.values()]).sum(), [*leaves.values()], allow_unused=True)
    seeds = {at: g for at, g in zip(leaves, gradients, strict=True) if g is not None}
    watch = watch_of(walk)
    banks = walk.run(seeds, ByLength([(1,)] * len(net.blocks)), watch=watch)
    return walk, watch, banks


def lengths_of(bank):
    return {key[0]: row for key, row in zip(bank.keys, bank.rows, strict=True)}


def products(gradients, tangents):
    """Return the inner products of two banks for each sample, summed by the paths' length through the branch."""
    found = defaultdict(lambda: 0)
    for a, row in lengths_of(gradients).items():
        for b, other in lengths_of(tangents).items():
            found[a + b + 1] = found[a + b + 1] + (row * other).flatten(1).sum(1)
    return found


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "computed again"])
@pytest.mark.parametrize("name", NAMES)
def test_what_passes_through_a_block_is_the_sum_over_the_paths_that_take_its_branch(name, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr("resnet_paths_plugin.engine.linearised_pass.KEPT_BYTES", -1)
    net, known = network(name), twin(name)
    torch.manual_seed(0)
    directions = [torch.randn_like(x) for x in known.inputs]
    walk, watch, _ = walked(name, net.path_graph(), lambda _: Branches(), bank_bytes=None if kept else 1)
    tangents = {}
    taps = dict(zip(net.program.inputs, directions, strict=True))
    ForwardWalk(walk.forward_pass, walk.bank_bytes).run(taps, ByLength([(1,)] * len(net.blocks)), tangents.__setitem__)
    total = sum(
        (g * u).flatten(1).sum(1).abs() for p in known.paths for g, u in zip(p.gradients, directions, strict=True)
    ).max()
    for block in net.blocks:
        expected = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))
        for path in known.paths:
            if block.name in path.blocks:
                along = sum((g * u).flatten(1).sum(1) for g, u in zip(path.gradients, directions, strict=True))
                expected[path.length] = expected[path.length] + along
        found = products(watch.banks[block.index], tangents[block.index])
        for length in {*expected, *found}:
            got = found[length] + torch.zeros(2, dtype=torch.float64)
            torch.testing.assert_close(got, expected[length], rtol=0, atol=1e-12 * float(total))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_at_parameters_are_those_of_the_enumerated_paths(name):
    net, known = network(name), twin(name)
    flow = ParameterFlow(net.program)
    graph = PathGraph(net.program, net.program.inputs, parameters=flow.derived)
    _, watch, _ = walked(name, graph, lambda walk: ParameterBanks(flow, walk.forward_pass.static, torch.float64))
    found = defaultdict(lambda: defaultdict(lambda: 0))
    parts = watch.gradients()
    assert parts.keys() <= set(flow.parts)
    for banks in parts.values():
        for path, bank in banks.items():
            for length, row in lengths_of(bank).items():
                found[path][length] = found[path][length] + row
    expected = parameter_gradients_by_length(known)
    scale = max(float(g.abs().max()) for each in expected.values() for g in each.values())
    assert expected.keys() == found.keys()
    for path, each in expected.items():
        for length in {*each, *found[path]}:
            zero = torch.zeros_like(net.model.get_parameter(path))
            torch.testing.assert_close(
                found[path][length] + zero, each[length] + zero, rtol=0, atol=1e-12 * scale, msg=f"{path} {length}"
            )
