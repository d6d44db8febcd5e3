"""Units of work on an executor: what travels once to each worker, and what a worker does with it."""

import os
import pickle
import threading
import uuid
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from resnet_paths_plugin.analyzers.running import cargo_folders, devices
from resnet_paths_plugin.analyzers.running.cargo import key_of, packed, unpacked
from resnet_paths_plugin.analyzers.running.fingerprints import fingerprint
from resnet_paths_plugin.analyzers.running.options import is_client
from resnet_paths_plugin.analyzers.running.settings import Settings
from resnet_paths_plugin.analyzers.running.units import Arrays, ChecksModel, Job, Samples, Unit, Work
from resnet_paths_plugin.errors import InputError, WorkerLostError
from resnet_paths_plugin.network import UnraveledNetwork

_KEPT = 2
"""Networks, and pieces of work, that a worker keeps at hand."""
_TRIES = 4
"""How often a unit is given to a cluster that loses the data which it needs."""


@dataclass(eq=False)
class _Bench:
    """A network and the work on it, with one job for each thread, as jobs may keep state between units."""

    network: UnraveledNetwork
    work: Work
    jobs: dict[int, Job] = field(default_factory=dict)

    def run(self, group: int, samples: Samples) -> Arrays:
        job = self.jobs.get(threading.get_ident())
        if job is None:
            job = self.jobs[threading.get_ident()] = self.work.on(self.network)
        return job(group, tuple(batch.to(self.network.device) for batch in samples))


_HERE: dict[str, _Bench] = {}
"""Work that was given out in this process, by token and process: a fork of it has none."""
_ARRIVED: OrderedDict[str, _Bench] = OrderedDict()
_NETWORKS: OrderedDict[tuple[str, str], UnraveledNetwork] = OrderedDict()
_ARRIVING = threading.Lock()

Cargo = bytes | Path | None
"""Bytes, or a file on this machine that holds them."""


@dataclass(frozen=True)
class Order:
    """What a worker is told with each unit.

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


def run_unit(order: Order, group: int, samples: bytes | Samples, network: Cargo, work: Cargo) -> Arrays:
    """Run a unit where the executor has brought it, in the caller's own process or in another one."""
    with order.settings.held():
        bench = _HERE.get(_own(order.token)) or _arrived(order, network, work)
        # Pickled, it is in an executor's own way.
        given: Samples = pickle.loads(samples) if isinstance(samples, bytes) else samples  # noqa: S301 - see above
        return bench.run(group, given)


def is_here(token: str) -> bool:
    """Whether this runs in the process that gave the work out."""
    return _own(token) in _HERE


def _own(token: str) -> str:
    return f"{os.getpid()} {token}"


def _arrived(order: Order, network: Cargo, work: Cargo) -> _Bench:
    """Return what has arrived, unpacked once in each process."""
    with _ARRIVING:
        bench = _ARRIVED.get(order.token)
        if bench is None:
            device = None if order.device is None else devices.of_worker(order.device, devices.number_of_worker())
            where = (order.keys[0], str(device))
            loaded = _NETWORKS.get(where)
            if loaded is None:
                loaded = _NETWORKS[where] = unpacked(_content(network, order.keys[0]), device)
                while len(_NETWORKS) > _KEPT:
                    _NETWORKS.popitem(last=False)
            does = pickle.loads(_content(work, order.keys[1]))  # noqa: S301 - an executor's own way
            bench = _ARRIVED[order.token] = _Bench(loaded, does)
            while len(_ARRIVED) > _KEPT:
                _ARRIVED.popitem(last=False)
        return bench


def _content(cargo: Cargo, key: str) -> bytes:
    try:
        content = cargo.read_bytes() if isinstance(cargo, Path) else cargo
    except FileNotFoundError as error:
        raise InputError(
            f"a worker finds no file {str(cargo)!r}, which the caller has written: the executor's workers do not see "
            "this machine's files. Use a dask client, or set the environment variable TMPDIR to a folder they share"
        ) from error
    if content is None or key_of(content) != key:
        raise InputError("what arrived at a worker is not what was sent: its temporary file has been changed")
    return content


@dataclass(eq=False)
class _Sent:
    """A network where the workers of an executor find it: in a temporary file, or on a cluster.

    Attributes:
        digest: what it was sent of.
        key: what its bytes are known by.
        cargo: the file, or the cluster's name for it.
    """

    digest: str
    key: str
    cargo: Any


_SENT: "weakref.WeakKeyDictionary[Any, _Sent]" = weakref.WeakKeyDictionary()
"""The last network that was sent, by executor, for the next stage or study: it stays until the executor goes."""


def _digest(network: UnraveledNetwork) -> str:
    """Return what tells whether a network would be sent as it was before."""
    live = {node.name: value for node, value in network.graph.live_tensors().items() if isinstance(value, Tensor)}
    blocks = [asdict(block) for block in network.blocks]
    facts = network.name, network.units, network.optimize, blocks, network.graph_digest()
    # How weights lie in memory decides how convolutions round.
    return fingerprint((facts, live, {name: (value.stride(), str(value.device)) for name, value in live.items()}))


