"""Residual blocks of PyTorch Geometric's layers and models on one fixed graph, read off their forward methods.

Features have shape `[B, nodes, channels]`: the layers taken here send messages along the last axis but one. Messages
themselves (a gather and a scatter) have no weights.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from wild.truth import Wild

NODES, WIDTH = 6, 8


class _OnRing(nn.Module):
    """Layers one after the other, on a ring with one chord."""

    edges: Tensor

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        ring = torch.arange(NODES)
        forth = torch.stack([ring, (ring + 1) % NODES])
        self.register_buffer("edges", torch.cat([forth, forth.flip(0), torch.tensor([[0, 3], [3, 0]])], dim=1))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, self.edges)
        return x


def _deep(conv: str, block: str, layers: int = 3) -> nn.Module:
    from torch_geometric import nn as geometric

    widths = [WIDTH * 2**layer if block == "dense" else WIDTH for layer in range(layers)]
    return _OnRing([
        geometric.DeepGCNLayer(
            getattr(geometric, conv)(width, width),
            nn.LayerNorm(width), nn.ReLU(), block=block, dropout=0.1,
        )
        for width in widths
    ])  # fmt: skip


def _model(name: str) -> nn.Module:
    from torch_geometric import nn as geometric

    return _OnRing([getattr(geometric, name)(WIDTH, 12, num_layers=2, out_channels=5)])


def _antisymmetric() -> nn.Module:
    from torch_geometric.nn import AntiSymmetricConv

    return _OnRing([AntiSymmetricConv(WIDTH, num_iters=2), AntiSymmetricConv(WIDTH)])


def _mixer() -> nn.Module:
    from torch_geometric.nn.models.graph_mixer import _MLPMixer

    model: nn.Module = _MLPMixer(num_tokens=NODES, in_channels=WIDTH, out_channels=5)
    return model


def _wild(build: Callable[[], nn.Module], blocks: int, reason: str) -> Wild:
    return Wild(build, lambda: (torch.randn(2, NODES, WIDTH),), blocks, reason)


MODELS: dict[str, Wild] = {
    "DeepGCN_res_plus": _wild(partial(_deep, "GCNConv", "res+"), 3, "x + conv(act(norm(x))) in each of 3 layers"),
    "DeepGCN_res": _wild(partial(_deep, "GCNConv", "res"), 3, "x + act(norm(conv(x))) in each of 3 layers"),
    # Read again after the comparison: 3 had overlooked that x + (lin_l + lin_r) is one addition tree.
    "DeepGCN_sage": _wild(
        partial(_deep, "SAGEConv", "res+"), 6, "x + lin_l(mean) + lin_r(h), two parallel branches in each of 3 layers"
    ),
    "DeepGCN_graph_conv": _wild(
        partial(_deep, "GraphConv", "res"), 3, "3 layers; lin_rel(sum) + lin_root(x) has one weighted operation on each"
    ),
    "DeepGCN_dense": _wild(partial(_deep, "GCNConv", "dense"), 0, "layers are concatenated"),
    "DeepGCN_plain": _wild(partial(_deep, "GCNConv", "plain"), 0, "no sums"),
    "GCN": _wild(partial(_model, "GCN"), 0, "no sums but messages"),
    "GIN": _wild(partial(_model, "GIN"), 0, "(1 + eps) x + messages: the messages have no weights"),
    "AntiSymmetric": _wild(_antisymmetric, 3, "x + epsilon act(h): 2 iterations and 1"),
    "MLPMixer": _wild(_mixer, 2, "token mixing, channel mixing"),
}
