"""`resnet-paths analyze` on workers, on a cluster, and after an interruption: the same file."""

import importlib
import sys
import textwrap

import command_lines
import numpy as np
import pytest
import torch
from command_lines import OPTIONS, STATISTICS, analysis, files_of, invoke, undrawn
from safetensors.torch import load_file
from small_studies import timeless

import resnet_paths_plugin as rpp
import resnet_paths_plugin.cli.analyze
from resnet_paths_plugin import cli
from resnet_paths_plugin.cli.running import PartialRun
from resnet_paths_plugin.cli.studies import STUDIES, Study
from resnet_paths_plugin.execution import TaskFolder
from resnet_paths_plugin.plugins import manager

pytestmark = pytest.mark.slow

place = command_lines.place  # a fixture


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    with undrawn():
        yield


def complaint(*arguments):
    """What a command says last, of a mistake that it meets after it has begun."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output.splitlines()[-1]


def analyzed(output, *options):
    result = invoke(*analysis(*OPTIONS, *options, output=output))
    assert result.exit_code == 0, result.output
    return {path: timeless(node.to_dataset()) for path, node in rpp.load(output).subtree_with_keys}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for group, dataset in found.items():
        assert dataset.identical(expected[group]), group


@pytest.fixture(scope="module")
def expected(place):
    return analyzed(place / "expected.nc")


def interrupting(*_):
    raise KeyboardInterrupt


def test_an_interrupted_analysis_goes_on_with_resume(tmp_path, monkeypatch, expected):
    output = tmp_path / "a.nc"
    interrupted = Study(group="reorderings", analyzer="BlockReordering", run=interrupting)
    with monkeypatch.context() as patch:
        patch.setattr(cli.analyze, "STUDIES", (*STUDIES[:3], interrupted, *STUDIES[4:]))
        result = invoke(*analysis(*OPTIONS, output=output))
    assert result.exit_code == 130
    kept = len(list(tmp_path.rglob("*.task")))
    assert kept == 3 + 3  # 12 images by 5, in the two studies of this model that were done
    assert f"{kept} finished tasks are kept in {output}.partial: the same command with --resume" in result.output
    assert files_of(tmp_path) == []

    refused = complaint(*analysis(*OPTIONS, output=output))
    assert f"keeps {kept} finished tasks of an earlier run: give --resume" in refused
    other_seed = complaint(*analysis(*OPTIONS, "--seed", 1, "--resume", output=output))
    assert "seed was 0 and is 1 in this call" in other_seed
    assert "goes on from them" not in other_seed

    monkeypatch.setattr("resnet_paths_plugin.analyzers.rewiring.tasks._ScheduleJob.__call__", Once())
    assert_same(analyzed(output, "--resume"), expected)
    assert not list(tmp_path.glob("*.partial"))


class Once:
    """Stands for what runs a task of schedules, and counts that no finished one is run again."""

    def __init__(self):
        from resnet_paths_plugin.analyzers.rewiring import tasks

        self.original, self.calls = tasks._ScheduleJob.__call__, 0

    def __get__(self, job, _=None):
        def run(*arguments):
            self.calls += 1
            assert self.calls <= 3, "the reorderings alone are left to do"
            return self.original(job, *arguments)

        return run


def test_an_analysis_that_finished_nothing_leaves_nothing(tmp_path, monkeypatch):
    interrupted = Study(group="single_lesions", analyzer="BlockLesion", run=interrupting)
    monkeypatch.setattr(cli.analyze, "STUDIES", (interrupted,))
    assert invoke(*analysis(*OPTIONS, output=tmp_path / "a.nc")).exit_code == 130
    assert list(tmp_path.iterdir()) == []


def never(*_):
    raise AssertionError("no study is run")


@pytest.mark.parametrize("place", ["thesis.tex", "notes/thesis.tex", "influence/thesis.tex"])
@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["anew", "resume"])
def test_files_of_others_are_refused_before_the_run_and_left_alone(tmp_path, monkeypatch, place, resume):
    thesis = tmp_path / "a.nc.partial" / place
    thesis.parent.mkdir(parents=True)
    thesis.write_text("all of it")
    monkeypatch.setattr(cli.analyze, "STUDIES", (Study(group="influence", analyzer="BlockInfluence", run=never),))
    line = complaint(*analysis(*OPTIONS, *resume, output=tmp_path / "a.nc"))
    assert f"is no checkpoint of a study: it holds {place.partition('/')[0]}" in line
    assert thesis.read_text() == "all of it"
    assert files_of(tmp_path) == []


@pytest.mark.parametrize("place", ["thesis.tex", "influence/thesis.tex", "notes/thesis.tex"])
def test_files_that_others_add_meanwhile_stay(tmp_path, monkeypatch, place):
    partial = tmp_path / "a.nc.partial"

    def joined(*arguments):
        (partial / place).parent.mkdir(exist_ok=True)
        (partial / place).write_text("all of it")
        return STUDIES[4].run(*arguments)

    study = Study(group="influence", analyzer="BlockInfluence", run=joined)
    monkeypatch.setattr(cli.analyze, "STUDIES", (study,))
    if place.startswith("influence"):
        complaint(*analysis(*OPTIONS, output=tmp_path / "a.nc"))
    else:
        assert invoke(*analysis(*OPTIONS, output=tmp_path / "a.nc")).exit_code == 0
    assert (partial / place).read_text() == "all of it"
    assert not list(partial.rglob("*.task"))


@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["anew", "resume"])
def test_the_same_command_started_twice_leaves_the_first_alone(tmp_path, resume):
    pytest.importorskip("fcntl")
    output = tmp_path / "a.nc"
    on_paths = {"parameter_lengths", "contributions", "participation"}
    embedded = {"plain_single_lesions", "interactions", "selection"} | on_paths
    wanted = [study.group for study in STUDIES if study.group not in embedded]
    first = PartialRun(output, wanted, resume=False)
    folder = first.options("single_lesions", None).checkpoint
    folder.open({"a": 1})
    (folder.path / "result.tmp").write_text("growing")
    before = sorted(tmp_path.rglob("*"))
    assert "another process is at work on" in complaint(*analysis(*OPTIONS, *resume, output=output))
    assert sorted(tmp_path.rglob("*")) == before
    folder.close()
    first.remove()
    assert list(tmp_path.iterdir()) == []


def test_resume_with_other_studies_is_refused_and_keeps_the_units(tmp_path, monkeypatch):
    output = tmp_path / "a.nc"
    interrupted = Study(group="reorderings", analyzer="BlockReordering", run=interrupting)
    with monkeypatch.context() as patch:
        patch.setattr(cli.analyze, "STUDIES", (STUDIES[0], interrupted))
        assert invoke(*analysis(*OPTIONS, output=output)).exit_code == 130
    kept = sorted(tmp_path.rglob("*.task"))
    line = complaint(*analysis(*OPTIONS, "--resume", "--analyzer", "BlockInfluence", output=output))
    assert "studies was single_lesions, reorderings and is influence in this call" in line
    assert sorted(tmp_path.rglob("*.task")) == kept != []
    assert files_of(tmp_path) == []


def test_an_earlier_run_that_finished_nothing_is_begun_anew(tmp_path):
    """As after a kill: its folders are there, for another call, and no task is."""
    earlier = PartialRun(tmp_path / "a.nc", ["reorderings", "influence"], resume=False)
    for group in ("reorderings", "influence"):
        folder = TaskFolder(earlier.path / group)
        folder.open({"seed": 1})
        folder.close()
    earlier._whole.close()
    result = invoke(*analysis(*OPTIONS, "--analyzer", "BlockInfluence", output=tmp_path / "a.nc"))
    assert result.exit_code == 0, result.output
    assert not list(tmp_path.glob("*.partial"))


def test_a_command_that_finds_nothing_to_study_leaves_nothing(tmp_path):
    line = complaint(*analysis("--analyzer", "PathLengthGradient", "--path-images", 0, output=tmp_path / "a.nc"))
    assert "finds nothing to study" in line
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_told_of(tmp_path):
    (tmp_path / "a.nc.partial").write_text("a file")
    assert "a.nc.partial is a file" in complaint(*analysis(*OPTIONS, output=tmp_path / "a.nc"))


class Told:
    """An analyzer of a plugin that takes `run`, and says what it was given."""

    given = None

    def __init__(self, network):
        self.network = network

    def attribute(self, inputs, *, run=None):
        type(self).given = run
        return rpp.BlockInfluence(self.network).attribute(inputs, run=run)


class Untold:
    """An analyzer of a plugin that does not."""

    def __init__(self, network):
        self.network = network

    def attribute(self, inputs):
        return rpp.BlockInfluence(self.network).attribute(inputs)


@pytest.fixture
def strangers(monkeypatch):
    offered = manager.analyzers()
    monkeypatch.setattr(manager, "analyzers", lambda _=None: {**offered, "Told": Told, "Untold": Untold})


@pytest.mark.usefixtures("strangers")
def test_a_plugins_analyzer_runs_on_the_workers_and_is_resumed(tmp_path):
    result = invoke(*analysis("--analyzer", "Told", "--workers", 1, output=tmp_path / "a.nc"))
    assert result.exit_code == 0, result.output
    assert Told.given.executor._max_workers == 1
    assert Told.given.checkpoint.path == tmp_path / "a.nc.partial" / "Told"
    assert "Warning" not in result.output


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("strangers")
def test_a_plugins_analyzer_that_cannot_be_told_where_to_run_is_warned_of(tmp_path):
    told = "Warning: --workers has no effect on analyzer 'Untold', whose 'attribute' takes no 'run'"
    asked = invoke(*analysis("--analyzer", "Untold", "--workers", 1, output=tmp_path / "a.nc"))
    assert asked.exit_code == 0, asked.output
    assert told in asked.output
    assert "no effect" not in invoke(*analysis("--analyzer", "Untold", output=tmp_path / "b.nc")).output


def test_worker_processes_give_the_same_file(tmp_path, expected):
    assert_same(analyzed(tmp_path / "a.nc", "--workers", 2), expected)


def test_a_cluster_gives_the_same_file(tmp_path, expected):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=":0", protocol="tcp") as cluster:
        assert_same(analyzed(tmp_path / "a.nc", "--scheduler", cluster.scheduler_address), expected)


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("resnet_paths_plugin.cli.running._SECONDS_TO_CONNECT", 1)
    line = complaint(*analysis("--scheduler", "tcp://127.0.0.1:9", output=tmp_path / "a.nc"))
    assert "no dask scheduler answers at 'tcp://127.0.0.1:9'" in line
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_and_worker_processes_exclude_each_other(tmp_path):
    line = complaint(*analysis("--scheduler", "tcp://127.0.0.1:9", "--workers", 2, output=tmp_path / "a.nc"))
    assert "give --scheduler (workers of a cluster) or --workers (processes here), not both" in line


def test_a_cluster_without_workers_stops_the_command_where_it_is_not_to_wait(tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0", protocol="tcp") as cluster:
        options = ("--scheduler", cluster.scheduler_address, "--no-wait-for-workers")
        line = complaint(*analysis(*OPTIONS, *options, output=tmp_path / "a.nc"))
    assert "the dask scheduler has no workers" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [(), ("--workers", 2)])
def test_waiting_for_workers_is_a_cluster_s(tmp_path, workers):
    line = complaint(*analysis("--no-wait-for-workers", *workers, output=tmp_path / "a.nc"))
    assert "give its --scheduler" in line


OTHER_WHEN_CAPTURED = """
    import torch
    from tiny_residual_network import Tiny

    class Other(Tiny):
        def forward(self, x):
            return super().forward(x) * (2 if torch.compiler.is_compiling() else 1)

    def build():
        return Other()
