"""Captured graphs kept in a folder, so that a change of the detector is tried on every model without capturing again.

Files of one's own alone: they are pickles, read back by the same version of torch that wrote them.
"""

import zlib

from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx._graph_pickler import GraphPickler, Options
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from resnet_paths_plugin.graph.capture import CapturedGraph

_KEPT = ("val", "nn_module_stack")
"""What detection reads of a node beside its operator and operands."""


def keep(graph, path):
    """Write what detection reads of a captured graph."""
    holder = fx.GraphModule(nn.Module(), fx.Graph())
    copied = {}
    leaves = holder.graph.graph_copy(graph.graph, copied)
    copied[graph.graph.output_node()] = holder.graph.output(leaves)
    for node, copy in copied.items():
        copy.meta = {key: node.meta[key] for key in _KEPT if key in node.meta}
        copy.name = node.name
    # By their places, since a name that Python has (`input`) is read back as another.
    place = {node: at for at, node in enumerate(graph.graph.nodes)}
    places = {
        "tensors": {place[node]: path for node, path in graph.tensors.items()},
        "inputs": [place[node] for node in graph.inputs],
    }
    options = Options(node_metadata_key_filter=None)
    data = GraphPickler.dumps((holder, places), options)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(zlib.compress(data, 1))
    temporary.replace(path)


def kept(path, model):
    """Return a graph that was kept, for detection alone: it cannot be run."""
    holder, places = GraphPickler.loads(zlib.decompress(path.read_bytes()), FakeTensorMode(shape_env=ShapeEnv()))
    nodes = tuple(holder.graph.nodes)
    nothing = pytree.tree_structure(())
    return CapturedGraph(
        model,
        holder.graph,
        {nodes[at]: path for at, path in places["tensors"].items()},
        {},
        tuple(nodes[at] for at in places["inputs"]),
        nothing,
        (),
        nothing,
        {},
    )
