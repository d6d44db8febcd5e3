"""A process that is killed at random moments: the next call goes on to an identical result."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from killed_studies import DATA, N_UNITS, PATIENCE_S, network, study
from small_studies import timeless

import resnet_paths_plugin as rpp

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")]


def told_study(checkpoint, telling):
    """Say when the first file is about to be written, and when all is done."""
    torch.set_num_threads(1)
    from resnet_paths_plugin.execution import TaskFolder

    opening = TaskFolder.open

    def told(folder, call):
        telling.send("begins")
        opening(folder, call)

    TaskFolder.open = told
    study(network(), checkpoint)
    telling.send("done")


@pytest.fixture(scope="module")
def processes():
    """Processes of a server that has imported what they need and captured the network; they have not run anything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_studies_preload"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server's own path, until it has been started
        yield context


def begun(processes, checkpoint):
    """Return a process that is about to write its first file, and what it tells."""
    listening, telling = processes.Pipe(duplex=False)
    process = processes.Process(target=told_study, args=(checkpoint, telling))
    process.start()
    telling.close()
    assert listening.poll(PATIENCE_S)
    assert listening.recv() == "begins"
    return process, listening


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.zoo)])
def test_kills_at_random_moments_change_nothing(tmp_path, processes, kills):
    net = network()
    undisturbed = timeless(study(net))
    moments = np.random.default_rng(0)
    kept = []
    for kill in range(kills):
        folder = tmp_path / str(kill)
        folder.mkdir()
        process, listening = begun(processes, folder / "run.nc")
        # By progress rather than by the clock, as other work slows the process down; then a moment within a task.
        units = moments.integers(N_UNITS + 1)
        while len(list(folder.rglob("*.task"))) < units and not listening.poll():
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.02))
        process.kill()  # by SIGKILL
        process.join(PATIENCE_S)
        kept.append(len(list(folder.rglob("*.task"))) if not (folder / "run.nc").exists() else None)
        assert {path.name for path in folder.iterdir()} <= {"run.nc", "run.nc.partial"}
        found = study(net, folder / "run.nc")
        assert timeless(found).identical(undisturbed), f"kill {kill}, with {kept[-1]} units kept"
        assert [path.name for path in folder.iterdir()] == ["run.nc"]
    assert sum(count is not None for count in kept) >= kills // 2, f"most were killed before the end: {kept}"
    assert len({count for count in kept if count}) >= 3, f"at different places: {kept}"


class Waiting:
    """Batches that can be read again, of which the third is long in coming, where somebody is to be told of it."""

    def __init__(self, pool=None):
        self._pool = pool

    def __iter__(self):
        for place, batch in enumerate(DATA):
            if place == 2 and self._pool is not None:
                print(*self._pool._processes, flush=True)  # noqa: T201 - what the test reads
                time.sleep(PATIENCE_S)
            yield batch


def study_in_forks(checkpoint):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        rpp.BlockLesion(network()).attribute(Waiting(pool), run=rpp.RunOptions(executor=pool, checkpoint=checkpoint))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a fork of a process with threads may fail")
def test_workers_of_a_killed_process_hold_nothing(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    code = f"import test_crashes; test_crashes.study_in_forks({str(tmp_path / 'run.nc')!r})"
    command = [sys.executable, "-W", "ignore", "-c", code]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)  # noqa: S603 - one's own command
    workers = [int(worker) for worker in process.stdout.readline().split()]
    assert workers
    process.kill()
    process.wait(PATIENCE_S)
    process.stdout.close()

    try:
        found = rpp.BlockLesion(network()).attribute(Waiting(), run=rpp.RunOptions(checkpoint=tmp_path / "run.nc"))
    finally:
        for worker in workers:
            with suppress(ProcessLookupError):  # it has seen that its parent is gone
                os.kill(worker, signal.SIGKILL)
    assert timeless(found).identical(timeless(rpp.BlockLesion(network()).attribute(Waiting())))
