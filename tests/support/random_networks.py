"""Random residual networks: a strategy that draws descriptions, plain and printable; `random_building` builds them.

A description says what is wished for; where a wish does not fit (a stride in a map of odd size), `random_modules`
takes the next thing that does, so that every description is a network and shrinks freely.
"""

from dataclasses import dataclass, field

import hypothesis.strategies as st

ACTIVATIONS = ("none", "relu", "gelu", "tanh", "relu_")
IDENTITIES = ("plain", "view", "batch view", "permute", "roll", "flip", "dropout", "clone", "shifted")
SCALED = ("constant", "negative", "divided", "vector", "scalar", "batch norm", "affine", "alpha")
PROJECTIONS = ("1x1", "1x1 and norm", "average", "average and 1x1", "maximum", "slice and pad", "depthwise and 1x1")
SCALES = ("none", "constant", "divided", "vector", "scalar", "dropout", "alpha")
POSTS = ("none", "relu", "relu_", "norm", "half")


@dataclass(frozen=True)
class Layer:
    """A weighted operation (3x3 or 1x1 convolution, linear layer), with a norm and an activation before or after."""

    activation: str = "relu"
    norm: bool = False
    pointwise: bool = False
    first: bool = False


@dataclass(frozen=True)
class Attention:
    """Self-attention; in networks of images a layer stands in for it."""

    mask: bool = False
    fused: bool = True


@dataclass(frozen=True)
class Gate:
    """Squeeze and excitation: a product, no sum."""


@dataclass(frozen=True)
class Position:
    """A sum with a constant: a parameter, a buffer, one computed from nothing, or a number; also in place."""

    form: str = "parameter"
    first: bool = False
    in_place: bool = False


@dataclass(frozen=True)
class ResponseNorm:
    """Global response normalisation: `x + gamma * (x * n(x)) + beta`."""


@dataclass(frozen=True)
class Swish:
    """`x + sigmoid(x) * x`: no weighted operation."""


@dataclass(frozen=True)
class Split:
    """Res2Net: the second half of the channels is added to what was made of the first half."""


@dataclass(frozen=True)
class Slice:
    """Half of the channels are added to: that half is no identity of the whole."""


@dataclass(frozen=True)
class Fusion:
    """A sum of two weighted operands of equal depth."""

    activation: str = "none"


@dataclass(frozen=True)
class Activated:
    """`tanh(x) + f(x)`: a skip through an activation that the branch does not read."""


@dataclass(frozen=True)
class TwoGates:
    """`t(x) f(x) + (2 - t(x)) x`: the gates are no complements."""


@dataclass(frozen=True)
class Pyramid:
    """Feature pyramid: a lateral sum of two weighted operands; what the deeper one is made of is read elsewhere too."""

    inner: tuple = (Layer(),)


@dataclass(frozen=True)
class Pooling:
    """The branch of a PoolFormer block: a windowed pooling, with or without its input subtracted."""

    minus: bool = False


@dataclass(frozen=True)
class Body:
    """A branch: parts, among them blocks, and a layer after them; only after a block may it be left out."""

    parts: tuple = ()
    last: Layer | None = Layer()
    scale: str = "none"


@dataclass(frozen=True)
class Block:
    """A residual block, or several on one sum.

    Attributes:
        kind: identity, scaled or projection.
        form: which one of the kind.
        branches: each a `Body` or `Pooling`.
        order: of the terms in the sum, as sort keys of the branches; the skip's is zero.
        bracket: how the terms are added: from the left, from the right, in two halves, as a stack, in place, in another
            layout of dimensions, or as a difference; the last two of two terms.
        post: what follows the sum.
        entry: whether norm and activation before the block are read by skip and branch alike.
        wide: whether a projection changes the number of channels.
        stride: whether a projection halves the map.
        skip_last: whether the skip is computed after the branches.
    """

    kind: str = "identity"
    form: str = "plain"
    branches: tuple = (Body(),)
    order: tuple = (1,)
    bracket: str = "left"
    post: str = "none"
    entry: bool = False
    wide: bool = False
    stride: bool = False
    skip_last: bool = False


