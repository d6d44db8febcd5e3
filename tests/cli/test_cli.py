"""The command line: what it writes equals what the library computes, and each mistake has a message of its own."""

import base64
import importlib
import os
import re
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import command_lines
import numpy as np
import pytest
import torch
import xarray as xr
from command_lines import MODEL, STATISTICS, analysis, files_of, invoke, told, trained
from matplotlib.figure import Figure as Canvas
from PIL import Image

import resnet_paths_plugin as rpp
import resnet_paths_plugin.cli.analyze
import resnet_paths_plugin.cli.subject
from resnet_paths_plugin import cli
from resnet_paths_plugin.cli.studies import STUDIES, Study

place, no_pictures = command_lines.place, command_lines.no_pictures  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore:.* has random weights, others")


@pytest.fixture(scope="module")
def analyzed():
    options = ("--draws", 4, "--max-deleted", 2, "--max-swaps", 2, "--seed", 3)
    result = invoke(*analysis(*options, output="analyzed.nc"))
    assert result.exit_code == 0, result.output
    return rpp.load("analyzed.nc"), " ".join(result.output.split())


@pytest.fixture(scope="module")
def reference(place):
    """The model with its weights, and inputs and labels, none of them made by the code under test."""
    model = trained(importlib.import_module("tiny_residual_network").build()).eval()
    arrays = np.load(place / "images.npz")
    pixels = arrays["images"].transpose(0, 3, 1, 2) / 255
    mean, std = (np.reshape(values, (3, 1, 1)) for values in ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    return model, torch.tensor((pixels - mean) / std, dtype=torch.float32), torch.tensor(arrays["labels"])


def assert_same_results(found, expected):
    xr.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found.data_vars.keys() == expected.data_vars.keys()


def test_the_file_holds_what_block_lesion_computes_for_every_block(analyzed, reference):
    model, inputs, labels = reference
    expected = rpp.BlockLesion(model).attribute(inputs, labels)
    found = analyzed[0]["single_lesions"].to_dataset()
    assert found.sizes["lesion"] == 3
    assert_same_results(found, expected)


def test_the_file_holds_what_block_lesion_computes_for_random_sets(analyzed, reference):
    model, inputs, labels = reference
    expected = rpp.BlockLesion(model).attribute(inputs, labels, n_deleted=[1, 2], draws=4, seed=3)
    found = analyzed[0]["random_lesions"].to_dataset()
    assert found.sizes["lesion"] == 8
    assert_same_results(found, expected)


def test_the_file_holds_what_block_reordering_computes(analyzed, reference):
    model, inputs, labels = reference
    expected = rpp.BlockReordering(model).attribute(inputs, labels, n_swaps=[1, 2], draws=4, seed=3)
    assert_same_results(analyzed[0]["reorderings"].to_dataset(), expected)


def test_the_file_holds_what_block_influence_computes(analyzed, reference):
    model, inputs, labels = reference
    lesions = analyzed[0]["single_lesions"].to_dataset()
    expected = rpp.BlockInfluence(model).attribute(inputs, labels, lesions=lesions)
    assert_same_results(analyzed[0]["influence"].to_dataset(), expected)


def test_the_intact_error_is_the_models_own(analyzed, reference):
    model, inputs, labels = reference
    error = float((model(inputs).argmax(1) != labels).double().mean())
    assert 0 < error < 1
    assert float(analyzed[0]["single_lesions"]["intact_error"]) == pytest.approx(error)
    assert f"({round(error * len(labels))} of {len(labels)} samples) in the intact network" in analyzed[1]


def test_what_is_printed_names_the_worst_block_and_the_files(analyzed):
    tree, output = analyzed
    errors = tree["single_lesions"]["error"]
    worst = errors["lesion"].values[errors.values.argmax()]
    assert f"highest without {worst} ({100 * float(errors.max()):.1f} % [" in output
    names = ["single-lesions", "single-lesions-by-class", "random-lesions", "reorderings"]
    assert f"written: analyzed.nc, {', '.join(f'analyzed-{name}.png' for name in names)}" in output
    assert "analyzed.html" in output


@pytest.mark.usefixtures("analyzed")
def test_each_figure_lies_beside_the_file(place):
    for figure in ("single-lesions", "random-lesions", "reorderings", "influence", "path-lengths"):
        with Image.open(place / f"analyzed-{figure}.png") as image:
            assert image.size > (500, 300)
            assert len(image.convert("L").getcolors()) > 10


def test_each_figure_is_drawn_once(tmp_path, monkeypatch):
    """For its file and for the report, whose pictures are the files byte for byte."""
    drawn = []
    saved = Canvas.savefig

    def counted(figure, *arguments, **options):
        drawn.append(figure)
        return saved(figure, *arguments, **options)

    monkeypatch.setattr(Canvas, "savefig", counted)
    asked = ("--analyzer", "PathLengthGradient", "--path-images", 2, "--path-draws", 2)
    result = invoke(*analysis(*asked, output=tmp_path / "a.nc"))
    assert result.exit_code == 0, result.output
    files = sorted(tmp_path.glob("*.png"))
    assert len(drawn) == len(files) > 1
    pictures = re.findall(r"data:image/png;base64,([\w+/=]+)", (tmp_path / "a.html").read_text("utf-8"))
    assert {base64.b64decode(picture) for picture in pictures} == {file.read_bytes() for file in files}


@pytest.mark.usefixtures("analyzed")
def test_the_report_is_made_again_from_the_file(place, tmp_path):
    first = (place / "analyzed.html").read_text(encoding="utf-8")
    assert "blocks.2" in first
    result = invoke("report", place / "analyzed.nc", "--output", tmp_path / "again.html")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == first
    assert "missing" in told("report", tmp_path / "none.nc")
    (tmp_path / "hostile.nc").write_bytes(b"CDF nothing of the kind")
    assert "a netCDF-3 file" in told("report", tmp_path / "hostile.nc")


def test_provenance_says_where_the_images_came_from(analyzed):
    text = analyzed[0]["single_lesions"].attrs["argument_inputs"]
    assert text.startswith("12 images of images.npz, not resized, Preprocessing(size=(8, 8), mean=(0.5, 0.4, 0.3)")


@pytest.mark.usefixtures("no_pictures")
def test_no_more_blocks_are_deleted_than_there_are(tmp_path):
    options = ("--analyzer", "BlockLesion", "--draws", 1, "--batch-size", 5)
    result = invoke(*analysis(*options, output=tmp_path / "all.nc"))
    assert result.exit_code == 0, result.output
    deleted = rpp.load(tmp_path / "all.nc")["random_lesions"]["n_deleted"]
    assert deleted.values.tolist() == [1, 2, 3]


@pytest.mark.usefixtures("no_pictures")
def test_a_folder_gives_what_the_same_images_in_an_npz_file_give(analyzed, tmp_path):
    arrays = np.load("images.npz")
    for number, (image, label) in enumerate(zip(arrays["images"], arrays["labels"], strict=True)):
        (tmp_path / "images" / f"class {label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "images" / f"class {label}" / f"{number:03}.png")
    options = ("--analyzer", "BlockLesion", "--draws", 1, "--max-deleted", 1, "--batch-size", 5)
    result = invoke(*analysis(*options, "--images", tmp_path / "images", output=tmp_path / "a.nc"))
    assert result.exit_code == 0, result.output
    found = rpp.load(tmp_path / "a.nc")["single_lesions"].to_dataset()
    order = np.argsort(arrays["labels"], kind="stable")
    expected = analyzed[0]["single_lesions"].to_dataset().isel(sample=order)
    assert_same_results(found, expected.assign_coords(sample=found["sample"]))


def watched(monkeypatch, run):
    """Put one study in the place of all others."""
    study = Study(group="single_lesions", analyzer="BlockLesion", run=run)
    monkeypatch.setattr(cli.analyze, "STUDIES", (study,))


@pytest.mark.usefixtures("no_pictures")
def test_progress_is_shown_on_demand_only(tmp_path, monkeypatch):
    shown = []

    def run(network, images, options, results):
        shown.append(options.show_progress)
        return STUDIES[0].run(network, images, replace(options, show_progress=False), results)

    watched(monkeypatch, run)
    for options in ([], ["--progress"], ["--no-progress"]):
        assert invoke(*analysis(*options, output=tmp_path / "a.nc")).exit_code == 0
    assert shown == [False, True, False]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(("given", "threads"), [((), 1), (("--threads", 3), 3)])
def test_the_threads_asked_for_are_those_of_the_run_alone(given, threads, tmp_path, monkeypatch):
    seen = []

    def run(network, images, options, results):
        seen.append(torch.get_num_threads())
        return STUDIES[0].run(network, images, options, results)

    watched(monkeypatch, run)
    result = invoke(*analysis(*given, output=tmp_path / "a.nc"))
    assert result.exit_code == 0, result.output
    assert seen == [threads]
    assert f", {threads} thread" in result.output
    assert torch.get_num_threads() == 1


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_the_embedded_network_needs_no_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = cli.subject.held_out_digits().images[:6], cli.subject.held_out_digits().labels[:6]
    monkeypatch.setattr(cli.subject.demo, "load_digit_images", lambda: (images, labels))
    options = ("--draws", 1, "--max-deleted", 2, "--max-swaps", 1, "--path-images", 2, "--path-draws", 2)
    result = invoke("analyze", *options, "--pair-images", 0, "--search-images", 6)
    assert result.exit_code == 0, result.output
    assert torch.get_num_threads() == 2
    for line in (
        "digits_resnet110: 54 residual blocks, 6 images of the held-out digits, 1 thread",
        "single_lesions: 6 images, 54 lesions",
        "plain_single_lesions: 6 images, 11 lesions",
        "random_lesions: 6 images, 2 lesions",
        "reorderings: 6 images, 1 orders",
        "influence: 6 images",
        "path_lengths: 2 images, 55 path lengths, 2 paths drawn of each length",
        "path_maps: 2 images, 8 path lengths",
        "parameter_lengths: 2 images, 55 path lengths",
        "contributions: 2 images, 54 path lengths",
        "participation: 2 images, 55 path lengths",
        # 54, 53, 52 and 51 sets of one block more each, and those of the ranking by influence
        "selection: 3 images searched on, 3 images held out, 214 sets measured by the search, 12 random sets",
    ):
        assert line in result.output.splitlines()
    assert files_of(tmp_path) == [
        "digits_resnet110-contributions.png",
        "digits_resnet110-influence-proxies.png",
        "digits_resnet110-influence.png",
        "digits_resnet110-parameter-lengths.png",
        "digits_resnet110-participation.png",
        "digits_resnet110-path-lengths-survival.png",
        "digits_resnet110-path-lengths.png",
        "digits_resnet110-path-maps.png",
        "digits_resnet110-random-lesions.png",
        "digits_resnet110-reorderings.png",
        "digits_resnet110-selection.png",
        "digits_resnet110-single-lesions-by-class.png",
        "digits_resnet110-single-lesions.png",
        "digits_resnet110.html",
        "digits_resnet110.nc",
    ]
    tree = rpp.load("digits_resnet110.nc")
    assert tree["single_lesions"].sizes == {"lesion": 54, "block": 54, "sample": 6}
    assert float(tree["single_lesions"]["intact_error"]) == 0
    assert tree["plain_single_lesions"].sizes == {"lesion": 11, "block": 11, "sample": 6}
    assert tree["path_lengths"].sizes["path_length"] == 55
    assert float(tree["path_lengths"]["completeness_error"].max()) < 1e-5
    assert tree["path_maps"]["gradient"].shape == (8, 2, 1, 8, 8)
    assert tree["selection"]["n_searched_samples"] == tree["selection"]["n_held_out_samples"] == 3
    assert tree["selection"]["latency"].attrs["threads"] == 1


@pytest.mark.usefixtures("no_pictures")
def test_the_study_of_path_lengths_equals_the_one_from_python(tmp_path, reference):
    options = ("--analyzer", "PathLengthGradient", "--path-images", 3, "--path-draws", 2)
    assert invoke(*analysis(*options, output=tmp_path / "a.nc")).exit_code == 0
    tree = rpp.load(tmp_path / "a.nc")
    model, inputs, labels = reference
    x = inputs[:3].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).gather(1, labels[:3, None]).sum(), x)
    np.testing.assert_allclose(tree["path_maps"]["input"].values, inputs[:3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tree["path_maps"]["gradient"].values.sum(0), gradient, rtol=1e-4, atol=1e-5)
    norms = tree["path_maps"]["gradient"].astype(float).values.reshape(4, 3, -1)
    np.testing.assert_allclose(tree["path_lengths"]["gradient_norm"].values, np.linalg.norm(norms, axis=-1), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("batch", [(), ("--batch-size", 5)])
def test_a_model_that_freezes_its_batch_gives_what_the_same_model_gives_that_does_not(analyzed, tmp_path, batch):
    options = ("--draws", 4, "--max-deleted", 2, "--max-swaps", 2, "--seed", 3, "--path-images", 3, "--path-draws", 2)
    given = ("--weights", "weights.safetensors", "--images", "images.npz", *STATISTICS, "--output", tmp_path / "a.nc")
    result = invoke("analyze", "tiny_residual_network:frozen", *given, *options, *batch)
    assert result.exit_code == 0, result.output
    tree = rpp.load(tmp_path / "a.nc")
    for group in ("single_lesions", "random_lesions", "reorderings"):
        found, expected = tree[group].to_dataset(), analyzed[0][group].to_dataset()
        np.testing.assert_allclose(found.target_score, expected.target_score, rtol=1e-4, atol=1e-5)
    assert float(tree["path_lengths"]["completeness_error"].max()) < 1e-5


@pytest.mark.usefixtures("no_pictures")
def test_the_study_of_path_lengths_can_be_left_out(tmp_path):
    options = ("--draws", 1, "--path-images", 0, "--max-swaps", 0)
    assert invoke(*analysis(*options, output=tmp_path / "a.nc")).exit_code == 0
    assert set(rpp.load(tmp_path / "a.nc").children) == {"single_lesions", "random_lesions", "influence"}


# blocks, plugins, help


def test_blocks_prints_the_table_of_the_network():
    result = invoke("blocks", MODEL, "--input-shape", "3,8,8")
    model = importlib.import_module("tiny_residual_network").build()
    assert result.output == f"{rpp.unravel(model, torch.zeros(2, 3, 8, 8))}\n"
    assert "Tiny: 3 residual blocks" in result.output


def test_blocks_takes_the_input_shape_from_the_description():
    result = invoke("blocks", "timm/test_resnet")
    assert result.exit_code == 0, result.output
    assert "test_resnet (timm): 4 residual blocks" in result.output


def test_blocks_asks_for_an_input_shape_that_is_not_known():
    assert f"the input shape of {MODEL} is not known: give it, as in --input-shape" in told("blocks", MODEL)


@pytest.mark.parametrize("option", ["--draws", "--max-swaps", "--path-draws", "--seed", "--workers"])
def test_a_huge_number_is_refused_before_anything_runs(option):
    result = invoke("analyze", MODEL, option, 2**70)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.output


@pytest.mark.parametrize("size", [2**70, 2**50])
def test_a_huge_input_shape_is_refused(size):
    assert "does not fit into memory" in told("blocks", MODEL, "--input-shape", f"3,8,{size}")


def test_plugins_are_listed_with_versions_hooks_and_analyzers():
    result = invoke("plugins")
    assert result.exit_code == 0, result.output
    for library in ("torchvision", "timm"):
        assert f"{library} {metadata.version(library)} via resnet-paths-plugin" in result.output
    assert "describe_model, list_models, load_model" in result.output
    assert "BlockLesion (resnet_paths_plugin.analyzers.rewiring.lesion): Delete residual blocks" in result.output


def test_help_says_what_runs_code():
    for command in ("blocks", "analyze"):
        text = " ".join(invoke(command, "--help").output.split())
        assert "This runs that module's code" in text
    assert {"analyze", "blocks", "plugins"} <= set(invoke("--help").output.split())


def test_version_is_the_distributions():
    assert invoke("--version").output == f"resnet-paths {metadata.version('resnet-paths-plugin')}\n"


# Mistakes


def test_debug_shows_where_an_error_came_up():
    result = invoke("blocks", MODEL, "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "none.safetensors"], "none.safetensors is missing"),
        (["--images", "none.npz"], "there is no file or folder none.npz"),
        (["--images", "weights.safetensors"], "weights.safetensors is damaged, or no npz file"),
        (["--images", "out_of_range.npz"], "image 3 of out_of_range.npz has label 5, which is out of range"),
        (["--images", "too_few.npz"], "too_few.npz: there are 12 images and 11 labels"),
        (["--images", "empty"], "empty has no class folders"),
        (["--device", "nonsense"], "device 'nonsense' cannot be used here"),
        (["--device", "meta"], "device 'meta' cannot be used here"),
        (["--mean", "0.5"], "--mean has 1 and --std 3 numbers"),
        (["--pretrained"], "give --pretrained or --weights, not both"),
        (["--output", "nowhere/a.nc"], "nowhere does not exist. Create it first"),
        (["--output", "empty"], "empty is a folder"),
    ],
)
def test_each_mistake_is_told_before_anything_is_run(tmp_path, monkeypatch, options, message):
    arrays = dict(np.load("images.npz"))
    np.savez("out_of_range.npz", images=arrays["images"], labels=np.array([0, 1, 2, 5] * 3))
    np.savez("too_few.npz", images=arrays["images"], labels=arrays["labels"][1:])
    Path("empty").mkdir(exist_ok=True)
    watched(monkeypatch, lambda *_: pytest.fail("a study was run"))
    assert message in told(*analysis(*options, output=tmp_path / "a.nc"))
    assert files_of(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_run(tmp_path, monkeypatch):
    # Permissions do not bind the superuser, as whom tests may run.
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and access(path, mode))
    assert "cannot be written to" in told(*analysis(output=tmp_path / "a.nc"))


def test_a_model_without_description_asks_for_statistics(tmp_path):
    line = told("analyze", MODEL, "--images", "images.npz", "--output", tmp_path / "a.nc")
    assert "give --mean and --std" in line


def test_a_model_asks_for_images():
    assert "a MODEL needs --images" in told("analyze", MODEL)


@pytest.mark.usefixtures("no_pictures")
def test_layers_of_a_plain_network_are_studied_on_demand(tmp_path):
    """No skips, so no paths and no influence."""
    options = ("--images", "images.npz", *STATISTICS, "--units", "layers", "--draws", 1, "--max-deleted", 1)
    result = invoke("analyze", "tiny_residual_network:stack", *options, "--output", tmp_path / "a.nc")
    assert result.exit_code == 0, result.output
    tree = rpp.load(tmp_path / "a.nc")
    assert set(tree.children) == {"single_lesions", "random_lesions", "reorderings"}
    assert tree["single_lesions"]["lesion"].values.tolist() == ["1", "3"]
    assert (
        "2 layers that can be deleted"
        in invoke("blocks", "tiny_residual_network:stack", "--input-shape", "3,8,8", "--units", "layers").output
    )


@pytest.mark.usefixtures("no_pictures")
def test_a_faster_run_gives_the_same_within_rounding_and_says_how(tmp_path, analyzed):
    options = ("--analyzer", "BlockLesion", "--draws", 4, "--max-deleted", 2, "--seed", 3)
    fast = ("--optimize", "fold_batch_norm", "--optimize", "channels_last")
    result = invoke(*analysis(*options, *fast, output=tmp_path / "fast.nc"))
    assert result.exit_code == 0, result.output
    found, expected = rpp.load(tmp_path / "fast.nc")["random_lesions"], analyzed[0]["random_lesions"]
    assert found.attrs["optimize"] == "channels_last, fold_batch_norm"
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-3, atol=1e-5)


