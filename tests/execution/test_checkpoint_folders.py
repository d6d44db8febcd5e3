"""Damaged files of a checkpoint are computed again or reported; folders of others stay as they are."""

from pathlib import Path

import numpy as np
import pytest
from counted_lesions import Stopping, calls_of_a_whole_run, interrupted, lesions
from small_studies import batches, captured, timeless

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import CheckpointError, FileError
from resnet_paths_plugin.execution import TaskFolder

pytestmark = pytest.mark.slow


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


def test_a_checkpoint_that_another_process_is_at_work_on_is_refused(tmp_path, counting):
    interrupted(counting, tmp_path / "run.nc")
    with (tmp_path / "run.nc.partial" / "in-use.lock").open("rb") as lock:
        pytest.importorskip("fcntl").flock(lock, 2)
        with pytest.raises(CheckpointError, match="another process is at work on"):
            lesions(checkpoint=tmp_path / "run.nc")
    lesions(checkpoint=tmp_path / "run.nc")
