"""Digests of a network's weights and graph, by which results and checkpoints know the network that they are of."""

import hashlib
import re

import torch
from torch import fx, nn

from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.graph.traced_modes import AUTOCAST
from resnet_paths_plugin.process_lock import alone


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers, their names, dtypes and shapes included."""
    digest = hashlib.sha256()
    with alone():  # a capture of the model elsewhere puts other tensors in their place
        named = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in sorted(named, key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if not tensor.is_meta:
            data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(data.numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def graph_digest(graph: CapturedGraph) -> str:
    """Return the SHA-256 of the graph: its operators with their arguments and autocast, and its nested graphs."""
    autocast = [(node.name, node.meta[AUTOCAST]) for node in graph.graph.nodes if AUTOCAST in node.meta]
    text = f"{graph.graph}\n{autocast or ''}"
    # Of a nested graph, such as a branch of `torch.cond`, it holds a name only, one that each export chooses.
    nested = [(node, value) for node, value in graph.constants.items() if isinstance(value, fx.GraphModule)]
    for place, (node, value) in enumerate(nested):
        for name in {node.name, str(node.target)}:
            text = re.sub(rf"\b{re.escape(name)}\b", f"nested_graph_{place}", text)
        inner = [part for part in value.modules() if isinstance(part, fx.GraphModule)]
        text = "\n".join([text, *(str(part.graph) for part in inner)])
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