class Crew:
    """Those who run the units of one stage; to be used in a `with` statement.

    Args:
        executor: an executor, a `dask.distributed.Client`, or None for this thread.
        network: the network; where the executor's workers share this process, they use it itself.
        work: what is done on it.
        device: device that a network which is sent runs on.
    """

    def __init__(self, executor: Any, network: UnraveledNetwork, work: Work, device: str | None) -> None:
        self._client = executor if is_client(executor) else None
        self._executor: Executor | None = (
            executor if self._client is None else self._client.get_executor(pure=False, retries=0)
        )
        self._network, self._work = network, work
        self._order = Order(uuid.uuid4().hex, Settings.here(), device=device)
        self._bench = _Bench(network, work)
        self._cargo: tuple[Any, Any] = (None, None)
        self._sent: _Sent | None = None
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        if self._executor is None:
            self._place()
            return self
        _HERE[_own(self._order.token)] = self._bench
        try:
            self._warn_of_no_workers()
            if self._shares_this_process():
                self._place()
            else:
                self._send()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        _HERE.pop(_own(self._order.token), None)
        if self._folder is not None:
            cargo_folders.remove(self._folder)

    @property
    def most_in_flight(self) -> int:
        """How many units are given out before the results of the first are awaited."""
        if self._executor is None:
            return 1
        if self._client is not None:
            workers = sum(self._client.nthreads().values())
        else:
            workers = getattr(self._executor, "_max_workers", None) or os.cpu_count() or 1
        return 4 * max(1, int(workers))

    def submit(self, unit: Unit) -> "Future[Arrays]":
        """Give a unit to a worker, or run it here.

        Raises:
            WorkerLostError: if the executor has lost a worker for good.
        """
        if self._executor is None:
            done: Future[Arrays] = Future()
            own = self._bench.network is self._network
            done.set_result(self._bench.run(unit.group, unit.samples if own else self._with_check(unit.samples)))
            return done
        samples: bytes | Samples = unit.samples
        if self._client is not None or self._sent is not None or self._bench.network is not self._network:
            samples = unit.samples.packed_by(self, self._pack)
        with self._telling_of_loss():
            return self._executor.submit(run_unit, self._order, unit.group, samples, *self._cargo)

    def result(self, future: "Future[Arrays]", unit: Unit, tries: int) -> "Future[Arrays] | Arrays":
        """Return the results of a future that is done, or another future where a cluster lost the unit.

        Raises:
            WorkerLostError: if the executor has lost a worker for good, or the unit took several workers with it.
        """
        with self._telling_of_loss():
            try:
                return future.result()
            except CancelledError as error:
                if self._client is None or self._is_closed():
                    raise
                if tries >= _TRIES:
                    raise _lost_with(unit, error) from error
                _SENT.pop(self._client, None)  # all workers that had it are gone
                self._send()
                return self.submit(unit)
            except Exception as error:
                # The scheduler has tried several workers by then.
                if self._client is not None and type(error).__name__ == "KilledWorker":
                    raise _lost_with(unit, error) from error
                raise

    def _shares_this_process(self) -> bool:
        with self._telling_of_loss():
            return self._executor is None or self._executor.submit(is_here, self._order.token).result()

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
            raise WorkerLostError(
                f"the cluster has been closed, or its scheduler is gone, before the study was done ({error}): make the "
                "same call with a client of a cluster that runs"
            ) from error

    def _is_closed(self) -> bool:
        """Whether the cluster is gone; it takes dask a while to tell."""
        return self._client is not None and self._client.status not in {"running", "newly-created"}

    def _warn_of_no_workers(self) -> None:
        if self._client is not None and not self._client.nthreads():
            address = self._client.scheduler.address
            warnings.warn(
                f"the dask scheduler has no workers, and the study waits for some: start some with "
                f"`dask worker {address}`",
                stacklevel=2,
            )

    def _place(self) -> None:
        """Put a copy of the network on the device asked for, where it is to run in this process but not there yet."""
        if self._order.device is not None and not devices.is_same(self._order.device, self._network.device):
            self._bench.network = unpacked(packed(self._network), self._order.device)

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
        device = self._order.device or str(self._network.device)
        self._order = Order(self._order.token, self._order.settings, keys, device)
        if self._client is not None:
            self._cargo = sent.cargo, self._scattered(work)
            return
        self._folder = cargo_folders.made()
        cargo_folders.write(self._folder / "work", work)
        self._cargo = sent.cargo, self._folder / "work"

    def _sent_now(self, digest: str) -> "_Sent":
        content = packed(self._network)
        if self._client is not None:
            return _Sent(digest, key_of(content), self._scattered(content))
        folder = cargo_folders.made()
        sent = _Sent(digest, key_of(content), folder / "network.pt2")
        weakref.finalize(sent, cargo_folders.remove, folder)
        cargo_folders.write(sent.cargo, content)
        return sent

    def _scattered(self, content: bytes) -> Any:
        """Bring bytes to every worker of a cluster; those that come later fetch them from these."""
        with self._telling_of_loss():
            return None if self._client is None else self._client.scatter([content], broadcast=True)[0]

    def _with_check(self, samples: Samples) -> Samples:
        """Return the samples with what a network that is a copy needs to be checked against the user's model."""
        return self._work.with_check(self._network, samples) if isinstance(self._work, ChecksModel) else samples

    def _pack(self, samples: Samples) -> bytes:
        """Return samples as bytes, for workers elsewhere."""
        if self._bench.network is not self._network or self._sent is not None:
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


def _lost_with(unit: Unit, error: BaseException) -> WorkerLostError:
    return WorkerLostError(
        f"{unit.about} were given to several workers of the cluster, and each time the worker was lost: look at the "
        f"workers' logs and memory ({error})"
    )


def _lost(error: BaseException) -> WorkerLostError:
    return WorkerLostError(
        f"a worker process of the pool has ended abruptly ({error}): it was killed, perhaps for want of memory, or a "
        "script's pool is not started under `if __name__ == '__main__':`. A ProcessPoolExecutor cannot go on after "
        "that: make the same call with a new one"
    )
