"""Results do not depend on who computes the units, nor on the order in which they arrive."""

import errno
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import PreActivation, randomised
from small_studies import STUDIES, batches, captured, margin, n_units, network, run, timeless

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers.rewiring import conditions
from resnet_paths_plugin.errors import (
    CheckpointError,
    FileError,
    IncompleteGradientWarning,
    InputError,
    NonFiniteOutputWarning,
    WorkerLostError,
)
from resnet_paths_plugin.execution import devices, fingerprints, temp_folders, worker_pool
from resnet_paths_plugin.execution.batches import Batch
from resnet_paths_plugin.execution.payload import packed, unpacked
from resnet_paths_plugin.execution.temp_folders import PayloadFolder
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


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def serial():
    """The studies run here; each once."""
    found = {}

    def result(name):
        if name not in found:
            found[name] = run(name)
        return found[name]

    return result


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


def test_a_network_arrives_as_it_was_sent():
    """Weights that were changed after the capture, channels-last weights and tied ones included."""
    model = network().to(memory_format=torch.channels_last)
    model.blocks[2].branch[0][2].weight = model.blocks[1].branch[0][2].weight
    images = batches()[0][0].to(memory_format=torch.channels_last)
    net = rpp.unravel(model, images)
    with torch.no_grad():
        model.head.weight.mul_(1.5)
    expected = net(images)
    arrived = unpacked(packed(net))
    assert torch.equal(arrived(images), expected)
    assert arrived.blocks == net.blocks
    weight = arrived.model.get_parameter("blocks.1.branch.0.2.weight")
    assert weight.stride() == model.blocks[1].branch[0][2].weight.stride() != weight.contiguous().stride()
    with torch.no_grad():
        assert torch.equal(model(images), expected)  # and the model is not changed by it


def test_a_model_that_cannot_be_pickled_is_studied_by_processes(processes):
    class Local(PreActivation):  # a class of this function, which pickle refuses
        pass

    torch.manual_seed(0)
    model = randomised(Local()).eval()
    images, labels = batches()[0]
    expected = rpp.BlockLesion(model).attribute(images, labels)
    found = rpp.BlockLesion(model).attribute(images, labels, run=rpp.RunOptions(executor=processes))
    assert timeless(found).identical(timeless(expected))


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


def test_the_intact_network_is_watched_for_infinities_in_workers():
    model = network()
    with torch.no_grad():
        model.head.bias[0] = torch.inf
    with ThreadPoolExecutor(2) as pool, pytest.warns(NonFiniteOutputWarning):
        rpp.BlockLesion(model).attribute(batches(), run=rpp.RunOptions(executor=pool))


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


def test_samples_are_packed_and_read_once_for_all_groups(processes, monkeypatch, tmp_path):
    """Four chunks of samples, each run in two groups of schedules."""
    packed_samples, read = [], []
    dumps, digest_of = pickle.dumps, fingerprints._Reader.digest_of
    counting = SimpleNamespace(
        dumps=lambda value: packed_samples.append(value) or dumps(value),
        loads=pickle.loads,
    )
    monkeypatch.setattr(worker_pool, "pickle", counting)

    def counted(reader, value):
        if isinstance(value, tuple) and value and isinstance(value[0], Batch):
            read.append(value)
        return digest_of(reader, value)

    monkeypatch.setattr(fingerprints._Reader, "digest_of", counted)
    run("lesions", rpp.RunOptions(executor=processes, checkpoint=tmp_path / "run.nc"))
    assert n_units() == 10
    assert len([one for one in packed_samples if isinstance(one, tuple)]) == len(read) == 5
    packed_samples.clear()
    with ThreadPoolExecutor(2) as pool:
        run("lesions", rpp.RunOptions(executor=pool))
    assert not packed_samples


