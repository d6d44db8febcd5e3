"""A description becomes a network that can run, be recorded, and write its paths down."""

import random_networks as wished
import torch
from networks import randomised
from random_modules import part
from random_parts import Layer, Shape
from random_recording import Run, Value, Wirer, recording
from torch import nn


class RandomNetwork(nn.Module):
    """The network of a description, in float64 and eval mode, with everything that is known of it."""

    def __init__(self, description):
        super().__init__()
        self.description = description
        width = 3 if description.stem else 4
        self.input_shape = Shape(description.tokens, width, 3 if description.tokens else 4)
        stem = wished.Layer("none", pointwise=description.tokens)
        self.stem = Layer(stem, self.input_shape, 4) if description.stem else nn.Identity()
        shape = Shape(description.tokens, 4, self.input_shape.side)
        made = []
        for wish in description.trunk:
            made.append(part(wish, shape, after_sum=bool(made) and made[-1].is_open, free=True))
            shape = made[-1].shape
        self.trunk = nn.ModuleList(made)
        self.positions = shape.positions
        self.last = nn.Linear(shape.width, 5) if description.head else None

    def forward(self, x):
        x = self.stem(x)
        for step in self.trunk:
            x = step(x)
        return self.head(x)

    def head(self, x):
        return x if self.last is None else self.last(x.mean(self.positions))

    def inputs(self, batch=2):
        generator = torch.Generator().manual_seed(7)
        return torch.randn(batch, *self.input_shape.sizes, generator=generator, dtype=torch.float64)

    def run(self, x, off=()):
        """Run eagerly; return the output and the record, with some branches multiplied by zero."""
        with recording(Run(frozenset(off))) as run, torch.no_grad():
            return self(x), run

    def wiring(self):
        """Write the network down a second time, as sums of terms."""
        wirer = Wirer()
        value = Value(self.stem, ("x",))
        for step in self.trunk:
            value = step.wire(value, wirer)
        return wirer.wiring(value.then(self.head))


def build(description):
    """Return the network of a description; equal descriptions give equal networks."""
    torch.manual_seed(description.seed)
    network = randomised(RandomNetwork(description), description.seed).double().eval()
    for path, module in network.named_modules():
        module.path = path
    return network
