"""Reading labelled images and preparing them for a model; torchvision's and timm's transforms are the oracle."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from resnet_paths_plugin.cli.images import ImageArray, ImageFolder, check_targets, read_images, targets_of
from resnet_paths_plugin.cli.preprocessing import InputBatches, preprocessing_for
from resnet_paths_plugin.errors import FileError, InputError
from resnet_paths_plugin.plugins.model_description import ModelDescription, Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def array_of(images, **options):
    return ImageArray("noise", images, np.arange(len(images)), **options)


def write_folder(root, **classes):
    for name, images in classes.items():
        (root / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image.squeeze()).save(root / name / f"{number}.png")
    return root


def inputs_of(images, preprocessing, **options):
    batches = InputBatches(images, images.labels, preprocessing, **options)
    return torch.cat([inputs for inputs, _ in batches])


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("crop", "resize"), [(24, 27), (24, 24), (29, 32)])
@pytest.mark.parametrize(("height", "width"), [(40, 61), (53, 30), (17, 20), (31, 31)])
def test_preprocessing_equals_torchvisions_preset(mode, crop, resize, height, width):
    image = noise(height, width, 3)
    preset = ImageClassification(
        crop_size=crop, resize_size=resize, mean=MEAN, std=STD, interpolation=InterpolationMode(mode)
    )
    ours = Preprocessing(size=(crop, crop), mean=MEAN, std=STD, interpolation=mode, crop_fraction=crop / resize)

    found = inputs_of(array_of(image[None]), ours)

    torch.testing.assert_close(found[0], preset(Image.fromarray(image)), rtol=0, atol=1e-6)


def test_a_quotient_of_whole_numbers_is_undone_exactly():
    assert 23 / (23 / 30) < 30  # in binary
    image = noise(300, 260, 3)
    wanted = Preprocessing(size=(23, 23), mean=MEAN, std=STD, crop_fraction=23 / 30)
    preset = ImageClassification(crop_size=23, resize_size=30)
    found = inputs_of(array_of(image[None]), wanted)
    torch.testing.assert_close(found[0], preset(Image.fromarray(image)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(60, 80), (120, 100), (45, 200)])
def test_rectangular_inputs_are_prepared_as_timm_prepares_them(shape):
    image = noise(*shape, 3)
    transform = create_transform((3, 24, 32), crop_pct=0.8, mean=MEAN, std=STD, interpolation="bicubic")
    wanted = Preprocessing(size=(24, 32), mean=MEAN, std=STD, interpolation="bicubic", crop_fraction=0.8)
    found = inputs_of(array_of(image[None]), wanted)
    torch.testing.assert_close(found[0], transform(Image.fromarray(image)), rtol=0, atol=1e-6)


def test_images_of_the_models_size_are_only_normalised():
    images = array_of(noise(3, 8, 8, 3))
    described = ModelDescription(
        library="any",
        library_version="1",
        architecture="net",
        input_shape=(3, 8, 8),
        preprocessing=Preprocessing(size=(8, 8), mean=MEAN, std=STD, crop_fraction=0.5),
    )
    preprocessing, resize = preprocessing_for(described, images)
    expected = (images.images.transpose(0, 3, 1, 2) / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    found = inputs_of(images, preprocessing, resize=resize)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_folder_is_cropped_even_where_its_images_have_the_models_size(tmp_path):
    image = noise(8, 8, 3)
    preprocessing = Preprocessing(size=(8, 8), mean=MEAN, std=STD, crop_fraction=0.5)
    described = ModelDescription(library="any", library_version="1", architecture="net", preprocessing=preprocessing)
    folder = ImageFolder(write_folder(tmp_path, cat=[image]))
    wanted, resize = preprocessing_for(described, folder)
    found = inputs_of(folder, wanted, resize=resize)
    preset = ImageClassification(crop_size=8, resize_size=16, mean=MEAN, std=STD)
    torch.testing.assert_close(found[0], preset(Image.fromarray(image)), rtol=0, atol=1e-6)


def test_a_model_without_description_takes_images_as_they_are():
    images = array_of(noise(2, 5, 7, 1))
    preprocessing, resize = preprocessing_for(None, images, (0.5,), (0.25,))
    found = inputs_of(images, preprocessing, resize=resize)
    np.testing.assert_allclose(found[:, 0], (images.images[..., 0] / 255 - 0.5) / 0.25, atol=1e-6)


def test_given_statistics_replace_the_models_own_and_nothing_else():
    known = Preprocessing(size=(8, 8), mean=MEAN, std=STD, interpolation="bicubic", crop_fraction=0.5)
    described = ModelDescription(library="any", library_version="1", architecture="net", preprocessing=known)
    found, _ = preprocessing_for(described, array_of(noise(1, 9, 9, 3)), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (1, 1, 1))
    assert (found.size, found.interpolation, found.crop_fraction) == ((8, 8), "bicubic", 0.5)


def test_grey_becomes_colour_by_repetition():
    grey = noise(2, 6, 6, 1)
    preprocessing = Preprocessing(size=(6, 6), mean=(0.0,) * 3, std=(1.0,) * 3)
    found = inputs_of(array_of(grey), preprocessing)
    np.testing.assert_allclose(found, np.repeat(grey.transpose(0, 3, 1, 2) / 255, 3, axis=1), atol=1e-6)


def test_colour_becomes_grey_by_luma():
    colour = noise(1, 6, 6, 3)
    found = inputs_of(array_of(colour), Preprocessing(size=(6, 6), mean=(0.0,), std=(1.0,)))
    luma = colour[0] @ np.array([299, 587, 114]) / 1000
    np.testing.assert_allclose(255 * found[0, 0], luma, atol=0.51)


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(InputError, match="image 0 of noise has 2 channels, and the model takes 3"):
        inputs_of(array_of(noise(1, 6, 6, 2)), Preprocessing(size=(6, 6), mean=MEAN, std=STD))


def test_five_channels_are_resized_one_by_one():
    image = noise(1, 20, 30, 5)
    wanted = Preprocessing(size=(8, 8), mean=(0.0,) * 5, std=(1.0,) * 5, crop_fraction=0.8)
    single = Preprocessing(size=(8, 8), mean=(0.0,), std=(1.0,), crop_fraction=0.8)
    expected = torch.cat([inputs_of(array_of(image[..., [i]]), single) for i in range(5)], dim=1)
    assert torch.equal(inputs_of(array_of(image), wanted), expected)


def test_batches_can_be_read_again_and_cover_every_image_once():
    images = array_of(noise(7, 4, 4, 3))
    batches = InputBatches(images, images.labels, Preprocessing(size=(4, 4), mean=MEAN, std=STD), batch_size=3)
    first, second = list(batches), list(batches)
    assert [len(inputs) for inputs, _ in first] == [3, 3, 1]
    assert len(batches) == 3
    assert torch.cat([target for _, target in first]).tolist() == list(range(7))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))
    assert torch.equal(next(iter(batches.head(2)))[0], first[0][0][:2])


def test_inputs_have_the_models_dtype():
    images = array_of(noise(1, 4, 4, 3))
    preprocessing = Preprocessing(size=(4, 4), mean=MEAN, std=STD)
    double = inputs_of(images, preprocessing, dtype=torch.float64)
    expected = (images.images.transpose(0, 3, 1, 2) / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(double, expected, rtol=1e-14)
    half = inputs_of(images, preprocessing, dtype=torch.bfloat16)
    assert torch.equal(half, double.float().to(torch.bfloat16))


def test_a_folder_is_read_batch_by_batch(tmp_path, monkeypatch):
    folder = ImageFolder(write_folder(tmp_path, cat=noise(5, 4, 4, 3), dog=noise(4, 4, 4, 3)))
    read = []
    original = ImageFolder.image
    monkeypatch.setattr(ImageFolder, "image", lambda self, index: read.append(index) or original(self, index))
    batches = InputBatches(folder, folder.labels, Preprocessing(size=(4, 4), mean=MEAN, std=STD), batch_size=2)
    next(iter(batches))
    assert read == [0, 1]


def test_default_batches_hold_a_bounded_amount():
    images = array_of(noise(1, 4, 4, 3))
    large = InputBatches(images, images.labels, Preprocessing(size=(1024, 1024), mean=MEAN, std=STD))
    small = InputBatches(images, images.labels, Preprocessing(size=(8, 8), mean=MEAN, std=STD))
    assert large.batch_size == 8
    assert small.batch_size == 256


def test_batches_say_what_they_are_in_one_line():
    images = array_of(noise(1, 4, 4, 3))
    text = repr(InputBatches(images, images.labels, Preprocessing(size=(4, 4), mean=MEAN, std=STD)))
    assert text.startswith("1 images of noise")
    assert "crop_fraction=1.0" in text
    assert "\n" not in text
    assert " at 0x" not in text


# Reading


def test_an_npz_file_gives_its_images_and_labels(tmp_path):
    images, labels = noise(4, 5, 6, 3), np.array([3, 0, 2, 1], dtype=np.int16)
    np.savez_compressed(tmp_path / "some.npz", images=images, labels=labels, classes=np.array(list("abcd")))
    found = read_images(tmp_path / "some.npz")
    assert np.array_equal(np.stack([found.image(index) for index in range(4)]), images)
    assert found.labels.tolist() == [3, 0, 2, 1]
    assert found.classes == ("a", "b", "c", "d")
    assert found.size == (5, 6)


def test_a_folder_numbers_its_classes_by_name(tmp_path):
    cats, dogs = noise(2, 5, 6, 3), noise(1, 7, 4, 1, seed=1)
    write_folder(tmp_path, dog=dogs, cat=cats)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    found = read_images(tmp_path)
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 1]
    assert np.array_equal(found.image(1), cats[1])
    assert np.array_equal(found.image(2), dogs[0])
    assert found.name(2) == os.fspath(tmp_path / "dog" / "0.png")


def test_classes_are_matched_by_name_where_the_model_has_all_of_them(tmp_path):
    folder = ImageFolder(write_folder(tmp_path, cat=noise(2, 4, 4, 3), dog=noise(1, 4, 4, 3)))
    assert targets_of(folder, ("bird", "dog", "fish", "cat")).tolist() == [3, 3, 1]
    assert targets_of(folder, ("bird", "dog")).tolist() == [0, 0, 1]
    assert targets_of(folder, None).tolist() == [0, 0, 1]


def test_a_name_that_the_model_has_twice_is_refused(tmp_path):
    folder = ImageFolder(write_folder(tmp_path, crane=noise(1, 4, 4, 3)))
    with pytest.raises(InputError, match="2 classes named 'crane'"):
        targets_of(folder, ("crane", "dog", "crane"))


def test_labels_out_of_range_are_refused_by_image():
    images = ImageArray("noise", noise(3, 4, 4, 3), np.array([0, 9, 10]))
    check_targets(images, images.labels, 11)
    with pytest.raises(InputError, match=r"image 2 of noise has label 10, .* 10 classes, 0\.\.9"):
        check_targets(images, images.labels, 10)
    negative = ImageArray("noise", noise(1, 4, 4, 3), np.array([-1]))
    with pytest.raises(InputError, match="label -1"):
        check_targets(negative, negative.labels, 10)


class Harmful:
    """Unpickled, it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("name", ["labels", "images", "classes"])
