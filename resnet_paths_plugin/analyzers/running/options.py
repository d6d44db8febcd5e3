"""RunOptions: what concerns the run of a study and not its result."""

import os
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import torch

from resnet_paths_plugin.analyzers.running import devices
from resnet_paths_plugin.analyzers.running.checkpoint import UnitFolder
from resnet_paths_plugin.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how a study is run; passed as `run=` to any analyzer's `attribute`.

    The result is the same whatever is chosen here, but for `device`, where other devices round otherwise.

    Attributes:
        executor: runs the units of work: any `concurrent.futures.Executor`, or a `dask.distributed.Client`, which
            stands for a cluster and does the units of lost workers again. Other executors' processes read the network
            from a temporary file of this machine, which stays until the executor goes. None runs the units here, one
            after the other. Workers are given the caller's settings of torch, such as autocast, and its number of
            threads: pin it with `torch.set_num_threads(1)` where there is a worker for each core.
        checkpoint: netCDF file to write; `attribute` then returns it opened, its values read when they are used. Until
            all is done each finished unit is a file of its own in a folder beside it, named like it with `.partial`
            added. After a crash or an interruption the same call goes on from there. Another call is refused, one with
            another model, other data, or measures or objectives that were edited in between. Of functions and objects
            that can be called, their own code counts, with the plain values and functions that it reads from its
            module; other modules that it uses, and types, are not compared.
            A `UnitFolder` keeps just the units, for a caller who saves the result elsewhere and removes the folder.
        device: device to run on, such as `"cuda"`; None runs where the model is. The model is not moved: what runs
            there is a copy. Of several GPUs that they see, worker processes take `"cuda"` in turn, by their number:
            start as many workers as there are GPUs. `dask_cuda.LocalCUDACluster` shows each worker its own one.

    Raises:
        InputError: if an option is not of its kind, or there is no such device here and no executor.
    """

    executor: Executor | Any = None
    checkpoint: str | os.PathLike[str] | UnitFolder | None = None
    device: str | torch.device | None = None

    def __post_init__(self) -> None:
        if self.executor is not None and not isinstance(self.executor, Executor) and not is_client(self.executor):
            raise InputError(
                "executor must be a concurrent.futures.Executor, such as ProcessPoolExecutor, or a "
                f"dask.distributed.Client, not {type(self.executor).__name__}"
            )
        if self.checkpoint is not None and not isinstance(self.checkpoint, str | os.PathLike | UnitFolder):
            raise InputError(f"checkpoint must be the path of a file to write, not {self.checkpoint!r}")
        if self.device is not None:
            try:
                object.__setattr__(self, "device", devices.normalised(self.device))
            except (RuntimeError, TypeError) as error:
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
