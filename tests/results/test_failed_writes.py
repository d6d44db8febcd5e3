"""A write that fails leaves the old file; what is no result, or a damaged one, is not loaded."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from made_results import make_attrs, make_lesion

from resnet_paths_plugin.errors import FileError, InputError
from resnet_paths_plugin.results import datasets, schema

# --- atomic writes


@pytest.mark.parametrize(
    "error", [OSError("disk full"), RuntimeError("NetCDF: HDF error"), KeyboardInterrupt(), ValueError()]
)
@pytest.mark.parametrize("moment", ["while writing", "before the disk has it"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(error, moment, tmp_path, monkeypatch):
    path = datasets.save(make_lesion(), tmp_path / "result.nc")
    before = path.read_bytes()
    complete = xr.DataTree.to_netcdf

    def half_written(tree, target, **options):
        complete(tree, target, **options)
        os.truncate(target, 1000)
        assert len([*tmp_path.iterdir()]) == 2
        raise error

    def fail(_descriptor):
        raise error

    if moment == "while writing":
        monkeypatch.setattr(xr.DataTree, "to_netcdf", half_written)
    else:
        monkeypatch.setattr(datasets.os, "fsync", fail)
    expected = FileError if isinstance(error, OSError | RuntimeError) else type(error)
    with pytest.raises(expected):
        datasets.save(make_lesion(), path)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["result.nc"]


def test_the_file_is_on_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(datasets.os, "fsync", lambda number: (events.append("fsync"), fsync(number)))
    monkeypatch.setattr(Path, "replace", lambda old, new: (events.append(old.name), replace(old, new)))
    datasets.save(make_lesion(), tmp_path / "result.nc")
    assert events == ["fsync", "content", "fsync"]  # the file, its new name, and the folder that holds the name


# --- errors


def test_saving_into_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileError, match=r"missing does not exist\. Create it"):
        datasets.save(make_lesion(), tmp_path / "missing" / "result.nc")


def test_saving_onto_a_folder(tmp_path):
    with pytest.raises(FileError, match=r"is a folder: give the name of a file in it"):
        datasets.save(make_lesion(), tmp_path)


def test_saving_into_a_folder_without_the_right_to(tmp_path, monkeypatch):
    def denied(_tree, target, **_options):
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(xr.DataTree, "to_netcdf", denied)
    with pytest.raises(FileError, match=r"cannot write .*result\.nc: Permission denied$"):
        datasets.save(make_lesion(), tmp_path / "result.nc")


def test_a_write_protected_file_is_not_replaced(tmp_path, monkeypatch):
    path = datasets.save(make_lesion(), tmp_path / "result.nc")
    monkeypatch.setattr(datasets.os, "access", lambda asked, mode: not (asked == path and mode == os.W_OK))
    with pytest.raises(FileError, match="write-protected"):
        datasets.save(make_lesion(), path)


UNSAVABLE = {
    "no result": (lambda: xr.Dataset({"mine": 1}), "schema_version"),
    "an array": (lambda: make_lesion()["loss"], "not DataArray"),
    "a tree without groups": (lambda: xr.DataTree(make_lesion()), r"save its \.to_dataset"),
    "a group's name": (lambda: datasets.build_tree({"a b": make_lesion()}), "cannot be a name"),
    "a variable's name": (lambda: make_lesion().rename(loss="a/b"), "'a/b' cannot be a name"),
    "a name that is no text": (lambda: make_lesion().rename(loss=1), "1 cannot be a name"),
    "half precision": (lambda: make_lesion().astype("f2"), r"use \.astype\('float32'\)"),
    "big-endian": (lambda: make_lesion().assign(mine=("sample", np.zeros(3, ">f4"))), "no >f4"),
    "time": (lambda: make_lesion().assign(mine=("sample", np.zeros(3, "M8[ns]"))), "no exact counterpart"),
    "several levels": (lambda: make_lesion().stack(both=("lesion", "sample")), "not all text"),
    "None": (lambda: make_lesion().assign_attrs(note=None), "store 'null' instead"),
    "a list": (
        lambda: make_lesion().assign_attrs(note=["a"]),
        r"attribute 'note' of the result would change",
    ),
    "a flag": (lambda: make_lesion().assign_attrs(note=np.True_), "store 'true' instead"),
    "NUL": (lambda: make_lesion().assign_attrs(note="a\0"), "would change"),
    "a reserved attribute": (lambda: make_lesion().assign(mine=((), 1, {"dtype": "x"})), "file format"),
    "an attribute's name": (lambda: make_lesion().assign_attrs({"a/b": 1}), "cannot be a name"),
}


@pytest.mark.parametrize("case", UNSAVABLE)
def test_what_a_file_would_change_is_not_saved(case, tmp_path):
    make, message = UNSAVABLE[case]
    with pytest.raises(InputError, match=message):
        datasets.save(make(), tmp_path / "result.nc")
    assert not any(tmp_path.iterdir())


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(FileError, match=r"nothing\.nc is missing"):
        datasets.load(tmp_path / "nothing.nc")
    with pytest.raises(FileError, match="is a folder"):
        datasets.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\n", pickle.dumps({"a": 1})])
def test_loading_a_file_that_is_no_netcdf(content, tmp_path):
    path = tmp_path / "other.nc"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"other\.nc is damaged or no netCDF file"):
        datasets.load(path)


def test_a_pickle_is_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    (tmp_path / "trap.nc").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(FileError):
        datasets.load(tmp_path / "trap.nc")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("attrs", [{}, {"schema_version": "1"}, {"schema_version": 1.5}])
def test_loading_a_netcdf_file_of_something_else(attrs, tmp_path):
    xr.Dataset({"temperature": 1.0}, attrs=attrs).to_netcdf(tmp_path / "other.nc", engine="netcdf4")
    with pytest.raises(FileError, match=r"not one made by save .*xarray\.open_dataset"):
        datasets.load(tmp_path / "other.nc")


@pytest.mark.parametrize("tree", [False, True])
def test_loading_a_newer_schema(tree, tmp_path):
    result = make_lesion().assign_attrs(schema_version=schema.SCHEMA_VERSION + 1)
    result = xr.DataTree.from_dict({"/lesion": result}) if tree else result
    path = datasets.save(result, tmp_path / "newer.nc")
    with pytest.raises(FileError, match=r"schema version 4, .* reads up to 3: upgrade"):
        datasets.load(path)


def test_a_truncated_file_is_damaged(tmp_path):
    path = datasets.save(make_lesion(), tmp_path / "result.nc")
    size = path.stat().st_size
    for kept in (100, size // 2, size - 1):
        os.truncate(path, kept)
        with pytest.raises(FileError, match="damaged"):
            datasets.load(path)
        datasets.save(make_lesion(), path)


@pytest.mark.parametrize("tree", [False, True])
def test_one_flipped_bit_in_the_values_is_noticed(tree, tmp_path):
    values = np.arange(1000, dtype=np.float32)
    result = datasets.build({"loss": ("sample", values)}, coords={}, attrs=make_attrs())
    result = datasets.build_tree({"one": result}) if tree else result
    path = datasets.save(result, tmp_path / "result.nc")
    content = bytearray(path.read_bytes())
    place = content.index(values.tobytes()) + 1234
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match="is damaged: restore it from a copy or run the study again"):
        datasets.load(path)
