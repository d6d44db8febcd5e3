"""Where the command line runs its studies, and the folder that keeps what is finished until all of them are."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from resnet_paths_plugin.analyzers.running import RunOptions, UnitFolder
from resnet_paths_plugin.errors import CheckpointError, FileError, InputError

_SECONDS_TO_CONNECT = 30


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where a command runs."""
    for option in (
        click.option(
            "--resume", is_flag=True,
            help="Go on from what an interrupted run of the same command has finished; FILE.nc.partial keeps it.",
        ),
        click.option(
            "--scheduler", metavar="ADDRESS",
            help="Scheduler of a dask cluster to run on, such as tcp://10.0.0.1:8786.",
        ),
        click.option(
            "--workers", type=click.IntRange(min=1), metavar="N",
            help="Worker processes to run on here. Each has as many threads as a run without them: set OMP_NUM_THREADS "
            "to the cores for each.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def last_note(error: BaseException) -> list[str]:
    """Return what was said last of an error on its way: what it means for the command."""
    return list(getattr(error, "__notes__", []))[-1:]


class PartialRun:
    """The finished units of several studies, one folder each inside `FILE.nc.partial`.

    Args:
        output: the file that is written when all studies are done.
        resume: whether to go on from what an earlier run has left.

    Raises:
        CheckpointError: if an earlier run has left units and is not to be resumed.
        FileError: if the folder cannot be made.
    """

    def __init__(self, output: Path, *, resume: bool) -> None:
        self.path = output.with_name(f"{output.name}.partial")
        if len(self) and not resume:
            raise CheckpointError(
                f"{self.path} keeps {len(self)} finished units of an earlier run: give --resume to go on from them, or "
                "remove the folder to begin anew"
            )
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot make the folder {self.path}: {error.strerror or error}") from error

    def options(self, group: str, executor: Any) -> RunOptions:
        """Return how the study of a group is run."""
        return RunOptions(executor=executor, checkpoint=UnitFolder(self.path / group))

    def __len__(self) -> int:
        return sum(len(folder) for folder in self._folders())

    def remove(self) -> None:
        """Remove all of it."""
        for folder in self._folders():
            folder.remove()
        try:
            self.path.rmdir()
        except OSError as error:
            raise FileError(f"cannot remove the folder {self.path}: {error.strerror or error}") from error

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Say on the way out of an error what is kept; keep no folder without units."""
        try:
            yield
        except BaseException as error:
            if len(self):
                error.add_note(
                    f"{len(self)} finished units are kept in {self.path}: the same command with --resume goes on from "
                    "them."
                )
            else:
                self.remove()
            raise

    def _folders(self) -> list[UnitFolder]:
        return [UnitFolder(path) for path in sorted(self.path.glob("*/"))]


@contextmanager
def executor_for(scheduler: str | None, workers: int | None) -> Iterator[Any]:
    """Connect with a cluster, or start worker processes here; None where neither is asked for.

    Raises:
        InputError: if both are asked for, `distributed` is not installed, or no scheduler answers.
    """
    if scheduler is not None and workers is not None:
        raise InputError("give --scheduler (workers of a cluster) or --workers (processes here), not both")
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
