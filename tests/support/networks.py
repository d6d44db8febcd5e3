"""Small networks whose residual blocks are known because they are written here, one for each form of block.

Every branch is a submodule, so that the oracle of a lesion is a copy of the model with that submodule's output
multiplied by zero.
"""

import copy
import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def randomised(model, seed=0):
    """Give norms random statistics and every parameter a value other than its initial one.

    A fresh batch norm is an identity, and a LayerScale of zero hides its branch: both would let errors pass.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.copy_(torch.empty(tensor.shape).uniform_(low, high, generator=generator))

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                uniform(module.running_mean, -0.3, 0.3)
                uniform(module.running_var, 0.6, 1.4)
        for parameter in model.parameters():
            if parameter.ndim <= 1 or parameter.abs().max() < 1e-3:
                uniform(parameter, 0.4, 1.2) if parameter.ndim == 1 else uniform(parameter, 0.1, 0.5)
    return model


class Zeroed(nn.Module):
    """Runs a module and multiplies what it returns by zero."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        value = self.module(*args, **kwargs)
        return (
            tuple(part * 0 if i == 0 else part for i, part in enumerate(value))
            if isinstance(value, tuple)
            else value * 0
        )


def without(model, *paths):
    """Return a copy in eval mode whose submodules at these paths return zeros: the lesion by hand."""
    patched = copy.deepcopy(model).eval()
    for path in paths:
        patched.set_submodule(path, Zeroed(patched.get_submodule(path)))
    return patched


def state_of(model):
    """Return everything about a model and the random number generators that an analysis could change."""
    return {
        "values": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "identity": {name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]},
        "requires_grad": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: [
                len(getattr(module, kind))
                for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
            ]
            for name, module in model.named_modules()
        },
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002 - the global generator is what is asked for
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
    }


def assert_same_state(before, after):
    for name, tensor in before["values"].items():
        assert torch.equal(tensor, after["values"][name]), name
    assert torch.equal(before["torch"], after["torch"])
    for kind in before.keys() - {"values", "torch"}:
        assert before[kind] == after[kind], kind


def convolution(channels, out=None, stride=1, kernel=3):
    """Pre-activated: batch norm, ReLU, convolution."""
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, out or channels, kernel, stride=stride, padding=kernel // 2, bias=False),
    )


class Residual(nn.Module):
    """`x + branch(x)`."""

    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


class PreActivation(nn.Module):
    def __init__(self, blocks=3, channels=4, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(
            *(Residual(nn.Sequential(convolution(channels), convolution(channels))) for _ in range(blocks))
        )
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).relu().mean((2, 3)))


class Shortcut(nn.Module):
    """Option A: every second pixel, new channels zero."""

    def forward(self, x):
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))


class PostActivationBlock(nn.Module):
    def __init__(self, channels, out, stride, shortcut):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut = shortcut

    def forward(self, x):
        y = self.branch(x)
        y += self.shortcut(x)
        return functional.relu_(y)


class PostActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.plain = PostActivationBlock(4, 4, 1, nn.Identity())
        self.padded = PostActivationBlock(4, 8, 2, Shortcut())
        self.projected = PostActivationBlock(
            8, 6, 2, nn.Sequential(nn.Conv2d(8, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6))
        )
        self.pooled = PostActivationBlock(
            6, 6, 1, nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
        )
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.pooled(self.projected(self.padded(self.plain(self.stem(x))))).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x, mask=None):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.project(y.transpose(1, 2).reshape(batch, tokens, width))


class BiasedAttention(Attention):
    """Attention by hand, with a relative position bias and a mask added to the scores."""

    def __init__(self, width, heads=2, tokens=9):
        super().__init__(width, heads)
        self.bias = nn.Parameter(torch.randn(heads, tokens, tokens))

    def forward(self, x, mask=None):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) + self.bias
        if mask is not None:
            scores = scores + mask
        return self.project((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width))


class EncoderLayer(nn.Module):
    def __init__(self, width, attention=Attention):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x, mask=None):
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Patch embedding, position embedding, two pre-norm layers, the second one masked and biased."""

    def __init__(self, width=8):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, stride=2)
        self.position = nn.Parameter(torch.randn(1, 9, width))
        self.register_buffer("mask", torch.zeros(9, 9).masked_fill(torch.ones(9, 9).tril() == 0, -5.0))
        self.layers = nn.ModuleList([EncoderLayer(width), EncoderLayer(width, BiasedAttention)])
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            x = layer(x, self.mask)
        return self.head(x.mean(1))


class Parallel(nn.Module):
    """`x + f(x) + g(x)`, bracketed as asked."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.f = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.g = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))

    def forward(self, x):
        if self.form == "left":
            return x + self.f(x) + self.g(x)
        if self.form == "right":
            return self.f(x) + (self.g(x) + x)
        return torch.stack([x, self.f(x), self.g(x)]).sum(0)


class Vectors(nn.Module):
    """A stem, some middle part of width 6, and a head."""

    def __init__(self, *middle):
        super().__init__()
        self.stem = nn.Linear(7, 6)
        self.middle = nn.Sequential(*middle)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.middle(self.stem(x)))


def mlp(width=6):
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 9), nn.GELU(), nn.Linear(9, width))


