"""StudyRun: one study under way. Its tasks are given out, kept as they finish, and their results put in order."""

import os
import re
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from resnet_paths_plugin.errors import CheckpointError, InputError, ResnetPathsError, WorkerLostError
from resnet_paths_plugin.execution.checkpoint import CONTENT, RESULT, SIZES, WORK, Facts, TaskFolder
from resnet_paths_plugin.execution.fingerprints import fingerprint, fingerprints_of_code
from resnet_paths_plugin.execution.options import RunOptions
from resnet_paths_plugin.execution.tasks import Arrays, Samples, Stage, Task, tasks
from resnet_paths_plugin.execution.torch_settings import Settings
from resnet_paths_plugin.execution.worker_pool import WorkerPool
from resnet_paths_plugin.files.output_files import writable_netcdf
from resnet_paths_plugin.graph.process_state import Forgiving, kept_generators
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.results import datasets
from resnet_paths_plugin.results.opened_files import opened
from resnet_paths_plugin.results.sample_writer import SampleFile, SamplesInMemory

_WRITTEN_ONCE = ("title", "summary", "history", "date_created", "references", "Conventions", "verified")
"""Attributes of a result that say nothing of what it is made from, or when."""

_STAGE_NAME = re.compile(r"\w[\w -]{0,99}")
"""Names of stages, which begin the names of files."""


