"""`resnet-paths compare`: a page or a file of what rpp.compare gives, and each mistake has a message of its own."""

import os
import re

import command_lines
import numpy as np
import pytest
import synthetic_studies as synthetic
import xarray as xr
from command_lines import files_of, invoke, told
from PIL import Image

import resnet_paths_plugin as rpp
from resnet_paths_plugin.results import datasets

place, no_pictures = command_lines.place, command_lines.no_pictures  # fixtures


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two files, of lesions of 4 blocks and of 9, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, n in (("small", 4), ("large", 9)):
        studies = {"single_lesions": synthetic.single_lesions(n).assign_attrs(n_classes=10)}
        rpp.save(datasets.build_tree(studies), f"{name}.nc")
    return tmp_path


def test_a_page_has_the_table_and_every_figure(files):
    result = invoke("compare", "small.nc", "large.nc", "--output", "both.html")
    assert result.exit_code == 0, result.output
    assert files_of(files) == [
        "both-single-lesions-normalised.png", "both-single-lesions.png", "both.html", "large.nc", "small.nc",
    ]  # fmt: skip
    page = (files / "both.html").read_text(encoding="utf-8")
    assert "<h1>Residual paths of small and large</h1>" in page
    assert page.count("data:image/png;base64,") == 2
    assert page.count("<td>dict</td>") == 2  # the class of the model that the studies say that they are of
    table = rpp.compare({"small": "small.nc", "large": "large.nc"})["models"]
    for name in ("small", "large"):
        error, low, high = (
            100 * float(table[f"mean_lesion_effect{end}"].sel(model=name)) for end in ("", "_low", "_high")
        )
        cell = f"{error:.1f} % ({low:.1f} % to {high:.1f} %)"
        assert f"<td>{cell}</td>".replace(" %", "\u00a0%") in page
        assert cell in result.output
    assert "No figure of this package fits" not in page
    with Image.open(files / "both-single-lesions.png") as image:
        assert image.size > (500, 300)


@pytest.mark.usefixtures("no_pictures")
def test_a_file_holds_what_compare_gives(files):
    result = invoke("compare", "small.nc", "large.nc", "--name", "A", "--name", "B", "--output", "both.nc")
    assert result.exit_code == 0, result.output
    found = rpp.load(files / "both.nc")
    expected = rpp.compare({"A": "small.nc", "B": "large.nc"})
    for name, group in expected.children.items():
        xr.testing.assert_equal(found[name].to_dataset(), group.to_dataset())
    assert not (files / "both.html").exists()
    assert (files / "both-single-lesions.png").exists()
    again = invoke("report", "both.nc")
    assert again.exit_code == 0, again.output
    assert "Residual paths of A and B" in (files / "both.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.filterwarnings("always::resnet_paths_plugin.errors.OmittedStudyWarning")
def test_what_is_left_out_is_a_warning_in_one_line(files):
    rpp.save(synthetic.tree(5), "whole.nc")
    result = invoke("compare", "whole.nc", "large.nc", "--output", "both.nc")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("Warning: ")]
    assert "of model 'whole' these are not compared: influence, path_maps, plain_single_lesions" in line
    assert "random_lesions: only 'whole' has them" in line


@pytest.mark.usefixtures("no_pictures")
def test_names_are_text_on_the_page(files):
    result = invoke("compare", "small.nc", "large.nc", "--name", "<b>\x1b[1m", "--name", "$x$", "--output", "both.html")
    assert result.exit_code == 0, result.output
    page = (files / "both.html").read_text(encoding="utf-8")
    assert "<b>" not in re.sub(r"<style>.*</style>", "", page, flags=re.DOTALL)
    assert "\x1b" not in page + result.output


