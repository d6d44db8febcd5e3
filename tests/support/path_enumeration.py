"""A slow, obvious twin of the path gradients: every path one by one, by ordinary autograd with gates.

Nothing here knows captured graphs, banks or routing. A network is written down a second time, by hand, as sums of terms
and what each term reads. Every read passes a gate that leaves the value as it is and lets its gradient through or not;
with the gates of one path open and all others shut, autograd's gradient is the gradient along that path.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from known_networks import CASES, Case
from networks import Alpha, Minus, Nested, Parallel, PostNorm, Residual, ReZero, ScaledSkip, Vectors, mlp
from torch import nn
from torch.nn import functional

OUTPUT = "output"
Way = tuple[str, int, str]
"""One step of a path: the sum (or the output) it leaves, the number of the term it takes, the node it goes on to."""


@dataclass(frozen=True)
class Term:
    """One term of a sum: a function of the nodes it reads, and the name of the block whose branch it is."""

    function: Callable
    reads: tuple[str, ...]
    block: str | None = None


@dataclass(frozen=True)
class Path:
    """A path, the blocks whose branches it takes, and the gradient along it at each tap."""

    ways: tuple[Way, ...]
    blocks: tuple[str, ...]
    gradients: tuple[torch.Tensor, ...]

    @property
    def length(self):
        return len(self.blocks)

    def squared_norms(self):
        """Return the squared norm for each sample, over all taps; shape `[B]`."""
        return squared_norms(self.gradients)


@dataclass(frozen=True)
class Wiring:
    """A network by hand: its inputs, its sums in execution order (terms as they are written), its outputs."""

    sums: dict[str, tuple[Term, ...]]
    outputs: tuple[Term, ...]
    inputs: tuple[str, ...] = ("x",)
    taps: tuple[str, ...] = field(default=())

    def terms(self, node):
        return self.outputs if node == OUTPUT else self.sums.get(node, ())

    @property
    def ends(self):
        """The nodes where paths end: the taps, by default the inputs."""
        return self.taps or self.inputs

    def ways(self, node=OUTPUT):
        """Yield every path from a node back to a tap."""
        if node in self.ends:
            yield ()
            return
        for number, term in enumerate(self.terms(node)):
            for read in term.reads:
                for rest in self.ways(read):
                    yield ((node, number, read), *rest)

    def run(self, inputs, is_open=lambda _: True):
        """Return the outputs and the values at the taps, with the gates of some ways open."""
        values = {}
        for name, value in zip(self.inputs, inputs, strict=True):
            values[name] = value.detach().requires_grad_(name in self.ends)

        def term_value(node, number, term):
            return term.function(*(gated(values[read], is_open((node, number, read))) for read in term.reads))

        for name, terms in self.sums.items():
            values[name] = sum(term_value(name, number, term) for number, term in enumerate(terms))
            if name in self.ends:
                values[name] = values[name].detach().requires_grad_()
        outputs = [term_value(OUTPUT, number, term) for number, term in enumerate(self.outputs)]
        return outputs, [values[name] for name in self.ends]

    def gradients(self, inputs, objective, is_open):
        """Return autograd's gradient of the summed objective at each tap, with the gates of some ways open."""
        outputs, taps = self.run(inputs, is_open)
        found = torch.autograd.grad(objective(outputs).sum(), taps, allow_unused=True)
        return tuple(torch.zeros_like(t) if g is None else g for g, t in zip(found, taps, strict=True))

    def enumerate(self, inputs, objective):
        """Return every path with its gradients."""
        return [
            Path(
                ways,
                tuple(block for node, number, _ in ways if (block := self.terms(node)[number].block)),
                self.gradients(inputs, objective, set(ways).__contains__),
            )
            for ways in self.ways()
        ]


def gated(value, is_open):
    """Return the value, whose gradient goes through the gate or stops."""
    held = value.detach()
    return held + float(is_open) * (value - held)


def squared_norms(gradients):
    return sum(gradient.flatten(1).square().sum(1) for gradient in gradients)


def summed(paths, key=lambda path: path.length):
    """Sum the gradients of the paths with equal keys, at each tap."""
    found = {}
    for path in paths:
        known = found.get(key(path))
        found[key(path)] = path.gradients if known is None else tuple(map(torch.add, known, path.gradients))
    return found


def after(*functions):
    """Compose functions, the first one first."""

    def composed(*values):
        first, *rest = functions
        value = first(*values)
        for function in rest:
            value = function(value)
        return value

    return composed


def identity(value):
    return value


def chain(stem, sums, head, between=identity):
    """Write down a chain of blocks: for each sum, functions of its source and the names of their blocks."""
    wired, read, enter = {}, "x", stem
    for number, terms in enumerate(sums):
        wired[f"y{number}"] = tuple(Term(after(enter, f), (read,), block) for f, block in terms)
        read, enter = f"y{number}", between
    return Wiring(wired, (Term(after(enter, head), (read,)),))


