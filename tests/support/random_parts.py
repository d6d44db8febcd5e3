"""The parts of random networks that close no residual block: layers, gates, and sums that only look like blocks.

Every part keeps the shape of its input, layers excepted. `path_enumeration` takes them as functions.
"""

from dataclasses import dataclass

import random_networks as wished
import torch
from random_recording import current, joined
from torch import nn
from torch.nn import functional

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class Shape:
    """Shape of one sample: `[width, side, side]` of images, `[side, width]` of tokens."""

    tokens: bool
    width: int
    side: int

    @property
    def channels(self):
        """The dimension of the channels."""
        return 2 if self.tokens else 1

    @property
    def positions(self):
        return (1,) if self.tokens else (2, 3)

    @property
    def sizes(self):
        return (self.side, self.width) if self.tokens else (self.width, self.side, self.side)

    def norm(self):
        return nn.LayerNorm(self.width) if self.tokens else nn.BatchNorm2d(self.width)

    def pointwise(self, out=None, stride=1):
        out = out or self.width
        return nn.Linear(self.width, out) if self.tokens else nn.Conv2d(self.width, out, 1, stride=stride)

    def along_channels(self, vector):
        return vector if self.tokens else vector.view(-1, 1, 1)


class Part(nn.Module):
    """A module that knows what it is made of.

    Attributes:
        shape: shape of its output.
        depth: longest chain of weighted operations through it.
        kinds: its weighted operations: "spatial", "pointwise", "linear", "attention".
        is_open: whether its output is a sum that a further addition continues.
        saved: whether its output is kept for the backward pass, so that it must not be changed in place.
    """

    depth = 0
    kinds = ()
    is_open = False
    saved = False

    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def wire(self, value, wirer):
        """Write down the part: its output as a function of nodes."""
        return value.then(self)

    @property
    def pointwise_kind(self):
        return "linear" if self.shape.tokens else "pointwise"


