"""Results do not depend on who computes the tasks, nor on the order in which they arrive."""

import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from networks import PreActivation, randomised
from small_studies import STUDIES, batches, captured, network, run, timeless

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import CheckpointError, IncompleteGradientWarning, InputError, NonFiniteOutputWarning
from resnet_paths_plugin.execution.torch_settings import Settings

pytestmark = pytest.mark.slow


class Backwards(Executor):
    """Runs what it is given in the reverse order, as late as it can: when somebody waits."""

    def __init__(self, hold=5):
        self._held, self._hold, self.most_held = [], hold, 0
        self._max_workers = 3

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        self._held.append((future, function, args, kwargs))
        self.most_held = max(self.most_held, len(self._held))
        if function.__name__ == "is_here" or len(self._held) >= self._hold:
            self._release()
        else:
            threading.Timer(0.05, self._release).start()
        return future

    def _release(self):
        held, self._held = self._held, []
        for future, function, args, kwargs in reversed(held):
            future.set_running_or_notify_cancel()
            future.set_result(function(*args, **kwargs))


def test_the_serial_loss_is_that_of_copies_without_the_branches(serial):
    """The oracle is the model's own forward pass with the branches multiplied by zero."""
    study = serial("lesions")
    images, labels = (torch.cat(part) for part in zip(*batches(), strict=True))
    for lesion in range(0, study.sizes["lesion"], 5):
        model = network()
        hooks = [
            model.blocks[block].branch.register_forward_hook(lambda *call: call[2] * 0)
            for block in np.flatnonzero(study.deleted[lesion])
        ]
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(model(images), labels, reduction="none")
        for hook in hooks:
            hook.remove()
        np.testing.assert_allclose(study.loss[lesion], loss, rtol=1e-5)


@pytest.mark.parametrize("name", STUDIES)
def test_threads_compute_what_a_serial_run_does(serial, name):
    with ThreadPoolExecutor(3) as pool:
        assert run(name, rpp.RunOptions(executor=pool)).identical(serial(name))


@pytest.mark.parametrize("name", STUDIES)
def test_processes_compute_what_a_serial_run_does(serial, processes, name):
    assert run(name, rpp.RunOptions(executor=processes)).identical(serial(name))


@pytest.mark.parametrize("name", ["lesions", "recalibrated", "paths"])
def test_the_order_of_arrival_does_not_matter(serial, name):
    executor = Backwards()
    assert run(name, rpp.RunOptions(executor=executor)).identical(serial(name))
    assert executor.most_held > 1  # some did arrive before others that were given out earlier


def test_a_loader_is_not_read_far_ahead_of_the_results():
    """12 units, four for each of three workers, may be on their way; each batch makes two."""
    data, read, finished = batches(200, 2), 0, []

    def loader():
        nonlocal read
        for batch in data:
            read += 1
            yield batch

    class Counting(Backwards):
        def submit(self, function, /, *args, **kwargs):
            finished.append(read)
            return super().submit(function, *args, **kwargs)

    executor = Counting(hold=1)
    rpp.BlockLesion(captured()).attribute(loader(), run=rpp.RunOptions(executor=executor))
    assert len(finished) == 101  # and the question whether the executor shares this process
    assert all(count <= at + 1 for at, count in enumerate(finished))

    held = Backwards(hold=10**6)
    seen = []

    def watched():
        for batch in data:
            seen.append(len(held._held))
            yield batch

    rpp.BlockLesion(captured()).attribute(watched(), run=rpp.RunOptions(executor=held))
    assert max(seen) <= 12


@pytest.mark.parametrize("name", ["lesions", "recalibrated", "influence"])
def test_workers_cast_as_the_caller_does(serial, processes, name):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = run(name)
        with ThreadPoolExecutor(2) as pool:
            assert run(name, rpp.RunOptions(executor=pool)).identical(expected)
        assert run(name, rpp.RunOptions(executor=processes)).identical(expected)
    assert not expected.identical(serial(name))


def flags():
    return torch.backends.mkldnn.enabled, torch.get_float32_matmul_precision(), torch.get_default_dtype()


