"""Tasks on an executor: who runs them, what travels once to each worker, and what is said when one is lost."""

import os
import pickle
import uuid
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from resnet_paths_plugin.errors import InputError, WorkerLostError
from resnet_paths_plugin.execution import devices
from resnet_paths_plugin.execution.fingerprints import fingerprint
from resnet_paths_plugin.execution.options import is_client
from resnet_paths_plugin.execution.payload import key_of, packed, unpacked
from resnet_paths_plugin.execution.tasks import Arrays, ChecksModel, Samples, Task, Work
from resnet_paths_plugin.execution.temp_folders import PayloadFolder
from resnet_paths_plugin.execution.torch_settings import Settings
from resnet_paths_plugin.execution.worker_state import (
    TaskContext,
    WorkerState,
    give_out_here,
    is_here,
    is_inside_task,
    run_task,
    take_back,
)
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.process_lock import is_alone

_TRIES = 4
"""How often a task is given to a cluster that loses the data which it needs."""
_PATIENCE_S = 3.0


@dataclass(eq=False)
class _Sent:
    """A network where the workers of an executor find it: in a temporary file, or on a cluster.

    Attributes:
        digest: what it was sent of.
        key: what its bytes are known by.
        payload: the file, or the cluster's name for it.
    """

    digest: str
    key: str
    payload: Any


_SENT: "weakref.WeakKeyDictionary[Any, _Sent]" = weakref.WeakKeyDictionary()
"""The last network that was sent, by executor, for the next stage or study: it stays until the executor goes."""


def _digest(network: UnraveledNetwork) -> str:
    """Return what tells whether a network would be sent as it was before."""
    live = {node.name: value for node, value in network.graph.live_tensors().items() if isinstance(value, Tensor)}
    # How weights lie in memory decides how convolutions round.
    return fingerprint((network, {name: (value.stride(), str(value.device)) for name, value in live.items()}))


