"""Files that xarray has written again load as they are: whole results, selections, joined ones, trees.

The oracle is xarray's own `assert_identical` with what was in memory.
"""

import h5py
import netCDF4
import numpy as np
import pytest
import torch
import xarray as xr
from small_studies import batches, network

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import FileError
from resnet_paths_plugin.results import datasets

X = batches()[0][0]


@pytest.fixture(scope="module")
def lesions():
    return rpp.BlockLesion(network()).attribute(X, target=torch.arange(len(X)) % 3)


@pytest.fixture(scope="module")
def lengths():
    return rpp.PathLengthGradient(network()).attribute(X, target=0)


CHANGES = {
    "as it is": lambda ds: ds,
    "some samples": lambda ds: ds.isel(sample=[0, 1]),
    "one lesion": lambda ds: ds.isel(lesion=[1]),
    "twice": lambda ds: xr.concat([ds, ds], "sample", data_vars="minimal", coords="minimal", compat="override"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
def test_a_result_that_xarray_wrote_loads_as_it_is(tmp_path, lesions, change, engine):
    if engine == "h5netcdf":
        pytest.importorskip("h5netcdf")
    changed = CHANGES[change](lesions)
    changed.to_netcdf(tmp_path / "again.nc", engine=engine)
    found = rpp.load(tmp_path / "again.nc")
    xr.testing.assert_identical(found, changed)
    found.resnet_paths.plot()


def test_a_saved_file_that_xarray_opened_and_wrote_loads(tmp_path, lesions):
    rpp.save(lesions, tmp_path / "saved.nc")
    with xr.open_dataset(tmp_path / "saved.nc") as opened:
        opened.load().to_netcdf(tmp_path / "again.nc")
    xr.testing.assert_equal(rpp.load(tmp_path / "again.nc"), lesions)


def test_a_tree_that_xarray_opened_and_wrote_loads_with_every_group(tmp_path, lesions, lengths):
    tree = datasets.build_tree({"lesions": lesions, "lengths": lengths})
    rpp.save(tree, tmp_path / "saved.nc")
    with xr.open_datatree(tmp_path / "saved.nc") as opened:
        opened.load().to_netcdf(tmp_path / "again.nc")
    found = rpp.load(tmp_path / "again.nc")
    assert set(found.children) == {"lesions", "lengths"}
    xr.testing.assert_equal(found["lesions"].to_dataset(), lesions)
    xr.testing.assert_equal(found["lengths"].to_dataset(), lengths)


def test_what_was_loaded_from_it_can_be_saved_again(tmp_path, lesions):
    lesions.isel(sample=[0, 2]).to_netcdf(tmp_path / "again.nc")
    found = rpp.load(tmp_path / "again.nc")
    xr.testing.assert_identical(rpp.load(rpp.save(found, tmp_path / "saved.nc")), found)


def test_a_netcdf_3_file_is_refused_with_the_engine_to_write_with(tmp_path, lengths):
    lengths.drop_vars([name for name, v in lengths.variables.items() if v.dtype.kind in "UOb"]).to_netcdf(
        tmp_path / "again.nc", engine="scipy"
    )
    with pytest.raises(FileError, match=r"netCDF-3.*engine='netcdf4'"):
        rpp.load(tmp_path / "again.nc")


def linked(path, make):
    with netCDF4.Dataset(path, "w") as file:
        file.schema_version = 1
        file.createDimension("d", 4)
        file.createVariable("x", "f8", ("d",))[:] = np.arange(4.0)
    with h5py.File(path, "a") as file:
        make(file)


LINKS = {
    "to another file": (
        lambda file: file.__setitem__("y", h5py.ExternalLink("other.nc", "/x")),
        "link to another file",
    ),
    "to elsewhere": (lambda file: file.__setitem__("y", h5py.SoftLink("/x")), "is a link to '/x'"),
    "in a circle": (lambda file: file.create_group("g").__setitem__("up", file["/"]), "lies inside itself"),
}


@pytest.mark.parametrize("kind", LINKS)
def test_links_are_refused_before_netcdf_follows_them(tmp_path, kind):
    make, message = LINKS[kind]
    linked(tmp_path / "linked.nc", make)
    with pytest.raises(FileError, match=message):
        rpp.load(tmp_path / "linked.nc")