@pytest.mark.usefixtures("no_pictures")
def test_replicates_are_trainings_of_one_model(files):
    for seed in (1, 2, 3):
        rpp.save(synthetic.single_lesions(4, seed=seed).assign_attrs(n_classes=10), f"seed{seed}.nc")
    result = invoke("compare", "large.nc", "--replicates", "narrow=seed*.nc", "--output", "both.nc")
    assert result.exit_code == 0, result.output
    expected = rpp.compare({"large": "large.nc", "narrow": [f"seed{seed}.nc" for seed in (1, 2, 3)]})
    for name, group in expected.children.items():
        xr.testing.assert_equal(rpp.load("both.nc")[name].to_dataset(), group.to_dataset())
    alone = invoke("compare", "--replicates", "narrow=seed*.nc", "--output", "alone.nc")
    assert alone.exit_code == 0, alone.output
    assert rpp.load("alone.nc")["models"].n_replicates.values.tolist() == [3]


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "give two files or more, not 0"),
    (("small.nc",), "give two files or more, not 1"),
    (("small.nc", "--replicates", "a=nothing*.nc"), "no file fits --replicates 'a=nothing\\*.nc'"),
    (("small.nc", "--replicates", "large.nc"), "takes NAME=PATTERN"),
    (("small.nc", "--replicates", "small=large.nc"), "two models have the name 'small'"),
    (("small.nc", "small.nc"), "two models have the name 'small'"),
    (("small.nc", "large.nc", "--name", "a"), "2 files, 1 names"),
    (("small.nc", "large.nc", "--name", "a", "--name", "a"), "two models have the name 'a'"),
    (("small.nc", "large.nc", "--output", "both.pdf"), "must end in .html or .nc, not 'both.pdf'"),
    (("small.nc", "large.nc", "--output", "small.nc"), "small.nc would be written .* and is also read"),
    (("small.nc", "large.nc", "--output", "linked.nc"), "linked.nc would be written .* and is also read"),
    (("small.nc", "large.nc", "--output", "old.html", "--no-clobber"), "old.html exists already"),
    (("small.nc", "large.nc", "--output", "new.html", "--no-clobber"), "new-single-lesions.png exists already"),
    (("small.nc", "large.nc", "--output", "none/both.html"), "the folder .* does not exist"),
    (("small.nc", "none.nc"), "none.nc.* missing|No such file|does not exist"),
    (("small.nc", "influence.nc"), "model 'influence' has no study that can be compared"),
    (("small.nc", "paths.nc"), "'small' has single_lesions; 'paths' has path_lengths"),
])  # fmt: skip
def test_mistakes_are_told_in_a_line_and_nothing_is_written(files, arguments, message):
    rpp.save(synthetic.influence(4), "influence.nc")
    rpp.save(synthetic.path_lengths(4), "paths.nc")
    os.link("small.nc", "linked.nc")
    for name in ("old.html", "new-single-lesions.png"):
        (files / name).write_text("mine")
    before = {path: path.read_bytes() for path in files.iterdir()}
    assert re.search(message, told("compare", *arguments))
    assert {path: path.read_bytes() for path in files.iterdir()} == before


def test_a_file_that_is_no_result_is_no_bug(files):
    ds = synthetic.single_lesions(4)
    rpp.save(ds.assign(deleted=ds["deleted"].expand_dims(odd=2)), "odd.nc")
    assert "odd.nc is not what save writes, so they cannot be compared" in told("compare", "small.nc", "odd.nc")


@pytest.mark.usefixtures("no_pictures")
def test_a_class_subset_in_a_file_shows_its_own_error(files):
    ds = synthetic.single_lesions(9)
    some = ds.isel(sample=(ds["label"] == 3).values)
    rpp.save(some, "threes.nc")
    result = invoke("compare", "large.nc", "threes.nc", "--output", "both.nc")
    assert result.exit_code == 0, result.output
    found = rpp.load("both.nc")["models"]["intact_error"].sel(model="threes")
    np.testing.assert_allclose(found, (~some["intact_correct"].values).mean())