class WorkerPool:
    """The workers that run the tasks of one stage; to be used in a `with` statement.

    Args:
        executor: an executor, a `dask.distributed.Client`, or None for this thread.
        network: the network; where the executor's workers share this process, they use it itself.
        work: what is done on it.
        device: device that a network which is sent runs on.
        wait_for_workers: whether to wait where a cluster has no workers.
    """

    def __init__(
        self, executor: Any, network: UnraveledNetwork, work: Work, device: str | None, *, wait_for_workers: bool = True
    ) -> None:
        self._client = executor if is_client(executor) else None
        self._executor: Executor | None = (
            executor if self._client is None else self._client.get_executor(pure=False, retries=0)
        )
        self._network, self._work = network, work
        self._context = TaskContext(uuid.uuid4().hex, Settings.here(), device=device)
        self._state = WorkerState(network, work)
        self._payload: tuple[Any, Any] = (None, None)
        self._sent: _Sent | None = None
        self._folder: PayloadFolder | None = None
        self._waits, self._warned = wait_for_workers, False
        self._idle = 0

    def __enter__(self) -> Self:
        if self._executor is None:
            self._place()
            return self
        if is_inside_task() or is_alone():
            raise InputError(
                "a study inside a measure or an objective of another study cannot have an executor, as each would wait "
                "for the other: leave it out, and the study runs where the measure runs"
            )
        give_out_here(self._context.token, self._state)
        try:
            self.look_after_workers()
            if self._shares_this_process():
                self._place()
            else:
                self._send()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        take_back(self._context.token)
        if self._folder is not None:
            self._folder.remove()

    @property
    def most_in_flight(self) -> int:
        """How many tasks are given out before the results of the first are awaited."""
        if self._executor is None:
            return 1
        if self._client is not None:
            workers = self._n_workers()
        else:
            workers = getattr(self._executor, "_max_workers", None) or os.cpu_count() or 1
        return 4 * max(1, int(workers))

    def submit(self, task: Task) -> "Future[Arrays]":
        """Give a task to a worker, or run it here.

        Raises:
            WorkerLostError: if the executor has lost a worker for good.
        """
        if self._executor is None:
            done: Future[Arrays] = Future()
            own = self._state.network is self._network
            done.set_result(self._state.run(task.group, task.samples if own else self._with_check(task.samples)))
            return done
        samples: bytes | Samples = task.samples
        if self._client is not None or self._sent is not None or self._state.network is not self._network:
            samples = task.samples.packed_by(self, self._pack)
        return self._given_out(run_task, self._context, task.group, samples, *self._payload)

    def _given_out(self, function: Any, *args: Any) -> "Future[Any]":
        assert self._executor is not None  # noqa: S101 - without one, tasks are run here
        with self._telling_of_loss():
            try:
                return self._executor.submit(function, *args)
            except BrokenExecutor:
                raise
            except RuntimeError as error:  # what executors raise that have been shut down
                raise WorkerLostError(
                    f"the executor takes no more tasks ({error}): make the same call with one that runs"
                ) from error

    def result(self, future: "Future[Arrays]", task: Task, tries: int) -> "Future[Arrays] | Arrays":
        """Return the results of a future that is done, or another future where a cluster lost the task.

        Raises:
            WorkerLostError: if the executor has lost a worker for good, or the task took several workers with it.
        """
        with self._telling_of_loss():
            try:
                return future.result()
            except CancelledError as error:
                if self._client is None:
                    raise WorkerLostError(
                        f"{task.about} were called off: the executor has been shut down, or the future was cancelled. "
                        "Make the same call with an executor that runs"
                    ) from error
                if self._is_closed():
                    raise
                self.send_again()  # all workers that had it are gone
                return self.submit_again(task, tries, error)
            except Exception as error:
                # The scheduler has tried several workers by then.
                if self._client is not None and type(error).__name__ == "KilledWorker":
                    raise _lost_with(task, error) from error
                raise

    def send_again(self) -> None:
        """Bring network and work to the workers of a cluster once more."""
        _SENT.pop(self._client, None)
        self._send()

    def submit_again(self, task: Task, tries: int, error: BaseException | None = None) -> "Future[Arrays]":
        """Give a task to a worker that a cluster has lost.

        Raises:
            WorkerLostError: if it was given out too often.
        """
        if tries >= _TRIES:
            raise _lost_with(task, error) from error
        return self.submit(task)

    def has_forgotten_tasks(self) -> bool:
        """Whether a cluster that has workers has had nothing to do for them at two looks, though tasks were given out.

        A scheduler that loses all workers at once may neither run their tasks again nor say that it will not.
        """
        if self._client is None or not self._n_workers():
            self._idle = 0
            return False
        try:
            is_idle = not any(self._client.processing().values())
        except Exception as error:  # dask raises many kinds, by what it was about when the scheduler went
            raise _gone(error) from error
        self._idle = self._idle + 1 if is_idle else 0
        if self._idle < 2:
            return False
        self._idle = 0
        return True

    def _shares_this_process(self) -> bool:
        asked = self._given_out(is_here, self._context.token)
        with self._telling_of_loss():
            while not wait([asked], self.patience).done:
                self.look_after_workers()
            return bool(asked.result())

    @contextmanager
    def _telling_of_loss(self) -> Iterator[None]:
        """Tell of a pool that has lost a process, and of a cluster that has been closed, in words."""
        try:
            yield
        except BrokenExecutor as error:
            raise _lost(error) from error
        except Exception as error:
            names = {kind.__name__ for kind in type(error).__mro__}
            gone = bool(names & {"ClosedClientError", "CommClosedError"})
            gone = gone or (self._is_closed() and isinstance(error, CancelledError))
            if self._client is None or not gone:
                raise
            raise _gone(error) from error

    def _is_closed(self) -> bool:
        """Whether the cluster is gone; it takes dask a while to tell."""
        return self._client is not None and self._client.status not in {"running", "newly-created"}

    @property
    def patience(self) -> float | None:
        """After how many seconds without a result the workers are looked after; None where that is needless."""
        return None if self._client is None else _PATIENCE_S

    def look_after_workers(self) -> None:
        """Warn where a cluster has no workers, once until it has some again.

        Raises:
            WorkerLostError: instead, where the study is not to wait; and if the cluster is gone.
        """
        if self._client is None or self._n_workers():
            self._warned = False
            return
        start = f"start some with `dask worker {self._client.scheduler.address}`"
        if not self._waits:
            raise WorkerLostError(
                f"the dask scheduler has no workers, or has lost all of them: {start} and make the same call again, or "
                "wait for them with wait_for_workers=True"
            )
        if not self._warned:
            self._warned = True
            warnings.warn(f"the dask scheduler has no workers, and the study waits for some: {start}", stacklevel=2)

    def _n_workers(self) -> int:
        """Return the number of threads of all workers of a cluster."""
        try:
            return sum(self._client.nthreads().values()) if self._client is not None else 0
        except Exception as error:  # dask raises many kinds, by what it was about when the scheduler went
            raise _gone(error) from error

    def _place(self) -> None:
        """Put a copy of the network on the device asked for, where it is to run in this process but not there yet."""
        if self._context.device is not None and not devices.is_same(self._context.device, self._network.device):
            self._state.network = unpacked(packed(self._network), self._context.device)

    def _send(self) -> None:
        """Bring network and work to where the workers find them, the network only where it is not there yet."""
        owner = self._executor if self._client is None else self._client
        digest = _digest(self._network)
        sent = _SENT.get(owner)
        if sent is None or sent.digest != digest:
            sent = _SENT[owner] = self._sent_now(digest)
        self._sent = sent
        work = _pickled(self._work, by_value=self._client is not None)
        keys = sent.key, key_of(work)
        device = self._context.device or str(self._network.device)
        self._context = TaskContext(self._context.token, self._context.settings, keys, device)
        if self._client is not None:
            self._payload = sent.payload, self._scattered(work)
            return
        self._folder = PayloadFolder()
        self._payload = sent.payload, self._folder.write("work", work)

    def _sent_now(self, digest: str) -> "_Sent":
        content = packed(self._network)
        if self._client is not None:
            return _Sent(digest, key_of(content), self._scattered(content))
        folder = PayloadFolder()
        sent = _Sent(digest, key_of(content), None)
        weakref.finalize(sent, folder.remove)
        sent.payload = folder.write("network.pt2", content)
        return sent

    def _scattered(self, content: bytes) -> Any:
        """Bring bytes to every worker of a cluster; those that come later fetch them from these."""
        while self._client is not None:
            self.look_after_workers()
            with self._telling_of_loss(), suppress(TimeoutError):  # all workers went in between
                # Under a name of its own each time: what is released of a lost copy must not release the new one.
                return self._client.scatter([content], broadcast=True, timeout=_PATIENCE_S, hash=False)[0]
        return None

    def _with_check(self, samples: Samples) -> Samples:
        """Return the samples with what a network that is a copy needs to be checked against the user's model."""
        return self._work.with_check(self._network, samples) if isinstance(self._work, ChecksModel) else samples

    def _pack(self, samples: Samples) -> bytes:
        """Return samples as bytes, for workers elsewhere."""
        if self._state.network is not self._network or self._sent is not None:
            samples = self._with_check(samples)
        return pickle.dumps(tuple(_on_cpu(batch) for batch in samples))


