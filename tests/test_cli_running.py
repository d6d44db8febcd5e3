"""`resnet-paths analyze` on workers, on a cluster, and after an interruption: the same file."""

import pytest
from small_studies import timeless
from test_cli import analysis, files_of, invoke, place  # noqa: F401 - `place` is a fixture

import resnet_paths_plugin as rpp
from resnet_paths_plugin import cli
from resnet_paths_plugin.analyzers.running import UnitFolder
from resnet_paths_plugin.cli.running import PartialRun
from resnet_paths_plugin.cli.studies import STUDIES, Study


def complaint(*arguments):
    """What a command says last, of a mistake that it meets after it has begun."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output.splitlines()[-1]


OPTIONS = ("--draws", 2, "--max-deleted", 2, "--max-swaps", 1, "--path-images", 2, "--path-draws", 2, "--batch-size", 5)


def analyzed(output, *options):
    result = invoke(*analysis(*OPTIONS, *options, output=output))
    assert result.exit_code == 0, result.output
    return {path: timeless(node.to_dataset()) for path, node in rpp.load(output).subtree_with_keys}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for group, dataset in found.items():
        assert dataset.identical(expected[group]), group


@pytest.fixture(scope="module")
def expected(place):  # noqa: F811 - the fixture
    return analyzed(place / "expected.nc")


def interrupting(*_):
    raise KeyboardInterrupt


def test_an_interrupted_analysis_goes_on_with_resume(tmp_path, monkeypatch, expected):
    output = tmp_path / "a.nc"
    interrupted = Study(group="reorderings", analyzer="BlockReordering", run=interrupting)
    with monkeypatch.context() as patch:
        patch.setattr(cli, "STUDIES", (*STUDIES[:3], interrupted, *STUDIES[4:]))
        result = invoke(*analysis(*OPTIONS, output=output))
    assert result.exit_code == 130
    kept = len(list(tmp_path.rglob("*.unit")))
    assert kept == 3 + 3  # 12 images by 5, in the two studies of this model that were done
    assert f"{kept} finished units are kept in {output}.partial: the same command with --resume" in result.output
    assert files_of(tmp_path) == []

    refused = complaint(*analysis(*OPTIONS, output=output))
    assert f"keeps {kept} finished units of an earlier run: give --resume" in refused
    other_seed = complaint(*analysis(*OPTIONS, "--seed", 1, "--resume", output=output))
    assert "seed was 0 and is 1 in this call" in other_seed
    assert "goes on from them" not in other_seed

    monkeypatch.setattr("resnet_paths_plugin.analyzers.schedule_work._ScheduleJob.__call__", Once())
    assert_same(analyzed(output, "--resume"), expected)
    assert not list(tmp_path.glob("*.partial"))


class Once:
    """Stands for what runs a unit of schedules, and counts that no finished one is run again."""

    def __init__(self):
        from resnet_paths_plugin.analyzers import schedule_work

        self.original, self.calls = schedule_work._ScheduleJob.__call__, 0

    def __get__(self, job, _=None):
        def run(*arguments):
            self.calls += 1
            assert self.calls <= 3, "the reorderings alone are left to do"
            return self.original(job, *arguments)

        return run


def test_an_analysis_that_finished_nothing_leaves_nothing(tmp_path, monkeypatch):
    interrupted = Study(group="single_lesions", analyzer="BlockLesion", run=interrupting)
    monkeypatch.setattr(cli, "STUDIES", (interrupted,))
    assert invoke(*analysis(*OPTIONS, output=tmp_path / "a.nc")).exit_code == 130
    assert list(tmp_path.iterdir()) == []


def never(*_):
    raise AssertionError("no study is run")


@pytest.mark.parametrize("place", ["thesis.tex", "notes/thesis.tex", "influence/thesis.tex"])
@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["anew", "resume"])
def test_files_of_others_are_refused_before_the_run_and_left_alone(tmp_path, monkeypatch, place, resume):  # noqa: F811
    thesis = tmp_path / "a.nc.partial" / place
    thesis.parent.mkdir(parents=True)
    thesis.write_text("all of it")
    monkeypatch.setattr(cli, "STUDIES", (Study(group="influence", analyzer="BlockInfluence", run=never),))
    line = complaint(*analysis(*OPTIONS, *resume, output=tmp_path / "a.nc"))
    assert f"is no checkpoint of a study: it holds {place.partition('/')[0]}" in line
    assert thesis.read_text() == "all of it"
    assert files_of(tmp_path) == []


@pytest.mark.parametrize("place", ["thesis.tex", "influence/thesis.tex", "notes/thesis.tex"])
def test_files_that_others_add_meanwhile_stay(tmp_path, monkeypatch, place):  # noqa: F811
    partial = tmp_path / "a.nc.partial"

    def joined(*arguments):
        (partial / place).parent.mkdir(exist_ok=True)
        (partial / place).write_text("all of it")
        return STUDIES[4].run(*arguments)

    study = Study(group="influence", analyzer="BlockInfluence", run=joined)
    monkeypatch.setattr(cli, "STUDIES", (study,))
    if place.startswith("influence"):
        complaint(*analysis(*OPTIONS, output=tmp_path / "a.nc"))
    else:
        assert invoke(*analysis(*OPTIONS, output=tmp_path / "a.nc")).exit_code == 0
    assert (partial / place).read_text() == "all of it"
    assert not list(partial.rglob("*.unit"))


@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["anew", "resume"])
def test_the_same_command_started_twice_leaves_the_first_alone(tmp_path, resume):
    pytest.importorskip("fcntl")
    output = tmp_path / "a.nc"
    wanted = [study.group for study in STUDIES if study.group != "plain_single_lesions"]
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
        patch.setattr(cli, "STUDIES", (STUDIES[0], interrupted))
        assert invoke(*analysis(*OPTIONS, output=output)).exit_code == 130
    kept = sorted(tmp_path.rglob("*.unit"))
    line = complaint(*analysis(*OPTIONS, "--resume", "--analyzer", "BlockInfluence", output=output))
    assert "studies was single_lesions, reorderings and is influence in this call" in line
    assert sorted(tmp_path.rglob("*.unit")) == kept != []
    assert files_of(tmp_path) == []


def test_an_earlier_run_that_finished_nothing_is_begun_anew(tmp_path):
    """As after a kill: its folders are there, for another call, and no unit is."""
    earlier = PartialRun(tmp_path / "a.nc", ["reorderings", "influence"], resume=False)
    for group in ("reorderings", "influence"):
        folder = UnitFolder(earlier.path / group)
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
    offered = rpp.plugins.analyzers()
    monkeypatch.setattr(rpp.plugins, "analyzers", lambda _=None: {**offered, "Told": Told, "Untold": Untold})


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
