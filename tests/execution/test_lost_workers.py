"""Errors of workers and workers that are lost are reported, with what is kept."""

import multiprocessing
import os
import tempfile
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from small_studies import batches, captured, margin, network, timeless

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError, WorkerLostError

pytestmark = pytest.mark.slow


def test_functions_that_processes_cannot_import_are_refused(processes):
    with pytest.raises(InputError, match="top level of a module"):
        rpp.BlockLesion(captured()).attribute(
            *batches()[0], measures={"mine": lambda outputs, _: outputs[:, 0]}, run=rpp.RunOptions(executor=processes)
        )


def test_an_error_of_a_measure_comes_back_from_processes(processes):
    with pytest.raises(ZeroDivisionError, match="by a measure"):
        rpp.BlockLesion(captured()).attribute(
            *batches()[0], measures={"failing": failing}, run=rpp.RunOptions(executor=processes)
        )


def failing(_outputs, _target):
    raise ZeroDivisionError("by a measure")


def test_a_pool_that_has_lost_a_process_is_told_of(tmp_path):
    checkpoint = tmp_path / "run.nc"
    model, data = network(), batches()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(os.getpid).result()
        with pytest.raises(WorkerLostError, match="make the same call with a new one"):
            rpp.BlockLesion(model).attribute(
                data, measures={"margin": deadly}, run=rpp.RunOptions(executor=pool, checkpoint=checkpoint)
            )


class Limited(ThreadPoolExecutor):
    """Does with its third task what a test says; the others are done before the next is taken."""

    def __init__(self, at_the_third):
        super().__init__(1)
        self._left, self._does = 3, at_the_third

    def submit(self, function, /, *args, **kwargs):
        self._left -= function.__name__ == "run_task"
        if not self._left:
            return self._does(super(), function, *args)
        future = super().submit(function, *args, **kwargs)
        future.exception()
        return future


def shut_down(pool, function, *args):
    pool.shutdown()
    return pool.submit(function, *args)


def cancelled(pool, *_):
    future = Future()
    future.cancel()
    future.set_running_or_notify_cancel()
    return future


@pytest.mark.parametrize(("lost", "told"), [(shut_down, "takes no more tasks"), (cancelled, "were called off")])
@pytest.mark.parametrize("kept", [True, False])
def test_an_executor_that_is_gone_is_told_of_with_what_is_kept(tmp_path, monkeypatch, lost, told, kept):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    checkpoint = tmp_path / "run.nc" if kept else None
    model, data = network(), batches(20, 2)
    expected = timeless(rpp.BlockLesion(model).attribute(data))
    with Limited(lost) as pool, pytest.raises(WorkerLostError, match=told) as caught:
        rpp.BlockLesion(model).attribute(data, run=rpp.RunOptions(executor=pool, checkpoint=checkpoint))
    (note,) = caught.value.__notes__
    if kept:
        assert note.startswith("2 finished tasks are kept in")
        found = rpp.BlockLesion(model).attribute(data, run=rpp.RunOptions(checkpoint=checkpoint))
        assert timeless(found).identical(expected)
    else:
        (saved,) = tmp_path.iterdir()
        assert str(saved) in note
        found = rpp.load(saved)
        assert "first 4 samples are saved" in note
        np.testing.assert_array_equal(found.loss, expected.loss[:, :4])


def deadly(outputs, target):
    """Ends the process that it runs in, but not this one."""
    if multiprocessing.parent_process() is not None:
        os._exit(9)
    return margin(outputs, target)