def _on_cpu(batch: Any) -> Any:
    return batch.to(torch.device("cpu"))


def _pickled(work: Work, *, by_value: bool) -> bytes:
    """Pickle the work, for a cluster together with functions that its workers cannot import."""
    try:
        if by_value:
            import cloudpickle  # noqa: PLC0415 - comes with distributed, an extra

            content: bytes = cloudpickle.dumps(work)
            return content
        return pickle.dumps(work)
    except Exception as error:
        raise InputError(
            f"a measure, objective or schedule cannot be sent to another process: {error}. Define functions at the "
            "top level of a module, or use a ThreadPoolExecutor or a dask client"
        ) from error


def _lost_with(task: Task, error: BaseException | None) -> WorkerLostError:
    return WorkerLostError(
        f"{task.about} were given to several workers of the cluster, and each time the worker was lost: look at the "
        f"workers' logs and memory{f' ({error})' if error else ''}"
    )


def _gone(error: BaseException) -> WorkerLostError:
    return WorkerLostError(
        f"the cluster has been closed, or its scheduler is gone, before the study was done ({error}): make the same "
        "call with a client of a cluster that runs"
    )


def _lost(error: BaseException) -> WorkerLostError:
    return WorkerLostError(
        f"a worker process of the pool has ended abruptly ({error}): it was killed, perhaps for want of memory, or a "
        "script's pool is not started under `if __name__ == '__main__':`. A ProcessPoolExecutor cannot go on after "
        "that: make the same call with a new one"
    )
