"""The program of a network in training mode: the model captured again, with the same blocks found in it.

Batch norms move their running statistics when they run; who runs the program counts the batches.
"""

from dataclasses import replace

from resnet_paths_plugin.engine.program import Program, Values
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


class BatchCounters:
    """The counters of a program's batch norms: how many batches each has been run on.

    Args:
        program: the program, of a graph that was captured in training mode.
    """

    def __init__(self, program: Program) -> None:
        order = program.flow.order
        self._counters = {order[norm]: order[counter] for norm, counter in program.graph.counters.items()}
        self._moving = program.moving

    def count(self, needed: int, parameters: Values) -> None:
        """Count a batch on each norm that has run.

        Args:
            needed: mask of the values that were computed of those that depend on the inputs' data; all others were.
            parameters: the values of parameters and buffers, the counters among them.
        """
        ran = needed | ~self._moving
        for norm, counter in self._counters.items():
            if ran >> norm & 1:
                parameters[counter].add_(1)
