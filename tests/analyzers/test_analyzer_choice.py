"""Claims about `resnet-paths analyze --analyzer NAME`: one way to run the analyzers of this package and of plugins."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import CliRunner
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers.base import study_attrs
from resnet_paths_plugin.cli import main
from resnet_paths_plugin.cli.studies import STUDIES, StudyOptions, studies_by
from resnet_paths_plugin.errors import InputError, PluginError
from resnet_paths_plugin.plugins import manager as plugins
from resnet_paths_plugin.results import datasets
from resnet_paths_plugin.results.block_coords import block_coords

pytestmark = pytest.mark.slow

OWN = {
    "BlockContribution", "BlockInfluence", "BlockInteraction", "BlockLesion", "BlockReordering", "BlockSchedules",
    "BlockSelection", "BlockShapley", "PathLengthGradient", "PathParticipation",
}  # fmt: skip
MODEL = ("resnet_paths_plugin/digits_resnet110", "--pretrained")
BLOCKS = [f"layer{stage}.{place}" for stage in (1, 2, 3) for place in range(18)]


class BranchCount:
    """Counts the batches that it is given."""

    def __init__(self, network):
        self.network = network

    def attribute(self, inputs, target=None, *, seed=0, other=5):
        assert isinstance(self.network, rpp.UnraveledNetwork)
        attrs = study_attrs(
            self.network, analyzer="BranchCount", title="t", summary="s", seed=seed, arguments={"other": other}
        )
        labels = [label for _, labels in inputs for label in labels.tolist()]
        variables = {"given": (("sample",), labels)}
        return datasets.build(variables, coords=block_coords(self.network.blocks), attrs=attrs)


class Plugin:
    figures = ()

    def __init__(self, **offered):
        self.offered = offered

    @rpp.hookimpl
    def resnet_paths_analyzers(self):
        return self.offered

    @rpp.hookimpl
    def resnet_paths_figures(self):
        return self.figures


class Given(rpp.Figure):
    """A figure of `BranchCount` that fails."""

    name, title = "given", "What was given"

    def __init__(self, error):
        self._error = error

    def fits(self, ds):
        return "given" in ds

    def draw(self, ds, *, ax=None):
        raise self._error

    def sentence(self, ds):
        return "Four labels."


@pytest.fixture(autouse=True)
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    np.savez("images.npz", images=pixels, labels=[3, 1, 4, 1])


@pytest.fixture
def offer(monkeypatch):
    """Make the command line find a plugin that offers some analyzers."""
    create = plugins.create_plugin_manager

    def offer(**offered):
        def with_plugin():
            manager = create()
            manager.register(Plugin(**offered), name="stranger")
            return manager

        monkeypatch.setattr(plugins, "create_plugin_manager", with_plugin)

    return offer


def analyze(*names, options=()):
    arguments = [*MODEL, "--images", "images.npz", "--output", "a.nc", *map(str, options)]
    return CliRunner().invoke(main, ["analyze", *arguments, *(part for name in names for part in ("--analyzer", name))])


def refused(*names, options=()):
    result = analyze(*names, options=options)
    assert result.exit_code == 2, result.output
    return result.output


def test_this_package_offers_its_analyzers_as_a_plugin_does():
    assert set(plugins.analyzers()) >= OWN
    assert plugins.analyzers()["BlockLesion"] is rpp.BlockLesion
    assert {study.analyzer for study in STUDIES} < OWN


def test_only_the_studies_of_the_analyzers_asked_for_are_run():
    result = analyze("BlockInfluence", "BlockReordering", options=("--max-swaps", 0))
    assert result.exit_code == 0, result.output
    tree = rpp.load("a.nc")
    assert list(tree.children) == ["influence"]  # --max-swaps 0 leaves reorderings out
    assert tree["influence"]["block"].values.tolist() == BLOCKS
    assert "lesion_effect" not in tree["influence"]  # nothing was deleted
    assert "influence: no figure fits it; the report lists what it holds" in result.output


def test_a_plugins_analyzer_gets_the_images_and_the_options_that_it_takes(offer):
    offer(BranchCount=BranchCount)
    result = analyze("BranchCount", options=("--seed", 7, "--batch-size", 3))
    assert result.exit_code == 0, result.output
    tree = rpp.load("a.nc")
    assert list(tree.children) == ["BranchCount"]
    assert tree["BranchCount"]["given"].values.tolist() == [3, 1, 4, 1]
    assert tree["BranchCount"]["block"].values.tolist() == BLOCKS
    assert (tree["BranchCount"].attrs["seed"], tree["BranchCount"].attrs["argument_other"]) == (7, 5)
    assert "BranchCount: no figure fits it" in result.output


def test_plugins_own_analyzers_come_after_ours_each_once(offer):
    offer(BranchCount=BranchCount)
    chosen = studies_by(
        ["BranchCount", "BlockLesion", "BranchCount"], plugins.analyzers(plugins.create_plugin_manager())
    )
    assert [study.group for study in chosen] == [
        "single_lesions", "plain_single_lesions", "random_lesions", "BranchCount",
    ]  # fmt: skip


def test_only_the_figures_asked_for_are_written_and_told(tmp_path):
    options = ("--figures", "random_lesions", "--max-deleted", 2, "--draws", 1)
    result = analyze("BlockLesion", options=options)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["a-random-lesions.png"]
    assert "Deleting random sets of blocks" in result.output
    assert "Deleting single blocks" not in result.output
    assert "Deleting single blocks" in (tmp_path / "a.html").read_text(encoding="utf-8")  # the report has all


def test_an_unknown_figure_is_refused_with_the_nearest():
    told = refused("BlockLesion", options=("--figures", "single_lesion"))
    assert "there is no figure 'single_lesion': did you mean 'single_lesions'? Known here are compared_curves, " in told


def test_a_strangers_analyzer_cannot_take_the_name_of_ours(offer):
    offer(BlockLesion=BranchCount)
    with pytest.warns(plugins.PluginWarning, match="'BlockLesion' of plugin 'stranger' is left out"):
        assert plugins.analyzers(plugins.create_plugin_manager())["BlockLesion"] is rpp.BlockLesion


def test_an_unknown_analyzer_is_refused_with_the_nearest():
    told = refused("BlockLesions")
    assert "there is no analyzer 'BlockLesions': did you mean 'BlockLesion'? Known here are BlockContribution, " in told


def test_an_analyzer_that_needs_more_than_inputs_is_refused_before_the_run():
    assert "analyzer 'BlockSchedules' needs schedules and has no default for it: run it from Python" in refused(
        "BlockSchedules"
    )


def test_an_analyzer_with_nothing_to_study_says_so():
    told = refused("BlockReordering", options=("--max-swaps", 0))
    assert "BlockReordering finds nothing to study in digits_resnet110 with these options" in told


@pytest.mark.parametrize(
    ("offered", "complaint"),
    [
        ({"Empty": nn.ReLU}, "analyzer 'Empty' has no method 'attribute' to run"),
        ({"a/b": BranchCount}, "analyzer 'a/b' cannot name a group of the file"),
        ({"influence": BranchCount}, "analyzer 'influence' cannot name a group of the file"),
    ],
)
def test_what_cannot_be_run_or_stored_is_refused_before_the_run(offered, complaint):
    with pytest.raises(PluginError, match=complaint):
        studies_by(list(offered), offered)


def answering(act):
    class Answering:
        def __init__(self, network):
            self.network = network

        def attribute(self, inputs):
            return act()

    (study,) = studies_by(["Answering"], {"Answering": Answering})
    return study.run(None, None, StudyOptions(), {})


def test_an_analyzers_answer_must_be_a_dataset():
    with pytest.raises(PluginError, match="analyzer 'Answering' returned a Tensor, not"):
        answering(lambda: torch.zeros(3))
    assert answering(xr.Dataset).identical(xr.Dataset())


def test_an_analyzers_failure_is_told_by_its_name_and_its_refusal_as_it_is():
    with pytest.raises(PluginError, match=r"analyzer 'Answering' failed: ZeroDivisionError"):
        answering(lambda: 1 / 0)

    def refuse():
        raise InputError("no such thing")

    with pytest.raises(InputError, match=r"^no such thing$"):
        answering(refuse)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "error",
    [rpp.errors.InputError("no luck"), rpp.errors.FileError("no luck"), ZeroDivisionError("no luck")],
    ids=lambda error: type(error).__name__,
)
def test_a_plugins_figure_that_cannot_be_drawn_is_left_out_and_the_report_is_written(offer, monkeypatch, error):
    monkeypatch.setattr(Plugin, "figures", [Given(error)])
    offer(BranchCount=BranchCount)
    result = analyze("BranchCount")
    assert result.exit_code == 0, result.output
    assert "branchcount is left out: " in result.output
    assert "no luck" in Path("a.html").read_text()
    assert not list(Path().glob("*.png"))