@dataclass(frozen=True)
class Highway:
    """`t(x) f(x) + (1 - t(x)) x`."""

    body: Layer = Layer()
    swapped: bool = False
    post: str = "none"


@dataclass(frozen=True)
class Lateral:
    """`u + f(u) + g(x)` with `u = h(x)`: the last term comes from elsewhere and belongs to the trunk."""

    before: Layer = Layer()
    body: Body = Body()
    bracket: str = "left"


@dataclass(frozen=True)
class Repeat:
    """One module that runs several times."""

    block: Block | Highway = Block()
    times: int = 2


@dataclass(frozen=True)
class Network:
    """A stem or none, the trunk, and a head or none; of images or of tokens."""

    trunk: tuple = ()
    tokens: bool = False
    stem: bool = True
    head: bool = True
    seed: int = field(default=0, compare=True)


layers = st.builds(
    Layer, st.sampled_from(("relu", "none", "gelu", "tanh", "relu_")), st.booleans(), st.booleans(), st.booleans()
)
"""Layers; the first of every choice is the simplest, to which hypothesis shrinks."""

distractors = st.one_of(
    st.builds(
        Position, st.sampled_from(("parameter", "buffer", "computed", "number")), st.booleans(), st.booleans()
    ),
    st.builds(Gate),
    st.builds(ResponseNorm),
    st.builds(Swish),
    st.builds(Split),
    st.builds(Slice),
    st.builds(Fusion, st.sampled_from(("none", "relu"))),
    st.builds(Activated),
    st.builds(TwoGates),
    st.builds(Pyramid, st.tuples(layers) | st.tuples(layers, layers)),
)  # fmt: skip
plain_parts = layers | st.builds(Attention, st.booleans(), st.booleans()) | distractors
scales = st.sampled_from(SCALES)
posts = st.sampled_from(POSTS)


def bodies(nesting):
    """Branches; those that nest hold one or two blocks, with or without layers around them."""
    flat = st.builds(Body, st.lists(plain_parts, max_size=2).map(tuple), layers, scales)
    if not nesting:
        return flat
    inner = st.lists(blocks(nesting - 1), min_size=1, max_size=2)
    before = st.lists(layers | distractors, max_size=1)
    nested = st.builds(
        Body, st.builds(lambda a, b: (*a, *b), before, inner), st.none() | layers, st.sampled_from(SCALES[:4])
    )
    return flat | nested


@st.composite
def residual(draw, nesting):
    kind = draw(st.sampled_from(("identity", "scaled", "projection")))
    form = draw(st.sampled_from({"identity": IDENTITIES, "scaled": SCALED, "projection": PROJECTIONS}[kind]))
    pooling = st.builds(Pooling, st.booleans())
    branch = bodies(nesting) | pooling if kind == "identity" else bodies(nesting)
    branches = tuple(draw(st.lists(branch, min_size=1, max_size=draw(st.sampled_from((1, 1, 2, 3))))))
    order = tuple(draw(st.lists(st.sampled_from((1, -1, 2, -2)), min_size=len(branches), max_size=len(branches))))
    bracket = st.sampled_from(("left", "right", "halves", "stack", "in place", "layout", "minus"))
    return Block(
        kind, form, branches, order, draw(bracket), draw(posts),
        entry=draw(st.booleans()), wide=draw(st.booleans()), stride=draw(st.booleans()), skip_last=draw(st.booleans()),
    )  # fmt: skip


def blocks(nesting):
    """Everything that closes residual blocks."""
    highway = st.builds(Highway, layers, st.booleans(), posts)
    # Lateral sums beside a block are not drawn: a projection may have a pre-activation of its own, and theirs has one.
    one = residual(nesting) | highway
    return one | st.builds(Repeat, residual(0) | highway, st.integers(2, 3))


@st.composite
def networks(draw, size=4, nesting=2, *, head=False):
    """Descriptions of networks: `size` parts on the trunk at most, blocks `nesting` deep, all with a `head` or some."""
    block = blocks(nesting)
    part = st.one_of(block, block, block, distractors, layers)
    return Network(
        tuple(draw(st.lists(part, min_size=1, max_size=size))),
        tokens=draw(st.booleans()),
        stem=not draw(st.booleans()),
        head=head or not draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
    )
