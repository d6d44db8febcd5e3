"""A dask cluster of two worker processes: the same results, whatever becomes of its workers."""

import os
import threading
import time

import pytest
import torch
from small_studies import STUDIES, batches, margin, network, run, timeless

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers.running import cargo, devices
from resnet_paths_plugin.errors import WorkerLostError

distributed = pytest.importorskip("distributed")
dask = pytest.importorskip("dask")

pytestmark = [
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
def test_a_cluster_computes_what_a_serial_run_does(client, name):
    assert run(name, rpp.RunOptions(executor=client)).identical(run(name))


def test_functions_of_a_script_reach_a_cluster(client):
    factor = 3.0
    measures = {"mine": lambda outputs, _: outputs[:, 0] * factor}
    expected = rpp.BlockLesion(network()).attribute(batches(), measures=measures)
    found = rpp.BlockLesion(network()).attribute(batches(), measures=measures, run=rpp.RunOptions(executor=client))
    assert timeless(found).identical(timeless(expected))


def test_weights_travel_once_to_each_worker(client):
    """Counted where they are unpacked, over a study of 16 units in two stages."""

    def unpackings():
        from resnet_paths_plugin.analyzers.running import workers

        return workers.unpacked.calls

    def count():
        from resnet_paths_plugin.analyzers.running import workers

        if not hasattr(workers.unpacked, "calls"):
            original = workers.unpacked

            def counting(*arguments):
                counting.calls += 1
                return original(*arguments)

            counting.calls = 0
            workers.unpacked = counting

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
    expected = rpp.BlockLesion(network()).attribute(batches(60), measures={"margin": margin})
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
        found = rpp.BlockLesion(network()).attribute(
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
        rpp.BlockLesion(network()).attribute(
            *batches()[0], measures={"margin": always_lethal}, run=rpp.RunOptions(executor=client)
        )


def test_workers_that_are_threads_of_this_process_use_the_network_itself(monkeypatch):
    monkeypatch.setattr(cargo, "packed", None)
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
            rpp.BlockLesion(network()).attribute(
                Closing(workers), run=rpp.RunOptions(executor=client, checkpoint=tmp_path / "run.nc")
            )
        assert "finished units are kept" in caught.value.__notes__[0]


def test_a_scheduler_without_workers_is_told_of():
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as workers,
        distributed.Client(workers) as client,
    ):
        later = threading.Timer(3, workers.scale, [1])
        later.start()
        with pytest.warns(UserWarning, match=r"has no workers.*`dask worker inproc://"):
            found = rpp.BlockLesion(network()).attribute(batches(), run=rpp.RunOptions(executor=client))
        later.join()
    assert timeless(found).identical(timeless(rpp.BlockLesion(network()).attribute(batches())))


def test_workers_of_a_cluster_have_numbers_of_their_own(client):
    found = [client.submit(devices.number_of_worker, workers=[one], pure=False).result() for one in client.nthreads()]
    assert sorted(found) == [0, 1]
