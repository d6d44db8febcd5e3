"""A checkpoint keeps finished units, goes on from them, and refuses what it was not made for."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from networks import PreActivation, randomised
from small_studies import N_SAMPLES, STUDIES, batches, margin, n_units, network, run, timeless

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers.running import UnitFolder
from resnet_paths_plugin.errors import CheckpointError, FileError


class StoppedError(Exception):
    pass


class Stopping:
    """A measure that stops the study at some call, and counts how often it is called in all."""

    def __init__(self, at=None, error=StoppedError):
        self.calls, self.at, self.error = 0, at, error

    def __call__(self, outputs, target):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return margin(outputs, target)

    def __reduce__(self):  # it is the same measure, however often it was called
        return Stopping, ()


def counted(outputs, target):
    counted.by(outputs, target)
    return margin(outputs, target)


counted.by = None


def lesions(model=None, data=None, checkpoint=None, executor=None, **options):
    """Lesions of a network in 10 units, whose measure can be made to stop: see `counted.by`."""
    options = {"n_deleted": [1, 2, 3], "draws": 14, "internal_batch_size": 3, **options}
    return rpp.BlockLesion(network() if model is None else model).attribute(
        batches() if data is None else data,
        measures={"margin": counted},
        run=rpp.RunOptions(checkpoint=checkpoint, executor=executor),
        **options,
    )


@pytest.fixture
def counting(monkeypatch):
    """Set what is called for each output that is measured."""

    def by(measure):
        monkeypatch.setattr(counted, "by", measure)
        return measure

    by(margin)
    return by


def calls_of_a_whole_run():
    """In each chunk, every schedule once and the intact network once in each of two groups; the model's check aside."""
    return n_units() // 2 * (42 + 2)


def interrupted(counting, checkpoint, error=StoppedError, at=3 * 33 + 5):
    counting(Stopping(at, error))
    with pytest.raises(error) as caught:
        lesions(checkpoint=checkpoint)
    return caught.value


