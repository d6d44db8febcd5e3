"""Tasks: some samples and one group of what is done with them. Each is pure and can be run anywhere."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from resnet_paths_plugin.execution.batches import Batch
from resnet_paths_plugin.execution.fingerprints import Unchanging
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

Arrays = Mapping[str, NDArray[Any]]
"""The results of a task by name."""

Samples = tuple[Batch, ...]
"""What a task reads: the samples that it is about, and whatever else it needs of the data."""

Job = Callable[[int, Samples], Arrays]
"""Runs one group of a stage's work on some samples."""


class Work(Protocol):
    """What a stage does with samples: a plain value that can be pickled, sent once to each worker."""

    @property
    def n_groups(self) -> int:
        """How many tasks the work on one piece of samples is cut into."""

    def on(self, network: UnraveledNetwork) -> Job:
        """Return what runs a task on a network; called once in each thread that runs tasks."""


@runtime_checkable
class ChecksModel(Protocol):
    """Work that checks its results against the user's own model, which is not sent to other processes."""

    def with_check(self, network: UnraveledNetwork, samples: Samples) -> Samples:
        """Return the samples with what the user's model says of them, for a job on a network that was sent."""


class Piece(Unchanging[Batch]):
    """The samples that the tasks of all groups share, and what is computed once for them."""

    def __init__(self, _: Iterable[Batch]) -> None:
        self._packed: dict[object, bytes] = {}

    def packed_by(self, packer: object, pack: Callable[[Samples], bytes]) -> bytes:
        """Return the samples as bytes; each packer packs them once."""
        if packer not in self._packed:
            self._packed[packer] = pack(tuple(self))
        return self._packed[packer]


@dataclass(frozen=True, eq=False)
class Stage:
    """One pass over some data.

    Attributes:
        name: names the stage and its files.
        work: what is done with the samples.
    """

    name: str
    work: Work


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a stage.

    Attributes:
        index: its place in the stage, from 0; pieces of samples come one after the other, each with all its groups.
        group: which group of the work it does.
        samples: what it does it with.
        first: number of the first sample that it is about.
    """

    index: int
    group: int
    samples: Piece
    first: int

    @property
    def about(self) -> str:
        """The samples, in words."""
        return f"samples {self.first} to {self.first + self.samples[0].size - 1}"


def tasks(pieces: Iterator[Samples], n_groups: int) -> Iterator[Task]:
    """Yield the tasks of a stage in their order."""
    first = index = 0
    for piece in pieces:
        # Copies, so that values lie in memory in the same way wherever a task is run.
        samples = Piece(batch.copied() for batch in piece)
        for group in range(n_groups):
            yield Task(index, group, samples, first)
            index += 1
        first += samples[0].size


def slices(length: int, size: int) -> Sequence[slice]:
    """Return slices of at most `size` that cover a length."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
