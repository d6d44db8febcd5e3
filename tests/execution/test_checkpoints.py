"""A checkpoint keeps finished tasks, goes on from them, and refuses what it was not made for."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from networks import PreActivation, randomised
from small_studies import N_SAMPLES, STUDIES, batches, captured, margin, n_units, network, run, timeless

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import CheckpointError, FileError, InputError
from resnet_paths_plugin.execution import TaskFolder

pytestmark = pytest.mark.slow


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
counted.version = "1"  # it is the same measure, whatever is counted by it


def lesions(model=None, data=None, checkpoint=None, executor=None, **options):
    """Lesions of a network in 10 units, whose measure can be made to stop: see `counted.by`."""
    options = {"n_deleted": [1, 2, 3], "draws": 14, "internal_batch_size": 3, **options}
    return rpp.BlockLesion(captured() if model is None else model).attribute(
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
    names = sorted(path.name for path in (tmp_path / "run.nc.partial").glob("*.task"))
    assert names == [f"lesion-{task:08d}.task" for task in range(4)]
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
    found = STUDIES[name](captured(), batches(), rpp.RunOptions(checkpoint=path))
    loaded = rpp.load(path)
    assert loaded.identical(found.load())
    assert timeless(loaded).identical(expected)
    assert list(loaded.attrs) == list(expected.attrs)
    assert list(loaded.variables) == list(expected.variables)
    rpp.save(loaded, tmp_path / "again.nc")
    assert [one.name for one in sorted(tmp_path.iterdir())] == ["again.nc", "run.nc"]


def test_the_file_grows_along_an_unlimited_dimension_and_is_read_when_used(tmp_path):
    found = STUDIES["lesions"](captured(), batches(), rpp.RunOptions(checkpoint=tmp_path / "run.nc"))
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
    rpp.BlockLesion(captured()).attribute(loader(), run=rpp.RunOptions(checkpoint=tmp_path / "run.nc"))
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

        rpp.BlockLesion(captured()).attribute(
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
    with pytest.raises(CheckpointError, match=r"samples 4 to 6 are not what they were.*without shuffling") as caught:
        lesions(data=data, checkpoint=tmp_path / "run.nc")
    assert not hasattr(caught.value, "__notes__")  # the same call does not go on from there


def test_chosen_sizes_are_those_that_the_checkpoint_was_begun_with(tmp_path, counting, monkeypatch):
    from resnet_paths_plugin.analyzers import study as base
    from resnet_paths_plugin.analyzers.rewiring import study

    options = {"internal_batch_size": None, "perturbations_per_eval": 3}
    monkeypatch.setattr(study, "SCHEDULES_PER_TASK", 12)
    monkeypatch.setattr(base, "chunk_size", lambda *_: 3)
    undisturbed = timeless(lesions(**options))
    counting(Stopping(100, StoppedError))
    with pytest.raises(StoppedError):
        lesions(checkpoint=tmp_path / "run.nc", **options)
    counting(margin)
    monkeypatch.setattr(study, "SCHEDULES_PER_TASK", 32)
    monkeypatch.setattr(base, "chunk_size", lambda *_: 256)
    assert timeless(lesions(checkpoint=tmp_path / "run.nc", **options)).identical(undisturbed)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_unit_is_done_again(tmp_path, counting, damage):
    undisturbed = timeless(lesions())
    interrupted(counting, tmp_path / "run.nc", at=44 * 3 + 1)
    task = sorted((tmp_path / "run.nc.partial").glob("*.task"))[2]
    content = bytearray(task.read_bytes())
    content[len(content) // 2] ^= 1
    task.write_bytes({"flipped": bytes(content), "cut": bytes(content[:-40]), "empty": b""}[damage])
    rest = counting(Stopping())
    found = lesions(checkpoint=tmp_path / "run.nc")
    assert timeless(found).identical(undisturbed)
    assert rest.calls == calls_of_a_whole_run() - 44 * 3 + 33  # three chunks were kept, but for one task of 32


def test_a_unit_that_holds_a_pickle_is_not_opened(tmp_path):
    """A file with a right checksum whose array would run code."""
    import hashlib
    import io

    folder = TaskFolder(tmp_path / "units")
    folder.open({})
    content = io.BytesIO()
    np.savez(content, samples=np.array([{}], dtype=object))
    stored = content.getvalue() + hashlib.sha256(content.getvalue()).digest()
    (folder.path / "lesion-00000000.task").write_bytes(stored)
    with pytest.raises(CheckpointError, match=r"damaged, or not of this package's making.*allow_pickle=False"):
        folder.read("lesion-00000000", "", "samples")
    folder.close()


@pytest.mark.parametrize("content", [b"garbage", b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00\x76\x00{}"])
def test_a_unit_that_is_no_archive_is_told_of(tmp_path, content):
    import hashlib

    folder = TaskFolder(tmp_path / "units")
    folder.open({})
    (folder.path / "lesion-00000000.task").write_bytes(content + hashlib.sha256(content).digest())
    with pytest.raises(CheckpointError, match=r"lesion-00000000.task is damaged, or not of this package's making"):
        folder.read("lesion-00000000", "", "samples")
    folder.close()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("call.json", "[1, 2]"),
        ("call.json", "{"),
        ("call.json", "[" * 100_000),
        ("tasks.json", "{}"),
        ("tasks.json", '{"samples": "3", "schedules": 32}'),
        ("tasks.json", '{"samples": 0, "schedules": 32}'),
        ("lesion.work.json", "null"),
    ],
)
def test_a_damaged_record_is_told_of(tmp_path, counting, name, content):
    interrupted(counting, tmp_path / "run.nc")
    (tmp_path / "run.nc.partial" / name).write_text(content)
    with pytest.raises(CheckpointError, match=f"{name} is damaged, or not of this package's making") as caught:
        lesions(checkpoint=tmp_path / "run.nc")
    assert not hasattr(caught.value, "__notes__")


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    other = tmp_path / "run.nc.partial"
    other.mkdir()
    (other / "thesis.tex").write_text("all of it")
    with pytest.raises(CheckpointError, match=r"is no checkpoint of a study: it holds thesis.tex"):
        lesions(checkpoint=tmp_path / "run.nc")
    assert (other / "thesis.tex").read_text() == "all of it"


@pytest.mark.parametrize("name", ["mine.tmp", "mine.json", "mine.task"])
def test_a_folder_of_others_is_left_alone_whatever_its_files_are_called(tmp_path, name):
    other = tmp_path / "run.nc.partial"
    other.mkdir()
    (other / name).write_text("x")
    with pytest.raises(CheckpointError, match="is no checkpoint of a study: it holds mine"):
        lesions(checkpoint=tmp_path / "run.nc")
    assert [path.name for path in other.iterdir()] == [name]


def test_a_file_that_others_add_meanwhile_stays(tmp_path):
    def data():
        yield from batches()
        (tmp_path / "run.nc.partial" / "thesis.tex").write_text("all of it")

    rpp.BlockLesion(captured()).attribute(data(), run=rpp.RunOptions(checkpoint=tmp_path / "run.nc"))
    assert (tmp_path / "run.nc.partial" / "thesis.tex").read_text() == "all of it"
    assert not list(tmp_path.rglob("*.task"))
    with pytest.raises(CheckpointError, match=r"it holds thesis\.tex"):
        lesions(checkpoint=tmp_path / "run.nc")


def test_a_file_in_the_place_of_the_folder_is_told_of(tmp_path):
    (tmp_path / "run.nc.partial").write_text("a file")
    with pytest.raises(FileError, match=r"run.nc.partial is a file.*move it away, or choose another name"):
        lesions(checkpoint=tmp_path / "run.nc")


def test_a_second_call_takes_nothing_from_the_first(tmp_path):
    pytest.importorskip("fcntl")
    before, after = [], []

    def data():
        for place, batch in enumerate(batches()):
            if place == 2:
                before.extend(sorted(tmp_path.rglob("*")))
                with pytest.raises(CheckpointError, match="another process is at work on"):
                    lesions(checkpoint=tmp_path / "run.nc")
                after.extend(sorted(tmp_path.rglob("*")))
            yield batch

    rpp.BlockLesion(captured()).attribute(data(), run=rpp.RunOptions(checkpoint=tmp_path / "run.nc"))
    assert "result.tmp" in {path.name for path in before}
    assert after == before
    assert [path.name for path in tmp_path.iterdir()] == ["run.nc"]


def test_a_refused_opening_lets_go_of_nothing_that_is_held(tmp_path):
    pytest.importorskip("fcntl")
    folder = TaskFolder(tmp_path / "units")
    folder.open({})
    for other in (folder, TaskFolder(tmp_path / "units")):
        with pytest.raises(CheckpointError, match="another process is at work on"):
            other.open({})
    folder.write("lesion-00000000", "", {})
    assert len(folder) == 1
    folder.remove()


def test_a_folder_is_held_until_it_is_removed(tmp_path, monkeypatch):
    """Whenever one of its files goes, another process is still refused; what is left never misleads."""
    pytest.importorskip("fcntl")
    folder = TaskFolder(tmp_path / "run.nc.partial")
    removed, unlink = [], Path.unlink

    def watched(path, **options):
        if path.suffix != ".tmp":
            if folder._lock is not None:
                with pytest.raises(CheckpointError, match="another process is at work on"):
                    TaskFolder(path.parent).open({})
            removed.append((path.name, path.suffix, folder._lock is not None))
        unlink(path, **options)

    folder.open({})
    folder.settled("tasks.json", {"samples": 3})
    for task in range(3):
        folder.write(f"lesion-{task:08d}", "", {})
    monkeypatch.setattr(Path, "unlink", watched)
    folder.remove()
    assert [suffix for _, suffix, _ in removed] == [".task"] * 3 + [".json"] * 2 + [".lock"]
    assert removed[-2][0] == "call.json"
    assert all(held for *_, held in removed)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("counting")
def test_a_study_holds_its_folder_until_it_is_removed(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    held, remove = [], TaskFolder.remove

    def watched(folder):
        held.append(folder._lock is not None)
        remove(folder)

    monkeypatch.setattr(TaskFolder, "remove", watched)
    lesions(checkpoint=tmp_path / "run.nc")
    assert held == [True]


def test_units_of_other_sizes_are_done_again(tmp_path, counting, monkeypatch):
    """Even where the records of the sizes are lost."""
    from resnet_paths_plugin.analyzers.rewiring import study

    options = {"internal_batch_size": 3, "perturbations_per_eval": 1}
    undisturbed = timeless(lesions(**options))
    monkeypatch.setattr(study, "SCHEDULES_PER_TASK", 2)
    counting(Stopping(44 * 2 + 1))
    with pytest.raises(StoppedError):
        lesions(checkpoint=tmp_path / "run.nc", **options)
    counting(margin)
    for name in ("tasks.json", "lesion.work.json"):
        (tmp_path / "run.nc.partial" / name).unlink()
    monkeypatch.setattr(study, "SCHEDULES_PER_TASK", 32)
    assert timeless(lesions(checkpoint=tmp_path / "run.nc", **options)).identical(undisturbed)


@pytest.mark.parametrize("name", ["samples", "file", "allow_pickle", "work"])
def test_a_measure_may_have_any_name(tmp_path, name):
    def call(data, **options):
        return timeless(rpp.BlockLesion(captured()).attribute(data, measures={name: margin}, **options))

    class Data:
        def __init__(self, stop):
            self.stop = stop

        def __iter__(self):
            yield batches()[0]
            if self.stop:
                raise StoppedError
            yield from batches()[1:]

    options = rpp.RunOptions(checkpoint=tmp_path / "run.nc")
    with pytest.raises(StoppedError):
        call(Data(stop=True), run=options)
    assert list(tmp_path.rglob("*.task"))
    assert call(Data(stop=False), run=options).identical(call(Data(stop=False)))


def seen(condition):
    """Whether something comes true in a while."""
    for _ in range(2000):
        if condition():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.usefixtures("counting")
def test_a_finished_unit_is_written_while_the_data_are_waited_for(tmp_path):
    """Far fewer units than may be on their way: nothing else makes the caller look at them."""

    def data():
        *most, last = batches()
        yield from most
        assert seen(lambda: len(list(tmp_path.rglob("*.task"))) == n_units() - 2)
        yield last

    with ThreadPoolExecutor(4) as pool:
        found = lesions(data=data(), checkpoint=tmp_path / "run.nc", executor=pool)
    assert found.load().equals(lesions())


@pytest.mark.usefixtures("counting")
def test_a_unit_that_could_not_be_written_while_the_data_were_waited_for_is_told_of(tmp_path, monkeypatch):
    class Full:
        tried = 0

        def __call__(self, *_):
            self.tried += 1
            no_space()

    full = Full()

    def data():
        *most, last = batches()
        yield most[0]
        assert seen(lambda: len(list(tmp_path.rglob("*.task"))) == 4)
        monkeypatch.setattr(TaskFolder, "_write", full)
        yield most[1]
        assert seen(lambda: full.tried)
        yield last

    with ThreadPoolExecutor(4) as pool, pytest.raises(OSError, match="No space left on device"):
        lesions(data=data(), checkpoint=tmp_path / "run.nc", executor=pool)


def test_an_error_of_a_worker_is_told_of_before_all_data_are_read(tmp_path, counting):
    counting(Stopping(1 + 5))
    read = []

    def data():
        for batch in batches(200, 2):
            read.append(batch)
            time.sleep(0.02)
            yield batch

    with ThreadPoolExecutor(16) as pool, pytest.raises(StoppedError):
        lesions(data=data(), checkpoint=tmp_path / "run.nc", executor=pool)
    assert len(read) < 30  # 64 units may be on their way, of which a batch makes two


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, torch.OutOfMemoryError])
def test_an_interruption_says_what_is_kept(tmp_path, counting, kind):
    error = interrupted(counting, tmp_path / "run.nc", kind, at=44 * 2 + 1)
    assert error.__notes__ == [
        f"4 finished tasks are kept in {tmp_path / 'run.nc.partial'}: the same call goes on from them."
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


def test_a_call_that_finishes_nothing_leaves_nothing_in_the_way_of_a_better_one(tmp_path):
    def wrong(outputs, target):
        raise ArithmeticError

    checkpoint = tmp_path / "run.nc"
    with pytest.raises(ArithmeticError):
        rpp.BlockLesion(captured()).attribute(
            batches(), measures={"margin": wrong}, run=rpp.RunOptions(checkpoint=checkpoint)
        )
    assert list(tmp_path.iterdir()) == []
    assert rpp.BlockLesion(captured()).attribute(
        batches(), measures={"margin": margin}, run=rpp.RunOptions(checkpoint=checkpoint)
    )


def test_a_full_disk_loses_nothing_that_was_finished(tmp_path, counting, monkeypatch):
    undisturbed = timeless(lesions())
    synced = []

    def fsync(handle):
        synced.append(handle)
        if len(synced) == 20:
            no_space()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(FileError, match=r"No space left on device. Fix this") as caught:
            lesions(checkpoint=tmp_path / "run.nc")
    (note,) = caught.value.__notes__
    assert "finished tasks are kept in" in note
    assert "kept" not in str(caught.value)
    assert not list(tmp_path.rglob("*.tmp"))
    kept = len(list(tmp_path.rglob("*.task")))
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
        patch.setattr("netCDF4.Dataset", Full)
        with pytest.raises(FileError, match=r"cannot write the result.*Fix this") as caught:
            lesions(checkpoint=tmp_path / "run.nc")
    (note,) = caught.value.__notes__
    assert "finished tasks are kept in" in note
    del caught  # and with it the stand-in for netCDF, which must not outlive its class
    assert not (tmp_path / "run.nc").exists()
    assert len(list(tmp_path.rglob("*.task"))) >= 2
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
        assert list(small.rglob("*.task"))
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


def test_a_checkpoint_that_is_not_ones_own_is_refused(counting, request):
    """A folder that may be read, of another user."""
    with tempfile.TemporaryDirectory() as folder:
        interrupted(counting, Path(folder) / "run.nc")
        counting(margin)
        partial = Path(folder) / "run.nc.partial"
        for path in partial.iterdir():
            path.chmod(0o444)
        partial.chmod(0o555)
        Path(folder).chmod(0o777)
        request.getfixturevalue("unprivileged")
        try:
            with pytest.raises(FileError, match=r"cannot write the checkpoint .*run.nc.partial: Permission denied"):
                lesions(checkpoint=Path(folder) / "run.nc")
        finally:
            privileged()
            partial.chmod(0o755)


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


class Turning:
    """A measure whose dtype is another one for the first batch."""

    def __call__(self, outputs, target):
        first = torch.equal(target, batches()[0][1])
        return margin(outputs, target).round().long() if first else margin(outputs, target)


@pytest.mark.parametrize("kept", [False, True], ids=["memory", "file"])
def test_a_measure_whose_dtype_changes_is_refused(tmp_path, kept):
    with pytest.raises(InputError, match="'turning' is int64 for some samples and float32 for others"):
        rpp.BlockLesion(captured()).attribute(
            batches(),
            measures={"turning": Turning()},
            internal_batch_size=4,
            run=rpp.RunOptions(checkpoint=tmp_path / "run.nc" if kept else None),
        )


def test_the_file_of_a_small_study_is_small(tmp_path):
    """As large as `save` makes it, but for what an unlimited dimension costs."""
    images, labels = (torch.cat(part) for part in zip(*batches(), strict=True))
    found = rpp.BlockLesion(captured()).attribute(images, labels, run=rpp.RunOptions(checkpoint=tmp_path / "run.nc"))
    rpp.save(found.load(), tmp_path / "saved.nc")
    assert (tmp_path / "run.nc").stat().st_size < 2 * (tmp_path / "saved.nc").stat().st_size


def test_a_study_kept_by_its_caller_stays_in_its_folder(tmp_path):
    """What the command line does with its several studies."""
    folder = TaskFolder(tmp_path / "units")
    first = run("lesions", rpp.RunOptions(checkpoint=folder))
    assert len(folder) == n_units()
    assert run("lesions", rpp.RunOptions(checkpoint=folder)).identical(first)
    folder.remove()
    assert not list(tmp_path.iterdir())


def test_the_fingerprint_of_a_function_is_the_same_in_every_process():
    code = (
        "from small_studies import STUDIES, margin\n"
        "from resnet_paths_plugin.execution.fingerprints import fingerprint\n"
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
