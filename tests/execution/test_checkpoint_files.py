"""What lies in a checkpoint's folder: units of other places are not taken, others' files are not touched."""

import os
import random
import shutil

import pytest
import torch
import xarray as xr
from small_studies import STUDIES, batches, captured, network, timeless

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import CheckpointError, FileError
from resnet_paths_plugin.execution import TaskFolder

posix = pytest.mark.skipif(os.name != "posix", reason="needs links and FIFOs")


class StoppedError(Exception):
    pass


class Loader:
    """Batches that stop before the last one, or do not."""

    def __init__(self, stops=False):
        self._stops = stops

    def __iter__(self):
        yield from batches()[: -1 if self._stops else None]
        if self._stops:
            raise StoppedError


def study(checkpoint=None, draws=14, stops=False):
    return rpp.BlockLesion(captured()).attribute(
        Loader(stops),
        n_deleted=[1, 2, 3],
        draws=draws,
        internal_batch_size=3,
        run=rpp.RunOptions(checkpoint=checkpoint),
    )


def stopped(checkpoint, **options):
    with pytest.raises(StoppedError):
        study(checkpoint, stops=True, **options)
    return checkpoint.with_name(f"{checkpoint.name}.partial")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folders of two interrupted studies, and the results of the first: with one call, and with another."""
    place = tmp_path_factory.mktemp("kept")
    (place / "other").mkdir()
    return stopped(place / "run.nc"), stopped(place / "other" / "run.nc", draws=13), timeless(study())


def copied(kept, place):
    shutil.copytree(kept[0], place / "run.nc.partial")
    return place / "run.nc.partial"


def resumed(place, expected):
    """'identical' or 'refused'; nothing else is allowed, and nothing is left over of what is identical."""
    try:
        found = study(place / "run.nc")
    except (CheckpointError, FileError):
        assert not (place / "run.nc").exists()
        return "refused"
    assert timeless(found.load()).identical(expected)
    found.close()
    return "identical"


def damage(rng, folder, other):
    """Damage, rename, swap or replace files of a folder, perhaps by another study's."""
    files = sorted(path for path in folder.iterdir() if path.name != "in-use.lock")
    path, second = rng.sample(files, 2)
    content, place = path.read_bytes(), rng.randrange(max(1, path.stat().st_size))
    name = rng.choice(["lesion-00000009.task", "lesion-00000099.task", "x", second.name, "a.json"])
    others = other / path.name if (other / path.name).exists() else other / "call.json"

    def swap():
        path.write_bytes(second.read_bytes())
        second.write_bytes(content)

    rng.choice(
        [
            lambda: path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]),
            lambda: path.write_bytes(content[:place]),
            swap,
            lambda: path.rename(folder / name),
            lambda: second.write_bytes(content),
            lambda: shutil.copy(others, path),
            lambda: shutil.copy(rng.choice(sorted(other.glob("*.task"))), path),
            lambda: path.write_bytes(b""),
            path.unlink,
            lambda: path.write_bytes(bytes(len(content))),
            lambda: path.write_text('{"study": "", "facts": {"samples": 2, "schedules": 4}}'),
        ]
    )()


def check_damage(kept, tmp_path, cases):
    told = []
    for case in cases:
        rng = random.Random(case)  # noqa: S311 - damage is no secret
        place = tmp_path / str(case)
        folder = copied(kept, place)
        for _ in range(rng.choice([1, 1, 3])):
            if len(list(folder.iterdir())) > 2:
                damage(rng, folder, kept[1])
        told.append(resumed(place, kept[2]))
        shutil.rmtree(place)
    return told


def test_damaged_renamed_swapped_and_replaced_files_are_refused_or_their_units_done_again(kept, tmp_path):
    told = check_damage(kept, tmp_path, range(12))
    assert {"identical", "refused"} == set(told)


@pytest.mark.zoo
def test_many_damaged_files_of_checkpoints_are_refused_or_done_again(kept, tmp_path):
    told = check_damage(kept, tmp_path, range(300))
    assert told.count("identical") > 60
    assert told.count("refused") > 60


