"""Worker processes end with the process that started them, however it ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import pytest
from small_studies import batches, margin, network

import resnet_paths_plugin as rpp

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs signals of POSIX")]

PATIENCE_S = 300
GONE_S = 10
N_WORKERS = 2


def slow(outputs, target):
    """A measure that says where it runs, and takes its time."""
    os.write(1, f"{os.getpid()}\n".encode())  # what the test reads, in one piece
    time.sleep(PATIENCE_S if os.environ.get("BUSY") else 0.2)
    return margin(outputs, target)


def study(method):
    with ProcessPoolExecutor(N_WORKERS, mp_context=multiprocessing.get_context(method)) as pool:
        rpp.BlockLesion(network()).attribute(batches(4000), measures={"slow": slow}, run=rpp.RunOptions(executor=pool))


def started(method, *, busy):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "BUSY": "1" if busy else "",
    }
    code = f"import torch, test_parents; torch.set_num_threads(1); test_parents.study({method!r})"
    return subprocess.Popen(  # noqa: S603 - one's own command
        [sys.executable, "-W", "ignore", "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


ROUNDS = [
    ("spawn", signal.SIGKILL, False),
    ("fork", signal.SIGTERM, True),
    pytest.param("forkserver", signal.SIGHUP, False, marks=pytest.mark.zoo),
    *(
        pytest.param(method, number, busy, marks=pytest.mark.zoo, id=f"{method}-{number.name}-{busy}-{again}")
        for method in ("spawn", "fork", "forkserver")
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
        for busy in (True, False)
        for again in range(1)
    ),
]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a fork of a process with threads may fail")
@pytest.mark.parametrize(("method", "number", "busy"), ROUNDS)
def test_workers_are_gone_soon_after_their_parent(method, number, busy):
    process = started(method, busy=busy)
    try:
        workers = set()
        while len(workers) < N_WORKERS:
            workers.add(int(process.stdout.readline()))
        assert not any(map(is_gone, workers))
        process.send_signal(number)
        process.wait(PATIENCE_S)
        end = time.monotonic() + GONE_S
        while time.monotonic() < end and not all(map(is_gone, workers)):
            time.sleep(0.05)
        assert all(map(is_gone, workers))
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        process.stdout.close()