def test_every_finished_unit_is_a_file_until_the_end(tmp_path, counting):
    interrupted(counting, tmp_path / "run.nc", at=44 * 2 + 1)
    names = sorted(path.name for path in (tmp_path / "run.nc.partial").glob("*.unit"))
    assert names == [f"lesion-{unit:08d}.unit" for unit in range(4)]
    counting(margin)
    lesions(checkpoint=tmp_path / "run.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["run.nc"]


def test_the_same_call_goes_on_where_it_was_stopped(tmp_path, counting):
    undisturbed = timeless(lesions())
    whole = counting(Stopping())
    lesions()
    interrupted(counting, tmp_path / "run.nc", at=44 * 2 + 1)
    rest = counting(Stopping())
    found = lesions(checkpoint=tmp_path / "run.nc")
    assert whole.calls == calls_of_a_whole_run()
    assert rest.calls == whole.calls - 44 * 2  # four units of two chunks were kept
    assert timeless(found).identical(undisturbed)


@pytest.mark.parametrize("name", STUDIES)
def test_the_file_of_a_checkpoint_holds_what_a_run_in_memory_returns(tmp_path, name):
    path = tmp_path / "run.nc"
    expected = run(name)
    found = STUDIES[name](network(), batches(), rpp.RunOptions(checkpoint=path))
    loaded = rpp.load(path)
    assert loaded.identical(found.load())
    assert timeless(loaded).identical(expected)
    assert list(loaded.attrs) == list(expected.attrs)
    assert list(loaded.variables) == list(expected.variables)
    rpp.save(loaded, tmp_path / "again.nc")
    assert [one.name for one in sorted(tmp_path.iterdir())] == ["again.nc", "run.nc"]


def test_the_file_grows_along_an_unlimited_dimension_and_is_read_when_used(tmp_path):
    found = STUDIES["lesions"](network(), batches(), rpp.RunOptions(checkpoint=tmp_path / "run.nc"))
    assert not found.loss.variable._in_memory
    with xr.open_dataset(tmp_path / "run.nc") as file:
        assert file.encoding["unlimited_dims"] == {"sample"}
        np.testing.assert_array_equal(file["sample"], np.arange(N_SAMPLES))


def test_a_study_of_a_loader_holds_a_bounded_part_of_it(tmp_path):
    """Of 300 batches, only a few are alive at any time."""
    import gc
    import weakref

    alive = weakref.WeakSet()
    most = 0

    class Images(torch.Tensor):
        pass

    def loader():
        nonlocal most
        for _ in range(300):
            images = torch.randn(2, 3, 6, 6)
            alive.add(images)
            most = max(most, len(alive))
            yield images, torch.zeros(2, dtype=torch.int64)
            del images

    gc.collect()
    rpp.BlockLesion(network()).attribute(loader(), run=rpp.RunOptions(checkpoint=tmp_path / "run.nc"))
    assert most < 10
    assert rpp.load(tmp_path / "run.nc").sizes["sample"] == 600


def another_model():
    torch.manual_seed(1)
    model = randomised(PreActivation(blocks=4)).eval()
    with torch.no_grad():
        model.head.bias[0] += 1
    return model


class Renamed(PreActivation):
    pass


def another_class():
    torch.manual_seed(1)
    return randomised(Renamed(blocks=4)).eval()


def another_structure():
    model = network()
    model.forward = lambda x: model.head(model.blocks(model.stem(x)).relu().amax((2, 3)))
    return model


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ({"seed": 1}, "seed was 0 and is 1 in this call"),
        ({"draws": 13}, "draws was 14 and is 13"),
        ({"internal_batch_size": 2}, "internal_batch_size was 3 and is 2"),
        ({"ablation": "mean"}, "ablation was zero and is mean"),
        ({"model": another_model}, "weights_digest was sha256:"),
        ({"model": another_class}, "model_class was networks.PreActivation and is test_checkpoints.Renamed"),
        ({"model": another_structure}, "operators of the graph was sha256:"),
    ],
)
def test_another_call_is_refused_with_its_differences(tmp_path, counting, call, told):
    interrupted(counting, tmp_path / "run.nc")
    counting(margin)
    before = {path: path.read_bytes() for path in (tmp_path / "run.nc.partial").iterdir()}
    arguments = {name: value() if name == "model" else value for name, value in call.items()}
    with pytest.raises(CheckpointError, match=told):
        lesions(checkpoint=tmp_path / "run.nc", **arguments)
    assert {path: path.read_bytes() for path in (tmp_path / "run.nc.partial").iterdir()} == before


def test_another_measure_of_the_same_name_is_refused(tmp_path):
    def call(measure, stop=False):
        def data():
            yield batches()[0]
            if stop:
                raise StoppedError

        rpp.BlockLesion(network()).attribute(
            data(), measures={"mine": measure}, run=rpp.RunOptions(checkpoint=tmp_path / "run.nc")
        )

    with pytest.raises(StoppedError):
        call(lambda outputs, _: outputs[:, 0], stop=True)
    with pytest.raises(CheckpointError, match="the content of measures is another one in this call"):
        call(lambda outputs, _: outputs[:, 1])
    # fmt: off
    call(
        lambda outputs, _:
            outputs[:, 0]
    )  # the same function, written elsewhere
    # fmt: on


def test_other_data_are_refused_with_their_place(tmp_path, counting):
    interrupted(counting, tmp_path / "run.nc", at=44 * 3 + 1)
    counting(margin)
    data = batches()
    data[1] = (data[1][0] + 1e-6, data[1][1])
    with pytest.raises(CheckpointError, match=r"samples 4 to 6 are not what they were.*without shuffling"):
        lesions(data=data, checkpoint=tmp_path / "run.nc")


