"""A checkpoint keeps finished tasks, goes on from them, and refuses what it was not made for."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from counted_lesions import StoppedError, Stopping, calls_of_a_whole_run, interrupted, lesions
from networks import PreActivation, randomised
from small_studies import N_SAMPLES, STUDIES, batches, captured, margin, n_units, network, run, timeless

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import CheckpointError, InputError
from resnet_paths_plugin.execution import TaskFolder

pytestmark = pytest.mark.slow


def test_every_finished_unit_is_a_file_until_the_end(tmp_path, counting):
    interrupted(counting, tmp_path / "run.nc", at=44 * 2 + 1)
    names = sorted(path.name for path in (tmp_path / "run.nc.partial").glob("*.task"))
    assert names == [f"lesion-{task:08d}.task" for task in range(4)]
    counting(margin)
    lesions(checkpoint=tmp_path / "run.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["run.nc"]


def test_the_same_call_goes_on_where_it_was_stopped(tmp_path, counting):
    undisturbed = timeless(lesions())
    whole = counting(Stopping())
    lesions()
    interrupted(counting, tmp_path / "run.nc", at=44 * 2 + 1)
    rest = counting(Stopping())
    found = lesions(checkpoint=tmp_path / "run.nc")
    assert whole.calls == calls_of_a_whole_run()
    assert rest.calls == whole.calls - 44 * 2  # four units of two chunks were kept
    assert timeless(found).identical(undisturbed)


@pytest.mark.parametrize("name", STUDIES)
def test_the_file_of_a_checkpoint_holds_what_a_run_in_memory_returns(tmp_path, serial, name):
    path, expected = tmp_path / "run.nc", serial(name)
    found = STUDIES[name](captured(), batches(), rpp.RunOptions(checkpoint=path))
    loaded = rpp.load(path)
    assert loaded.identical(found.load())
    assert timeless(loaded).identical(expected)
    assert list(loaded.attrs) == list(expected.attrs)
    assert list(loaded.variables) == list(expected.variables)
    rpp.save(loaded, tmp_path / "again.nc")
    assert [one.name for one in sorted(tmp_path.iterdir())] == ["again.nc", "run.nc"]


def test_the_file_grows_along_an_unlimited_dimension_and_is_read_when_used(tmp_path):
    found = STUDIES["lesions"](captured(), batches(), rpp.RunOptions(checkpoint=tmp_path / "run.nc"))
    assert not found.loss.variable._in_memory
    with xr.open_dataset(tmp_path / "run.nc") as file:
        assert file.encoding["unlimited_dims"] == {"sample"}
        np.testing.assert_array_equal(file["sample"], np.arange(N_SAMPLES))


def test_a_study_of_a_loader_holds_a_bounded_part_of_it(tmp_path):
    """Of 300 batches, only a few are alive at any time."""
    import gc
    import weakref

    alive = weakref.WeakSet()
    most = 0

    class Images(torch.Tensor):
        pass

    def loader():
        nonlocal most
        for _ in range(300):
            images = torch.randn(2, 3, 6, 6)
            alive.add(images)
            most = max(most, len(alive))
            yield images, torch.zeros(2, dtype=torch.int64)
            del images

    gc.collect()
    rpp.BlockLesion(captured()).attribute(loader(), run=rpp.RunOptions(checkpoint=tmp_path / "run.nc"))
    assert most < 10
    assert rpp.load(tmp_path / "run.nc").sizes["sample"] == 600


def another_model():
    torch.manual_seed(1)
    model = randomised(PreActivation(blocks=4)).eval()
    with torch.no_grad():
        model.head.bias[0] += 1
    return model


class Renamed(PreActivation):
    pass


def another_class():
    torch.manual_seed(1)
    return randomised(Renamed(blocks=4)).eval()


def another_structure():
    model = network()
    model.forward = lambda x: model.head(model.blocks(model.stem(x)).relu().amax((2, 3)))
    return model


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ({"seed": 1}, "seed was 0 and is 1 in this call"),
        ({"draws": 13}, "draws was 14 and is 13"),
        ({"internal_batch_size": 2}, "internal_batch_size was 3 and is 2"),
        ({"ablation": "mean"}, "ablation was zero and is mean"),
        ({"model": another_model}, "weights_digest was sha256:"),
        ({"model": another_class}, "model_class was networks.PreActivation and is test_checkpoints.Renamed"),
        ({"model": another_structure}, "operators of the graph was sha256:"),
    ],
)
def test_another_call_is_refused_with_its_differences(tmp_path, counting, call, told):
    interrupted(counting, tmp_path / "run.nc")
    counting(margin)
    before = {path: path.read_bytes() for path in (tmp_path / "run.nc.partial").iterdir()}
    arguments = {name: value() if name == "model" else value for name, value in call.items()}
    with pytest.raises(CheckpointError, match=told):
        lesions(checkpoint=tmp_path / "run.nc", **arguments)
    assert {path: path.read_bytes() for path in (tmp_path / "run.nc.partial").iterdir()} == before


def test_another_measure_of_the_same_name_is_refused(tmp_path):
    def call(measure, stop=False):
        def data():
            yield batches()[0]
            if stop:
                raise StoppedError

        rpp.BlockLesion(captured()).attribute(
            data(), measures={"mine": measure}, run=rpp.RunOptions(checkpoint=tmp_path / "run.nc")
        )

    with pytest.raises(StoppedError):
        call(lambda outputs, _: outputs[:, 0], stop=True)
    with pytest.raises(CheckpointError, match="the content of measures is another one in this call"):
        call(lambda outputs, _: outputs[:, 1])
    # fmt: off
    call(
        lambda outputs, _:
            outputs[:, 0]
    )  # the same function, written elsewhere
    # fmt: on


def test_other_data_are_refused_with_their_place(tmp_path, counting):
    interrupted(counting, tmp_path / "run.nc", at=44 * 3 + 1)
    counting(margin)
    data = batches()
    data[1] = (data[1][0] + 1e-6, data[1][1])
    with pytest.raises(CheckpointError, match=r"samples 4 to 6 are not what they were.*without shuffling") as caught:
        lesions(data=data, checkpoint=tmp_path / "run.nc")
    assert not hasattr(caught.value, "__notes__")  # the same call does not go on from there


def test_chosen_sizes_are_those_that_the_checkpoint_was_begun_with(tmp_path, counting, monkeypatch):
    from resnet_paths_plugin.analyzers import study as base
    from resnet_paths_plugin.analyzers.rewiring import study

    options = {"internal_batch_size": None, "perturbations_per_eval": 3}
    monkeypatch.setattr(study, "SCHEDULES_PER_TASK", 12)
    monkeypatch.setattr(base, "chunk_size", lambda *_: 3)
    undisturbed = timeless(lesions(**options))
    counting(Stopping(100, StoppedError))
    with pytest.raises(StoppedError):
        lesions(checkpoint=tmp_path / "run.nc", **options)
    counting(margin)
    monkeypatch.setattr(study, "SCHEDULES_PER_TASK", 32)
    monkeypatch.setattr(base, "chunk_size", lambda *_: 256)
    assert timeless(lesions(checkpoint=tmp_path / "run.nc", **options)).identical(undisturbed)


def test_units_of_other_sizes_are_done_again(tmp_path, counting, monkeypatch):
    """Even where the records of the sizes are lost."""
    from resnet_paths_plugin.analyzers.rewiring import study

    options = {"internal_batch_size": 3, "perturbations_per_eval": 1}
    undisturbed = timeless(lesions(**options))
    monkeypatch.setattr(study, "SCHEDULES_PER_TASK", 2)
    counting(Stopping(44 * 2 + 1))
    with pytest.raises(StoppedError):
        lesions(checkpoint=tmp_path / "run.nc", **options)
    counting(margin)
    for name in ("tasks.json", "lesion.work.json"):
        (tmp_path / "run.nc.partial" / name).unlink()
    monkeypatch.setattr(study, "SCHEDULES_PER_TASK", 32)
    assert timeless(lesions(checkpoint=tmp_path / "run.nc", **options)).identical(undisturbed)


@pytest.mark.parametrize("name", ["samples", "file", "allow_pickle", "work"])
def test_a_measure_may_have_any_name(tmp_path, name):
    def call(data, **options):
        return timeless(rpp.BlockLesion(captured()).attribute(data, measures={name: margin}, **options))

    class Data:
        def __init__(self, stop):
            self.stop = stop

        def __iter__(self):
            yield batches()[0]
            if self.stop:
                raise StoppedError
            yield from batches()[1:]

    options = rpp.RunOptions(checkpoint=tmp_path / "run.nc")
    with pytest.raises(StoppedError):
        call(Data(stop=True), run=options)
    assert list(tmp_path.rglob("*.task"))
    assert call(Data(stop=False), run=options).identical(call(Data(stop=False)))


class Turning:
    """A measure whose dtype is another one for the first batch."""

    def __call__(self, outputs, target):
        first = torch.equal(target, batches()[0][1])
        return margin(outputs, target).round().long() if first else margin(outputs, target)


@pytest.mark.parametrize("kept", [False, True], ids=["memory", "file"])
def test_a_measure_whose_dtype_changes_is_refused(tmp_path, kept):
    with pytest.raises(InputError, match="'turning' is int64 for some samples and float32 for others"):
        rpp.BlockLesion(captured()).attribute(
            batches(),
            measures={"turning": Turning()},
            internal_batch_size=4,
            run=rpp.RunOptions(checkpoint=tmp_path / "run.nc" if kept else None),
        )


def test_the_file_of_a_small_study_is_small(tmp_path):
    """As large as `save` makes it, but for what an unlimited dimension costs."""
    images, labels = (torch.cat(part) for part in zip(*batches(), strict=True))
    found = rpp.BlockLesion(captured()).attribute(images, labels, run=rpp.RunOptions(checkpoint=tmp_path / "run.nc"))
    rpp.save(found.load(), tmp_path / "saved.nc")
    assert (tmp_path / "run.nc").stat().st_size < 2 * (tmp_path / "saved.nc").stat().st_size


def test_a_study_kept_by_its_caller_stays_in_its_folder(tmp_path):
    """What the command line does with its several studies."""
    folder = TaskFolder(tmp_path / "units")
    first = run("lesions", rpp.RunOptions(checkpoint=folder))
    assert len(folder) == n_units()
    assert run("lesions", rpp.RunOptions(checkpoint=folder)).identical(first)
    folder.remove()
    assert not list(tmp_path.iterdir())


def test_the_fingerprint_of_a_function_is_the_same_in_every_process():
    code = (
        "from small_studies import STUDIES, margin\n"
        "from resnet_paths_plugin.execution.fingerprints import fingerprint\n"
        "print(fingerprint({'a': margin, 'b': STUDIES['recalibrated'], 'c': {1, 2, 'x'}}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    found = {
        subprocess.run(  # noqa: S603 - one's own command
            [sys.executable, "-c", code], env={**environment, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