def test_pickled_arrays_are_refused_and_never_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    arrays = {"images": noise(1, 4, 4, 3), "labels": np.array([0])}
    np.savez(tmp_path / "some.npz", **arrays | {name: np.array([Harmful()], dtype=object)})
    with pytest.raises(FileError, match="no npz file of plain arrays"):
        read_images(tmp_path / "some.npz")
    assert not (tmp_path / "harm").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileError, match=r"no file or folder .*none\.npz"):
        read_images(tmp_path / "none.npz")


@pytest.mark.parametrize("content", [b"", b"no npz at all", b"PK\x03\x04 broken"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "some.npz").write_bytes(content)
    with pytest.raises(FileError, match=r"some\.npz is damaged, or no npz file"):
        read_images(tmp_path / "some.npz")


def test_a_damaged_npz_file_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "some.npz", images=noise(9, 9, 9, 3), labels=np.arange(9))
    content = bytearray((tmp_path / "some.npz").read_bytes())
    content[300:340] = bytes(40)
    (tmp_path / "some.npz").write_bytes(content)
    with pytest.raises(FileError, match="damaged"):
        read_images(tmp_path / "some.npz")


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "some.npy", noise(1, 4, 4, 3))
    with pytest.raises(FileError, match="lacks 'images' and 'labels'"):
        read_images(tmp_path / "some.npy")


