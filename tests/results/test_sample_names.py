"""Names of samples and classes go with their samples into results, files and selections."""

import importlib
import json

import numpy as np
import pytest
import torch
from networks import PreActivation, randomised
from PIL import Image

import resnet_paths_plugin as rpp
from resnet_paths_plugin.cli.image_selection import ImageSelection
from resnet_paths_plugin.cli.images import read_images
from resnet_paths_plugin.cli.preprocessing import preprocessing_for
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import RunOptions

X = torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(7) % 5
NAMES = [f"class {label}/picture é {number}.png" for number, label in enumerate(LABELS.tolist())]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return rpp.unravel(randomised(PreActivation(blocks=2)).eval(), X)


def batches(size=3):
    return [(X[at : at + size], LABELS[at : at + size]) for at in range(0, len(X), size)]


def named(**more):
    return rpp.NamedBatches(batches(), NAMES, **more)


def assert_named(ds, names=NAMES):
    assert ds.sample_name.dims == ("sample",)
    assert ds.sample_name.values.tolist() == list(names)


ANALYZERS = {
    "BlockLesion": {},
    "BlockReordering": {"n_swaps": [1], "draws": 1},
    "BlockInfluence": {},
    "PathLengthGradient": {},
}


@pytest.mark.parametrize("analyzer", ANALYZERS)
def test_every_result_with_samples_has_their_names(net, analyzer, tmp_path):
    options = ANALYZERS[analyzer]
    found = getattr(rpp, analyzer)(net).attribute(named(), **options)
    assert_named(found)
    assert_named(rpp.load(rpp.save(found, tmp_path / "a.nc")))
    plain = getattr(rpp, analyzer)(net).attribute(batches(), **options)
    assert "sample_name" not in plain.variables
    for name in plain.data_vars:
        np.testing.assert_array_equal(found[name], plain[name])


def test_a_selection_keeps_the_names_of_its_samples(net):
    found = rpp.BlockLesion(net).attribute(named())
    some = found.isel(sample=[5, 0])
    assert_named(some, [NAMES[5], NAMES[0]])
    summary = some.resnet_paths.summary()
    assert "sample_name" not in summary.variables
    assert float(found.set_xindex("sample_name").sel(sample_name=NAMES[2]).intact_loss) == float(found.intact_loss[2])


def test_a_result_that_grows_in_a_file_has_them(net, tmp_path):
    path = tmp_path / "grown.nc"
    found = rpp.BlockLesion(net).attribute(
        named(), internal_batch_size=2, run=RunOptions(checkpoint=path)
    )  # of four chunks
    assert_named(found)
    assert_named(rpp.load(path))


@pytest.mark.parametrize("count", [0, 5, 6, 8])
def test_another_number_of_names_is_refused(net, count):
    wrong = rpp.NamedBatches(batches(), [f"name {at}" for at in range(count)])
    with pytest.raises(InputError, match=f"there are {count} names for \\d samples"):
        rpp.BlockLesion(net).attribute(wrong)


def test_names_may_come_from_a_generator(net):
    assert_named(rpp.BlockLesion(net).attribute(rpp.NamedBatches(batches(), (name for name in NAMES))))


def test_names_of_a_loader_go_with_its_order(net):
    data = torch.utils.data.TensorDataset(X, LABELS)
    ordered = torch.utils.data.DataLoader(data, batch_size=3)
    assert_named(rpp.BlockLesion(net).attribute(rpp.NamedBatches(ordered, NAMES)))
    shuffled = torch.utils.data.DataLoader(data, batch_size=3, shuffle=True, generator=torch.Generator())
    with pytest.raises(InputError, match="this DataLoader shuffles"):
        rpp.NamedBatches(shuffled, NAMES)


@pytest.mark.parametrize("names", ["abcdefg", [1, 2, 3, 4, 5, 6, 7], [None] * 7, 7, range(7)])
def test_what_is_no_text_is_refused(names):
    with pytest.raises(InputError, match="names must be a sequence of texts"):
        rpp.NamedBatches(batches(), names)


def test_batches_that_are_read_once_are_refused():
    with pytest.raises(InputError, match="one-shot iterator"):
        rpp.NamedBatches(iter(batches()), NAMES)


def test_classes_are_named_where_they_are_as_many_as_the_models(net):
    five = ["a", "b", "c", "d", "e"]
    n_classes = int(rpp.BlockLesion(net).attribute(named()).attrs["n_classes"])
    names = [f"class {at}" for at in range(n_classes)]
    assert rpp.BlockLesion(net).attribute(named(class_names=names)).attrs["class_names"] == json.dumps(names)
    if n_classes != len(five):
        assert "class_names" not in rpp.BlockLesion(net).attribute(named(class_names=five)).attrs


@pytest.fixture
def folder(tmp_path):
    for name in ("ant/1.png", "ant/deep/2.png", "bee/1.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def test_images_of_a_folder_are_named_by_their_files(folder):
    images = read_images(folder)
    assert images.names == ("ant/1.png", "ant/deep/2.png", "bee/1.png")
    assert ImageSelection(images, 2, seed=0).names == tuple(
        images.names[place] for place in ImageSelection(images, 2, seed=0).places
    )


def test_an_npz_file_may_name_its_images(tmp_path):
    arrays = {"images": np.zeros((3, 6, 6, 3), np.uint8), "labels": np.arange(3)}
    np.savez(tmp_path / "a.npz", **arrays, names=np.array(["x", "y", "zé"]))
    assert read_images(tmp_path / "a.npz").names == ("x", "y", "zé")
    np.savez(tmp_path / "b.npz", **arrays)
    assert read_images(tmp_path / "b.npz").names is None
    np.savez(tmp_path / "c.npz", **arrays, names=np.array(["x"]))
    with pytest.raises(InputError, match="there are 3 images and 1 names"):
        read_images(tmp_path / "c.npz")


def test_the_first_images_have_the_first_names(folder):
    preprocessing = importlib.import_module("resnet_paths_plugin.cli.preprocessing")
    images = read_images(folder)
    wanted, _ = preprocessing_for(None, images, (0.5,) * 3, (0.5,) * 3)
    made = preprocessing.InputBatches(images, images.labels, wanted, resize=False)
    assert made.sample_names == images.names
    assert made.head(2).sample_names == images.names[:2]
    assert made.class_names == ("ant", "bee")
    assert preprocessing.InputBatches(images, images.labels + 3, wanted, resize=False).class_names is None
