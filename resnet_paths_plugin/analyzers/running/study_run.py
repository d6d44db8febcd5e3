"""StudyRun: one study under way. Its units are given out, kept as they finish, and their results put in order."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from resnet_paths_plugin import datasets
from resnet_paths_plugin.analyzers.running.checkpoint import CONTENT, RESULT, Facts, UnitFolder, sync_folder
from resnet_paths_plugin.analyzers.running.fingerprints import fingerprint
from resnet_paths_plugin.analyzers.running.options import RunOptions
from resnet_paths_plugin.analyzers.running.settings import Settings
from resnet_paths_plugin.analyzers.running.units import Arrays, Samples, Stage, Unit, units
from resnet_paths_plugin.analyzers.running.workers import Crew
from resnet_paths_plugin.errors import CheckpointError, ResnetPathsError
from resnet_paths_plugin.network import UnraveledNetwork
from resnet_paths_plugin.streaming import SampleFile, SamplesInMemory

_WRITTEN_ONCE = ("title", "summary", "history", "date_created", "references", "Conventions")
"""Attributes of a result that say nothing of what it is made from, or when."""


@dataclass(eq=False)
class _Pending:
    """A unit on its way: a future, then its results.

    Attributes:
        unit: the unit.
        data: fingerprint of its samples.
        future: what its results come by.
        arrays: its results.
        tries: how often it was given out.
        writing: held by who writes its results, which the thread that they arrive in may do.
        settled: whether its results are written, or are not to be any more.
    """

    unit: Unit
    data: str
    future: "Future[Arrays] | None" = None
    arrays: Arrays | None = None
    tries: int = 1
    writing: Lock = field(default_factory=Lock)
    settled: bool = False


class StudyRun:
    """Runs the stages of one study and gathers its result; to be used in a `with` statement.

    Args:
        network: the network.
        options: how to run; None is the default.
        attrs: the attributes that the result will have, which say what the study is.
        facts: what else decides the result and is known beforehand, by name; compared by fingerprint.
        sizes: how many samples, say, a unit holds, by name. A checkpoint keeps those that it was begun with.
        show_progress: whether to show progress bars.

    Raises:
        CheckpointError: on entering, if there is a checkpoint of another call.
        FileError: if the checkpoint cannot be written.
    """

    def __init__(
        self,
        network: UnraveledNetwork,
        options: RunOptions | None,
        attrs: Mapping[str, object],
        *,
        facts: Mapping[str, object],
        sizes: Mapping[str, int],
        show_progress: bool = False,
    ) -> None:
        self.network = network
        self.options = RunOptions.of(options)
        self.show_progress = show_progress
        self.sizes: Mapping[str, int] = sizes
        self._target: Path | None = None
        self._folder: UnitFolder | None = None
        self._file: SampleFile | None = None
        self._n_samples: int | None = None
        self._made_by: dict[str, str] = {}
        self._under_way: list[Generator[tuple[Samples, list[Arrays]], None, None]] = []
        checkpoint = self.options.checkpoint
        if isinstance(checkpoint, UnitFolder):
            self._folder = checkpoint
        elif checkpoint is not None:
            self._target = datasets.writable(checkpoint)
            self._folder = UnitFolder(f"{self._target}.partial")
        self._said: Facts = {} if self._folder is None else _call(network, attrs, facts)

    def __enter__(self) -> Self:
        if self._folder is None:
            return self
        self._folder.open(self._said)
        try:
            self.sizes = self._folder.settled("units.json", self.sizes)
        except BaseException:
            self._folder.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for pieces in self._under_way:
                pieces.close()  # what has been given out is called off, and what is done is kept
            if self._file is not None:
                self._file.discard()
            if self._folder is None:
                return
            if error is None:
                if self._target is not None:
                    self._folder.remove()
            elif self._target is not None and not isinstance(error, CheckpointError) and not len(self._folder):
                with suppress(ResnetPathsError):
                    self._folder.remove()  # nothing is finished, and nothing is lost
            elif _goes_on(error) and (kept := len(self._folder)):
                error.add_note(
                    f"{kept} finished units are kept in {self._folder.path}: the same call goes on from them."
                )
        finally:
            if self._folder is not None:
                self._folder.close()

    def pieces(
        self, stage: Stage, samples: Iterable[Samples], total: int | None
    ) -> Iterator[tuple[Samples, list[Arrays]]]:
        """Iterate over pieces of samples and the results of their units, in order, as soon as they are there.

        Args:
            stage: what is done with the samples.
            samples: the pieces, read as units are given out, a bounded number ahead.
            total: number of samples, where it is known.
        """
        self._n_samples = total
        pieces = self._pieces(stage, samples, total)
        self._under_way.append(pieces)
        return pieces

    def _pieces(
        self, stage: Stage, samples: Iterable[Samples], total: int | None
    ) -> Generator[tuple[Samples, list[Arrays]], None, None]:
        if self._folder is not None:
            facts = _work_facts(stage)
            self._folder.agree(f"{stage.name}.json", facts)
            self._made_by[stage.name] = fingerprint((facts, self.sizes))
        groups: list[Arrays] = []
        with (
            Crew(self.options.executor, self.network, stage.work, _device(self.options)) as crew,
            tqdm(total=total, disable=not self.show_progress, unit="sample", desc=stage.name) as progress,
        ):
            for unit, arrays in self._in_order(stage, units(iter(samples), stage.work.n_groups), crew):
                groups.append(arrays)
                if len(groups) == stage.work.n_groups:
                    yield unit.samples, groups
                    groups = []
                    progress.update(unit.samples[0].size)

    def gather(self, blocks: Iterable[xr.Dataset]) -> xr.Dataset:
        """Join the results of pieces along `sample`, in memory or in the checkpoint's file.

        Args:
            blocks: the results, in order. Variables without dim `sample` are taken from the last one.

        Returns:
            The result; with a checkpoint's file, opened from there.
        """
        if self._target is None or self._folder is None:
            memory = SamplesInMemory()
            for block in blocks:
                memory.add(block)
            return memory.result()
        # Inside the folder, so that nothing is left beside it if the process is killed.
        self._file = SampleFile(self._folder.path / RESULT, self._n_samples)
        for block in blocks:
            self._file.add(block)
        self._file.finish(self._target)
        with suppress(OSError):
            sync_folder(self._target.parent)
        return datasets.opened(self._target)

    def _in_order(self, stage: Stage, stream: Iterator[Unit], crew: Crew) -> Iterator[tuple[Unit, Arrays]]:
        pending: deque[_Pending] = deque()
        try:
            for unit in stream:
                pending.append(self._begun(stage, unit, crew))
                self._take_finished(stage, pending, crew)
                while pending and (pending[0].arrays is not None or len(pending) >= crew.most_in_flight):
                    yield self._first(stage, pending, crew)
            while pending:
                yield self._first(stage, pending, crew)
        except BaseException:
            self._rescue(stage, pending)
            raise

    def _begun(self, stage: Stage, unit: Unit, crew: Crew) -> _Pending:
        """Return a unit with its results if they are kept, else give it out."""
        begun = _Pending(unit, fingerprint(unit.samples) if self._folder is not None else "")
        if self._folder is not None:
            begun.arrays = self._folder.read(_name(stage, unit), begun.data, unit.about, self._made_by[stage.name])
        if begun.arrays is None:
            begun.future = crew.submit(unit)
            if not begun.future.done():
                self._watch(stage, begun, begun.future)
        return begun

    def _take_finished(self, stage: Stage, pending: Iterable[_Pending], crew: Crew) -> None:
        for one in pending:
            if one.future is not None and one.future.done():
                self._arrived(stage, one, crew)

    def _first(self, stage: Stage, pending: deque[_Pending], crew: Crew) -> tuple[Unit, Arrays]:
        """Return the first unit's results, and keep those of others that arrive before."""
        while pending[0].arrays is None:
            wait([one.future for one in pending if one.future is not None], return_when=FIRST_COMPLETED)
            self._take_finished(stage, pending, crew)
        first = pending.popleft()
        assert first.arrays is not None  # noqa: S101 - the loop above ends with it
        return first.unit, first.arrays

    def _arrived(self, stage: Stage, one: _Pending, crew: Crew) -> None:
        assert one.future is not None  # noqa: S101 - asked for by the callers
        found = crew.result(one.future, one.unit, one.tries)
        if isinstance(found, Future):
            one.future, one.tries = found, one.tries + 1
            self._watch(stage, one, found)
            return
        one.future, one.arrays = None, found
        self._keep(stage, one, found)

    def _watch(self, stage: Stage, one: _Pending, future: "Future[Arrays]") -> None:
        """See a unit's results written when they arrive, while the caller may be waiting for data."""
        if self._folder is not None:
            future.add_done_callback(partial(self._keep_at_once, stage, one))

    def _keep_at_once(self, stage: Stage, one: _Pending, future: "Future[Arrays]") -> None:
        if future.cancelled() or future.exception() is not None:
            return
        with suppress(Exception):  # the caller's thread tries again, and tells of it
            self._keep(stage, one, future.result())

    def _keep(self, stage: Stage, one: _Pending, arrays: Arrays) -> None:
        """Write a unit's results, unless they are written."""
        if self._folder is None:
            return
        with one.writing:
            if not one.settled:
                self._folder.write(_name(stage, one.unit), one.data, arrays, self._made_by[stage.name])
                one.settled = True

    def _rescue(self, stage: Stage, pending: Iterable[_Pending]) -> None:
        """Keep what has finished by now, and call the rest off."""
        for one in pending:
            future = one.future
            if future is not None and not future.cancel() and future.done() and future.exception() is None:
                with suppress(ResnetPathsError):  # a full disk, which is what is being told of
                    self._keep(stage, one, future.result())
            with one.writing:
                one.settled = True  # the folder may soon be another process's