def test_missing_labels_are_refused(tmp_path):
    np.savez(tmp_path / "some.npz", images=noise(1, 4, 4, 3))
    with pytest.raises(FileError, match="lacks 'labels'"):
        read_images(tmp_path / "some.npz")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3)), np.zeros(2, int), r"must be uint8 .* not float64 of shape \(2, 4, 4, 3\)"),
        (noise(2, 4, 4), np.zeros(2, int), r"\(N, H, W, C\), not uint8 of shape \(2, 4, 4\)"),
        (noise(2, 4, 4, 3), np.zeros(2), "'labels' must be integers .* not float64"),
        (noise(2, 4, 4, 3), np.zeros((2, 1), int), r"shape \(N,\), not int64 of shape \(2, 1\)"),
        (noise(2, 4, 4, 3), np.zeros(3, int), "2 images and 3 labels"),
        (noise(0, 4, 4, 3), np.zeros(0, int), "no image"),
    ],
)
def test_arrays_of_another_form_are_refused(images, labels, message):
    with pytest.raises(InputError, match=message):
        ImageArray("some.npz", images, labels)


def test_a_folder_without_class_folders_is_refused(tmp_path):
    Image.fromarray(noise(4, 4, 3)).save(tmp_path / "a.png")
    with pytest.raises(FileError, match="has no class folders"):
        read_images(tmp_path)