"""


@pytest.fixture
def mismatching(place):
    """The arguments of an analysis of a model that is another one when it is captured."""
    (place / "other_when_captured.py").write_text(textwrap.dedent(OTHER_WHEN_CAPTURED))
    yield lambda output, *options: (
        "analyze", "other_when_captured:build", "--weights", "weights.safetensors", "--images", "images.npz",
        *STATISTICS, *OPTIONS, *options, "--output", output,
    )  # fmt: skip
    sys.modules.pop("other_when_captured", None)


def test_a_capture_that_is_not_the_model_is_refused(tmp_path, mismatching):
    line = complaint(*mismatching(tmp_path / "a.nc"))
    assert "the network's outputs are not those of Other as it is now" in line
    assert "verify=False" in line
    assert files_of(tmp_path) == []


@pytest.mark.filterwarnings("default")
def test_no_verify_goes_on_and_says_so(tmp_path, mismatching):
    result = invoke(*mismatching(tmp_path / "a.nc", "--no-verify"))
    assert result.exit_code == 0, result.output
    assert "--no-verify: nothing shows whether what was captured is the model" in " ".join(result.output.split())
    groups = [node.to_dataset() for _, node in rpp.load(tmp_path / "a.nc").subtree_with_keys if node.has_data]
    assert {group.attrs["verified"] for group in groups} == {"no"}
    model = importlib.import_module("other_when_captured").build()
    model.load_state_dict(load_file("weights.safetensors"))
    with np.load("images.npz") as archive:
        pixels = torch.from_numpy(archive["images"]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(three).view(3, 1, 1) for three in ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    wanted = 2 * model.eval()((pixels - mean) / std)  # what was captured
    found = next(group for group in groups if "intact_target_score" in group)
    scores = wanted.gather(1, torch.from_numpy(found.label.values).long()[:, None])[:, 0]
    torch.testing.assert_close(
        torch.from_numpy(found.intact_target_score.values), scores.detach(), rtol=1e-4, atol=1e-4
    )


def test_a_resumed_analysis_says_what_was_verified(tmp_path, monkeypatch, expected):
    output = tmp_path / "a.nc"
    interrupted = Study(group="reorderings", analyzer="BlockReordering", run=interrupting)
    with monkeypatch.context() as patch:
        patch.setattr(cli.analyze, "STUDIES", (*STUDIES[:3], interrupted, *STUDIES[4:]))
        assert invoke(*analysis(*OPTIONS, output=output)).exit_code == 130
    assert_same(analyzed(output, "--resume"), expected)
    verified = {group: node.attrs["verified"] for group, node in rpp.load(output).subtree_with_keys if node.has_data}
    assert verified["single_lesions"] == verified["reorderings"] == "outputs"
    assert verified["path_lengths"] == verified["influence"] == "outputs and gradients"