def flags_of(outputs, _target):
    """A measure that tells the settings of whoever runs it."""
    enabled, precision, dtype = flags()
    return outputs.new_full((len(outputs),), 4 * enabled + 2 * (precision == "high") + (dtype == torch.float64))


@pytest.fixture
def unusual_settings():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("high")
        torch.backends.mkldnn.enabled = False
        yield
    finally:
        torch.backends.mkldnn.enabled = True
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision(before)


def test_settings_that_change_rounding_travel_to_processes(processes, unusual_settings):
    data = [(images.float(), labels) for images, labels in batches()]
    found = rpp.BlockLesion(network().float()).attribute(
        data, measures={"flags": flags_of}, run=rpp.RunOptions(executor=processes)
    )
    assert set(found.flags.values.flat) == {3}
    assert processes.submit(flags).result() == (True, "highest", torch.float32)  # and they are put back there


@contextmanager
def without_mkldnn():
    torch.backends.mkldnn.enabled = False
    yield
    torch.backends.mkldnn.enabled = True


@pytest.mark.parametrize("setting", [torch.autocast("cpu"), without_mkldnn()])
def test_a_checkpoint_made_under_other_settings_is_refused(tmp_path, setting):
    class Stopping:
        def __iter__(self):
            yield batches()[0]
            raise KeyboardInterrupt

    with setting, pytest.raises(KeyboardInterrupt):
        rpp.BlockLesion(captured()).attribute(Stopping(), run=rpp.RunOptions(checkpoint=tmp_path / "run.nc"))
    with pytest.raises(
        CheckpointError, match=r"autocast of cpu was torch.bfloat16 and is None|mkldnn enabled was False"
    ):
        rpp.BlockLesion(captured()).attribute(Stopping(), run=rpp.RunOptions(checkpoint=tmp_path / "run.nc"))


def test_settings_last_until_the_last_thread_is_done():
    """One thread leaves while another is still at work; a third one, which wants others, waits for both."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    high = Settings.here()
    torch.set_float32_matmul_precision(before)
    usual = Settings.here()
    entered, leave, seen = threading.Barrier(3), [threading.Event(), threading.Event()], []

    def holding(which):
        with high.held():
            entered.wait()
            leave[which].wait()

    def other():
        with usual.held():
            seen.append(torch.get_float32_matmul_precision())

    first, second = (threading.Thread(target=holding, args=(at,)) for at in (0, 1))
    third = threading.Thread(target=other)
    first.start()
    second.start()
    entered.wait()
    third.start()
    leave[0].set()
    first.join()
    assert torch.get_float32_matmul_precision() == "high"
    assert not seen
    leave[1].set()
    second.join()
    third.join()
    assert seen == [before]
    assert torch.get_float32_matmul_precision() == before


def test_the_intact_network_is_watched_for_infinities_in_workers():
    model = network()
    with torch.no_grad():
        model.head.bias[0] = torch.inf
    with ThreadPoolExecutor(2) as pool, pytest.warns(NonFiniteOutputWarning):
        rpp.BlockLesion(model).attribute(batches(), run=rpp.RunOptions(executor=pool))


def test_run_must_be_run_options():
    with pytest.raises(InputError, match=r"run must be RunOptions"):
        rpp.BlockLesion(network()).attribute(*batches()[0], run={"executor": None})


class Differing(PreActivation):
    """A model that is not what its capture says."""

    def forward(self, x):
        outputs = super().forward(x)
        return outputs if torch.compiler.is_exporting() else outputs * 1.5


def test_workers_hold_gradients_against_the_users_own_model(processes):
    torch.manual_seed(1)
    model = randomised(Differing(blocks=4)).eval()
    with pytest.warns(IncompleteGradientWarning):
        expected = rpp.PathLengthGradient(model).attribute(
            batches(), internal_batch_size=2, run=rpp.RunOptions(verify=False)
        )
    with pytest.warns(IncompleteGradientWarning):
        found = rpp.PathLengthGradient(model).attribute(
            batches(), internal_batch_size=2, run=rpp.RunOptions(executor=processes, verify=False)
        )
    assert (expected.completeness_error > 0.3).all()
    assert timeless(found).identical(timeless(expected))