def _goes_on(error: BaseException) -> bool:
    """Whether the same call may succeed when what an error tells of is mended; a refused checkpoint says what to do."""
    if isinstance(error, CheckpointError):
        return False
    return isinstance(error, ResnetPathsError | KeyboardInterrupt | MemoryError | torch.OutOfMemoryError)


def _name(stage: Stage, unit: Unit) -> str:
    return f"{stage.name}-{unit.index:08d}"


def _device(options: RunOptions) -> str | None:
    return None if options.device is None else str(options.device)


def _call(network: UnraveledNetwork, attrs: Mapping[str, object], facts: Mapping[str, object]) -> Facts:
    """Return what decides the result of a study, as far as it is known before the data are read."""
    said = {
        name.removeprefix("argument_"): value if isinstance(value, str | int | float) else str(value)
        for name, value in attrs.items()
        if name not in _WRITTEN_ONCE
    }
    constants = {node.name: value for node, value in network.graph.constants.items() if isinstance(value, Tensor)}
    own = {"constants of the graph": constants, "facts of the blocks": [asdict(block) for block in network.blocks]}
    return {
        **said,
        "blocks": ", ".join(block.name for block in network.blocks),
        "operators of the graph": network.graph_digest(),
        **Settings.here().facts(),
        **{f"{CONTENT}{name}": fingerprint(value) for name, value in {**own, **facts}.items()},
    }


def _work_facts(stage: Stage) -> Facts:
    """Return a fingerprint of each part of a stage's work."""
    return {f"{CONTENT}{name}": fingerprint(value) for name, value in vars(stage.work).items()}