@dataclass(eq=False)
class _Pending:
    """A task on its way: a future, then its results.

    Attributes:
        task: the task.
        data: fingerprint of its samples.
        future: what its results come by.
        arrays: its results.
        tries: how often it was given out.
        writing: held by who writes its results, which the thread that they arrive in may do.
        settled: whether its results are written, or are not to be any more.
    """

    task: Task
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
        sizes: how many samples, say, a task holds, by name. A checkpoint keeps those that it was begun with.
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
        self._folder: TaskFolder | None = None
        self._file: SampleFile | None = None
        self._n_samples: int | None = None
        self._made_by: dict[str, str] = {}
        self._stages: set[str] = set()
        self._under_way: list[Generator[tuple[Samples, list[Arrays]], None, None]] = []
        self._kept = ExitStack()  # of the generators, which a model that is run may draw from
        checkpoint = self.options.checkpoint
        if isinstance(checkpoint, TaskFolder):
            self._folder = checkpoint
        elif checkpoint is not None:
            self._target = writable_netcdf(checkpoint)
            self._folder = TaskFolder(f"{self._target}.partial")
        self._said: Facts = {} if self._folder is None else _call(network, attrs, facts)

    def __enter__(self) -> Self:
        if self._folder is None:
            self._hold_modes()
            return self
        self._folder.open(self._said)
        try:
            self.sizes = self._folder.settled(SIZES, self.sizes)
        except BaseException:
            self._folder.close()
            raise
        self._hold_modes()
        return self

    def _hold_modes(self) -> None:
        self._kept.enter_context(torch.inference_mode(mode=False))  # where no gradient can be had
        self._kept.enter_context(kept_generators())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.network.check.forget()
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
                    f"{kept} finished tasks are kept in {self._folder.path}: the same call goes on from them."
                )
        finally:
            self._kept.close()
            if self._folder is not None:
                self._folder.close()

    def pieces(
        self, stage: Stage, samples: Iterable[Samples], total: int | None
    ) -> Iterator[tuple[Samples, list[Arrays]]]:
        """Iterate over pieces of samples and the results of their tasks, in order, as soon as they are there.

        Args:
            stage: what is done with the samples.
            samples: the pieces, read as tasks are given out, a bounded number ahead.
            total: number of samples, where it is known.

        Raises:
            InputError: if the stage's name cannot begin a file's name, or is that of an earlier stage.
        """
        self._check_name(stage.name)
        self._n_samples = total
        pieces = self._pieces(stage, samples, total)
        self._under_way.append(pieces)
        return pieces

    def _check_name(self, name: object) -> None:
        if not isinstance(name, str) or not _STAGE_NAME.fullmatch(name):
            raise InputError(
                f"{name!r} cannot name a study or stage, since it names files: it must have 1 to 100 letters, digits, "
                "'_', '-' and spaces, and begin with a letter, a digit or '_'"
            )
        if name in self._stages:
            raise InputError(f"{name!r} names two stages of one study, whose files have these names: rename the study")
        self._stages.add(name)

    def _pieces(
        self, stage: Stage, samples: Iterable[Samples], total: int | None
    ) -> Generator[tuple[Samples, list[Arrays]], None, None]:
        if self._folder is not None:
            facts = _work_facts(stage)
            self._folder.agree(f"{stage.name}{WORK}", facts)
            self._made_by[stage.name] = fingerprint((facts, self.sizes))
        groups: list[Arrays] = []
        with (
            self._worker_pool(stage) as pool,
            self._progress(stage, total) as progress,
        ):
            for task, arrays in self._in_order(stage, tasks(iter(samples), stage.work.n_groups), pool):
                groups.append(arrays)
                if len(groups) == stage.work.n_groups:
                    yield task.samples, groups
                    groups = []
                    progress.update(task.samples[0].size)

    def _progress(self, stage: Stage, total: int | None) -> "tqdm[Any]":
        # A notebook puts a stream of its own there, and has a bar of its own.
        file = Forgiving(sys.stderr) if sys.stderr is sys.__stderr__ else None
        hidden = not self.show_progress or sys.stderr is None
        return tqdm(total=total, disable=hidden, unit="sample", desc=stage.name, file=file)

    def _worker_pool(self, stage: Stage) -> WorkerPool:
        options = self.options
        waits = options.wait_for_workers
        return WorkerPool(options.executor, self.network, stage.work, _device(options), wait_for_workers=waits)

    def gather(self, blocks: Iterable[xr.Dataset]) -> xr.Dataset:
        """Join the results of pieces along `sample`, in memory or in the checkpoint's file.

        Args:
            blocks: the results, in order. Variables without dim `sample` are taken from the last one.

        Returns:
            The result; with a checkpoint's file, opened from there.
        """
        if self._target is None or self._folder is None:
            memory = SamplesInMemory()
            try:
                for block in blocks:
                    memory.add(block)
            except WorkerLostError as error:
                if self._folder is None and memory.n_samples:
                    error.add_note(_saved(memory))
                raise
            return memory.result()
        # Inside the folder, so that nothing is left beside it if the process is killed.
        self._file = SampleFile(self._folder.path / RESULT, self._n_samples)
        for block in blocks:
            self._file.add(block)
        self._file.finish(self._target)
        return opened(self._target)

    def _in_order(self, stage: Stage, stream: Iterator[Task], pool: WorkerPool) -> Iterator[tuple[Task, Arrays]]:
        pending: deque[_Pending] = deque()
        try:
            for task in stream:
                pending.append(self._begun(stage, task, pool))
                self._take_finished(stage, pending, pool)
                while pending and (pending[0].arrays is not None or len(pending) >= pool.most_in_flight):
                    yield self._first(stage, pending, pool)
            while pending:
                yield self._first(stage, pending, pool)
        except BaseException as error:
            while isinstance(error, WorkerLostError) and pending and self._has_finished(stage, pending[0]):
                one = pending.popleft()
                assert one.arrays is not None  # noqa: S101 - it has finished
                yield one.task, one.arrays
            self._rescue(stage, pending)
            raise

    def _has_finished(self, stage: Stage, one: _Pending) -> bool:
        future = one.future
        if future is not None and future.done() and not future.cancelled() and future.exception() is None:
            one.future, one.arrays = None, future.result()
            self._keep(stage, one, one.arrays)
        return one.arrays is not None

    def _begun(self, stage: Stage, task: Task, pool: WorkerPool) -> _Pending:
        """Return a task with its results if they are kept, else give it out."""
        begun = _Pending(task, fingerprint(task.samples) if self._folder is not None else "")
        if self._folder is not None:
            begun.arrays = self._folder.read(_name(stage, task), begun.data, task.about, self._made_by[stage.name])
        if begun.arrays is None:
            begun.future = pool.submit(task)
            if not begun.future.done():
                self._watch(stage, begun, begun.future)
        return begun

    def _take_finished(self, stage: Stage, pending: Iterable[_Pending], pool: WorkerPool) -> None:
        for one in pending:
            if one.future is not None and one.future.done():
                self._arrived(stage, one, pool)

    def _first(self, stage: Stage, pending: deque[_Pending], pool: WorkerPool) -> tuple[Task, Arrays]:
        """Return the first task's results, and keep those of others that arrive before."""
        while pending[0].arrays is None:
            futures = [one.future for one in pending if one.future is not None]
            if not wait(futures, pool.patience, return_when=FIRST_COMPLETED).done:
                pool.look_after_workers()
                if pool.has_forgotten_tasks():
                    self._give_out_again(stage, pending, pool)
            self._take_finished(stage, pending, pool)
        first = pending.popleft()
        assert first.arrays is not None  # noqa: S101 - the loop above ends with it
        return first.task, first.arrays

    def _give_out_again(self, stage: Stage, pending: Iterable[_Pending], pool: WorkerPool) -> None:
        """Give out once more what a cluster has neither done nor lost in words."""
        pool.send_again()
        for one in pending:
            if one.future is not None and not one.future.done():
                one.future = pool.submit_again(one.task, one.tries)
                one.tries += 1
                self._watch(stage, one, one.future)

    def _arrived(self, stage: Stage, one: _Pending, pool: WorkerPool) -> None:
        assert one.future is not None  # noqa: S101 - asked for by the callers
        found = pool.result(one.future, one.task, one.tries)
        if isinstance(found, Future):
            one.future, one.tries = found, one.tries + 1
            self._watch(stage, one, found)
            return
        one.future, one.arrays = None, found
        self._keep(stage, one, found)

    def _watch(self, stage: Stage, one: _Pending, future: "Future[Arrays]") -> None:
        """See a task's results written when they arrive, while the caller may be waiting for data."""
        if self._folder is not None:
            future.add_done_callback(partial(self._keep_at_once, stage, one))

    def _keep_at_once(self, stage: Stage, one: _Pending, future: "Future[Arrays]") -> None:
        if future.cancelled() or future.exception() is not None:
            return
        with suppress(Exception):  # the caller's thread tries again, and tells of it
            self._keep(stage, one, future.result())

    def _keep(self, stage: Stage, one: _Pending, arrays: Arrays) -> None:
        """Write a task's results, unless they are written."""
        if self._folder is None:
            return
        with one.writing:
            if not one.settled:
                self._folder.write(_name(stage, one.task), one.data, arrays, self._made_by[stage.name])
                one.settled = True

    def _rescue(self, stage: Stage, pending: Iterable[_Pending]) -> None:
        """Keep what has finished by now, and call the rest off."""
        for one in pending:
            future = one.future
            if future is not None and not future.cancel() and future.done() and future.exception() is None:
                with suppress(ResnetPathsError):  # a full disk, which is being reported
                    self._keep(stage, one, future.result())
            with one.writing:
                one.settled = True  # the folder may soon be another process's


