"""`resnet-paths analyze` on workers, on a cluster, and after an interruption: the same file."""

import pytest
from small_studies import timeless
from test_cli import analysis, files_of, invoke, place  # noqa: F401 - `place` is a fixture

import resnet_paths_plugin as rpp
from resnet_paths_plugin import cli
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
        patch.setattr(cli, "STUDIES", (*STUDIES[:3], interrupted))
        result = invoke(*analysis(*OPTIONS, output=output))
    assert result.exit_code == 130
    kept = len(list(tmp_path.rglob("*.unit")))
    assert kept == 3 + 3  # 12 images by 5, in the two studies of this model that were done
    assert f"{kept} finished units are kept in {output}.partial: the same command with --resume" in result.output
    assert files_of(tmp_path) == []

    refused = complaint(*analysis(*OPTIONS, output=output))
    assert f"keeps {kept} finished units of an earlier run: give --resume" in refused
    assert "seed was 0 and is 1 in this call" in complaint(*analysis(*OPTIONS, "--seed", 1, "--resume", output=output))

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
