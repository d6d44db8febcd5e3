"""Walks ask the device for no value: on the meta device, where there is none, asking raises. Nothing waits, then."""

import numpy as np
import pytest
import torch
from benchmarks.subjects import resnet
from networks import PreActivation, Transformer

import resnet_paths_plugin as rpp
from resnet_paths_plugin.engine.backward import BackwardWalk
from resnet_paths_plugin.engine.routing import AlongPaths, ByLength, WithSigns

MODELS = {
    "resnet": lambda: resnet(2),
    "pre-activation": PreActivation,
    "transformer": Transformer,
}


@pytest.fixture(scope="module", params=MODELS)
def network(request):
    images = torch.randn(3, 3, 6, 6)
    with torch.device("meta"):
        model = MODELS[request.param]().eval()
    net = rpp.unravel(model, images.to("meta"))
    assert len(net.blocks) >= 2
    return net


@pytest.fixture
def images():
    return torch.empty(4, 3, 6, 6, device="meta")


def test_asking_for_a_value_raises(images):
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        images.sum().item()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        images.flatten().tolist()


@pytest.mark.parametrize("width", [1, 3])
def test_forward_passes_under_schedules_ask_for_none(network, images, width):
    lesions = [network.lesioned([block]).schedule for block in network.blocks]
    pairs = [network.lesioned(network.blocks[at : at + 2]).schedule for at in range(len(network.blocks) - 1)]
    schedules = [rpp.Schedule.identity(network), *lesions, *pairs]
    with torch.no_grad():
        found = list(network.outputs(schedules, (images,), perturbations_per_eval=width))
    assert len(found) == len(schedules)
    assert all(output.is_meta for _, output in found)


@pytest.mark.slow
@pytest.mark.parametrize("bank_bytes", [None, 1])
@pytest.mark.parametrize("routing", ["lengths", "paths", "signs"])
def test_backward_walks_ask_for_none(network, images, routing, bank_bytes):
    graph, program = network.path_graph(), network.program
    lengths = ByLength([(1,)] * len(network.blocks))
    generator = np.random.default_rng(0)
    rule = {
        "lengths": lambda: lengths,
        "paths": lambda: AlongPaths(graph.sample((1,), 5, lengths.grades, generator)),
        "signs": lambda: WithSigns(lengths, graph.draw_signs(generator)),
    }[routing]()
    walk = BackwardWalk(
        graph, {program.inputs[0]: images}, program.parameters(), dtype=torch.float32, bank_bytes=bank_bytes
    )
    banks = walk.run({program.outputs[0]: torch.ones_like(walk.outputs[0])}, rule)
    assert banks[graph.taps[0]].rows.is_meta
