"""Random small models of unusual parts: regions, own backwards, buffers, structures, frozen batches, constants.

A description is plain and printable. The model that is built from it is its own oracle: `off` leaves branches out as a
user would edit the code, and `gate` multiplies every branch's gradient by a number, so that the gradient is a
polynomial whose coefficients are the gradients of all paths by length.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import hypothesis.strategies as st
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

WIDTH = 4
POSITIONS = 6


class Sign(torch.autograd.Function):
    """The sign, whose gradient passes through as if it were the identity."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def reversed_gradient(x):
    if x.requires_grad:
        x.register_hook(torch.neg)
    return x


def folded(f, x):
    """Run two samples' positions as frames of one, as temporal shift modules do."""
    return torch.tanh(f(x.reshape(-1, 2, *x.shape[1:]).flip(1).reshape(x.shape)))


def counted(f, x):
    """Divide by how many values are large: integers on the way."""
    return torch.tanh(f(x)) / (x.abs() > 1).sum(-1, keepdim=True).clamp(1.0)


def ordered(f, x):
    """Gather by computed indices."""
    return torch.tanh(f(x)).gather(-1, x.argsort(-1))


def transposed(f, x):
    """A view behind a `contiguous` that may or may not do anything."""
    y = f(x).transpose(1, 2).contiguous()
    return torch.tanh(y.view(y.shape[0], -1).view(y.shape).transpose(1, 2))


def attended(f, x):
    y = f(x)
    return nn.functional.scaled_dot_product_attention(y, x, y)


def unused(f, x):
    f(x).sum(-1)
    with torch.no_grad():
        weight = torch.sigmoid(f(x))
    return weight * torch.tanh(f(x))


def written(f, x):
    """Writes into slices, one of them of what has no gradient."""
    y = torch.tanh(f(x)) * 1.0
    with torch.no_grad():
        z = torch.zeros_like(x)
        z[..., 0] = x[..., 0]
    y[:, 0] += z[:, 1]
    return y


BRANCHES: dict[str, Callable] = {
    "tanh": lambda f, x: torch.tanh(f(x)),
    "in place": lambda f, x: f(x).mul_(0.5).tanh_(),
    "counted": counted,
    "ordered": ordered,
    "transposed": transposed,
    "attention": attended,
    "dead value": unused,
    "vmap": lambda f, x: torch.tanh(torch.vmap(f)(x)),
    "broadcast": lambda f, x: torch.tanh(f(x.mean(1, keepdim=True))),
    "detached": lambda f, x: torch.tanh(f(x)) * torch.sigmoid(x.detach()),
    "masked": lambda f, x: torch.tanh(f(x)).masked_fill(x > 1.5, 0.0),
    "custom backward": lambda f, x: Sign.apply(f(x)),
    "reversed": lambda f, x: torch.tanh(f(reversed_gradient(x * 1.0))),
    "folded": folded,
    "written": written,
}
"""Branches by name: functions of a linear layer and the source, shape `[B, positions, width]`."""

REGIONS: dict[str, Callable[[], AbstractContextManager]] = {
    "none": nullcontext,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "set_grad_enabled": lambda: torch.set_grad_enabled(False),
    "autocast off": lambda: torch.autocast("cpu", enabled=False),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),  # does nothing to float64
}

SKIPS: dict[str, Callable] = {
    "plain": lambda x: x,
    "view": lambda x: x.reshape(x.shape[0], -1).view(x.shape),
    "cast": lambda x: x.to(torch.float64),
    "masked": lambda x: x.masked_fill(torch.arange(WIDTH) > WIDTH - 2, 0.0),
    "scaled": lambda x: x * 0.5,
    "padded": lambda x: torch.cat([x[..., 1:], torch.zeros_like(x[..., :1])], -1),
    "expanded": lambda x: x[:, None].expand(-1, 1, -1, -1).squeeze(1),
    "einsum": lambda x: torch.einsum("bpw->bpw", x),
}

SUMS: dict[str, Callable] = {
    "plus": lambda s, f: s + f,
    "flipped": lambda s, f: f + s,
    "in place": lambda s, f: s.clone().add_(f),
    "stack": lambda s, f: torch.stack([s, f.expand_as(s)]).sum(0),
    "mean of a stack": lambda s, f: torch.stack([s, f.expand_as(s)]).mean(0),
    "constant": lambda s, f: s + f + torch.full_like(s, 0.1),
}

BATCHES: dict[str, Callable] = {
    "any": lambda x: x,
    "len": lambda x: x.reshape(len(x), *x.shape[1:]),
    "int": lambda x: x.view(int(x.shape[0] / 1), *x.shape[1:]),
    "one": lambda x: x * 2 if x.shape[0] > 1 else x,
    "parity": lambda x: x * 2 if x.shape[0] % 2 else x,
    "large": lambda x: x * 2 if x.shape[0] > 3 else x,
}
"""What the model's Python asks of its batch size."""

STRUCTURES: dict[str, Callable] = {
    "tensor": lambda y: y,
    "dict": lambda y: {"logits": y},
    "tuple": lambda y: (y,),
    "list": lambda y: [y],
    "two": lambda y: {"features": y.detach() * 2, "logits": y},
}


@dataclass(frozen=True)
class Block:
    branch: str = "tanh"
    region: str = "none"
    around: str = "branch"
    skip: str = "plain"
    sum: str = "plus"
    recompute: str = "none"
    traced: bool = False