def pre_activation(model):
    sums = [[(identity, None), (block.branch, f"blocks.{i}")] for i, block in enumerate(model.blocks)]
    return chain(model.stem, sums, lambda y: model.head(y.relu().mean((2, 3))))


def post_activation(model):
    names = ("plain", "padded", "projected", "pooled")
    blocks = [model.get_submodule(name) for name in names]
    sums = [[(block.branch, name), (block.shortcut, None)] for name, block in zip(names, blocks, strict=True)]
    return chain(model.stem, sums, lambda y: model.head(y.mean((2, 3))), between=torch.relu)


def transformer(model):
    sums = []
    for i, layer in enumerate(model.layers):
        masked = lambda x, layer=layer: layer.attn(layer.norm1(x), model.mask)  # noqa: E731 - one line of a formula
        sums.append([(identity, None), (masked, f"layers.{i}.attn")])
        sums.append([(identity, None), (after(layer.norm2, layer.mlp), f"layers.{i}.mlp")])
    embed = lambda x: model.patches(x).flatten(2).transpose(1, 2) + model.position  # noqa: E731
    return chain(embed, sums, lambda y: model.head(y.mean(1)))


def parallel(model):
    sums = []
    for i, block in enumerate(model.middle):
        f, g, skip = (block.f, f"middle.{i}.f"), (block.g, f"middle.{i}.g"), (identity, None)
        sums.append([f, g, skip] if block.form == "right" else [skip, f, g])
    return chain(model.stem, sums, model.head)


def highway(model):
    sums = []
    for i, block in enumerate(model.middle):
        branch = lambda x, block=block: block.gate(x) * block.transform(x)  # noqa: E731
        skip = lambda x, block=block: (1 - block.gate(x)) * x  # noqa: E731
        sums.append([(branch, f"middle.{i}"), (skip, None)])
    return chain(model.stem, sums, model.head)


def scaled(model):
    """`Vectors(ReZero(), Alpha(), Minus(), ScaledSkip(), PostNorm())`."""
    rezero, alpha, minus, skip, norm = model.middle
    sums = [
        [(identity, None), (lambda x: rezero.alpha * rezero.branch(x), "middle.0")],
        [(identity, None), (lambda x: 0.2 * alpha.branch(x), "middle.1")],
        [(identity, None), (lambda x: -minus.branch(x), "middle.2")],
        [(lambda x: x * skip.factor, None), (skip.branch, "middle.3")],
        [(identity, None), (norm.branch, "middle.4")],
    ]
    return chain(model.stem, sums, after(norm.norm, model.head))


def nested(model):
    wired, read, enter = {}, "x", model.stem
    for i, block in enumerate(model.middle):
        first, second, last = block.branch
        a, b, y = f"a{i}", f"b{i}", f"y{i}"
        wired[a] = (
            Term(enter, (read,)),
            Term(after(enter, first.branch), (read,), f"middle.{i}.branch.0"),
        )
        wired[b] = (Term(identity, (a,)), Term(second.branch, (a,), f"middle.{i}.branch.1"))
        wired[y] = (Term(enter, (read,)), Term(last, (b,), f"middle.{i}"))
        read, enter = y, identity
    return Wiring(wired, (Term(model.head, (read,)),))


def dual_path(model):
    """The branch of the second block and the output read what was appended, around the sums."""

    def parts(x):
        x = model.stem(x)
        return x[:, :4], x[:, 4:]

    def branch1(x):
        return model.block1.branch(torch.cat(parts(x), 1))

    def dense1(x):
        return torch.cat([parts(x)[1], branch1(x)[:, 4:]], 1)

    def branch2(y1, x):
        return model.block2.branch(torch.cat([y1, dense1(x)], 1))

    def output(y2, y1, x):
        dense2 = torch.cat([dense1(x), branch2(y1, x)[:, 4:]], 1)
        return model.head(torch.cat([y2, dense2], 1).mean((2, 3)))

    sums = {
        "y1": (Term(lambda x: parts(x)[0], ("x",)), Term(lambda x: branch1(x)[:, :4], ("x",), "block1")),
        "y2": (Term(identity, ("y1",)), Term(lambda y1, x: branch2(y1, x)[:, :4], ("y1", "x"), "block2")),
    }
    return Wiring(sums, (Term(output, ("y2", "y1", "x")),))