def _saved(memory: SamplesInMemory) -> str:
    """Save what a study without a checkpoint has finished, and say where."""
    how = "With RunOptions(checkpoint=...) the same call would go on from what is finished"
    name = ""
    try:
        handle, name = tempfile.mkstemp(prefix="resnet-paths-unfinished-", suffix=".nc")
        os.close(handle)
        datasets.save(memory.result(), name)
    except (OSError, ResnetPathsError) as error:
        with suppress(OSError):
            Path(name).unlink(missing_ok=True)
        return f"The results of the first {memory.n_samples} samples could not be saved ({error}). {how}."
    return f"The results of the first {memory.n_samples} samples are saved in {name}. {how}."


def _goes_on(error: BaseException) -> bool:
    """Whether the same call may succeed when what an error tells of is mended; a refused checkpoint says what to do."""
    if isinstance(error, CheckpointError):
        return False
    return isinstance(error, ResnetPathsError | KeyboardInterrupt | MemoryError | torch.OutOfMemoryError)


def _name(stage: Stage, task: Task) -> str:
    return f"{stage.name}-{task.index:08d}"


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
        **{f"{CONTENT}{name}": digest for name, digest in fingerprints_of_code(facts).items()},
    }


def _work_facts(stage: Stage) -> Facts:
    """Return a fingerprint of each part of a stage's work."""
    return {f"{CONTENT}{name}": fingerprint(value) for name, value in vars(stage.work).items()}