@dataclass(frozen=True)
class Unusual:
    """What a model is made of."""

    blocks: tuple[Block, ...]
    batch: str = "any"
    structure: str = "tensor"
    buffer: bool = False
    frozen_stem: bool = False
    seed: int = 0

    @property
    def has_own_backward(self) -> bool:
        return any(block.branch in {"custom backward", "reversed"} for block in self.blocks)


def rarely(usual, seldom):
    """Draw what is usual nine times out of ten."""
    return st.integers(0, 9).flatmap(lambda n: st.sampled_from(seldom) if n == 0 else st.sampled_from(usual))


SELDOM = ("custom backward", "reversed")
"""Branches that must be refused wherever gradients are taken."""
USUAL = tuple(name for name in BRANCHES if name not in (*SELDOM, "vmap"))
BLOCKS = st.builds(
    Block,
    branch=st.integers(0, 59).flatmap(
        lambda n: st.sampled_from(SELDOM if n == 23 else ("vmap",) if n == 41 else USUAL)
    ),
    region=rarely(["none", "none", "no_grad", "autocast off"], list(REGIONS)),
    around=st.sampled_from(["branch", "block"]),
    skip=st.sampled_from(list(SKIPS)),
    sum=st.sampled_from(list(SUMS)),
    recompute=rarely(["none"], ["reentrant", "non-reentrant"]),
    traced=rarely([False], [True]),
)
MODELS = st.builds(
    Unusual,
    blocks=st.lists(BLOCKS, min_size=1, max_size=4).map(tuple),
    batch=rarely(["any", "any", "len", "int", "large"], ["one", "parity"]),
    structure=st.sampled_from(list(STRUCTURES)),
    buffer=st.booleans(),
    frozen_stem=st.booleans(),
    seed=st.integers(0, 3),
)


class UnusualBlock(nn.Module):
    """One residual block of a description; `off` leaves its branch out, `gate` scales the branch's gradient."""

    off = False
    gate: float | None = None

    def __init__(self, wish):
        super().__init__()
        self.wish, self.f = wish, nn.Linear(WIDTH, WIDTH)

    def branch(self, x):
        function = BRANCHES[self.wish.branch]
        if self.wish.recompute == "none":
            return function(self.f, x)
        return checkpoint(function, self.f, x, use_reentrant=self.wish.recompute == "reentrant")

    def forward(self, x):
        inside = REGIONS[self.wish.region]
        with inside() if self.wish.around == "block" else nullcontext():
            with inside() if self.wish.around == "branch" else nullcontext():
                value = self.branch(x)
            if self.off:
                value = value * 0
            if self.gate is not None:
                value = self.gate * value + (1 - self.gate) * value.detach()
            return SUMS[self.wish.sum](SKIPS[self.wish.skip](x), value)


class UnusualModel(nn.Module):
    """The model of a description: inputs `[B, POSITIONS, WIDTH]`, scores `[B, 3]` in some structure."""

    def __init__(self, wish):
        super().__init__()
        self.wish = wish
        self.stem, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.trunk = nn.ModuleList(map(UnusualBlock, wish.blocks))
        if wish.buffer:
            self.register_buffer("seen", torch.zeros(WIDTH))

    def forward(self, x):
        if self.wish.buffer:
            self.seen.mul_(0.9).add_(x.detach().mean((0, 1)), alpha=0.1)
            x = x - self.seen
        x = BATCHES[self.wish.batch](x)
        with torch.no_grad() if self.wish.frozen_stem else nullcontext():
            shifted = torch.tanh(self.stem(x))
        x = x + shifted if self.wish.frozen_stem else shifted
        for block in self.trunk:
            x = block(x)
        return STRUCTURES[self.wish.structure](self.head(x.mean(1)))

    def scores(self, x):
        """Return the scores alone, buffers put back."""
        kept = {name: buffer.clone() for name, buffer in self.named_buffers()}
        try:
            found = self(x)
        finally:
            for name, buffer in self.named_buffers():
                buffer.data.copy_(kept[name])
        if isinstance(found, dict):
            return found["logits"]
        return found if isinstance(found, torch.Tensor) else found[0]

    def without(self, block, x):
        """Return the scores with one branch left out."""
        self.trunk[block].off = True
        try:
            with torch.no_grad():
                return self.scores(x)
        finally:
            del self.trunk[block].off

    def gradient(self, x, gated=(), gate=None):
        """Return autograd's gradient of score 0, with some branches' gradients scaled by `gate`."""
        for index in gated:
            self.trunk[index].gate = gate
        try:
            x = x.detach().clone().requires_grad_()
            score = self.scores(x)[:, 0].sum()
            if not score.requires_grad:
                return torch.zeros_like(x)
            score.backward()
            self.zero_grad()
            return torch.zeros_like(x) if x.grad is None else x.grad
        finally:
            for index in gated:
                del self.trunk[index].gate

    def gradients_by_length(self, x, blocks):
        """Return the gradient of all paths of each length in some blocks, by interpolation over the branches' scale."""
        points = torch.linspace(-1, 1, len(blocks) + 1, dtype=x.dtype)
        found = torch.stack([self.gradient(x, blocks, float(point)) for point in points])
        powers = torch.stack([points**k for k in range(len(points))], 1)
        return torch.linalg.solve(powers, found.flatten(1)).view(found.shape)


def build(wish):
    """Return the model of a description, in float64 and eval mode; equal descriptions give equal models."""
    torch.manual_seed(wish.seed)
    model = UnusualModel(wish).double().eval()
    for block in model.trunk:
        if block.wish.traced:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecated, and still around
                block.f = torch.jit.trace(block.f, torch.randn(2, POSITIONS, WIDTH, dtype=torch.float64))
    return model


def inputs(batch=4):
    return torch.randn(batch, POSITIONS, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