def feature_pyramid(model):
    sums = {
        "y1": (Term(model.stem, ("x",)), Term(after(model.stem, model.block1.branch), ("x",), "block1")),
        "y2": (Term(model.down, ("y1",)), Term(after(model.down, model.block2.branch), ("y1",), "block2")),
    }

    def fine(y1, y2):
        return model.lateral1(y1) + functional.interpolate(model.lateral2(y2), scale_factor=2.0)

    return Wiring(sums, (Term(fine, ("y1", "y2")), Term(model.lateral2, ("y2",))))


def several_outputs(model):
    sums = {
        "y1": (Term(model.stem, ("x",)), Term(after(model.stem, model.blocks[0].branch), ("x",), "blocks.0")),
        "y2": (Term(identity, ("y1",)), Term(model.blocks[1].branch, ("y1",), "blocks.1")),
    }
    return Wiring(sums, (Term(model.head, ("y2",)), Term(identity, ("y2",)), Term(model.stem, ("x",))))


def two_inputs(model):
    def fused(left, right):
        return model.left(left) + model.right(right)

    reads = ("left", "right")
    sums = {"y": (Term(fused, reads), Term(after(fused, model.block.branch), reads, "block"))}
    return Wiring(sums, (Term(model.head, ("y",)),), inputs=reads)


class Exchange(nn.Module):
    """A block of one stream whose branch reads the other stream as well."""

    def __init__(self, width):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(2 * width, 7), nn.Tanh(), nn.Linear(7, width))

    def forward(self, own, other):
        return own + self.branch(torch.cat([own, other], 1))


class TwoStreams(nn.Module):
    """As CrossViT: two inputs, a stream each, one of them with a block of its own; they exchange, and both are read."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)
        self.block = Residual(mlp(3))
        self.to_left, self.to_right = Exchange(3), Exchange(3)
        self.head = nn.Linear(6, 5)

    def forward(self, left, right):
        left, right = self.block(self.left(left)), self.right(right)
        left, right = self.to_left(left, right), self.to_right(right, left)
        return self.head(torch.cat([left, right], 1).tanh())


def two_streams(model):
    def to_left(a, right):
        return model.to_left.branch(torch.cat([a, model.right(right)], 1))

    def to_right(right, a):
        return model.to_right.branch(torch.cat([model.right(right), a], 1))

    sums = {
        "a": (Term(model.left, ("left",)), Term(after(model.left, model.block.branch), ("left",), "block")),
        "b": (Term(identity, ("a",)), Term(to_left, ("a", "right"), "to_left")),
        "c": (Term(model.right, ("right",)), Term(to_right, ("right", "a"), "to_right")),
    }
    output = Term(lambda b, c: model.head(torch.cat([b, c], 1).tanh()), ("b", "c"))
    return Wiring(sums, (output,), inputs=("left", "right"))


class ClassBlock(nn.Module):
    """As CaiT: only the class token is changed, by attention over itself and all patches."""

    def __init__(self, width=4):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)

    def branch(self, token, patches):
        both = torch.cat([token, patches], 1)
        scores = self.query(token) @ self.key(both).transpose(1, 2)
        return self.project(scores.softmax(-1) @ self.value(both))

    def forward(self, token, patches):
        return token + self.branch(token, patches)


class ClassAttention(nn.Module):
    """Patches with a block of their own, then a class token, made of the first patches, that reads them twice."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.patch_block = Residual(mlp(4))
        self.start = nn.Linear(4, 4)
        self.class_blocks = nn.ModuleList([ClassBlock(), ClassBlock()])
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.embed(x)
        token = self.start(x.mean(1, keepdim=True))
        patches = self.patch_block(x)
        for block in self.class_blocks:
            token = block(token, patches)
        return self.head(token[:, 0])


def class_attention(model):
    first, second = model.class_blocks

    def start(x):
        return model.start(model.embed(x).mean(1, keepdim=True))

    sums = {
        "patches": (
            Term(model.embed, ("x",)),
            Term(after(model.embed, model.patch_block.branch), ("x",), "patch_block"),
        ),
        "c1": (
            Term(start, ("x",)),
            Term(lambda x, patches: first.branch(start(x), patches), ("x", "patches"), "class_blocks.0"),
        ),
        "c2": (Term(identity, ("c1",)), Term(second.branch, ("c1", "patches"), "class_blocks.1")),
    }
    return Wiring(sums, (Term(lambda c: model.head(c[:, 0]), ("c2",)),))


class WithLateral(nn.Module):
    """`x + f(x) + other`, where the other term comes from elsewhere and belongs to the trunk."""

    def __init__(self):
        super().__init__()
        self.branch = mlp()

    def forward(self, x, other):
        return x + self.branch(x) + other


