"""Skips that are more than one operator after the other: windows, parts put back, values read further back."""

import pytest
import torch
from networks import Vectors, randomised
from torch import nn
from torch.nn import functional

import resnet_paths_plugin as rpp

WIDTH = 6


class Module(nn.Module):
    """A sum with a branch of two linear layers, `deep`, and one linear layer, `plain`."""

    def __init__(self):
        super().__init__()
        self.deep = nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, WIDTH))
        self.plain = nn.Linear(WIDTH, WIDTH)


class Tokens(nn.Module):
    """Eight tokens of six features, a middle part, and their mean."""

    def __init__(self, middle):
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.middle = middle
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(self.middle(self.stem(x)).mean(1))


def tokens(middle):
    model = randomised(Tokens(middle)).eval()
    return model, torch.randn(3, 8, WIDTH)


def windows(x):
    return x.view(x.shape[0], 2, -1, x.shape[-1])


class WindowMaximum(Module):
    """As in Hiera: the skip is a maximum over windows, the branch pools inside."""

    def forward(self, x):
        return windows(self.plain(x)).amax(1) + windows(self.deep(x)).mean(1)


class WindowMaximumWithIndices(Module):
    def forward(self, x):
        return windows(x).max(1).values + windows(self.deep(x)).mean(1)


class MaximumBesideMean(Module):
    """As in Hiera where the width grows: both poolings of one value, put together."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, 2 * WIDTH))
        self.narrow = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        skip = torch.cat([windows(x).amax(1), windows(x).mean(1)], -1)
        return self.narrow(torch.tanh(skip + windows(self.wide(x)).mean(1)))


class ClassTokenPutBack(Module):
    """As in MViT: the class token is split off, the others are pooled, both are put together."""

    def forward(self, x):
        return self.pooled(x) + self.pooled(self.deep(x))

    @staticmethod
    def pooled(x):
        first, others = torch.tensor_split(x, (1,), dim=1)
        return torch.cat([first, functional.avg_pool1d(others.transpose(1, 2), 3, 2).transpose(1, 2)], 1)


class AllSlices(Module):
    def forward(self, x):
        return torch.cat([x[:, :2], x[:, 2:]], 1) + self.deep(x)


class Swapped(Module):
    def forward(self, x):
        a, b = x.chunk(2, 1)
        return torch.cat([b, a], 1) + self.deep(x)


class ClassTokenAlone(Module):
    """As in XCiT: the sum is over all tokens, and only the class token goes through the layers of the branch."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        x = torch.cat([self.norm(x[:, :1]), x[:, 1:]], 1)
        return x + torch.cat([self.deep(x[:, :1]), x[:, 1:]], 1)


