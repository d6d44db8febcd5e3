"""A saved file tells any damage before it is opened; what others do with it on purpose does no harm."""

import os
import random
import sys
import time
from contextlib import nullcontext

import h5py
import netCDF4
import numpy as np
import pytest
import synthetic_studies as synthetic
import torch
import xarray as xr
from hostile_files import hdf5, name_of_bytes
from small_studies import STUDIES, batches, captured

import resnet_paths_plugin as rpp
from resnet_paths_plugin.cli.images import read_images
from resnet_paths_plugin.errors import FileError, InputError, NonFiniteInputWarning
from resnet_paths_plugin.files import limits
from resnet_paths_plugin.files.file_seals import SIZE
from resnet_paths_plugin.plugins.weights import load_weights
from resnet_paths_plugin.results import datasets, file_checks
from resnet_paths_plugin.results.file_checks import check_opening


def saved(folder):
    return datasets.save(synthetic.random_lesions(5), folder / "x.nc")


def streamed(folder):
    STUDIES["lesions"](captured(), batches(), rpp.RunOptions(checkpoint=folder / "x.nc")).close()
    return folder / "x.nc"


@pytest.mark.parametrize("make", [saved, streamed])
def test_any_flipped_bit_is_told_or_changes_nothing(tmp_path, make):
    path = make(tmp_path)
    content, expected = path.read_bytes(), datasets.load(path)
    places, told = random.Random(0), 0  # noqa: S311 - damage is no secret
    for _ in range(200):
        damaged = bytearray(content)
        damaged[places.randrange(len(damaged))] ^= 1 << places.randrange(8)
        path.write_bytes(damaged)
        try:
            found = datasets.load(path)
        except FileError:
            told += 1
        else:
            xr.testing.assert_identical(found, expected)
    assert told > 190
    path.write_bytes(content)
    xr.testing.assert_identical(datasets.load(path), expected)


def test_a_seal_that_is_cut_is_told(tmp_path):
    path = saved(tmp_path)
    for _ in range(SIZE - 12):
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(FileError, match="is damaged"):
            datasets.load(path)


@pytest.mark.parametrize("text", ["a+b", "Lesions", "long_name"])
def test_a_changed_text_is_told(tmp_path, text):
    ds = synthetic.random_lesions(5)
    ds = ds.assign_coords(note=("lesion", np.array(["a+b"] * ds.sizes["lesion"]))).assign_attrs(note="Lesions")
    path = datasets.save(ds, tmp_path / "x.nc")
    content = path.read_bytes()
    place = content.index(text.encode())
    path.write_bytes(content[:place] + b"Z" + content[place + 1 :])
    with pytest.raises(FileError, match=r"damaged: restore .*\(it is not what was saved, by its checksum"):
        datasets.load(path)


@pytest.mark.parametrize("engine", [netCDF4.Dataset, h5py.File])
@pytest.mark.parametrize("make", [saved, streamed])
def test_who_changes_a_file_in_place_may(tmp_path, make, engine):
    path = make(tmp_path)
    expected = datasets.load(path)
    with engine(path, "a") as file:
        if engine is netCDF4.Dataset:
            file.setncattr("note", "changed")
        else:
            file.attrs["note"] = "changed"
    assert datasets.load(path).attrs["note"] == "changed"
    xr.testing.assert_equal(datasets.load(path), expected)


def test_others_read_a_sealed_file(tmp_path):
    path = saved(tmp_path)
    with xr.open_dataset(path) as found:
        xr.testing.assert_equal(found.load(), datasets.load(path))
    with h5py.File(path) as file:
        assert "lesion" in file


def test_a_mended_file_opens_again_in_the_same_place(tmp_path):
    content = saved(tmp_path).read_bytes()
    path = tmp_path / "y.nc"
    path.touch()
    for damage in (hdf5(name_of_bytes), unsupported, lambda path: path.write_bytes(content[:3000])):
        other = tmp_path / "damaged"
        damage(other)
        for _ in range(2):
            with path.open("rb+") as file:  # the same file, as HDF5 sees it
                file.write(other.read_bytes())
                file.truncate()
            with pytest.raises(FileError):
                datasets.load(path)
        with path.open("rb+") as file:
            file.write(content)
            file.truncate()
        assert "lesion" in datasets.load(path).dims


def unsupported(path):
    """Of a type that netCDF4 refuses when the file is open already."""
    with h5py.File(path, "w") as file:
        file.attrs["schema_version"] = np.int64(1)
        kind = h5py.h5t.create(h5py.h5t.OPAQUE, 3)
        h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((2,)))


@pytest.mark.skipif(os.name != "posix", reason="needs FIFOs")
@pytest.mark.parametrize(
    "opening", [datasets.load, check_opening, lambda path: load_weights(torch.nn.ReLU(), path), read_images]
)
def test_a_fifo_is_refused_without_being_opened(tmp_path, opening):
    os.mkfifo(tmp_path / "x.nc")
    (tmp_path / "link.nc").symlink_to("x.nc")
    for name in ("x.nc", "link.nc"):
        with pytest.raises(FileError, match=r"is a FIFO|there is no file"):
            opening(tmp_path / name)  # to open it would never end


@pytest.mark.skipif(sys.platform != "linux", reason="a file is first opened in a process of its own on Linux")
def test_the_opening_of_a_file_has_an_end(tmp_path, monkeypatch):
    path = saved(tmp_path)
    monkeypatch.setattr(file_checks, "_OPENING", "import time; time.sleep(600)")
    monkeypatch.setattr(limits, "LONGEST_WAIT", 2)
    begun = time.monotonic()
    with pytest.raises(FileError, match="still at it after 2 s"):
        check_opening(path)
    assert time.monotonic() - begun < 60


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore")
def test_inputs_that_are_not_finite_are_warned_of_by_every_analyzer(name, odd):
    data = batches()
    data[1][0][0, 0, 0, 0] = odd
    fits = name in ("recalibrated", "mean ablation", "linear ablation")  # to the samples, and refuses what is no number
    refused = pytest.raises(InputError, match="not finite") if fits else nullcontext()
    with pytest.warns(NonFiniteInputWarning, match=r"inputs hold NaN or infinity \(1 numbers") as told, refused:
        STUDIES[name](captured(), data, None)
    # A study within a study may tell of it once more.
    assert len([one for one in told if one.category is NonFiniteInputWarning]) == (2 if name == "influence" else 1)


def test_a_mask_may_be_infinite():
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = torch.nn.Linear(4, 4)

        def forward(self, x, mask):
            return x + (self.branch(x) + mask).softmax(-1)

    mask = torch.zeros(6, 4)
    mask[:, 1] = -torch.inf
    rpp.BlockLesion(Masked()).attribute(torch.randn(6, 4), target=0, additional_forward_args=mask)


def test_a_seal_is_no_part_of_what_is_read(tmp_path):
    path = saved(tmp_path)
    assert not any("SHA" in str(value) for value in datasets.load(path).attrs.values())