def test_units_of_one_batch_that_were_swapped_are_done_again(kept, tmp_path):
    """Which hold results of the same samples, of other schedules."""
    folder = copied(kept, tmp_path)
    first, second = (folder / f"lesion-{task:08d}.task" for task in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert resumed(tmp_path, kept[2]) == "identical"


def test_sizes_of_another_study_are_refused(kept, tmp_path):
    folder = copied(kept, tmp_path)
    shutil.copy(kept[1] / "tasks.json", folder)
    with pytest.raises(CheckpointError, match=r"tasks\.json is damaged.*belongs to another study"):
        study(tmp_path / "run.nc")


@posix
@pytest.mark.parametrize("name", ["lesion-00000000.task", "tasks.json", "call.json", "in-use.lock"])
@pytest.mark.parametrize("kind", ["FIFO", "link", "link to a FIFO"])
def test_what_is_no_file_is_neither_opened_nor_removed(kept, tmp_path, name, kind):
    folder = copied(kept, tmp_path)
    (tmp_path / "precious").write_text("precious")
    (folder / name).unlink()
    if kind == "link":
        (folder / name).symlink_to(tmp_path / "precious")
    else:
        os.mkfifo(folder / name if kind == "FIFO" else tmp_path / "fifo")
        if kind != "FIFO":
            (folder / name).symlink_to(tmp_path / "fifo")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises((CheckpointError, FileError)):
        study(tmp_path / "run.nc")  # to open a FIFO would never end
    assert sorted(path.name for path in folder.iterdir()) == before
    assert (tmp_path / "precious").read_text() == "precious"


@posix
def test_a_lock_is_not_emptied(kept, tmp_path):
    folder = copied(kept, tmp_path)
    (folder / "in-use.lock").write_text("not ours")
    opened = TaskFolder(folder)
    opened.hold()
    assert (folder / "in-use.lock").read_text() == "not ours"
    opened.close()


@posix
def test_a_link_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run.nc.partial").symlink_to("elsewhere")
    with pytest.raises(FileError, match=r"run\.nc\.partial is a link"):
        study(tmp_path / "run.nc")
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", ["notes.json", "mine.task", "lesion.json"])
def test_files_of_others_stay_whatever_their_suffix(kept, tmp_path, name):
    folder = copied(kept, tmp_path)
    (folder / name).write_text("mine")
    with pytest.raises(CheckpointError, match=f"it holds {name}"):
        study(tmp_path / "run.nc")
    assert (folder / name).read_text() == "mine"


def test_two_results_of_one_path_never_answer_for_each_other(tmp_path):
    with xr.set_options(file_cache_maxsize=1):
        first = STUDIES["lesions"](captured(), batches(), rpp.RunOptions(checkpoint=tmp_path / "run.nc"))
        expected = rpp.load(tmp_path / "run.nc")
        other = network()
        with torch.no_grad():
            next(iter(other.parameters())).mul_(2)
        second = STUDIES["lesions"](other, batches(), rpp.RunOptions(checkpoint=tmp_path / "run.nc"))
        assert not second.loss.load().equals(expected.loss)
        with pytest.raises(FileError, match="another file than the one that the values of this result are in"):
            first.loss.load()
        (tmp_path / "run.nc").unlink()
        rpp.save(expected, tmp_path / "other.nc")
        with pytest.raises(FileError, match="is missing"):
            first.loss.load()


def test_a_result_that_is_still_open_reads_its_own_file(tmp_path):
    first = STUDIES["lesions"](captured(), batches(), rpp.RunOptions(checkpoint=tmp_path / "run.nc"))
    expected = rpp.load(tmp_path / "run.nc")
    rpp.save(expected.isel(sample=[0]), tmp_path / "run.nc")
    try:
        found = first.load()
    except FileError:
        return
    xr.testing.assert_identical(found, expected)