def test_an_empty_class_folder_is_refused_by_name(tmp_path):
    write_folder(tmp_path, cat=noise(1, 4, 4, 3), dog=[])
    with pytest.raises(FileError, match=r"class folder .*dog holds no images"):
        read_images(tmp_path)


@pytest.mark.parametrize("keep", [0, 20, 120])
def test_a_damaged_image_is_refused_by_name(tmp_path, keep):
    folder = read_images(write_folder(tmp_path, cat=noise(1, 40, 40, 3)))
    file = tmp_path / "cat" / "0.png"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(FileError, match=r"cat.0\.png cannot be read as an image"):
        folder.image(0)


def test_an_image_of_16_bits_is_refused_by_name(tmp_path):
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(tmp_path / "cat" / "0.png")
    with pytest.raises(FileError, match=r"0\.png has more than 8 bits"):
        read_images(tmp_path).image(0)


def test_images_of_several_sizes_need_a_size_to_bring_them_to(tmp_path):
    folder = ImageFolder(write_folder(tmp_path, cat=[noise(4, 4, 3), noise(5, 4, 3)]))
    preprocessing, resize = preprocessing_for(None, folder, MEAN, STD)
    with pytest.raises(InputError, match=r"1\.png is 5 x 4 pixels and the first image 4 x 4"):
        inputs_of(folder, preprocessing, resize=resize)


# Preprocessing that is not known


def video():
    return ModelDescription(library="any", library_version="1", architecture="net", input_shape=(3, 16, 8, 8))


def image_model():
    return ModelDescription(library="any", library_version="1", architecture="net", input_shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("description", "mean", "std", "message"),
    [
        (None, None, None, "not known how the model's inputs are normalised: give --mean and --std"),
        (image_model(), None, None, "give --mean and --std"),
        (image_model(), MEAN, None, "give both or neither"),
        (None, None, STD, "give both or neither"),
        (image_model(), (0.5,), (0.5,), "--mean has 1 and --std 1 numbers: give one for each of the 3 channels"),
        (None, MEAN, (1.0,), "--mean has 3 and --std 1"),
        (None, MEAN, (1.0, 0.0, 1.0), "above zero"),
        (None, (0.5, float("nan"), 0.5), STD, "--mean 0.5,nan,0.5 and --std .* must be finite"),
        (video(), MEAN, STD, r"shape \(3, 16, 8, 8\), which is no image"),
    ],
)
def test_preprocessing_that_is_not_known_or_does_not_fit_is_refused(description, mean, std, message):
    with pytest.raises(InputError, match=message):
        preprocessing_for(description, array_of(noise(1, 8, 8, 3)), mean, std)


def test_a_known_input_size_is_used_without_known_statistics():
    preprocessing, resize = preprocessing_for(image_model(), array_of(noise(1, 9, 9, 3)), MEAN, STD)
    assert preprocessing == Preprocessing(size=(8, 8), mean=MEAN, std=STD)
    assert resize


@pytest.mark.skipif(os.name != "posix", reason="makes links")
def test_links_to_folders_and_hidden_files_are_not_read(tmp_path):
    write_folder(tmp_path, cat=noise(2, 4, 4, 3), dog=noise(1, 4, 4, 3))
    (tmp_path / "cat" / "back").symlink_to(tmp_path / "cat")
    (tmp_path / "cat" / "again").symlink_to(tmp_path)
    (tmp_path / "cat" / "._0.png").write_bytes(b"as macOS leaves it")
    (tmp_path / "dog" / ".cache").mkdir()
    (tmp_path / "dog" / ".cache" / "thumb.png").write_bytes(b"no image")
    assert [file.name for file in read_images(tmp_path).files] == ["0.png", "1.png", "0.png"]
