"""Where the command line runs its studies, and the folder that keeps what is finished until all of them are."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from resnet_paths_plugin.cli.outputs import partial_path
from resnet_paths_plugin.errors import CheckpointError, FileError, InputError
from resnet_paths_plugin.execution import RunOptions, TaskFolder
from resnet_paths_plugin.execution.checkpoint import CALL, Facts
from resnet_paths_plugin.execution.parent_watch import end_with_parent

_SECONDS_TO_CONNECT = 30
_MOST_WORKERS = 10_000
_MOST_THREADS = 1024
_SIZES = "sizes"


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where a command runs."""
    for option in (
        click.option(
            "--wait-for-workers/--no-wait-for-workers", default=True, show_default=True,
            help="With --scheduler: wait, with a warning, while the cluster has no workers, or stop with an error.",
        ),
        click.option(
            "--scheduler", metavar="ADDRESS",
            help="Scheduler of a dask cluster to run on, such as tcp://10.0.0.1:8786.",
        ),
        click.option(
            "--workers", type=click.IntRange(1, _MOST_WORKERS), metavar="N",
            help="Worker processes to run on here, of --threads threads each.",
        ),
        click.option(
            "--threads", type=click.IntRange(1, _MOST_THREADS), metavar="N",
            help="Threads that an operator runs on, on a CPU. [default: 1 for the embedded network, whose operators "
            "are too small for several; else as many as torch takes, which OMP_NUM_THREADS sets]",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


resume_option = click.option(
    "--resume", is_flag=True,
    help="Go on from what an interrupted run of the same command has finished, which a folder beside the output keeps, "
    "named after it with .partial at the end.",
)  # fmt: skip


def set_threads(threads: int | None, *, embedded: bool) -> None:
    """Set the threads that an operator runs on, until the command ends.

    Args:
        threads: their number; None takes 1 for the embedded network, and leaves torch's own for any other.
        embedded: whether the embedded network is studied.
    """
    number = threads or (1 if embedded else torch.get_num_threads())
    click.get_current_context().call_on_close(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(number)


def threads_said() -> str:
    """Return how many threads an operator runs on, in words."""
    number = torch.get_num_threads()
    return f"{number} thread{'s' if number > 1 else ''}"


def last_note(error: BaseException) -> list[str]:
    """Return the last note of an error: what it means for the command."""
    return list(getattr(error, "__notes__", []))[-1:]


class PartialRun:
    """The finished tasks of several studies, one folder each inside `FILE.partial`, held until all is done.

    Args:
        output: the file that is written when all studies are done.
        groups: names of the studies' groups.
        resume: whether to go on from what an earlier run has left.
        again: what goes on from what is kept, in words.

    Raises:
        CheckpointError: if an earlier run has left tasks and is not to be resumed, or was of other studies; if another
            process is at work there; or if other things are.
        FileError: if the folder cannot be made.
    """

    def __init__(
        self, output: Path, groups: Iterable[str], *, resume: bool, again: str = "the same command with --resume"
    ) -> None:
        self._again = again
        self.path = partial_path(output)
        self._whole = TaskFolder(self.path, nested=True)
        self._folders = {group: TaskFolder(self.path / group) for group in groups}
        self._whole.hold()
        try:
            facts = {"studies": ", ".join(self._folders)}
            if resume:
                self._whole.agree(CALL, facts)
            else:
                self._start_over(facts)
        except BaseException:
            self._whole.close()
            raise

    def options(
        self, group: str, executor: Any, *, wait_for_workers: bool = True, verify: bool | None = None
    ) -> RunOptions:
        """Return how the study of a group is run."""
        return RunOptions(
            executor=executor,
            checkpoint=self._folders[group],
            wait_for_workers=wait_for_workers,
            verify=verify,
        )

    def options_like(self, options: RunOptions, group: str) -> RunOptions:
        """Return the options of another study, for one more group, which was not known at the start."""
        return replace(options, checkpoint=self._folders.setdefault(group, TaskFolder(self.path / group)))

    def sizes(self, place: int, work: str, chosen: Callable[[], range]) -> range:
        """Return sizes as the run that is resumed chose them; choose and keep them otherwise.

        Sizes that follow from measured times would be others in the next run, and tasks are of the same sizes only.

        Args:
            place: which choice it is, of several.
            work: fingerprint of what the choice rests on beside the times.
            chosen: returns the sizes.
        """
        name = f"{_SIZES}-{place:08d}"
        kept = self._whole.read(name, "", "times", work)
        if kept is not None:
            return range(int(kept["first"]), int(kept["last"]) + 1)
        found = chosen()
        self._whole.write(name, "", {"first": np.array(found[0]), "last": np.array(found[-1])}, work)
        return found

    def __len__(self) -> int:
        return len(self._whole)

    def remove(self) -> None:
        """Remove what this command has put there, and release it."""
        try:
            for folder in self._folders.values():
                folder.remove()
        finally:
            self._whole.remove()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Say on the way out of an error what is kept; keep no folder without tasks."""
        try:
            yield
        except BaseException as error:
            # A refused checkpoint says itself what to do, and may be another's.
            if not isinstance(error, CheckpointError):
                self._tell_or_remove(error)
            self._whole.close()
            raise

    def _tell_or_remove(self, error: BaseException) -> None:
        if kept := len(self):
            error.add_note(f"{kept} finished tasks are kept in {self.path}: {self._again} goes on from them.")
            return
        with suppress(FileError):  # the error on its way is what matters
            self.remove()

    def _start_over(self, facts: Facts) -> None:
        if kept := len(self):
            raise CheckpointError(
                f"{self.path} keeps {kept} finished tasks of an earlier run: give --resume to go on from them, or "
                "remove the folder to start over"
            )
        for path in self.path.iterdir():
            folder = TaskFolder(path)
            if path.is_dir() and folder.was_opened:
                folder.remove()
        self._whole.forget(_SIZES)
        self._whole.record(CALL, facts)


def discard_partial(output: Path) -> None:
    """Remove what a run that was killed has left of a file that is complete; what is not ours stays.

    Raises:
        FileError: if it cannot be removed.
    """
    whole = TaskFolder(partial_path(output), nested=True)
    if whole.was_opened:
        for path in whole.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                TaskFolder(path).remove()
        whole.remove()


def check_cluster_options(scheduler: str | None, workers: int | None, *, wait_for_workers: bool) -> None:
    """Check the options that say where a command runs against each other.

    Raises:
        InputError: if a cluster and processes are both asked for, or something of a cluster without one.
    """
    if scheduler is not None and workers is not None:
        raise InputError("give --scheduler (workers of a cluster) or --workers (processes here), not both")
    if scheduler is None and not wait_for_workers:
        raise InputError(
            "--no-wait-for-workers is about the workers of a cluster: give its --scheduler, or leave it out"
        )


@contextmanager
def executor_for(scheduler: str | None, workers: int | None) -> Iterator[Any]:
    """Connect with a cluster, or start worker processes here; None where neither is asked for.

    Raises:
        InputError: if `distributed` is not installed, or no scheduler answers.
    """
    if scheduler is not None:
        with _client(scheduler) as client:
            yield client
    elif workers is not None:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_leave_interrupts_to_the_caller) as pool:
            yield pool
    else:
        yield None


def _client(scheduler: str) -> Any:
    try:
        from distributed import Client  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InputError(
            "--scheduler needs the package distributed: pip install 'resnet-paths-plugin[distributed]'"
        ) from error
    try:
        return Client(scheduler, timeout=_SECONDS_TO_CONNECT)  # type: ignore[no-untyped-call]  # distributed's
    except (OSError, ValueError) as error:
        raise InputError(
            f"no dask scheduler answers at {scheduler!r}: start one with 'dask scheduler', and give the address that "
            f"it prints, such as tcp://10.0.0.1:8786 ({error})"
        ) from error


def _leave_interrupts_to_the_caller() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
