"""Some of the images only, and figures as PDF, SVG or not at all."""

import command_lines
import numpy as np
import pytest
from command_lines import OPTIONS, analysis, invoke, told
from synthetic_studies import single_lesions

import resnet_paths_plugin as rpp
from resnet_paths_plugin import report
from resnet_paths_plugin.cli.image_selection import ImageSelection
from resnet_paths_plugin.cli.images import ImageArray

place = command_lines.place  # a fixture


def images(labels):
    labels = np.asarray(labels)
    pixels = np.zeros((len(labels), 2, 2, 1), np.uint8)
    pixels[:] = np.arange(len(labels)).reshape(-1, 1, 1, 1)
    return ImageArray("pictures", pixels, labels, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("count", "expected"), [(10, [5, 3, 2]), (5, [3, 1, 1]), (1, [1, 0, 0]), (20, [10, 6, 4]), (99, [10, 6, 4])]
)
def test_classes_keep_their_shares(count, expected):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [10, 6, 4]))
    found = ImageSelection(images(labels), count, seed=1)
    assert np.bincount(found.labels, minlength=3).tolist() == expected
    assert found.classes == ("a", "b", "c")


def test_no_class_is_favoured_where_there_are_more_classes_than_images():
    labels = np.repeat(np.arange(20), 3)
    chosen = [ImageSelection(images(labels), 5, seed=seed).labels for seed in range(40)]
    assert all(len(set(one.tolist())) == 5 for one in chosen)
    assert {*np.concatenate(chosen).tolist()} == set(range(20))


def test_each_image_keeps_its_label_place_and_name():
    labels = np.random.default_rng(0).integers(0, 3, 50)
    all_images = images(labels)
    found = ImageSelection(all_images, 20, seed=3)
    numbers = [int(found.image(at)[0, 0, 0]) for at in range(len(found))]
    assert numbers == sorted(set(numbers))
    assert [int(labels[number]) for number in numbers] == found.labels.tolist()
    assert [found.name(at) for at in range(20)] == [all_images.name(number) for number in numbers]
    assert (found.size, found.origin) == ((2, 2), "pictures (50 in all)")


def test_the_seed_decides():
    chosen = [ImageSelection(images(np.arange(60) % 3), 12, seed=seed).places.tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_the_command_studies_some_images(tmp_path):
    result = invoke(*analysis("--limit", 5, "--analyzer", "BlockLesion", *OPTIONS, output=tmp_path / "few.nc"))
    assert result.exit_code == 0, result.output
    assert "5 images of images.npz (12 in all)" in result.output
    found = rpp.load(tmp_path / "few.nc")["single_lesions"]
    assert found.sizes["sample"] == 5
    with np.load("images.npz") as arrays:
        pixels, labels = arrays["images"], arrays["labels"]
    chosen = ImageSelection(ImageArray("", pixels, labels), 5, seed=0)
    assert found["label"].values.tolist() == labels[chosen.places].tolist()
    refused = invoke(*analysis("--limit", 0, output=tmp_path / "none.nc"))
    assert refused.exit_code == 2
    assert "0 is not in the range x>=1" in refused.output


@pytest.mark.parametrize(("suffix", "begins"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("none", b"")])
def test_figures_are_written_in_the_format_that_is_asked_for(tmp_path, suffix, begins):
    options = ("--analyzer", "BlockLesion", "--figure-format", suffix, *OPTIONS)
    result = invoke(*analysis(*options, output=tmp_path / "a.nc"))
    assert result.exit_code == 0, result.output
    figures = sorted(path for path in tmp_path.iterdir() if path.suffix not in {".nc", ".html"})
    assert {path.suffix for path in figures} == ({f".{suffix}"} if begins else set())
    assert all(path.read_bytes().startswith(begins) for path in figures)
    assert b"data:image/png;base64" in (tmp_path / "a.html").read_bytes()


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_the_same_figure_is_the_same_file(suffix):
    (figure, *_) = report.figures(single_lesions(6))
    assert figure.picture(suffix) == figure.picture(suffix)


def test_an_older_figure_of_another_format_is_kept_with_no_clobber(tmp_path):
    (tmp_path / "a-single-lesions.pdf").write_bytes(b"mine")
    options = ("--analyzer", "BlockLesion", "--figure-format", "pdf", "--no-clobber", *OPTIONS)
    assert "a-single-lesions.pdf" in told(*analysis(*options, output=tmp_path / "a.nc"))
    assert (tmp_path / "a-single-lesions.pdf").read_bytes() == b"mine"
