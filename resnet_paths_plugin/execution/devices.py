"""Devices by name: which names mean the same one, and which of several GPUs a worker takes."""

import multiprocessing
import re
import sys

import torch


def normalised(device: torch.device | str) -> str:
    """Return the name of a device; there is one CPU, whatever its index."""
    named = torch.device(device)
    return named.type if named.type == "cpu" else str(named)


def is_same(one: torch.device | str, other: torch.device | str) -> bool:
    """Whether two names mean the same device in this process, where the current one needs no index."""
    return _indexed(one) == _indexed(other)


def of_worker(device: str, number: int) -> str:
    """Return the device that a worker runs on: of several GPUs, workers take one after the other.

    Args:
        device: the device asked for.
        number: number of the worker.
    """
    asked = torch.device(device)
    if asked.type != "cuda" or asked.index is not None or (count := torch.cuda.device_count()) < 2:
        return device
    return f"cuda:{number % count}"


def number_of_worker() -> int:
    """Return the number of the worker that runs this: of a dask worker as its name says, else of the process."""
    distributed = sys.modules.get("distributed")
    if distributed is not None:
        try:
            name = str(distributed.get_worker().name)
        except ValueError:  # this is no task of a cluster
            name = ""
        # `LocalCluster` numbers its workers, and `dask worker --nworkers` adds a number; an address tells none.
        if (numbered := re.fullmatch(r"(?:.*-)?(\d+)", name)) is not None:
            return int(numbered[1])
    identity: tuple[int, ...] = getattr(multiprocessing.current_process(), "_identity", ())
    return identity[-1] - 1 if identity else 0


def _indexed(device: torch.device | str) -> torch.device:
    named = torch.device(normalised(device))
    if named.type == "cuda" and named.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return named