class PaddedByConcatenation(Module):
    """ResNet's option A, written with a concatenation."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, WIDTH + 2))
        self.narrow = nn.Linear(WIDTH + 2, WIDTH)

    def forward(self, x):
        zeros = torch.zeros(x.shape[0], x.shape[1], 2, dtype=x.dtype)
        return self.narrow(torch.tanh(torch.cat([x, zeros], -1) + self.wide(x)))


class ValuesBesideAttention(nn.Module):
    """As in EfficientFormerV2: a convolution of the values is added to attention over them.

    From the values on, both are one weighted operation; from the layer's input on, attention is more.
    """

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.local = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        value = self.value(x)
        attention = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1)
        return torch.tanh(attention @ value + self.local(value))


class AlsoRead(ValuesBesideAttention):
    """The same, but the queries are read outside as well: a lateral sum, as far as a weighted skip goes."""

    def forward(self, x):
        value, query = self.value(x), self.query(x)
        attention = (query @ self.key(x).transpose(1, 2)).softmax(-1)
        return torch.tanh(attention @ value + self.local(value)) * query.sigmoid()


@pytest.mark.parametrize(
    ("middle", "kind"),
    [
        (WindowMaximum, "projection"),
        (WindowMaximumWithIndices, "projection"),
        (MaximumBesideMean, "projection"),
        (ClassTokenPutBack, "projection"),
        (AllSlices, "identity"),
        (Swapped, "identity"),
        (ClassTokenAlone, "identity"),
        (PaddedByConcatenation, "projection"),
        (ValuesBesideAttention, "projection"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_sum_is_one_block_with_this_skip(middle, kind):
    model, x = tokens(middle())
    net = rpp.unravel(model, x)
    assert [block.skip_kind for block in net.blocks] == [kind]
    assert torch.equal(net(x), model(x))


class OnePartTwice(Module):
    """Slices that overlap: as many elements as the source, and not all of it."""

    def forward(self, x):
        return torch.cat([x[:, :4], x[:, :4]], 1) + self.deep(x)


class Overlapping(Module):
    def forward(self, x):
        return torch.cat([x[:, :6], x[:, 4:6]], 1) + self.deep(x)


class Floored(Module):
    """The larger of a value and a constant: an activation function, spelt as a maximum."""

    def forward(self, x):
        return torch.maximum(x, torch.zeros(WIDTH)) + self.deep(x)


class MaximumOfTwo(Module):
    def forward(self, x):
        return torch.max(x, torch.zeros(WIDTH)) + self.deep(x)


class OneOfASplit(Module):
    def forward(self, x):
        a, b = x.chunk(2, 1)
        return torch.cat([a + self.deep(b), b], 1)


class AcrossDimensions(Module):
    """A half of the tokens beside a half of the features: no whole."""

    def forward(self, x):
        tokens, features = x[:, :4], x[:, :, :3].reshape(x.shape[0], 4, WIDTH)
        return torch.cat([tokens, features], 1) + self.deep(x)


class MaximumOfAll(Module):
    """A maximum over all tokens is no pooling of windows."""

    def forward(self, x):
        return x.amax(1, keepdim=True) + self.deep(x).mean(1, keepdim=True)


class ActivationOnTheWay(Module):
    """A weighted operation on either side of the shorter way's activation: a fusion of unlike depths."""

    def __init__(self):
        super().__init__()
        self.short = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.long = nn.Sequential(self.deep, nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        return torch.tanh(self.short(x) + self.long(x))


class PartOfAnActivation(Module):
    """As in a transformer layer with one projection for attention and MLP: both begin with parts of one value."""

    def __init__(self):
        super().__init__()
        self.wide, self.last = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        a, b = self.wide(x).chunk(2, -1)
        return torch.tanh(self.plain(a.relu()) + self.deep(b))


class OneReadOutside(Module):
    """A value inside one long way is read outside: this way is no branch, nor is the other, which shares a value."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.fourth = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        shared = self.first(x).relu()
        inside = self.third(shared).relu()
        return torch.tanh(self.plain(x) + self.second(shared) + self.fourth(inside)) * inside.sigmoid()


@pytest.mark.parametrize(
    "middle",
    [
        OnePartTwice, Overlapping, OneOfASplit, AcrossDimensions, AlsoRead, Floored, MaximumOfTwo, MaximumOfAll,
        ActivationOnTheWay, PartOfAnActivation, OneReadOutside,
    ],
)  # fmt: skip
def test_parts_that_are_not_the_whole_and_lateral_sums_are_no_skips(middle):
    model, x = tokens(middle())
    assert rpp.unravel(model, x).blocks == ()


@pytest.mark.parametrize("middle", [WindowMaximum, ClassTokenPutBack, ClassTokenAlone, MaximumBesideMean])
def test_a_lesion_leaves_what_the_skip_makes_of_the_source(middle):
    model, x = tokens(middle().double())
    model, x = model.double(), x.double()
    lesioned = rpp.unravel(model, x).lesioned(0)(x)
    last = model.middle.wide[2] if middle is MaximumBesideMean else model.middle.deep[2]
    if middle is ClassTokenAlone:  # its branch passes the other tokens on, so that the oracle is written out
        value = model.stem(x)
        value = torch.cat([model.middle.norm(value[:, :1]), value[:, 1:]], 1)
        expected = model.head(value.mean(1))
    else:
        with torch.no_grad():
            last.weight.zero_()
            last.bias.zero_()
        expected = model(x)
    torch.testing.assert_close(lesioned, expected, rtol=1e-12, atol=1e-12)


class GhostInside(nn.Module):
    """As in RepGhostNet: a projection around a branch that ends in a sum of its own with a scaled skip."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.cheap = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.shortcut = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        inner = self.first(x)
        return torch.tanh(self.shortcut(x) + (self.cheap(inner) + self.norm(inner)))


def test_a_scaled_skip_inside_the_branch_of_a_projection_is_a_block_of_its_own():
    model, x = randomised(Vectors(GhostInside())).eval().double(), torch.randn(3, 7, dtype=torch.float64)
    net = rpp.unravel(model, x)
    assert [block.skip_kind for block in net.blocks] == ["scaled", "projection"]
    block, value = model.middle[0], model.stem(x)
    inner = block.first(value)
    inside = model.head(torch.tanh(block.shortcut(value) + block.norm(inner)))
    around = model.head(torch.tanh(block.shortcut(value)))
    torch.testing.assert_close(net.lesioned(0)(x), inside, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(net.lesioned(1)(x), around, rtol=1e-12, atol=1e-12)


def test_a_term_of_the_trunk_beside_a_block_stays_where_it_is():
    class WithTrunk(Module):
        def forward(self, x):
            return x + self.deep(x) + torch.ones(WIDTH).cumsum(0) * x.mean()

    (block,) = rpp.unravel(Vectors(WithTrunk()), torch.randn(3, 7)).blocks
    assert block.skip_kind == "identity"
