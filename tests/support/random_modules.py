"""Random residual blocks as modules: each runs as a user would write it, and says what its blocks and paths are."""

import random_networks as wished
import random_parts as parts
import torch
from random_parts import Layer, Part
from random_recording import Known, current
from random_skips import Skip
from torch import nn


def branch_type(kinds):
    """Return what a branch is, None where the definitions leave it open."""
    if "attention" in kinds:
        return "attention"
    if "spatial" in kinds:
        return "convolution"
    if not kinds:
        return "pooling"
    return "mlp" if set(kinds) == {"linear"} else None


def chain(wishes, shape):
    """Build parts one after the other, each of which keeps the shape."""
    made = []
    for wish in wishes:
        after_sum = bool(made) and made[-1].is_open
        made.append(part(wish, shape, after_sum=after_sum))
    return nn.ModuleList(made)


def part(wish, shape, *, after_sum=False, free=False):
    """Build one part; a block on the trunk is `free` to change the shape."""
    if isinstance(wish, wished.Attention) and not shape.tokens:
        wish = wished.Layer()
    if isinstance(wish, wished.Block):
        return Block(wish, shape, free=free)
    if isinstance(wish, wished.Position):
        return parts.Position(wish, shape, in_place=after_sum)
    if isinstance(wish, wished.Pyramid):
        return parts.Pyramid(wish, shape, chain)
    blocks = {wished.Highway: Highway, wished.Lateral: Lateral, wished.Repeat: Repeat}
    made = blocks.get(type(wish)) or getattr(parts, type(wish).__name__)
    return made(wish, shape)


