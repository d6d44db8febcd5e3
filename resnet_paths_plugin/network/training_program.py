"""The program of a network in training mode: the model captured again, with the same blocks found in it."""

from dataclasses import replace

from resnet_paths_plugin.engine.program import Program
from resnet_paths_plugin.errors import CaptureError
from resnet_paths_plugin.graph.capture import capture
from resnet_paths_plugin.graph.layers import detect_layers
from resnet_paths_plugin.network.captured_network import CapturedNetwork


def training_program(network: CapturedNetwork) -> Program:
    """Return a network's model captured in training mode, with the network's blocks.

    Raises:
        CaptureError: if the model cannot be captured in that mode, or has other blocks there.
    """
    graph = capture(
        network.model,
        network.graph.example_inputs(),
        training=True,
        n_inputs=network.graph.n_inputs,
        free=network.graph.batch_symbol is not None,
    )
    # What some samples have shown of the graph in eval mode is not asked again.
    graph = replace(graph, conditions=replace(graph.conditions, shown=network.graph.conditions.shown))
    if network.units == "layers":
        graph, blocks = detect_layers(graph)
    else:
        blocks = network.find_blocks(graph)
    expected, found = ([(block.name, block.skip_kind) for block in each] for each in (network.blocks, blocks))
    if expected != found:
        differ = sorted(f"{name} ({kind})" for name, kind in {*expected} ^ {*found})
        noun = "residual blocks" if network.units == "blocks" else network.units
        raise CaptureError(
            f"{network.name} has other {noun} in training mode than in eval mode: {', '.join(differ)} in one of them "
            "only, so that not every block has a counterpart while training"
        )
    return Program(graph, blocks)