class LongSkip(nn.Module):
    """Two blocks, and a weighted way around the second one into the sum of the third."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(7, 6)
        self.first, self.second = Residual(mlp()), Residual(mlp())
        self.lateral = nn.Linear(6, 6)
        self.third = WithLateral()
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        stem = self.stem(x)
        first = self.first(stem)
        return self.head(self.third(self.second(first), self.lateral(first.tanh() * stem)))


def long_skip(model):
    sums = {
        "y1": (Term(model.stem, ("x",)), Term(after(model.stem, model.first.branch), ("x",), "first")),
        "y2": (Term(identity, ("y1",)), Term(model.second.branch, ("y1",), "second")),
        "y3": (
            Term(identity, ("y2",)),
            Term(model.third.branch, ("y2",), "third"),
            Term(lambda y1, x: model.lateral(y1.tanh() * model.stem(x)), ("y1", "x")),
        ),
    }
    return Wiring(sums, (Term(model.head, ("y3",)),))


def score(outputs):
    return outputs[0][:, 2]


def of_maps(outputs):
    fine, coarse = outputs
    return (fine.square().sum((1, 2, 3))) + coarse.sin().sum((1, 2, 3))


def of_several(outputs):
    logits, features, stem = outputs
    return logits[:, 1].square() + features.sum(1) * 0.3 + stem.prod(1)


class Twin:
    """A small network in float64, its wiring by hand, and all its paths.

    Attributes:
        model: the network.
        inputs: a batch, one tensor per input.
        objective: function of the list of floating-point outputs, one number per sample.
        wiring: the network by hand.
    """

    def __init__(self, case, wire, objective=score, batch=2):
        self.model = case.model().double()
        self.inputs = case.inputs(batch, torch.float64)
        self.objective = objective
        self.wiring = wire(self.model)

    @cached_property
    def paths(self):
        return self.wiring.enumerate(self.inputs, self.objective)

    @property
    def counts(self):
        """How many paths have each length 0, 1, ..."""
        found = Counter(path.length for path in self.paths)
        return [found[length] for length in range(max(found) + 1)]

    def at(self, tap):
        """Return the same network with paths that end at one of its sums."""
        other = object.__new__(Twin)
        other.model, other.inputs, other.objective = self.model, self.inputs, self.objective
        other.wiring = Wiring(self.wiring.sums, self.wiring.outputs, self.wiring.inputs, (tap,))
        return other


def parameter_gradients_by_length(known):
    """Return the gradient of each parameter by path length: each path to a sum, then autograd through one term."""
    wiring = known.wiring
    parameters = dict(known.model.named_parameters())
    found = defaultdict(lambda: defaultdict(lambda: 0))

    def add(value, seed, length):
        if not value.requires_grad:
            return
        gradients = torch.autograd.grad(value, list(parameters.values()), seed, allow_unused=True, retain_graph=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                found[name][length] = found[name][length] + gradient

    everything = dict(zip(wiring.inputs, known.inputs, strict=True))
    for node, terms in wiring.sums.items():
        everything[node] = sum(t.function(*(everything[read] for read in t.reads)) for t in terms).detach()
    outputs = [t.function(*(everything[read] for read in t.reads)) for t in wiring.outputs]
    add(known.objective(outputs).sum(), None, 0)
    for node, terms in wiring.sums.items():
        for path in known.at(node).paths:
            for term in terms:
                value = term.function(*(everything[read] for read in term.reads))
                add(value, path.gradients[0], path.length + (term.block is not None))
    return found


VECTOR = ((7,),)

TWINS = {
    "pre-activation": (CASES["pre-activation"], pre_activation),
    "post-activation": (CASES["post-activation"], post_activation),
    "transformer": (CASES["transformer"], transformer),
    "parallel": (Case(lambda: Vectors(Parallel("left"), Parallel("stacked"), Parallel("right")), VECTOR), parallel),
    "nested": (Case(lambda: Vectors(Nested(), Nested()), VECTOR), nested),
    "highway": (CASES["highway"], highway),
    "scaled": (Case(lambda: Vectors(ReZero(), Alpha(), Minus(), ScaledSkip(), PostNorm()), VECTOR), scaled),
    "dual path": (CASES["dual path"], dual_path),
    "feature pyramid": (CASES["feature pyramid"], feature_pyramid, of_maps),
    "several outputs": (CASES["several outputs"], several_outputs, of_several),
    "two inputs": (CASES["two inputs"], two_inputs),
    "two streams": (Case(TwoStreams, ((4,), (5,))), two_streams),
    "class attention": (Case(ClassAttention, ((3, 3),)), class_attention),
    "long skip": (Case(LongSkip, VECTOR), long_skip),
}

CHAINS = {"pre-activation", "post-activation", "transformer", "highway", "scaled"}
"""The networks whose blocks follow one another: `2^n` paths, `C(n, k)` of length k."""

_made = {}


def twin(name):
    """Return a network and its enumeration, made once."""
    if name not in _made:
        _made[name] = Twin(*TWINS[name])
    return _made[name]