class Body(Part):
    """A branch, scaled or not; `alpha` is what is left to the sum."""

    def __init__(self, wish, shape, *, skip, alpha_allowed, open_allowed=False):
        super().__init__(skip.shape)
        out = skip.shape
        inner = wish.parts
        self.ends_open = wish.last is None and open_allowed and out == shape and may_end(inner)
        if self.ends_open and not isinstance(inner[0], wished.Layer):
            inner = (wished.Layer(), *inner)
        made = [*chain(inner, shape)]
        if not self.ends_open:
            made.append(Layer(wish.last or wished.Layer(), shape, out.width, shape.side // out.side))
        while sum(part.depth for part in made) <= skip.depth:
            made.insert(0, Layer(wished.Layer("gelu"), shape))
        self.inner = nn.ModuleList(made)
        self.depth = sum(part.depth for part in made)
        self.kinds = tuple(kind for part in made for kind in part.kinds)
        self.scale = "constant" if wish.scale == "alpha" and not alpha_allowed else wish.scale
        self.alpha = 0.6 if self.scale == "alpha" else 1
        if self.scale == "vector":
            self.vector = nn.Parameter(torch.rand(out.width))
        if self.scale == "scalar":
            self.factor = nn.Parameter(torch.tensor(0.4))
        self.drop = nn.Dropout(0.3)
        self.saved = self.inner[-1].saved and self.scale in {"none", "dropout", "alpha"}

    def forward(self, x):
        for step in self.inner:
            x = step(x)
        return self.scaled(x)

    def scaled(self, y):
        match self.scale:
            case "constant":
                return 0.3 * y
            case "divided":
                return y / 3
            case "vector":
                return y * self.shape.along_channels(self.vector)
            case "scalar":
                return self.factor * y
            case "dropout":
                return self.drop(y)
            case _:
                return y

    def wire(self, value, wirer):
        for step in self.inner:
            value = step.wire(value, wirer)
        return value.then(self.scaled)


def may_end(inner):
    """Whether a branch may end in its last part: a block whose sum is then a bracket of the outer sum.

    After a projection the inner terms would be as well branches of the outer source, so a layer has to follow.
    """
    last = inner[-1] if inner else None
    last = last.block if isinstance(last, wished.Repeat) else last
    if isinstance(last, wished.Highway):
        return True
    return (
        isinstance(last, wished.Block)
        and last.kind != "projection"
        and all(isinstance(branch, wished.Pooling) or branch.last is not None for branch in last.branches)
    )


class Pooling(Part):
    """The mixer of a PoolFormer block."""

    alpha = 1

    def __init__(self, wish, shape):
        super().__init__(shape)
        self.minus = wish.minus
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x):
        return self.pool(x) - x if self.minus else self.pool(x)


class Block(Part):
    def __init__(self, wish, shape, *, free):
        skip = Skip.of(wish, shape, free=free)
        super().__init__(skip.shape)
        self.wish, self.skip = wish, skip
        self.entry = nn.Sequential(shape.norm(), nn.ReLU()) if wish.entry else nn.Identity()
        self.bracket = wish.bracket
        if len(wish.branches) > 1 and self.bracket in {"layout", "minus"}:
            self.bracket = "halves"
        in_tree = self.bracket not in {"layout", "minus"}
        alphas = in_tree and self.bracket != "stack"
        self.skip_alpha = 0.8 if skip.form == "alpha" else 1
        made = []
        for branch in wish.branches:
            pooled = isinstance(branch, wished.Pooling)
            bare = skip.form in {"plain", "shifted"} or len(wish.branches) == 1
            if pooled and not shape.tokens and self.skip_kind == "identity" and bare:
                made.append(Pooling(branch, shape))
                continue
            body = wished.Body() if pooled else branch
            free_alpha = alphas and self.skip_alpha == 1 and all(other.alpha == 1 for other in made)
            # One branch beside a bare skip may end in a block: this much of bracketed nesting is told apart.
            free_end = skip.form == "plain" and not any(getattr(other, "ends_open", False) for other in made)
            made.append(Body(body, shape, skip=skip, alpha_allowed=free_alpha, open_allowed=free_end))
        self.branches = nn.ModuleList(made)
        self.post = following(wish.post, skip.shape)
        self.is_open = wish.post == "none" and in_tree
        self.depth = max(skip.depth, *(branch.depth for branch in made))
        self.kinds = (*skip.kinds, *(kind for branch in made for kind in branch.kinds))
        self.saved = wish.post in {"relu", "relu_"}

    @property
    def skip_kind(self):
        """A shift is a trunk term of a tree of additions, and part of the skip elsewhere."""
        in_tree = self.bracket not in {"layout", "minus"}
        return "scaled" if self.skip.form == "shifted" and not in_tree else self.skip.kind

    def forward(self, x):
        run = current()
        source = self.entry(x)
        if run is not None:
            run.open_sum = None
        skip = None if self.wish.skip_last else self.skip(source)
        branches, known = [], []
        for branch in self.branches:
            before = len(run.blocks) if run is not None else 0
            branches.append(self.laid_out(branch(source)))
            if run is not None:
                path = branch.path if any(True for _ in (*branch.parameters(), *branch.buffers())) else None
                inside = tuple(range(before, len(run.blocks)))
                known.append(
                    Known(self.path, path, self.skip_kind, branch_type(branch.kinds), branch.depth,
                          source.detach().clone(), branches[-1].detach().clone(), inside=inside)
                )  # fmt: skip
        if run is not None:
            first = len(run.blocks)
            branches = [value * 0 if first + at in run.off else value for at, value in enumerate(branches)]
        skip = self.skip(source) if self.wish.skip_last else skip
        total = self.sum_of(self.laid_out(skip), branches)
        if run is not None:
            run.close(known, total, is_open=self.is_open)
        return self.finished(total)

    def laid_out(self, value):
        return value.transpose(1, 2) if self.bracket == "layout" else value

    def finished(self, total):
        return finished(self, self.laid_out(total))

    def sum_of(self, skip, branches):
        """Add the terms in the order and by the brackets that were wished for."""
        if self.bracket == "minus":
            return (skip if self.skip_alpha == 1 else skip * self.skip_alpha) - branches[0]
        terms = [(0, skip, self.skip_alpha, True)]
        terms += [
            (key, value, branch.alpha, branch.saved)
            for key, value, branch in zip(self.wish.order, branches, self.branches, strict=True)
        ]
        terms = [term[1:] for term in sorted(terms, key=lambda term: term[0])]
        if self.bracket == "stack":
            return torch.stack([value if alpha == 1 else value * alpha for value, alpha, _ in terms]).sum(0)
        if self.bracket == "in place":
            return added_in_place(terms)
        return bracketed([term[:2] for term in terms], self.bracket)[0]

    def wire(self, value, wirer):
        source = value.then(self.entry)
        branches = [branch.wire(source, wirer) for branch in self.branches]
        factors = [-1 if self.bracket == "minus" else branch.alpha for branch in self.branches]
        scaled = [value.then(lambda y, a=a: a * y) for value, a in zip(branches, factors, strict=True)]
        skip = source.then(lambda x: self.skip_alpha * self.skip(x))
        # Cloned, since a value that is read several times is computed anew for each, from one tensor.
        return wirer.close(scaled, [skip]).then(lambda total: self.finished(self.laid_out(total.clone())))


def following(post, shape):
    """Return the module that follows a sum."""
    made = {"relu": nn.ReLU, "norm": shape.norm, "relu_": lambda: nn.ReLU(inplace=True)}
    return made.get(post, nn.Identity)()


def finished(block, total):
    return total * 0.5 if block.wish.post == "half" else block.post(total)


def added(one, other):
    """Add two terms; `torch.add` scales its second operand."""
    (a, alpha), (b, beta) = one, other
    if alpha != 1:
        return torch.add(b, a, alpha=alpha), 1
    return (a + b if beta == 1 else torch.add(a, b, alpha=beta)), 1


def bracketed(terms, bracket):
    if len(terms) == 1:
        return terms[0]
    at = {"left": len(terms) - 1, "right": 1, "layout": 1, "halves": len(terms) // 2}[bracket]
    return added(bracketed(terms[:at], bracket), bracketed(terms[at:], bracket))


def added_in_place(terms):
    """`y += f(x)`, on a copy where the first term may not be changed."""
    if terms[0][1] != 1:
        terms[:2] = terms[1::-1]
    total, _, saved = terms[0]
    total = total.clone() if saved else total
    for value, alpha, _ in terms[1:]:
        if alpha == 1:
            total += value
        else:
            total.add_(value, alpha=alpha)
    return total


class Highway(Part):
    depth = 1

    def __init__(self, wish, shape):
        super().__init__(shape)
        self.wish = wish
        self.gate = nn.Sequential(shape.pointwise(), nn.Sigmoid())
        self.transform = Layer(wish.body, shape)
        self.kinds = (self.pointwise_kind, *self.transform.kinds)
        self.post = following(wish.post, shape)
        self.is_open = wish.post == "none"
        self.saved = wish.post in {"relu", "relu_"}

    def forward(self, x):
        run = current()
        gate = self.gate(x)
        branch, skip = gate * self.transform(x), (1 - gate) * x
        if run is not None:
            known = Known(
                self.path, self.path, "gated", branch_type(self.kinds), 1, x.detach().clone(), branch.detach().clone()
            )
            branch = branch * 0 if len(run.blocks) in run.off else branch
        total = skip + branch if self.wish.swapped else branch + skip
        if run is not None:
            run.close([known], total, is_open=self.is_open)
        return finished(self, total)

    def wire(self, value, wirer):
        branch = value.then(lambda x: self.gate(x) * self.transform(x))
        skip = value.then(lambda x: x - self.gate(x) * x)
        return wirer.close([branch], [skip]).then(lambda total: finished(self, total.clone()))


class Lateral(Part):
    is_open = True

    def __init__(self, wish, shape):
        super().__init__(shape)
        self.wish = wish
        self.before = Layer(wish.before, shape)
        plain = Skip("identity", "plain", shape, shape.width, 1)
        self.body = Body(wish.body, shape, skip=plain, alpha_allowed=False)
        self.lateral = nn.Sequential(nn.GELU(), shape.pointwise())
        self.depth = 1 + self.body.depth
        self.kinds = (*self.before.kinds, *self.body.kinds, self.pointwise_kind)

    def forward(self, x):
        run = current()
        u, other = self.before(x), self.lateral(x)
        branch = self.body(u)
        if run is not None:
            known = Known(
                self.path, self.body.path, "identity", branch_type(self.body.kinds), self.body.depth,
                u.detach().clone(), branch.detach().clone(),
            )  # fmt: skip
            branch = branch * 0 if len(run.blocks) in run.off else branch
        if self.wish.bracket == "stack":
            total = torch.stack([u, branch, other]).sum(0)
        else:
            total = u + branch + other if self.wish.bracket == "left" else u + (branch + other)
        if run is not None:
            run.close([known], total, is_open=True)
        return total

    def wire(self, value, wirer):
        u = value.then(self.before)
        return wirer.close([self.body.wire(u, wirer)], [u, value.then(self.lateral)])


class Repeat(Part):
    def __init__(self, wish, shape):
        super().__init__(shape)
        self.block, self.times = part(wish.block, shape), wish.times
        self.depth, self.kinds = self.times * self.block.depth, self.block.kinds
        self.is_open, self.saved = self.block.is_open, self.block.saved

    def forward(self, x):
        for _ in range(self.times):
            x = self.block(x)
        return x

    def wire(self, value, wirer):
        for _ in range(self.times):
            value = self.block.wire(value, wirer)
        return value