def test_a_model_without_blocks_is_refused(tmp_path):
    given = ("--images", "images.npz", *STATISTICS, "--output", tmp_path / "a.nc")
    line = told("analyze", "tiny_residual_network:plain", *given)
    assert "Sequential has no residual blocks" in line
    assert files_of(tmp_path) == []


def test_pretrained_weights_are_for_libraries(tmp_path):
    given = ("--images", "images.npz", *STATISTICS, "--output", tmp_path / "a.nc")
    assert "has no pretrained weights to choose" in told("analyze", MODEL, "--pretrained", *given)


@pytest.mark.parametrize("text", ["0.5;0.5", "a,b,c", ""])
def test_numbers_are_given_with_commas(text):
    result = invoke("analyze", MODEL, "--mean", text)
    assert result.exit_code == 2
    assert "should be numbers with commas between them" in result.output


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.filterwarnings("always")
def test_random_weights_and_classes_taken_by_order_are_warned_of(tmp_path):
    arrays = dict(np.load("images.npz"))
    np.savez("named.npz", **arrays, classes=np.array(["a", "b", "c", "d", "e"]))
    given = ("--images", "named.npz", "--analyzer", "BlockInfluence", "--output", tmp_path / "a.nc")
    result = invoke("analyze", "timm/test_resnet", *given)
    assert result.exit_code == 0, result.output
    first, second, *_ = result.output.splitlines()
    assert first.startswith("Warning: timm/test_resnet has random weights: give --pretrained or --weights")
    assert second.startswith("Warning: named.npz has 5 classes and the model 1000")


