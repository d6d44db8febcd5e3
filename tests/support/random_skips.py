"""The skips of random blocks that are not gated: identities, scalings and projections, each written in many ways."""

import torch
from random_parts import Part, Shape
from torch import nn
from torch.nn import functional


class Skip(Part):
    """The skip of a block that is not gated."""

    def __init__(self, kind, form, shape, out, stride):
        super().__init__(Shape(shape.tokens, out, shape.side // stride))
        self.kind, self.form = kind, form
        self.stride = stride
        norm = self.shape.norm
        if form in {"vector", "affine", "shifted"}:
            self.vector = nn.Parameter(torch.rand(out))
        if form == "scalar":
            self.factor = nn.Parameter(torch.tensor(0.5))
        made = {
            "dropout": lambda: [nn.Dropout(0.5)],
            "batch norm": lambda: [norm()],
            "1x1": lambda: [shape.pointwise(out, stride)],
            "1x1 and norm": lambda: [shape.pointwise(out, stride), norm()],
            "average": lambda: [nn.AvgPool2d(2) if stride > 1 else nn.AvgPool2d(3, 1, 1)],
            "maximum": lambda: [nn.MaxPool2d(3, stride, 1)],
            "average and 1x1": lambda: [nn.AvgPool2d(3, stride, 1), shape.pointwise(out), norm()],
            "depthwise and 1x1": lambda: [
                nn.Linear(shape.width, shape.width)
                if shape.tokens
                else nn.Conv2d(shape.width, shape.width, 3, stride, 1, groups=shape.width),
                shape.pointwise(out),
            ],
        }
        self.steps = nn.Sequential(*made.get(form, list)())
        self.depth = {"1x1": 1, "1x1 and norm": 1, "average and 1x1": 1, "depthwise and 1x1": 2}.get(form, 0)
        self.kinds = ("linear",) * self.depth if shape.tokens else ("pointwise", "spatial")[: self.depth]

    @classmethod
    def of(cls, wish, shape, *, free):
        """Take the skip that was wished for, or the next one that fits the shape."""
        stride = 2 if free and wish.stride and not shape.tokens and shape.side == 4 else 1
        out = 10 - shape.width if free and wish.wide else shape.width
        kind, form = wish.kind, wish.form
        if kind != "projection":
            stride, out = 1, shape.width
        elif shape.tokens:
            form = "depthwise and 1x1" if form == "depthwise and 1x1" else "1x1"
        elif form in {"average", "maximum"}:
            out = shape.width
        elif form == "slice and pad" and (out < shape.width or (out, stride) == (shape.width, 1)):
            form = "1x1"
        if form == "batch norm" and shape.tokens:
            form = "vector"
        return cls(kind, form, shape, out, stride)

    def forward(self, x):
        return FORMS[self.form](self, x) if self.form in FORMS else self.steps(x)


def sliced_and_padded(skip, x):
    """Option A: every second position, new channels zero."""
    more = skip.shape.width - x.shape[1]
    taken = x[:, :, :: skip.stride, :: skip.stride]
    return functional.pad(taken, (0, 0, 0, 0, more // 2, more - more // 2))


FORMS = {
    "view": lambda skip, x: x.flatten(1).unflatten(1, skip.shape.sizes),
    "batch view": lambda _, x: x.flatten(0, 1).unflatten(0, (-1, x.shape[1])),
    "permute": lambda _, x: x.transpose(1, 2).transpose(1, 2),
    "roll": lambda _, x: x.roll(1, dims=2),
    "flip": lambda _, x: x.flip(2),
    "clone": lambda _, x: x.clone(),
    "constant": lambda _, x: x * 0.7,
    "negative": lambda _, x: -0.7 * x,
    "divided": lambda _, x: x / 1.7,
    "scalar": lambda skip, x: x * skip.factor,
    "vector": lambda skip, x: skip.shape.along_channels(skip.vector) * x,
    "affine": lambda skip, x: x * 1.2 + skip.shape.along_channels(skip.vector),
    "shifted": lambda skip, x: x + skip.shape.along_channels(skip.vector),
    "slice and pad": sliced_and_padded,
}
"""Skips without layers. `permute` makes nothing contiguous: export may leave that out, which changes the last bits."""
