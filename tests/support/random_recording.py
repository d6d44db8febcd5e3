"""What a random network knows of itself: one run of its own code, recorded, and its sums written down a second time.

Nothing here knows captured graphs. `Run` is filled while the modules of `random_modules` run eagerly, and multiplies
branches by zero where it is told to; `Value` and `Wirer` make the wiring that `path_enumeration` enumerates.
"""

from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from path_enumeration import Term, Wiring, after, identity

_CURRENT = ContextVar("run", default=None)


@dataclass(eq=False)
class Known:
    """One residual block as the module that runs it states it.

    Attributes:
        owner: path of the module that owns the sum.
        branch_path: path of the module that is the branch; None where it has no tensors of its own.
        skip_kind: what the skip does.
        branch_type: what the branch is made of; None where the definitions leave it open.
        depth: longest chain of weighted operations in the branch.
        source: value of the source.
        branch: value of the branch, as the sum reads it.
        sum: value of the sum, the whole tree of additions.
        joint: number of the sum, the same for parallel blocks.
        inside: numbers of the blocks inside the branch.
    """

    owner: str
    branch_path: str | None
    skip_kind: str
    branch_type: str | None
    depth: int
    source: torch.Tensor
    branch: torch.Tensor
    sum: torch.Tensor | None = None
    joint: int = -1
    inside: tuple[int, ...] = ()


@dataclass(eq=False)
class Run:
    """One eager run of a random network.

    Attributes:
        off: numbers of the blocks whose branches are multiplied by zero.
        blocks: the blocks in the order in which their sums are closed.
        open_sum: the very tensor of the last sum while an addition that reads it alone would continue it.
    """

    off: frozenset[int] = frozenset()
    blocks: list[Known] = field(default_factory=list)
    open_sum: torch.Tensor | None = None
    _joints: int = 0
    _last: tuple[Known, ...] = ()

    def close(self, blocks, total, *, is_open):
        """Take down the blocks of one sum."""
        for block in blocks:
            block.sum, block.joint = total.detach().clone(), self._joints
        self._joints += 1
        self._last = tuple(blocks)
        self.blocks.extend(blocks)
        self.open_sum = total if is_open else None

    def continue_sum(self, total):
        """The last sum goes on in another addition, which is now the whole tree's; its blocks keep their owners."""
        for block in self._last:
            block.sum = total.detach().clone()
        self.open_sum = total


def current():
    """Return the run that is being recorded, or None."""
    return _CURRENT.get()


@contextmanager
def recording(run):
    token = _CURRENT.set(run)
    try:
        yield run
    finally:
        _CURRENT.reset(token)


def names_of(blocks):
    """Return the blocks' names as DESIGN has them: the owner, the branch where there are several, a number per run."""
    joints = {block.owner: [b.joint for b in blocks if b.owner == block.owner] for block in blocks}
    bases = []
    for block in blocks:
        several = len(joints[block.owner]) > len(set(joints[block.owner]))
        below = block.branch_path is not None and block.branch_path.startswith(f"{block.owner}.")
        bases.append(block.branch_path if several and below else block.owner)
    return [
        base if bases.count(base) == 1 else f"{base}:{bases[: place + 1].count(base)}"
        for place, base in enumerate(bases)
    ]


@dataclass(frozen=True)
class Value:
    """A value as a function of the nodes that it reads directly."""

    function: Callable
    reads: tuple[str, ...]

    def then(self, function):
        return Value(after(self.function, function), self.reads)


def joined(function, *values):
    """Return a function of several values as one value."""
    reads = tuple(dict.fromkeys(read for value in values for read in value.reads))

    def of_all(*nodes):
        given = dict(zip(reads, nodes, strict=True))
        return function(*(value.function(*(given[read] for read in value.reads)) for value in values))

    return Value(of_all, reads)


class Wirer:
    """Collects the sums of a network as they are written down."""

    def __init__(self):
        self.sums = {}
        self.blocks = 0

    def close(self, branches, others):
        """Write down a sum: its branches, each a block, then its skip and its trunk terms."""
        terms = []
        for value in branches:
            terms.append(Term(value.function, value.reads, str(self.blocks)))
            self.blocks += 1
        terms += [Term(value.function, value.reads) for value in others]
        name = f"y{len(self.sums)}"
        self.sums[name] = tuple(terms)
        return Value(identity, (name,))

    def wiring(self, output):
        return Wiring(self.sums, (Term(output.function, output.reads),))