def test_an_interrupted_run_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    watched(monkeypatch, interrupted)
    result = invoke(*analysis(output=tmp_path / "a.nc"))
    assert result.exit_code == 130
    assert "Interrupted" in result.output
    assert "Traceback" not in result.output
    assert files_of(tmp_path) == []


def test_a_figure_that_cannot_be_written_leaves_no_part_of_it(tmp_path, monkeypatch):
    write = Path.write_bytes

    def full(path, content):
        if any(parent.suffix == ".partial" for parent in path.parents):  # a unit, before all figures
            return write(path, content)
        write(path, b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    result = invoke(*analysis("--analyzer", "BlockLesion", "--draws", 1, output=tmp_path / "a.nc"))
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].endswith("a-single-lesions.png: No space left on device")
    assert files_of(tmp_path) == ["a.nc"]


@pytest.mark.usefixtures("no_pictures")
def test_pairs_and_sets_are_studied_of_any_model_when_asked_for(tmp_path):
    options = (
        "--analyzer",
        "BlockInteraction",
        "--analyzer",
        "BlockSelection",
        "--pair-images",
        2,
        "--search-images",
        4,
    )
    result = invoke(*analysis(*options, output=tmp_path / "a.nc"))
    assert result.exit_code == 0, result.output
    tree = rpp.load(tmp_path / "a.nc")
    assert list(tree.children) == ["interactions", "selection"]
    pairs = tree["interactions"]["interaction"]
    np.testing.assert_allclose(pairs, pairs.T)
    assert tree["selection"]["n_searched_samples"] == 2
    assert {"a-interactions.png", "a-selection.png"} <= set(files_of(tmp_path))
