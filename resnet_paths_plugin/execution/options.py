"""RunOptions: what concerns the run of a study and not its result."""

import os
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import torch

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import devices
from resnet_paths_plugin.execution.checkpoint import TaskFolder


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how a study is run; passed as `run=` to any analyzer's `attribute`.

    The result is the same whatever is chosen here, but for `device`, where other devices round otherwise.

    It is frozen, for any number of studies and threads; a checkpoint is one study's at a time.

    Attributes:
        executor: runs the tasks: any `concurrent.futures.Executor`, or a `dask.distributed.Client`, which
            stands for a cluster and does the tasks of lost workers again. Other executors' processes read the network
            from a temporary file of this machine, which stays until the executor goes. None runs the tasks here, one
            after the other. Workers are given the caller's settings of torch, such as autocast, and its number of
            threads: pin it with `torch.set_num_threads(1)` where there is a worker for each core.
        checkpoint: netCDF file to write; `attribute` then returns it opened, its values read when they are used. Until
            all is done each finished task is a file of its own in a folder beside it, named like it with `.partial`
            added. After a crash or an interruption the same call goes on from there. Another call is refused, one with
            another model, other data, or measures or objectives that were edited in between: functions and classes of
            yours count with all that they reach, in other modules of yours too, and installed packages with their
            version. What cannot be compared, such as an open file, is refused at once; a measure with a `version`
            (`measure.version = "1"`) counts with that instead.
            A `TaskFolder` keeps just the tasks, for a caller who saves the result elsewhere and removes the folder.
        device: device to run on, such as `"cuda"`; None runs where the model is. The model is not moved: what runs
            there is a copy. Of several GPUs that they see, worker processes take `"cuda"` in turn, by their number:
            start as many workers as there are GPUs. `dask_cuda.LocalCUDACluster` shows each worker its own one.
        wait_for_workers: whether to wait, with a warning, while a dask cluster has no workers; False makes that a
            `WorkerLostError`.
        verify: whether to compare the network with the model at the first batch; None does as it was unraveled.

    Raises:
        InputError: if an option is not of its kind, or there is no such device here and no executor.

    Examples:
        >>> run = rpp.RunOptions(checkpoint="lengths.nc")
        >>> lengths = rpp.PathLengthGradient(net).attribute(images, target=labels, run=run)
        >>> lengths.identical(rpp.load("lengths.nc"))
        True
    """

    executor: Executor | Any = None
    checkpoint: str | os.PathLike[str] | TaskFolder | None = None
    device: str | torch.device | None = None
    wait_for_workers: bool = True
    verify: bool | None = None

    def __post_init__(self) -> None:
        if self.executor is not None and not isinstance(self.executor, Executor) and not is_client(self.executor):
            raise InputError(
                "executor must be a concurrent.futures.Executor, such as ProcessPoolExecutor, or a "
                f"dask.distributed.Client, not {type(self.executor).__name__}"
            )
        if self.checkpoint is not None and not isinstance(self.checkpoint, str | os.PathLike | TaskFolder):
            raise InputError(f"checkpoint must be the path of a file to write, not {self.checkpoint!r}")
        if self.checkpoint is not None and not isinstance(self.checkpoint, TaskFolder):
            object.__setattr__(self, "checkpoint", os.path.abspath(self.checkpoint))  # noqa: PTH100 - follows no link
        if not isinstance(self.wait_for_workers, bool):
            raise InputError(f"wait_for_workers must be True or False, not {self.wait_for_workers!r}")
        if self.verify is not None and not isinstance(self.verify, bool):
            raise InputError(f"verify must be True, False or None, not {self.verify!r}")
        if self.device is not None:
            try:
                object.__setattr__(self, "device", devices.normalised(self.device))
            except (RuntimeError, TypeError, ValueError) as error:
                raise InputError(f"device {self.device!r} is none that torch knows: {error}") from error

    @classmethod
    def of(cls, run: object) -> "RunOptions":
        """Return what an analyzer was given as `run`; the default for None.

        Raises:
            InputError: if it is something else.
        """
        if run is None:
            return cls()
        if not isinstance(run, cls):
            raise InputError(f"run must be RunOptions(...), not {type(run).__name__}")
        return run


def is_client(executor: object) -> bool:
    """Whether this is a `dask.distributed.Client`, without importing it."""
    return any(
        one.__name__ == "Client" and one.__module__.partition(".")[0] == "distributed" for one in type(executor).__mro__
    )
