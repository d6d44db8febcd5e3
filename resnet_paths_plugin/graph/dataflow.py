"""DataFlow: which value of a graph is computed from which, and through how many weighted operations."""

from torch import fx

from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.graph.operators import WEIGHTED, holds_tensor, is_constant


class DataFlow:
    """Ancestry among the values of a graph that descend from the user's inputs through tensors.

    Shapes (`sym_size`) carry no data, and parameters, buffers and constants are no ancestors: neither the
    model's nor what its code fills in the form of a tensor (`zeros_like`, `new_full`).

    Attributes:
        nodes: the operators that carry data, in execution order.
        order: position of every node of the graph.
        data: inputs and operators that carry data.
    """

    def __init__(self, graph: CapturedGraph) -> None:
        self.order: dict[fx.Node, int] = {node: at for at, node in enumerate(graph.graph.nodes)}
        self.nodes: list[fx.Node] = []
        self.data: set[fx.Node] = {node for node in graph.inputs if holds_tensor(node)}
        self._ancestors: dict[fx.Node, int] = {node: 1 << self.order[node] for node in self.data}
        for node in graph.graph.nodes:
            operands = [other for other in node.all_input_nodes if other in self.data]
            if node.op != "call_function" or not operands or not holds_tensor(node) or is_constant(node):
                continue
            ancestors = 1 << self.order[node]
            for other in operands:
                ancestors |= self._ancestors[other]
            self._ancestors[node] = ancestors
            self.nodes.append(node)
            self.data.add(node)

    def is_ancestor(self, node: fx.Node, of: fx.Node) -> bool:
        """Whether `of` is computed from `node`, or is it."""
        return bool(self._ancestors.get(of, 0) >> self.order[node] & 1)

    def between(self, source: fx.Node, target: fx.Node) -> list[fx.Node]:
        """Return the values computed from `source` that `target` is computed from, `target` included, in order."""
        region = {target} if target is not source and self.is_ancestor(source, target) else set()
        pending = list(region)
        while pending:
            for operand in pending.pop().all_input_nodes:
                fresh = operand not in region and operand is not source and operand in self.data
                if fresh and self.is_ancestor(source, operand):
                    region.add(operand)
                    pending.append(operand)
        return sorted(region, key=self.order.__getitem__)

    def depth(self, region: list[fx.Node]) -> int:
        """Return the longest chain of weighted operations in a region given by `between`."""
        longest: dict[fx.Node, int] = {}
        for node in region:
            before = max((longest.get(operand, 0) for operand in node.all_input_nodes), default=0)
            longest[node] = before + (node.target in WEIGHTED)
        return longest[region[-1]] if region else 0