def test_a_folder_of_temporary_files_that_cannot_be_written_is_named(processes, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(FileError, match=r"missing: .*Free space there, or name another folder"):
        run("lesions", rpp.RunOptions(executor=processes))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(_path, _content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FileError, match="No space left on device"):
        run("lesions", rpp.RunOptions(executor=processes))
    assert not list(tmp_path.iterdir())


HOLDS = (
    "from resnet_paths_plugin.execution.temp_folders import PayloadFolder; import os, sys; "
    "folder = PayloadFolder(); print(folder.path, flush=True); sys.stdin.read(); os._exit(9)"
)


def holder():
    """Start a process that holds a folder until it is killed."""
    return subprocess.Popen(  # noqa: S603 - one's own command
        [sys.executable, "-c", HOLDS],
        env={**os.environ, "TMPDIR": tempfile.gettempdir()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.name != "posix", reason="locks end with their process on POSIX")
def test_folders_of_callers_that_were_killed_are_removed_and_no_others(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, alive = holder(), holder()
    left, held = (Path(one.stdout.readline().strip()) for one in (dead, alive))
    dead.kill()
    dead.wait()
    assert left.parent == held.parent == tmp_path
    machine = temp_folders._prefix()
    elsewhere = tmp_path / left.name.replace(machine, "resnet-paths-00000000-0000-another-boot-")
    shutil.copytree(left, elsewhere)
    kept = [held, elsewhere, tmp_path / "resnet-paths-of-somebody", tmp_path / f"{machine}just-made"]
    for path in kept[2:]:
        path.mkdir()
    old = tmp_path / f"{machine}never-locked"
    old.mkdir()
    os.utime(old, (0, 0))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "in-use.lock").touch()
    link = tmp_path / f"{machine}link"
    link.symlink_to(outside)
    mine, again = PayloadFolder(), PayloadFolder()
    assert set(tmp_path.iterdir()) == {*kept, outside, link, mine.path, again.path}
    assert (outside / "in-use.lock").exists()
    mine.remove()
    assert not mine.path.exists()
    for one in (alive, dead):
        one.kill()
        one.wait()
        one.stdin.close()
        one.stdout.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_leaves_its_callers_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = PayloadFolder()
    process = os.fork()
    if not process:
        folder.remove()
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
    assert folder.path.is_dir()


def test_workers_that_do_not_see_this_machines_files_are_told_of(processes, monkeypatch):
    written = PayloadFolder.write

    def elsewhere(folder, name, content):
        written(folder, f"{name}.else", content)
        return folder.path / name

    monkeypatch.setattr(PayloadFolder, "write", elsewhere)
    with pytest.raises(
        InputError, match=r"do not see this machine's files\. Use a dask client, or set the environment"
    ):
        run("lesions", rpp.RunOptions(executor=processes))


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


@pytest.mark.parametrize("study", ["mean ablation", "linear ablation"])
def test_stand_ins_are_fitted_by_workers_and_kept(study, monkeypatch, tmp_path):
    where, original = [], conditions.moments

    def counting(*arguments):
        where.append(threading.get_ident())
        return original(*arguments)

    monkeypatch.setattr(conditions, "moments", counting)
    expected = run(study)
    assert len(where) == 3
    where.clear()
    with ThreadPoolExecutor(2) as pool:
        assert run(study, rpp.RunOptions(executor=pool)).identical(expected)
    assert threading.get_ident() not in where
    where.clear()
    options = rpp.RunOptions(checkpoint=tmp_path / "run.nc")
    with monkeypatch.context() as patch:
        patch.setattr(conditions.Conditions, "chunks", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(study, options)
    assert len(where) == 3
    assert run(study, options).identical(expected)
    assert len(where) == 3


def stopped(*_):
    raise KeyboardInterrupt


def test_a_network_is_packed_once_for_all_stages_and_anew_once_it_has_changed(processes, monkeypatch):
    calls = []
    monkeypatch.setattr(worker_pool, "packed", lambda network: calls.append(network) or packed(network))
    model = network()
    with torch.no_grad():
        model.head.bias.add_(0.5)  # one that the pool has not seen
    expected = run("recalibrated", model=model)  # two stages
    assert run("recalibrated", rpp.RunOptions(executor=processes), model=model).identical(expected)
    assert len(calls) == 1
    model.to(memory_format=torch.channels_last)
    run("recalibrated", rpp.RunOptions(executor=processes), model=model)
    assert len(calls) == 2
    with torch.no_grad():
        model.head.bias.add_(0.5)
    changed = run("lesions", rpp.RunOptions(executor=processes), model=model)
    assert len(calls) == 3
    assert changed.identical(run("lesions", model=model))