class Nested(nn.Module):
    """A block whose branch holds two blocks and a layer after them."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(Residual(mlp()), Residual(mlp()), nn.Linear(6, 6))

    def forward(self, x):
        return x + self.branch(x)


class Highway(nn.Module):
    def __init__(self):
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.gate = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid())

    def forward(self, x):
        gate = self.gate(x)
        return gate * self.transform(x) + (1 - gate) * x


class ReZero(nn.Module):
    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.3))
        self.branch = mlp()

    def forward(self, x):
        return x + self.alpha * self.branch(x)


class Alpha(nn.Module):
    """`torch.add(alpha=)` scales the branch."""

    def __init__(self):
        super().__init__()
        self.branch = mlp()

    def forward(self, x):
        return torch.add(x, self.branch(x), alpha=0.2)


class Minus(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = mlp()

    def forward(self, x):
        return x - self.branch(x)


class ScaledSkip(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.rand(6) + 0.5)
        self.branch = mlp()

    def forward(self, x):
        return x * self.factor + self.branch(x)


class PostNorm(nn.Module):
    """As in the first transformers: the norm after the sum belongs to the trunk."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))
        self.norm = nn.LayerNorm(6)

    def forward(self, x):
        return self.norm(x + self.branch(x))


class Res2Net(nn.Module):
    """A block whose branch sums the neighbours of a split: those inner sums close no block."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 1)
        self.parts = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))
        self.last = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        pieces = torch.split(self.first(x).relu(), 2, 1)
        outputs = [pieces[0]]
        carried = pieces[0]
        for piece, part in zip(pieces[1:], self.parts, strict=True):
            carried = part(carried + piece).relu()
            outputs.append(carried)
        return x + self.last(torch.cat(outputs, 1))


class Res2Nets(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Res2Net(), Res2Net())
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class FeaturePyramid(nn.Module):
    """Two residual blocks, then lateral sums of two weighted operands. Returns one map per level."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block1 = Residual(convolution(4))
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.block2 = Residual(convolution(4))
        self.lateral1 = nn.Conv2d(4, 4, 1)
        self.lateral2 = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        fine = self.block1(self.stem(x))
        coarse = self.block2(self.down(fine))
        top = self.lateral2(coarse)
        return {"fine": self.lateral1(fine) + functional.interpolate(top, scale_factor=2.0), "coarse": top}


class DualPathBlock(nn.Module):
    """Adds to the first four channels, appends two more: the skip is one slice, the sum is judged on it."""

    def __init__(self, channels):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 1))

    def forward(self, residual, dense):
        y = self.branch(torch.cat([residual, dense], 1))
        return residual + y[:, :4], torch.cat([dense, y[:, 4:]], 1)


class DualPath(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block1 = DualPathBlock(6)
        self.block2 = DualPathBlock(8)
        self.head = nn.Linear(10, 5)

    def forward(self, x):
        x = self.stem(x)
        residual, dense = self.block2(*self.block1(x[:, :4], x[:, 4:]))
        return self.head(torch.cat([residual, dense], 1).mean((2, 3)))


class InPlaceBlock(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )

    def forward(self, x):
        x = x.clone()
        x += self.branch(x)
        return x.relu_()


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(InPlaceBlock(), InPlaceBlock())
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class ResponseNorm(nn.Module):
    """Global response normalisation (ConvNeXt V2): `x + gamma * (x * n(x)) + beta` is no residual block."""

    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width))
        self.beta = nn.Parameter(torch.rand(width))

    def forward(self, x):
        norm = x.norm(dim=(2, 3), keepdim=True)
        norm = norm / (norm.mean(1, keepdim=True) + 1e-6)
        gamma, beta = (p.view(1, -1, 1, 1) for p in (self.gamma, self.beta))
        return x + torch.addcmul(beta, gamma, x * norm)


class SqueezeGate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1 = nn.Conv2d(width, 3, 1)
        self.fc2 = nn.Conv2d(3, width, 1)

    def forward(self, x):
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Gated(nn.Module):
    """One block with a response norm, one with a squeeze gate, and a squeeze gate on the trunk."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block1 = Residual(nn.Sequential(nn.Conv2d(4, 8, 1), ResponseNorm(8), nn.Conv2d(8, 4, 1)))
        self.gate = SqueezeGate(4)
        self.block2 = Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), SqueezeGate(4)))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.block2(self.gate(self.block1(self.stem(x)))).mean((2, 3)))


class Pooling(nn.Module):
    """PoolFormer: the mixer is a pooling minus its input, scaled per channel."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.mixer = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.mlp = nn.Sequential(nn.Conv2d(4, 8, 1), nn.GELU(), nn.Conv2d(8, 4, 1))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.mixer(x)
        x = x + self.mlp(x)
        return self.head(x.mean((2, 3)))


class Repeated(nn.Module):
    """One module that runs three times."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(7, 6)
        self.block = Residual(mlp())
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = self.block(x)
        return self.head(x)


class Plain(nn.Module):
    """As VGG: no sums."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3)))


class Dense(nn.Module):
    """As DenseNet: concatenates where a residual network adds."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList(convolution(4 + 2 * i, 2) for i in range(3))
        self.head = nn.Linear(10, 5)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(x.mean((2, 3)))


class TwoInputs(nn.Module):
    """Adds two inputs of its own: the sum is a fusion, the block after it is one."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(7, 6)
        self.right = nn.Linear(4, 6)
        self.block = Residual(mlp())
        self.head = nn.Linear(6, 5)

    def forward(self, left, right):
        return self.head(self.block(self.left(left) + self.right(right)))


class SeveralOutputs(nn.Module):
    """Returns logits, a feature map and a constant, nested."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(7, 6)
        self.blocks = nn.Sequential(Residual(mlp()), Residual(mlp()))
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        features = self.blocks(self.stem(x))
        return self.head(features), {"features": features, "stem": [self.stem(x), 3]}
