"""Results as Zarr folders: what is saved is loaded, whole or not at all; no folder takes more memory than it states."""

import json
import shutil
import sys

import numpy as np
import pytest
import synthetic_studies as synthetic
import xarray as xr

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import FileError, InputError
from resnet_paths_plugin.results import zarr_folders

zarr = pytest.importorskip("zarr", reason="extra 'zarr'")


@pytest.fixture
def study():
    return synthetic.single_lesions(5)


@pytest.fixture
def folder(study, tmp_path):
    return rpp.save(study, tmp_path / "a.zarr")


def test_a_study_is_the_same_as_from_netcdf(study, folder, tmp_path):
    found = rpp.load(folder)
    assert found.identical(study)
    other = rpp.load(rpp.save(study, tmp_path / "a.nc"))
    for name, values in other.variables.items():
        assert found[name].dtype.kind == values.dtype.kind, name
    assert set(found.coords) == set(study.coords)
    rpp.save(found, tmp_path / "b.nc")


def test_a_tree_is_the_same(tmp_path):
    tree = synthetic.tree(5)
    found = rpp.load(rpp.save(tree, tmp_path / "tree.zarr"))
    assert {*found.children} == {*tree.children}
    assert found.to_dataset().identical(tree.to_dataset())
    for name, group in tree.children.items():
        assert found[name].to_dataset().identical(group.to_dataset()), name
    found["single_lesions"].to_dataset().resnet_paths.summary(n_resamples=10)


@pytest.mark.parametrize("values", [
    np.zeros((2, 0)), np.array(3), np.array([np.nan, np.inf]), np.array([""]), np.array(["", "grösse"]), np.array("x"),
    np.array([True, False]), np.zeros(3, np.int8),
])  # fmt: skip
def test_values_of_any_kind_come_back(values, tmp_path):
    dims = [f"dim_{axis}" for axis in range(values.ndim)]
    ds = xr.Dataset({"a": (dims, values)}, attrs={"schema_version": 3, "low": float("nan")})
    found = rpp.load(rpp.save(ds, tmp_path / "a.zarr"))
    np.testing.assert_array_equal(found["a"], values)
    assert found["a"].dtype.kind == values.dtype.kind
    assert np.isnan(found.attrs["low"])


def test_zarr_itself_reads_it(study, folder):
    np.testing.assert_array_equal(zarr.open_group(folder, mode="r")["loss"][:], study.loss)


def test_an_older_folder_is_replaced_and_nothing_is_left(study, folder, tmp_path):
    rpp.save(study.isel(sample=[0, 1]), folder)
    assert rpp.load(folder).sizes["sample"] == 2
    assert [one.name for one in tmp_path.iterdir()] == ["a.zarr"]
    with pytest.raises(FileError, match="exists already, and is not to be replaced"):
        rpp.save(study, folder, mode="x")
    rpp.save(study, tmp_path / "new.zarr", mode="x")


def test_what_fails_leaves_the_older_folder(study, folder, monkeypatch, tmp_path):
    def write(groups, temporary):
        temporary.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zarr_folders, "write", write)
    with pytest.raises(FileError, match="No space left"):
        rpp.save(study.isel(sample=[0]), folder)
    assert rpp.load(folder).identical(study)
    assert [one.name for one in tmp_path.iterdir()] == ["a.zarr"]


def test_a_folder_of_something_else_is_not_replaced(study, tmp_path):
    other = tmp_path / "photos.zarr"
    other.mkdir()
    (other / "one.txt").write_text("mine")
    with pytest.raises(FileError, match="only a folder made by save is replaced"):
        rpp.save(study, other)
    assert (other / "one.txt").read_text() == "mine"
    (tmp_path / "file.zarr").write_text("mine")
    with pytest.raises(FileError, match="only a folder made by save is replaced"):
        rpp.save(study, tmp_path / "file.zarr")
    with pytest.raises(FileError, match="no group"):
        rpp.load(other)


def edited(array, **changes):
    file = array / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


HARM = {
    "more values than the file holds": (
        "'loss' declares", lambda at: edited(at / "loss", shape=[10**6] * 2, chunk_grid=chunks([10**6] * 2))
    ),
    "a compressed array": (
        "is compressed", lambda at: edited(at / "loss", codecs=[{"name": "bytes"}, {"name": "gzip"}])
    ),
    "an array in pieces": ("in pieces", lambda at: edited(at / "loss", chunk_grid=chunks([1, 200]))),
    "a missing file": ("declares", lambda at: shutil.rmtree(at / "loss" / "c")),
    "more texts than the file holds": (
        "'lesion' declares", lambda at: edited(at / "lesion", shape=[10**9], chunk_grid=chunks([10**9]))
    ),
    "a dtype of no values": ("as save writes it", lambda at: edited(at / "loss", data_type="r4096")),
    "no metadata": ("is damaged", lambda at: (at / "loss" / "zarr.json").write_text("{")),
    "deep metadata": ("is damaged", lambda at: (at / "loss" / "zarr.json").write_text("[" * 100_000)),
    "another version": ("no metadata of Zarr 3", lambda at: edited(at, zarr_format=2)),
}  # fmt: skip
"""What is done to a folder, and the message."""


def chunks(shape):
    return {"name": "regular", "configuration": {"chunk_shape": shape}}


@pytest.mark.parametrize("harm", HARM)
def test_a_folder_that_is_damaged_or_malicious_is_refused(harm, folder):
    message, do = HARM[harm]
    do(folder)
    with pytest.raises(FileError, match=message):
        rpp.load(folder)


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "secret").write_text("x")
    (folder / "more").symlink_to(tmp_path / "secret")
    with pytest.raises(FileError, match="is a link or a device"):
        rpp.load(folder)


def test_a_changed_value_is_found(folder, study):
    (file,) = [file for file in (folder / "loss").rglob("*") if file.is_file() and file.name != "zarr.json"]
    values = bytearray(file.read_bytes())
    values[3] ^= 1
    file.write_bytes(values)
    with pytest.raises(FileError, match="damaged"):
        rpp.load(folder)


def test_texts_of_one_long_one_are_refused(tmp_path, monkeypatch):
    ds = xr.Dataset({"a": ("x", ["y" * 1000] + [""] * 1000)}, attrs={"schema_version": 3})
    rpp.save(ds, tmp_path / "a.zarr")
    monkeypatch.setattr("resnet_paths_plugin.files.limits.SMALL", 2**18)
    with pytest.raises(FileError, match="texts of 'a' would take more memory"):
        rpp.load(tmp_path / "a.zarr")


def test_a_newer_schema_is_refused(folder):
    edited(folder, attributes={"schema_version": 99})
    with pytest.raises(FileError, match="upgrade the package"):
        rpp.load(folder)


def test_an_older_schema_is_converted(study, tmp_path):
    rpp.save(study.assign_attrs(schema_version=2, argument_lesions="None"), tmp_path / "a.zarr")
    assert rpp.load(tmp_path / "a.zarr").resnet_paths.arguments["lesions"] is None


def test_without_zarr_it_is_said_what_to_do(study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(InputError, match=r"pip install 'resnet-paths-plugin\[zarr\]'"):
        rpp.save(study, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


def test_folders_are_compared(study, folder, tmp_path):
    tree = rpp.compare({"one": folder, "two": rpp.save(study, tmp_path / "b.nc")})
    assert tree["models"].sizes["model"] == 2
