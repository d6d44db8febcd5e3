"""WorkerState: what a worker holds, the network and the work on it, and how it runs a task of it."""

import os
import pickle
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import devices
from resnet_paths_plugin.execution.parent_watch import end_with_parent
from resnet_paths_plugin.execution.payload import key_of, unpacked
from resnet_paths_plugin.execution.tasks import Arrays, Job, Samples, Work
from resnet_paths_plugin.execution.torch_settings import Settings
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

_KEPT = 2
"""Networks, and pieces of work, that a worker keeps at hand."""


@dataclass(eq=False)
class WorkerState:
    """A network and the work on it, with one job for each thread, as jobs may keep state between tasks."""

    network: UnraveledNetwork
    work: Work
    jobs: dict[int, Job] = field(default_factory=dict)

    def run(self, group: int, samples: Samples) -> Arrays:
        """Run one group of the work on some samples, by this thread's own job."""
        job = self.jobs.get(threading.get_ident())
        if job is None:
            job = self.jobs[threading.get_ident()] = self.work.on(self.network)
        outer, _INSIDE.task = is_inside_task(), True
        try:
            return job(group, tuple(batch.to(self.network.device) for batch in samples))
        finally:
            _INSIDE.task = outer


_INSIDE = threading.local()
"""Whether this thread is running a task, or a study of a measure in one."""
_HERE: dict[str, WorkerState] = {}
"""Work that was given out in this process, by token and process: a fork of it has none."""
_ARRIVED: OrderedDict[str, WorkerState] = OrderedDict()
_NETWORKS: OrderedDict[tuple[str, str], UnraveledNetwork] = OrderedDict()
_ARRIVING = threading.Lock()

Payload = bytes | Path | None
"""Bytes, or a file on this machine that holds them."""


@dataclass(frozen=True)
class TaskContext:
    """What a worker needs to know of each task.

    Attributes:
        token: names the work.
        keys: what the network and the work are known by, once they have been packed.
        device: device to run on, for a network that is sent.
        settings: settings of the caller.
    """

    token: str
    settings: Settings
    keys: tuple[str, str] = ("", "")
    device: str | None = None


def run_task(context: TaskContext, group: int, samples: bytes | Samples, network: Payload, work: Payload) -> Arrays:
    """Run a task where the executor has brought it, in the caller's own process or in another one."""
    if isinstance(network, Path):  # which a process of a pool reads; those of a cluster outlive the caller
        end_with_parent()
    with context.settings.held():
        state = _HERE.get(_own(context.token)) or _arrived(context, network, work)
        # Pickled, it is in an executor's own way.
        given: Samples = pickle.loads(samples) if isinstance(samples, bytes) else samples  # noqa: S301 - see above
        return state.run(group, given)


def is_here(token: str) -> bool:
    """Whether this runs in the process that gave the work out."""
    return _own(token) in _HERE


def _own(token: str) -> str:
    return f"{os.getpid()} {token}"


def _arrived(context: TaskContext, network: Payload, work: Payload) -> WorkerState:
    """Return what has arrived, unpacked once in each process."""
    with _ARRIVING:
        state = _ARRIVED.get(context.token)
        if state is None:
            device = None if context.device is None else devices.of_worker(context.device, devices.number_of_worker())
            where = (context.keys[0], str(device))
            loaded = _NETWORKS.get(where)
            if loaded is None:
                loaded = _NETWORKS[where] = unpacked(_content(network, context.keys[0]), device)
                while len(_NETWORKS) > _KEPT:
                    _NETWORKS.popitem(last=False)
            does = pickle.loads(_content(work, context.keys[1]))  # noqa: S301 - an executor's own way
            state = _ARRIVED[context.token] = WorkerState(loaded, does)
            while len(_ARRIVED) > _KEPT:
                _ARRIVED.popitem(last=False)
        return state


def _content(payload: Payload, key: str) -> bytes:
    try:
        content = payload.read_bytes() if isinstance(payload, Path) else payload
    except FileNotFoundError as error:
        raise InputError(
            f"a worker finds no file {str(payload)!r}, which the caller has written: the executor's workers do not see "
            "this machine's files. Use a dask client, or set the environment variable TMPDIR to a folder they share"
        ) from error
    if content is None or key_of(content) != key:
        raise InputError("what arrived at a worker is not what was sent: its temporary file has been changed")
    return content


def give_out_here(token: str, state: WorkerState) -> None:
    """Let workers that share this process use this very state for the tasks of a token, until `take_back`."""
    _HERE[_own(token)] = state


def take_back(token: str) -> None:
    """End what `give_out_here` began, if it did."""
    _HERE.pop(_own(token), None)


def is_inside_task() -> bool:
    """Whether this thread is running a task, or a study of a measure in one."""
    return bool(getattr(_INSIDE, "task", False))
