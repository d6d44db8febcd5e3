"""A dask cluster of two worker processes: the same results, whatever happens to its workers."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from small_studies import STUDIES, batches, captured, margin, network, run, timeless

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import WorkerLostError
from resnet_paths_plugin.execution import devices, payload

distributed = pytest.importorskip("distributed")
dask = pytest.importorskip("dask")

pytestmark = [
    pytest.mark.slow,
    # Of closing clusters, and of workers that are killed here on purpose.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def cluster():
    return distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0")


@pytest.fixture(scope="module")
def client():
    with cluster() as workers, distributed.Client(workers) as connected:
        yield connected


@pytest.mark.parametrize("name", STUDIES)
def test_a_cluster_computes_what_a_serial_run_does(client, serial, name):
    assert run(name, rpp.RunOptions(executor=client)).identical(serial(name))


def test_functions_of_a_script_reach_a_cluster(client):
    factor = 3.0
    measures = {"mine": lambda outputs, _: outputs[:, 0] * factor}
    expected = rpp.BlockLesion(captured()).attribute(batches(), measures=measures)
    found = rpp.BlockLesion(captured()).attribute(batches(), measures=measures, run=rpp.RunOptions(executor=client))
    assert timeless(found).identical(timeless(expected))


def test_weights_travel_once_to_each_worker(client):
    """Counted where they are unpacked, over a study of 16 units in two stages."""

    def unpackings():
        from resnet_paths_plugin.execution import worker_state

        return worker_state.unpacked.calls

    def count():
        from resnet_paths_plugin.execution import worker_state

        if not hasattr(worker_state.unpacked, "calls"):
            original = worker_state.unpacked

            def counting(*arguments):
                counting.calls += 1
                return original(*arguments)

            counting.calls = 0
            worker_state.unpacked = counting

    client.run(count)
    before = client.run(unpackings)
    torch.manual_seed(5)
    model = network()
    with torch.no_grad():
        model.head.bias.add_(1)  # a model that the workers have not seen
    run("recalibrated", rpp.RunOptions(executor=client), model=model)
    after = client.run(unpackings)
    assert len(after) == 2
    assert all(after[worker] - before[worker] <= 1 for worker in after)
    assert sum(after.values()) > sum(before.values())


def test_one_client_runs_several_models(client):
    for factor in (0.5, 2.0):
        model = network()
        with torch.no_grad():
            model.blocks[1].branch[0][2].weight.mul_(factor)
        found = run("lesions", rpp.RunOptions(executor=client), model=model)
        assert found.identical(run("lesions", model=model))


def always_lethal(_outputs, _target):
    os._exit(9)


def test_the_units_of_a_worker_that_is_killed_are_done_again(tmp_path):
    expected = rpp.BlockLesion(captured()).attribute(batches(60), measures={"margin": margin})
    flag = tmp_path / "kill"
    flag.touch()

    def lethal(outputs, target):
        """Kill the worker that is the first to run this."""
        if flag.exists():
            flag.unlink()
            os._exit(9)
        return margin(outputs, target)

    with cluster() as workers, distributed.Client(workers) as client:
        pids = set(client.run(os.getpid).values())
        found = rpp.BlockLesion(captured()).attribute(
            batches(60),
            measures={"margin": lethal},
            run=rpp.RunOptions(executor=client, checkpoint=tmp_path / "run.nc"),
        )
        deadline = time.monotonic() + 60
        while len(set(client.run(os.getpid).values()) | pids) < 3 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert set(client.run(os.getpid).values()) != pids  # one of them is another process now
    assert not flag.exists()
    for name in ("loss", "margin", "kl_divergence"):
        assert found[name].identical(expected[name])


def test_a_unit_that_kills_every_worker_is_told_of():
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        cluster() as workers,
        distributed.Client(workers) as client,
        pytest.raises(WorkerLostError, match="samples 0 to"),
    ):
        rpp.BlockLesion(captured()).attribute(
            *batches()[0], measures={"margin": always_lethal}, run=rpp.RunOptions(executor=client)
        )


def test_workers_that_are_threads_of_this_process_use_the_network_itself(monkeypatch):
    monkeypatch.setattr(payload, "packed", None)
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as workers,
        distributed.Client(workers) as client,
    ):
        assert run("lesions", rpp.RunOptions(executor=client)).identical(run("lesions"))


def test_a_cluster_that_is_closed_in_the_middle_is_told_of(tmp_path):
    class Closing:
        def __init__(self, workers):
            self._workers = workers

        def __iter__(self):
            for number, batch in enumerate(batches(60)):
                if number == 10:
                    self._workers.close()
                yield batch

    with cluster() as workers, distributed.Client(workers) as client:
        with pytest.raises(WorkerLostError, match="the cluster has been closed") as caught:
            rpp.BlockLesion(captured()).attribute(
                Closing(workers), run=rpp.RunOptions(executor=client, checkpoint=tmp_path / "run.nc")
            )
        assert "finished tasks are kept" in caught.value.__notes__[0]


def test_a_scheduler_without_workers_is_told_of():
    net = captured()
    expected = timeless(rpp.BlockLesion(net).attribute(batches()))
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as workers,
        distributed.Client(workers) as client,
    ):
        later = threading.Timer(3, workers.scale, [1])
        later.start()
        with pytest.warns(UserWarning, match=r"has no workers.*`dask worker inproc://"):
            found = rpp.BlockLesion(net).attribute(batches(), run=rpp.RunOptions(executor=client))
        later.join()
    assert timeless(found).identical(expected)


def test_workers_of_a_cluster_have_numbers_of_their_own(client):
    found = [client.submit(devices.number_of_worker, workers=[one], pure=False).result() for one in client.nthreads()]
    assert sorted(found) == [0, 1]


def study_of(client, data, **options):
    return rpp.BlockLesion(captured()).attribute(data, run=rpp.RunOptions(executor=client, **options))


class Losing:
    """Batches; before one of them a cluster loses what a test takes away, and later ones wait for what it says."""

    def __init__(self, lose, at=6, n_samples=60):
        self.lose, self.at, self.data = lose, at, batches(n_samples)

    def __iter__(self):
        for number, batch in enumerate(self.data):
            if number == self.at:
                self.lose()
            yield batch


class Processes:
    """A scheduler and workers in processes of their own, which nothing starts again."""

    def __init__(self, where):
        self.where, self.all = where, []
        self.scheduler = self.start("dask_scheduler", "--port", "0", "--dashboard-address", ":0", "--host", "127.0.0.1")
        self.workers = []
        self.start_worker()
        while not where.exists() or not where.read_text():
            time.sleep(0.1)
        self.address = json.loads(where.read_text())["address"]

    def start(self, name, *options):
        command = [sys.executable, "-W", "ignore", "-m", f"distributed.cli.{name}", "--scheduler-file", str(self.where)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        process = subprocess.Popen([*command, *options], env=environment, stderr=subprocess.DEVNULL)  # noqa: S603
        self.all.append(process)
        return process

    def start_worker(self):
        self.workers.append(self.start("dask_worker", "--no-nanny", "--nthreads", "1"))

    def kill_workers(self):
        for worker in self.workers:
            worker.kill()


@pytest.fixture
def processes(tmp_path_factory):
    started = Processes(tmp_path_factory.mktemp("scheduler") / "scheduler.json")
    try:
        with distributed.Client(started.address) as client:
            client.wait_for_workers(1, timeout=120)
            yield started, client
    finally:
        for one in started.all:
            one.kill()
            one.wait()


def test_a_cluster_that_loses_all_workers_is_waited_for_with_a_warning_in_time(processes):
    started, client = processes
    expected = timeless(rpp.BlockLesion(captured()).attribute(batches(60)))
    lost, warned = [], []

    def lose():
        started.kill_workers()
        lost.append(time.monotonic())

    def note(message, *_, **__):
        if "no workers" in str(message):
            warned.append(time.monotonic())
            started.start_worker()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        found = timeless(study_of(client, Losing(lose)))
    assert found.equals(expected)
    assert 0 < warned[0] - lost[0] < 10


def test_a_cluster_that_loses_all_workers_is_an_error_where_it_is_not_to_be_waited_for(processes, tmp_path):
    started, client = processes
    losing, checkpoint = Losing(started.kill_workers, at=12), tmp_path / "run.nc"
    with pytest.raises(WorkerLostError, match=r"lost all of them.*wait_for_workers=True") as caught:
        study_of(client, losing, checkpoint=checkpoint, wait_for_workers=False)
    assert "finished tasks are kept" in caught.value.__notes__[0]
    with pytest.raises(WorkerLostError, match="has no workers"):
        study_of(client, batches(), wait_for_workers=False)


def test_the_results_of_finished_units_are_saved_at_once_when_the_scheduler_is_lost(processes, tmp_path, monkeypatch):
    started, client = processes
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    expected = rpp.BlockLesion(captured()).attribute(batches(60))
    lost = []

    def lose():
        started.scheduler.kill()
        lost.append(time.monotonic())

    with pytest.raises(WorkerLostError, match="scheduler is gone") as caught:
        study_of(client, Losing(lose, at=12))
    took = time.monotonic() - lost[0]
    (saved,) = tmp_path.glob("resnet-paths-unfinished-*.nc")
    assert str(saved) in caught.value.__notes__[0]
    assert took < 30
    found = rpp.load(saved)
    n_samples = found.sizes["sample"]
    assert n_samples > 0
    for name in ("loss", "kl_divergence"):
        np.testing.assert_array_equal(found[name], expected[name][:, :n_samples])
    begun = time.monotonic()
    rpp.save(expected, tmp_path / "again.nc")  # the client is still there, and its scheduler is not
    assert time.monotonic() - begun < 10
    assert rpp.load(tmp_path / "again.nc").identical(expected)


def test_saving_asks_no_cluster_for_a_lock(client, tmp_path, monkeypatch):
    def asked(*_, **__):
        pytest.fail("asks the cluster")

    before = dask.config.get("scheduler")
    monkeypatch.setattr(distributed.Lock, "__init__", asked)
    result = rpp.BlockLesion(captured()).attribute(batches())
    assert client.status == "running"
    rpp.save(result, tmp_path / "result.nc")
    streamed = rpp.BlockLesion(captured()).attribute(batches(), run=rpp.RunOptions(checkpoint=tmp_path / "run.nc"))
    assert timeless(streamed).identical(timeless(rpp.load(tmp_path / "result.nc")))
    assert dask.config.get("scheduler") == before
