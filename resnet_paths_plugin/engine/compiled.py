"""The operators of a segment as one function made by `torch.compile`; segments that are alike share it.

Compiled functions fuse operators and so round otherwise. What is compiled, and for which sizes, is torch's business.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from resnet_paths_plugin.engine.program import Operator, Program, Values
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.regions import in_region

Step = tuple[Operator, int, tuple[int, ...]]
"""An operator, its position, and the positions of the values that nobody reads after it."""
Part = Callable[[Values, Values], None]
"""Runs some operators on static values and on values that change, and leaves in these what is read later."""


class Compiler:
    """Makes parts of a program from their steps.

    Args:
        program: the program.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._compiled: dict[tuple[str, tuple[Any, ...]], Callable[..., Any]] = {}

    def __call__(self, steps: Sequence[Step]) -> Part:
        """Return what runs the steps.

        Raises:
            InputError: at the first run, if torch cannot compile here.
        """
        positions = [at for _, at, _ in steps]
        freed = {dead for _, _, frees in steps for dead in frees}
        kept = [at for at in positions if at not in freed]
        if not kept:
            return lambda _static, values: _free(values, freed)
        graph, reads = self._graph(positions, kept)
        code = fx.GraphModule(nn.Module(), graph)
        shapes = tuple(_form(self._program.nodes[at].meta.get("val")) for at in reads)
        key = (str(graph), shapes)
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compiled[key] = torch.compile(code)

        def part(static: Values, values: Values) -> None:
            given = [values[at] if at in values else static[at] for at in reads]
            try:
                found = compiled(*given)
            except torch._dynamo.exc.TorchDynamoException as error:  # noqa: SLF001 - it has no other name
                raise InputError(
                    f"torch.compile failed: {error}. It needs a C++ compiler on a CPU, and Triton on a GPU: install "
                    "them, or leave 'compile' out of optimize"
                ) from error
            values.update(zip(kept, found, strict=True))
            _free(values, freed)

        return part

    def _graph(self, positions: Sequence[int], kept: Sequence[int]) -> tuple[fx.Graph, list[int]]:
        """Return a graph of some operators alone, its names counted from the first, and the positions that it reads."""
        order = self._program.flow.order
        inside = set(positions)
        nodes = [self._program.nodes[at] for at in positions]
        reads = list(dict.fromkeys(order[other] for node in nodes for other in node.all_input_nodes))
        reads = [at for at in reads if at not in inside]
        graph = fx.Graph()
        copies = {at: graph.placeholder(f"value_{count}") for count, at in enumerate(reads)}
        for count, node in enumerate(nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda other: copies[order[other]])
            copies[order[node]] = graph.create_node("call_function", in_region(node), args, kwargs, f"step_{count}")
        graph.output(tuple(copies[at] for at in kept))
        return graph, reads


def _free(values: Values, freed: set[int]) -> None:
    for dead in freed:
        values.pop(dead, None)


def _form(value: Any) -> Any:
    """Return what tells apart values that would be compiled for otherwise, the batch size left out."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return (str(value.dtype), *("B" if isinstance(size, torch.SymInt) else size for size in value.shape))
