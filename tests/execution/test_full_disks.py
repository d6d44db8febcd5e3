"""A disk that is full, read-only or another user's loses nothing that was finished."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import netCDF4
import pytest
from counted_lesions import Stopping, interrupted, lesions, no_space
from small_studies import batches, captured, margin, timeless

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import FileError

pytestmark = pytest.mark.slow


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


class Full(netCDF4.Dataset):
    """Stands for netCDF on a full disk. A class of the module, as netCDF4 cannot free a file whose class is gone."""

    def __setitem__(self, *_):
        no_space()

    def __getitem__(self, name):
        raise RuntimeError("NetCDF: HDF error")


def test_a_disk_that_is_full_at_the_end_loses_nothing(tmp_path, counting, monkeypatch):
    undisturbed = timeless(lesions())
    with monkeypatch.context() as patch:
        patch.setattr("netCDF4.Dataset", Full)
        with pytest.raises(FileError, match=r"cannot write the result.*Fix this") as caught:
            lesions(checkpoint=tmp_path / "run.nc")
    (note,) = caught.value.__notes__
    assert "finished tasks are kept in" in note
    del caught  # and with it the stand-in's file
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
