"""The small networks by name, with the shapes of their inputs and the blocks that are known to be in them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from networks import (
    Alpha,
    Dense,
    DualPath,
    FeaturePyramid,
    Gated,
    Highway,
    InPlace,
    Minus,
    Nested,
    Parallel,
    Plain,
    Pooling,
    PostActivation,
    PostNorm,
    PreActivation,
    Repeated,
    Res2Nets,
    ReZero,
    ScaledSkip,
    SeveralOutputs,
    Transformer,
    TwoInputs,
    Vectors,
    randomised,
)
from torch import nn

import resnet_paths_plugin as rpp


@dataclass(frozen=True)
class Known:
    """What is known of a block: its name, what its skip and branch are, and the submodule that is its branch."""

    name: str
    skip_kind: str
    branch_type: str
    path: str


@dataclass(frozen=True)
class Case:
    """A network, the shapes of its inputs without the batch, and its blocks in execution order."""

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    blocks: tuple[Known, ...] = field(default=())

    def model(self):
        torch.manual_seed(1)
        return randomised(self.build()).eval()

    def inputs(self, batch=3, dtype=torch.float32):
        generator = torch.Generator().manual_seed(7)
        return tuple(torch.randn(batch, *shape, generator=generator).to(dtype) for shape in self.shapes)


IMAGE, VECTOR = ((3, 6, 6),), ((7,),)


def _single(kind="identity", branch="branch"):
    return (Known("middle.0", kind, "mlp", f"middle.0.{branch}"),)


def _parallel(form, *order):
    return Case(
        lambda: Vectors(Parallel(form)),
        VECTOR,
        tuple(Known(f"middle.0.{name}", "identity", "mlp", f"middle.0.{name}") for name in order),
    )


CASES = {
    "pre-activation": Case(
        PreActivation,
        IMAGE,
        tuple(Known(f"blocks.{i}", "identity", "convolution", f"blocks.{i}.branch") for i in range(3)),
    ),
    "post-activation": Case(
        PostActivation,
        ((3, 8, 8),),
        (
            Known("plain", "identity", "convolution", "plain.branch"),
            Known("padded", "projection", "convolution", "padded.branch"),
            Known("projected", "projection", "convolution", "projected.branch"),
            Known("pooled", "projection", "convolution", "pooled.branch"),
        ),
    ),
    "transformer": Case(
        Transformer,
        IMAGE,
        tuple(
            Known(f"layers.{i}.{part}", "identity", kind, f"layers.{i}.{part}")
            for i in range(2)
            for part, kind in (("attn", "attention"), ("mlp", "mlp"))
        ),
    ),
    "parallel, from the left": _parallel("left", "f", "g"),
    "parallel, from the right": _parallel("right", "f", "g"),
    "parallel, stacked": _parallel("stacked", "f", "g"),
    "nested": Case(
        lambda: Vectors(Nested()),
        VECTOR,
        (
            Known("middle.0.branch.0", "identity", "mlp", "middle.0.branch.0.branch"),
            Known("middle.0.branch.1", "identity", "mlp", "middle.0.branch.1.branch"),
            Known("middle.0", "identity", "mlp", "middle.0.branch"),
        ),
    ),
    "highway": Case(
        lambda: Vectors(Highway(), Highway()),
        VECTOR,
        tuple(Known(f"middle.{i}", "gated", "mlp", f"middle.{i}.transform") for i in range(2)),
    ),
    "rezero": Case(lambda: Vectors(ReZero()), VECTOR, _single()),
    "alpha": Case(lambda: Vectors(Alpha()), VECTOR, _single()),
    "minus": Case(lambda: Vectors(Minus()), VECTOR, _single()),
    "scaled skip": Case(lambda: Vectors(ScaledSkip()), VECTOR, _single("scaled")),
    "post-norm": Case(lambda: Vectors(PostNorm()), VECTOR, _single()),
    "res2net": Case(
        Res2Nets,
        IMAGE,
        tuple(Known(f"blocks.{i}", "identity", "convolution", f"blocks.{i}.last") for i in range(2)),
    ),
    "feature pyramid": Case(
        FeaturePyramid,
        IMAGE,
        tuple(Known(f"block{i}", "identity", "convolution", f"block{i}.branch") for i in (1, 2)),
    ),
    "dual path": Case(
        DualPath,
        IMAGE,
        tuple(Known(f"block{i}", "identity", "convolution", f"block{i}.branch") for i in (1, 2)),
    ),
    "in place": Case(
        InPlace,
        IMAGE,
        tuple(Known(f"blocks.{i}", "identity", "convolution", f"blocks.{i}.branch") for i in range(2)),
    ),
    "gated": Case(
        Gated,
        IMAGE,
        (
            Known("block1", "identity", "mlp", "block1.branch"),
            Known("block2", "identity", "convolution", "block2.branch"),
        ),
    ),
    "pooling": Case(
        Pooling,
        IMAGE,
        (Known("sum", "identity", "pooling", "mixer"), Known("mlp", "identity", "mlp", "mlp")),
    ),
    "repeated": Case(
        Repeated,
        VECTOR,
        tuple(Known(f"block:{i}", "identity", "mlp", "block.branch") for i in (1, 2, 3)),
    ),
    "two inputs": Case(TwoInputs, ((7,), (4,)), (Known("block", "identity", "mlp", "block.branch"),)),
    "several outputs": Case(
        SeveralOutputs,
        VECTOR,
        tuple(Known(f"blocks.{i}", "identity", "mlp", f"blocks.{i}.branch") for i in range(2)),
    ),
    "plain": Case(Plain, IMAGE),
    "dense": Case(Dense, IMAGE),
}
"""Dual path and repeated modules are lesioned by hand in tests of their own: one submodule is not one branch."""


@cache
def unraveled(name, dtype=torch.float32):
    """Return a network that is captured once, with its model and inputs, for tests that change none of them."""
    model, inputs = CASES[name].model().to(dtype), CASES[name].inputs(dtype=dtype)
    return rpp.unravel(model, inputs), model, inputs
