"""Each worker computes on its own device; a device that is not there is named."""

import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from small_studies import batches, network, run

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import devices, worker_pool

pytestmark = pytest.mark.slow


def test_a_copy_runs_on_the_device_asked_for_and_the_model_stays(serial):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = network()
        found = run("lesions", rpp.RunOptions(device="cpu"), model=model)
    assert found.identical(serial("lesions"))
    assert next(model.parameters()).device.type == "cpu"


def test_a_device_that_is_not_there_is_named():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(InputError, match="no device 'cuda'"):
        rpp.BlockLesion(network()).attribute(*batches()[0], run=rpp.RunOptions(device="cuda"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"executor": 4}, "executor must be a concurrent.futures.Executor"),
        ({"checkpoint": 4}, "checkpoint must be the path"),
        ({"device": "toaster"}, "device 'toaster'"),
    ],
)
def test_options_of_another_kind_are_refused(options, told):
    with pytest.raises(InputError, match=told):
        rpp.RunOptions(**options)


@pytest.mark.parametrize(
    ("device", "n_gpus", "taken"),
    [
        ("cuda", 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda", 1, ["cuda"] * 3),
        ("cuda:1", 2, ["cuda:1"] * 3),
        ("cpu", 2, ["cpu"] * 3),
    ],
)
def test_workers_take_one_gpu_after_the_other(monkeypatch, device, n_gpus, taken):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    assert [devices.of_worker(device, number) for number in range(3)] == taken


def test_processes_of_a_pool_have_numbers_one_after_the_other():
    assert devices.number_of_worker() == 0
    pools = [ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) for _ in range(2)]
    one, other = (pool.submit(devices.number_of_worker).result() for pool in pools)
    for pool in pools:
        pool.shutdown()
    assert other == one + 1


def test_names_of_one_device_mean_the_same(monkeypatch):
    assert rpp.RunOptions(device="cpu:0").device == rpp.RunOptions(device=torch.device("cpu", 0)).device == "cpu"
    monkeypatch.setattr(worker_pool, "packed", None)  # no copy is made
    run("lesions", rpp.RunOptions(device="cpu:0"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert devices.is_same("cuda", "cuda:1")
    assert not devices.is_same("cuda", "cuda:0")