def test_chosen_sizes_are_those_that_the_checkpoint_was_begun_with(tmp_path, counting, monkeypatch):
    from resnet_paths_plugin.analyzers import schedule_study

    options = {"internal_batch_size": None, "perturbations_per_eval": 3}
    monkeypatch.setattr(schedule_study, "SCHEDULES_PER_UNIT", 12)
    monkeypatch.setattr(schedule_study, "chunk_size", lambda *_: 3)
    undisturbed = timeless(lesions(**options))
    counting(Stopping(100, StoppedError))
    with pytest.raises(StoppedError):
        lesions(checkpoint=tmp_path / "run.nc", **options)
    counting(margin)
    monkeypatch.setattr(schedule_study, "SCHEDULES_PER_UNIT", 32)
    monkeypatch.setattr(schedule_study, "chunk_size", lambda *_: 256)
    assert timeless(lesions(checkpoint=tmp_path / "run.nc", **options)).identical(undisturbed)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_unit_is_done_again(tmp_path, counting, damage):
    undisturbed = timeless(lesions())
    interrupted(counting, tmp_path / "run.nc", at=44 * 3 + 1)
    unit = sorted((tmp_path / "run.nc.partial").glob("*.unit"))[2]
    content = bytearray(unit.read_bytes())
    content[len(content) // 2] ^= 1
    unit.write_bytes({"flipped": bytes(content), "cut": bytes(content[:-40]), "empty": b""}[damage])
    rest = counting(Stopping())
    found = lesions(checkpoint=tmp_path / "run.nc")
    assert timeless(found).identical(undisturbed)
    assert rest.calls == calls_of_a_whole_run() - 44 * 3 + 33  # three chunks were kept, but for one unit of 32


def test_a_unit_that_holds_a_pickle_is_not_opened(tmp_path):
    """A file with a right checksum whose array would run code."""
    import hashlib
    import io

    folder = UnitFolder(tmp_path / "units")
    folder.open({})
    content = io.BytesIO()
    np.savez(content, samples=np.array([{}], dtype=object))
    stored = content.getvalue() + hashlib.sha256(content.getvalue()).digest()
    (folder.path / "lesion-00000000.unit").write_bytes(stored)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        folder.read("lesion-00000000", "", "samples")
    folder.close()


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    other = tmp_path / "run.nc.partial"
    other.mkdir()
    (other / "thesis.tex").write_text("all of it")
    with pytest.raises(CheckpointError, match=r"is no checkpoint of a study: it holds thesis.tex"):
        lesions(checkpoint=tmp_path / "run.nc")
    assert (other / "thesis.tex").read_text() == "all of it"


def test_an_interruption_says_what_is_kept(tmp_path, counting):
    error = interrupted(counting, tmp_path / "run.nc", KeyboardInterrupt, at=44 * 2 + 1)
    assert error.__notes__ == [
        f"4 finished units are kept in {tmp_path / 'run.nc.partial'}: the same call goes on from them."
    ]
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_interruption_keeps_what_other_workers_have_finished(tmp_path, counting):
    """Of several threads one is stopped; what the others have finished by then is kept."""
    undisturbed = timeless(lesions())
    counting(Stopping(44 * 2 + 1, StoppedError))
    with ThreadPoolExecutor(2) as pool, pytest.raises(StoppedError):
        lesions(checkpoint=tmp_path / "run.nc", executor=pool)
    rest = counting(Stopping())
    found = lesions(checkpoint=tmp_path / "run.nc")
    assert timeless(found).identical(undisturbed)
    assert rest.calls < calls_of_a_whole_run() - 33


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_loses_nothing_that_was_finished(tmp_path, counting, monkeypatch):
    undisturbed = timeless(lesions())
    synced = []

    def fsync(handle):
        synced.append(handle)
        if len(synced) == 20:
            no_space()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(FileError, match=r"No space left on device.*are kept: the same call goes on") as caught:
            lesions(checkpoint=tmp_path / "run.nc")
    assert "finished units are kept in" in caught.value.__notes__[0]
    assert not list(tmp_path.rglob("*.tmp"))
    kept = len(list(tmp_path.rglob("*.unit")))
    assert kept >= 4
    assert timeless(lesions(checkpoint=tmp_path / "run.nc")).identical(undisturbed)


def test_a_disk_that_is_full_at_the_end_loses_nothing(tmp_path, counting, monkeypatch):
    import netCDF4

    undisturbed = timeless(lesions())

    class Full(netCDF4.Dataset):
        def __setitem__(self, *_):
            no_space()

        def __getitem__(self, name):
            raise RuntimeError("NetCDF: HDF error")

    with monkeypatch.context() as patch:
        patch.setattr("resnet_paths_plugin.streaming.netCDF4.Dataset", Full)
        with pytest.raises(FileError, match=r"cannot write the result.*are kept"):
            lesions(checkpoint=tmp_path / "run.nc")
    assert not (tmp_path / "run.nc").exists()
    assert len(list(tmp_path.rglob("*.unit"))) >= 2
    assert timeless(lesions(checkpoint=tmp_path / "run.nc")).identical(undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["run.nc"]


@pytest.mark.skipif(os.name != "posix" or shutil.which("mount") is None, reason="needs a file system to fill up")
def test_a_file_system_that_is_full_is_told_of(tmp_path, counting):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    made = subprocess.run(mount, check=False, capture_output=True)  # noqa: S603 - one's own command
    if made.returncode:
        pytest.skip(f"no small file system can be mounted here: {made.stderr.decode().strip()}")
    try:
        with pytest.raises(FileError, match="No space left on device"):
            lesions(checkpoint=small / "run.nc")
        assert not list(small.rglob("*.tmp"))
        assert list(small.rglob("*.unit"))
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)  # noqa: S603, S607 - HDF5 may hold a file there


@pytest.fixture
def unprivileged():
    """Root may write anywhere: be somebody else for a while."""
    if os.name != "posix" or os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    privileged()


def privileged():
    if os.name == "posix" and os.getuid() == 0:
        os.seteuid(0)


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read-only", "closed"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_the_run(counting, request, mode):
    measure = counting(Stopping())
    # Not pytest's own folder, which others may not even enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(mode)
        request.getfixturevalue("unprivileged")
        try:
            with pytest.raises(FileError, match="Permission denied"):
                lesions(checkpoint=Path(folder) / "run.nc")
        finally:
            privileged()
            Path(folder).chmod(0o755)
    assert measure.calls == 0


def test_a_checkpoint_in_a_missing_folder_is_refused_before_the_run(tmp_path, counting):
    measure = counting(Stopping())
    with pytest.raises(FileError, match="does not exist"):
        lesions(checkpoint=tmp_path / "missing" / "run.nc")
    assert measure.calls == 0


def test_a_checkpoint_that_another_process_is_at_work_on_is_refused(tmp_path, counting):
    interrupted(counting, tmp_path / "run.nc")
    with (tmp_path / "run.nc.partial" / "in-use.lock").open("rb") as lock:
        pytest.importorskip("fcntl").flock(lock, 2)
        with pytest.raises(CheckpointError, match="another process is at work on"):
            lesions(checkpoint=tmp_path / "run.nc")
    lesions(checkpoint=tmp_path / "run.nc")


def test_a_study_kept_by_its_caller_stays_in_its_folder(tmp_path):
    """What the command line does with its several studies."""
    folder = UnitFolder(tmp_path / "units")
    first = run("lesions", rpp.RunOptions(checkpoint=folder))
    assert len(folder) == n_units()
    assert run("lesions", rpp.RunOptions(checkpoint=folder)).identical(first)
    folder.remove()
    assert not list(tmp_path.iterdir())


def test_the_fingerprint_of_a_function_is_the_same_in_every_process():
    code = (
        "from small_studies import STUDIES, margin\n"
        "from resnet_paths_plugin.analyzers.running.fingerprints import fingerprint\n"
        "print(fingerprint({'a': margin, 'b': STUDIES['recalibrated'], 'c': {1, 2, 'x'}}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    found = {
        subprocess.run(  # noqa: S603 - one's own command
            [sys.executable, "-c", code], env={**environment, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