class Layer(Part):
    depth = 1

    def __init__(self, wish, shape, out=None, stride=1):
        super().__init__(Shape(shape.tokens, out or shape.width, shape.side // stride))
        if shape.tokens or wish.pointwise:
            operation = shape.pointwise(out, stride)
            self.kinds = (self.pointwise_kind,)
        else:
            operation = nn.Conv2d(shape.width, self.shape.width, 3, stride=stride, padding=1, bias=not wish.norm)
            self.kinds = ("spatial",)
        between = [(shape if wish.first else self.shape).norm()] if wish.norm else []
        if wish.activation == "relu_":
            # Only what this layer has made itself may be changed.
            between.append(nn.ReLU(inplace=wish.norm or not wish.first))
        elif wish.activation != "none":
            between.append(ACTIVATIONS[wish.activation]())
        self.steps = nn.Sequential(*between, operation) if wish.first else nn.Sequential(operation, *between)
        self.saved = not wish.first and wish.activation in {"relu", "relu_", "tanh"}

    def forward(self, x):
        return self.steps(x)


class Attention(Part):
    kinds = ("attention",)

    def __init__(self, wish, shape):
        super().__init__(shape)
        self.wish = wish
        self.depth = 3 if wish.fused else 4
        self.norm, self.qkv, self.last = shape.norm(), nn.Linear(shape.width, 3 * shape.width), shape.pointwise()
        self.register_buffer("mask", torch.linspace(-1, 1, shape.side**2).view(shape.side, shape.side))

    def forward(self, x):
        query, key, value = self.qkv(self.norm(x)).chunk(3, dim=-1)
        if self.wish.fused:
            mask = self.mask if self.wish.mask else None
            return self.last(functional.scaled_dot_product_attention(query, key, value, attn_mask=mask))
        scores = query @ key.transpose(1, 2)
        if self.wish.mask:
            scores = scores + self.mask
        return self.last(scores.softmax(-1) @ value)


class Gate(Part):
    depth = 2

    def __init__(self, wish, shape):
        super().__init__(shape)
        self.kinds = (self.pointwise_kind,) * 2
        self.squeeze, self.excite = shape.pointwise(2), Shape(shape.tokens, 2, 1).pointwise(shape.width)

    def forward(self, x):
        return x * self.excite(self.squeeze(x.mean(self.shape.positions, keepdim=True)).relu()).sigmoid()


class Position(Part):
    def __init__(self, wish, shape, *, in_place):
        super().__init__(shape)
        self.wish, self.in_place = wish, in_place and wish.in_place
        self.is_open = wish.form != "number"
        table = torch.linspace(-1, 1, shape.side * shape.width).view(shape.side, shape.width)
        table = table if shape.tokens else table.t().unsqueeze(-1)
        if wish.form == "parameter":
            self.table = nn.Parameter(table)
        elif wish.form == "buffer":
            self.register_buffer("table", table)

    def constant(self, like):
        if self.wish.form == "computed":
            return torch.linspace(0, 1, like.shape[-1], dtype=like.dtype)
        return 0.25 if self.wish.form == "number" else self.table

    def forward(self, x):
        run = current()
        continues = run is not None and run.open_sum is x
        constant = self.constant(x)
        if self.in_place and run is not None:
            y = x.add_(constant)
        elif self.in_place:
            x += constant
            y = x
        else:
            y = constant + x if self.wish.first else x + constant
        if continues and self.is_open:
            run.continue_sum(y)
        elif continues:
            run.open_sum = None
        return y

    def wire(self, value, wirer):
        return value.then(lambda x: x + self.constant(x))


class ResponseNorm(Part):
    def __init__(self, wish, shape):
        super().__init__(shape)
        self.gamma, self.beta = nn.Parameter(torch.rand(shape.width)), nn.Parameter(torch.rand(shape.width))

    def forward(self, x):
        size = x.norm(dim=self.shape.positions, keepdim=True)
        share = size / (size.mean(self.shape.channels, keepdim=True) + 1e-6)
        gamma, beta = map(self.shape.along_channels, (self.gamma, self.beta))
        return x + torch.addcmul(beta, gamma, x * share)


class Swish(Part):
    def __init__(self, wish, shape):
        super().__init__(shape)

    def forward(self, x):
        return x + x.sigmoid() * x


class Split(Part):
    depth = 2

    def __init__(self, wish, shape):
        super().__init__(shape)
        half = Shape(shape.tokens, shape.width // 2, shape.side)
        self.first, self.second = half.pointwise(), half.pointwise()
        self.kinds = (self.pointwise_kind,) * 2

    def forward(self, x):
        one, other = x.chunk(2, self.shape.channels)
        one = self.first(one).relu()
        return torch.cat([one, self.second(one + other)], self.shape.channels)


class Slice(Part):
    depth = 1

    def __init__(self, wish, shape):
        super().__init__(shape)
        self.half = shape.width // 2
        self.f = shape.pointwise(self.half)
        self.kinds = (self.pointwise_kind,)

    def forward(self, x):
        dim = self.shape.channels
        one, other = x.narrow(dim, 0, self.half), x.narrow(dim, self.half, self.shape.width - self.half)
        return torch.cat([one + self.f(x), other], dim)


class Fusion(Part):
    depth = 1

    def __init__(self, wish, shape):
        super().__init__(shape)
        self.one, self.other = shape.pointwise(), shape.pointwise()
        self.activation = nn.ReLU() if wish.activation == "relu" else nn.Identity()
        self.kinds = (self.pointwise_kind,) * 2

    def forward(self, x):
        return self.activation(self.one(x)) + self.activation(self.other(x))


class Activated(Part):
    depth = 1

    def __init__(self, wish, shape):
        super().__init__(shape)
        self.f = shape.pointwise()
        self.kinds = (self.pointwise_kind,)

    def forward(self, x):
        return x.tanh() + self.f(x)


class TwoGates(Part):
    depth = 1

    def __init__(self, wish, shape):
        super().__init__(shape)
        self.gate, self.f = shape.pointwise(), shape.pointwise()
        self.kinds = (self.pointwise_kind,) * 2

    def forward(self, x):
        gate = self.gate(x).sigmoid()
        return gate * self.f(x) + (2 - gate) * x


class Pyramid(Part):
    """The deeper level is read by the lateral sum and beside it."""

    def __init__(self, wish, shape, chain):
        super().__init__(shape)
        self.inner = chain(wish.inner, shape)
        if not sum(part.depth for part in self.inner):
            self.inner = nn.ModuleList([Layer(wished.Layer(), shape), *self.inner])
        self.fine, self.coarse = shape.pointwise(), shape.pointwise()
        self.both = Shape(shape.tokens, 2 * shape.width, shape.side).pointwise(shape.width)
        self.depth = sum(part.depth for part in self.inner) + 2
        self.kinds = (*(kind for part in self.inner for kind in part.kinds), *(self.pointwise_kind,) * 3)

    def fused(self, x, deep):
        return self.both(torch.cat([self.fine(x) + self.coarse(deep), deep], self.shape.channels))

    def forward(self, x):
        if current() is not None:
            current().open_sum = None
        deep = x
        for part in self.inner:
            deep = part(deep)
        return self.fused(x, deep)

    def wire(self, value, wirer):
        deep = value
        for part in self.inner:
            deep = part.wire(deep, wirer)
        return joined(self.fused, value, deep)
