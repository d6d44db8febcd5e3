"""What the command line makes of images where the user says it, against torchvision; and what it says of it."""

import command_lines
import numpy as np
import pytest
import torch
from command_lines import OPTIONS, analysis, invoke, told
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin.cli.images import ImageArray
from resnet_paths_plugin.cli.preprocessing import InputBatches, preprocessing_for
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plugins.model_description import ModelDescription, Preprocessing

place = command_lines.place  # a fixture

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
KNOWN = ModelDescription(
    library="a",
    library_version="1",
    architecture="b",
    input_shape=(3, 8, 8),
    preprocessing=Preprocessing(size=(8, 8), mean=MEAN, std=STD),
)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def batches(images, description=None, mean=None, std=None, **options):
    found = ImageArray("pictures", images, np.zeros(len(images), int))
    preprocessing, resize = preprocessing_for(description, found, mean, std, **options)
    return InputBatches(found, found.labels, preprocessing, resize=resize)


@pytest.mark.parametrize("description", [KNOWN, None])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_size_crop_and_filter_are_those_given(description, interpolation):
    images = noise(2, 20, 30, 3)
    options = {"size": (10, 12), "crop": 0.5, "interpolation": interpolation}
    ((found, _),) = batches(images, description, MEAN, STD, **options)
    for image, ours in zip(images, found, strict=True):
        resized = functional.resize(
            functional.to_pil_image(image), [20, 30], InterpolationMode(interpolation)
        )  # 10 / 0.5 high, and as wide as the image then is
        expected = functional.pil_to_tensor(functional.center_crop(resized, [10, 12])) / 255
        expected = (expected - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        torch.testing.assert_close(ours, expected)


def test_one_number_is_a_square():
    ((found, _),) = batches(noise(2, 20, 30, 3), None, MEAN, STD, size=(7,))
    assert found.shape == (2, 3, 7, 7)


def test_a_share_to_crop_resizes_images_of_the_models_size_too():
    assert batches(noise(2, 8, 8, 3), KNOWN).resize is False
    assert batches(noise(2, 8, 8, 3), KNOWN, crop=0.5).resize is True
    assert batches(noise(2, 8, 8, 3), KNOWN, size=(8, 8)).resize is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (125.3, 120.0, 110.0), "std": (50.0, 50.0, 50.0)}, "--mean 125.3,120,110 and --std 50,50,50 must"),
        ({"size": (0,)}, "one or two numbers of pixels"),
        ({"size": (4, 5, 6)}, "one or two numbers of pixels"),
        ({"size": (10**6, 10**6)}, "more than .* in all"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        batches(noise(2, 8, 8, 3), KNOWN, **options)


def test_what_is_done_is_said():
    assert batches(noise(2, 8, 8, 3), KNOWN).described == (
        "8 x 8 pixels as they are; mean 0.5, 0.4, 0.3, standard deviation 0.2, 0.25, 0.3"
    )
    assert batches(noise(2, 9, 8, 3), KNOWN, crop=0.5, interpolation="bicubic").described == (
        "resized (bicubic) and cropped to 8 x 8, the central 50 %; mean 0.5, 0.4, 0.3, "
        "standard deviation 0.2, 0.25, 0.3"
    )


def test_the_command_says_and_does_it(tmp_path):
    given = ("--image-size", "6", "--crop", "0.75", "--interpolation", "bicubic", "--analyzer", "BlockLesion")
    result = invoke(*analysis(*given, *OPTIONS, output=tmp_path / "a.nc"))
    assert result.exit_code == 0, result.output
    assert "resized (bicubic) and cropped to 6 x 6, the central 75 %; mean 0.5, 0.4, 0.3" in result.output
    assert "size=(6, 6)" in rpp.load(tmp_path / "a.nc")["single_lesions"].attrs["argument_inputs"]


def test_quiet_prints_warnings_and_errors_only(tmp_path):
    result = invoke(*analysis("--quiet", "--analyzer", "BlockLesion", *OPTIONS, output=tmp_path / "a.nc"))
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert (tmp_path / "a.nc").exists()
    assert "no analyzer 'Nothing'" in told(*analysis("-q", "--analyzer", "Nothing", output=tmp_path / "b.nc"))


@pytest.mark.parametrize("name", ["result", "result.h5", "result.nc.gz"])
def test_an_output_of_another_kind_is_refused(tmp_path, name):
    assert "ends in .nc" in told(*analysis(output=tmp_path / name))
    assert not list(tmp_path.iterdir())


def test_a_filter_without_effect_is_warned_of():
    with pytest.warns(UserWarning, match="--interpolation has no effect, as the images are 8 x 8 pixels already"):
        batches(noise(2, 8, 8, 3), KNOWN, interpolation="nearest")
