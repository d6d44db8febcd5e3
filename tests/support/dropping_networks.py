"""A network that leaves its own blocks out by hand, the oracle of training on chosen paths."""

from functools import cache

import torch
from networks import randomised
from torch import nn

import resnet_paths_plugin as rpp


class Block(nn.Module):
    """Post-activation, with a projection where the shape changes; left out or scaled in Python."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out, momentum=0.3)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut = None
        if stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x, runs=True, scale=1.0):
        skip = x if self.shortcut is None else self.shortcut(x)
        if not runs:
            return torch.relu(skip)
        branch = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(skip + (branch if scale == 1 else scale * branch))


class Dropping(nn.Module):
    """The hand-written net: `dropped` names the blocks that are left out, `scale` has the factors of branches."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        shapes = [(4, 4, 1), (4, 4, 1), (4, 6, 2), (6, 6, 1), (6, 6, 1)]
        self.blocks = nn.ModuleList(Block(*shape) for shape in shapes)
        self.head = nn.Linear(6, 5)
        self.dropped = frozenset()
        self.scale = {}

    def forward(self, x):
        x = self.stem(x)
        for at, block in enumerate(self.blocks):
            name = f"blocks.{at}"
            x = block(x, name not in self.dropped, self.scale.get(name, 1.0))
        return self.head(x.mean((2, 3)))


def images(batch=4, size=8, seed=0, dtype=torch.float64):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dropping():
    torch.manual_seed(1)
    return randomised(Dropping()).double()


@cache
def unraveled():
    """Return the network of such a model, for tests to which the statistics of its batch norms do not matter."""
    return rpp.unravel(dropping(), images())


def names(blocks):
    return [block.name for block in blocks]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_same_tensors(expected, found, context):
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), (context, name)


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def loss_of(outputs):
    """A number that every output's every element changes."""
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    return sum((leaf * torch.linspace(0.5, 1.5, leaf.numel()).view_as(leaf)).sum() for leaf in leaves)
