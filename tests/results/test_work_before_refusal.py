"""Files made to take long are refused before the time is spent: what is counted is work, which no machine changes."""

import io
import json
import struct
import zipfile

import h5py
import numpy as np
import pytest
import safetensors
import torch
from PIL import Image, ImageFile

from resnet_paths_plugin.cli import npz
from resnet_paths_plugin.cli.images import read_images
from resnet_paths_plugin.errors import FileError
from resnet_paths_plugin.files import limits
from resnet_paths_plugin.plugins.weights import load_weights
from resnet_paths_plugin.results.hdf5_checks import check_contained


def jpeg(path, scans):
    """Write a progressive JPEG whose last scan stands in it again and again."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    more = content[last:-2] * (scans - content.count(b"\xff\xda"))
    path.parent.mkdir(parents=True)
    path.write_bytes(content[:-2] + more + content[-2:])


def safetensors_file(path, tensors):
    header = {f"t{i}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(tensors)}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4 * tensors))


def test_each_attribute_is_looked_up_once_and_by_its_name(tmp_path, monkeypatch):
    """By number, HDF5 goes through all attributes for each: 3,000 took 37 s of processor time."""
    with h5py.File(tmp_path / "some.nc", "w", libver="latest") as file:
        for number in range(300):
            file.attrs[f"a{number}"] = number
    opened, opening = [], h5py.h5a.open

    def counted(owner, *arguments, **options):
        assert "index" not in options
        opened.append(arguments[0])
        return opening(owner, *arguments, **options)

    monkeypatch.setattr(h5py.h5a, "open", counted)
    check_contained(tmp_path / "some.nc")
    assert sorted(opened) == sorted(f"a{number}".encode() for number in range(300))


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    jpeg(tmp_path / "few" / "cat" / "0.jpg", 20)
    jpeg(tmp_path / "many" / "cat" / "0.jpg", limits.MOST_SCANS + 1)
    assert read_images(tmp_path / "few").image(0).shape == (16, 16, 3)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it is decoded"))
    with pytest.raises(FileError, match=r"0\.jpg cannot be read as an image: it has 101 scans, more than 100"):
        read_images(tmp_path / "many").image(0)


def test_scans_are_counted_across_the_pieces_that_a_file_is_read_in(tmp_path, monkeypatch):
    jpeg(tmp_path / "many" / "cat" / "0.jpg", limits.MOST_SCANS + 1)
    for size in (1, 2, 7):
        monkeypatch.setattr("resnet_paths_plugin.cli.images._PIECE_BYTES", size)
        with pytest.raises(FileError, match="it has 101 scans"):
            read_images(tmp_path / "many").image(0)


def test_a_header_of_very_many_tensors_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "LARGEST_HEADER", 10_000)
    safetensors_file(tmp_path / "some.safetensors", 300)
    monkeypatch.setattr(safetensors, "safe_open", lambda *_, **__: pytest.fail("it is opened"))
    with pytest.raises(FileError, match=r"have a header of \d+\.\d KiB, more than 9\.8 KiB: no model has so many"):
        load_weights(torch.nn.Linear(2, 3), tmp_path / "some.safetensors")


def test_a_model_of_ten_thousand_tensors_is_far_below_the_limit(tmp_path):
    safetensors_file(tmp_path / "some.safetensors", 10_000)
    with pytest.raises(FileError, match="are not those of a Linear: bias, weight missing"):
        load_weights(torch.nn.Linear(2, 3), tmp_path / "some.safetensors")


def test_a_long_directory_of_an_npz_file_is_not_read(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "some.npz", "w") as archive:
        for number in range(300):
            archive.writestr(f"array{number}.npy", b"")
    monkeypatch.setattr(limits, "LARGEST_DIRECTORY", 10_000)
    monkeypatch.setattr(zipfile, "ZipInfo", lambda *_, **__: pytest.fail("a member is read"))
    with pytest.raises(FileError, match=r"has a directory of \d+\.\d KiB, more than 9\.8 KiB"):
        npz.read_arrays(tmp_path / "some.npz", ["images"])


def test_arrays_beyond_the_limit_of_a_directory_are_read(tmp_path, monkeypatch):
    images = np.arange(30_000, dtype=np.uint8)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "some.npz", images=images)
        monkeypatch.setattr(limits, "LARGEST_DIRECTORY", 1000)
        np.testing.assert_array_equal(npz.read_arrays(tmp_path / "some.npz", ["images"])["images"], images)
