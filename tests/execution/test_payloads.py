"""Networks, samples and stand-ins travel to workers whole and once; their files go with their caller."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from networks import PreActivation, randomised
from small_studies import batches, n_units, network, run, timeless

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers.rewiring import conditions
from resnet_paths_plugin.errors import FileError, InputError
from resnet_paths_plugin.execution import fingerprints, temp_folders, worker_pool
from resnet_paths_plugin.execution.batches import Batch
from resnet_paths_plugin.execution.payload import packed, unpacked
from resnet_paths_plugin.execution.temp_folders import PayloadFolder

pytestmark = pytest.mark.slow


def test_a_network_arrives_as_it_was_sent():
    """Weights that were changed after the capture, channels-last weights and tied ones included."""
    model = network().to(memory_format=torch.channels_last)
    model.blocks[2].branch[0][2].weight = model.blocks[1].branch[0][2].weight
    images = batches()[0][0].to(memory_format=torch.channels_last)
    net = rpp.unravel(model, images)
    with torch.no_grad():
        model.head.weight.mul_(1.5)
    expected = net(images)
    arrived = unpacked(packed(net))
    assert torch.equal(arrived(images), expected)
    assert arrived.blocks == net.blocks
    weight = arrived.model.get_parameter("blocks.1.branch.0.2.weight")
    assert weight.stride() == model.blocks[1].branch[0][2].weight.stride() != weight.contiguous().stride()
    with torch.no_grad():
        assert torch.equal(model(images), expected)  # and the model is not changed by it


def test_a_model_that_cannot_be_pickled_is_studied_by_processes(processes):
    class Local(PreActivation):  # a class of this function, which pickle refuses
        pass

    torch.manual_seed(0)
    model = randomised(Local()).eval()
    images, labels = batches()[0]
    expected = rpp.BlockLesion(model).attribute(images, labels)
    found = rpp.BlockLesion(model).attribute(images, labels, run=rpp.RunOptions(executor=processes))
    assert timeless(found).identical(timeless(expected))


def test_samples_are_packed_and_read_once_for_all_groups(processes, monkeypatch, tmp_path):
    """Four chunks of samples, each run in two groups of schedules."""
    packed_samples, read = [], []
    dumps, digest_of = pickle.dumps, fingerprints._Reader.digest_of
    counting = SimpleNamespace(
        dumps=lambda value: packed_samples.append(value) or dumps(value),
        loads=pickle.loads,
    )
    monkeypatch.setattr(worker_pool, "pickle", counting)

    def counted(reader, value):
        if isinstance(value, tuple) and value and isinstance(value[0], Batch):
            read.append(value)
        return digest_of(reader, value)

    monkeypatch.setattr(fingerprints._Reader, "digest_of", counted)
    run("lesions", rpp.RunOptions(executor=processes, checkpoint=tmp_path / "run.nc"))
    assert n_units() == 10
    assert len([one for one in packed_samples if isinstance(one, tuple)]) == len(read) == 5
    packed_samples.clear()
    with ThreadPoolExecutor(2) as pool:
        run("lesions", rpp.RunOptions(executor=pool))
    assert not packed_samples


def test_a_folder_of_temporary_files_that_cannot_be_written_is_named(processes, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(FileError, match=r"missing: .*Free space there, or name another folder"):
        run("lesions", rpp.RunOptions(executor=processes))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(_path, _content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FileError, match="No space left on device"):
        run("lesions", rpp.RunOptions(executor=processes))
    assert not list(tmp_path.iterdir())


HOLDS = (
    "from resnet_paths_plugin.execution.temp_folders import PayloadFolder; import os, sys; "
    "folder = PayloadFolder(); print(folder.path, flush=True); sys.stdin.read(); os._exit(9)"
)


def holder():
    """Start a process that holds a folder until it is killed."""
    return subprocess.Popen(  # noqa: S603 - one's own command
        [sys.executable, "-c", HOLDS],
        env={**os.environ, "TMPDIR": tempfile.gettempdir()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.name != "posix", reason="locks end with their process on POSIX")
def test_folders_of_callers_that_were_killed_are_removed_and_no_others(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, alive = holder(), holder()
    left, held = (Path(one.stdout.readline().strip()) for one in (dead, alive))
    dead.kill()
    dead.wait()
    assert left.parent == held.parent == tmp_path
    machine = temp_folders._prefix()
    elsewhere = tmp_path / left.name.replace(machine, "resnet-paths-00000000-0000-another-boot-")
    shutil.copytree(left, elsewhere)
    kept = [held, elsewhere, tmp_path / "resnet-paths-of-somebody", tmp_path / f"{machine}just-made"]
    for path in kept[2:]:
        path.mkdir()
    old = tmp_path / f"{machine}never-locked"
    old.mkdir()
    os.utime(old, (0, 0))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "in-use.lock").touch()
    link = tmp_path / f"{machine}link"
    link.symlink_to(outside)
    mine, again = PayloadFolder(), PayloadFolder()
    assert set(tmp_path.iterdir()) == {*kept, outside, link, mine.path, again.path}
    assert (outside / "in-use.lock").exists()
    mine.remove()
    assert not mine.path.exists()
    for one in (alive, dead):
        one.kill()
        one.wait()
        one.stdin.close()
        one.stdout.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_leaves_its_callers_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = PayloadFolder()
    process = os.fork()
    if not process:
        folder.remove()
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
    assert folder.path.is_dir()


def test_workers_that_do_not_see_this_machines_files_are_told_of(processes, monkeypatch):
    written = PayloadFolder.write

    def elsewhere(folder, name, content):
        written(folder, f"{name}.else", content)
        return folder.path / name

    monkeypatch.setattr(PayloadFolder, "write", elsewhere)
    with pytest.raises(
        InputError, match=r"do not see this machine's files\. Use a dask client, or set the environment"
    ):
        run("lesions", rpp.RunOptions(executor=processes))


@pytest.mark.parametrize("study", ["mean ablation", "linear ablation"])
def test_stand_ins_are_fitted_by_workers_and_kept(study, monkeypatch, tmp_path):
    where, original = [], conditions.moments

    def counting(*arguments):
        where.append(threading.get_ident())
        return original(*arguments)

    monkeypatch.setattr(conditions, "moments", counting)
    expected = run(study)
    assert len(where) == 3
    where.clear()
    with ThreadPoolExecutor(2) as pool:
        assert run(study, rpp.RunOptions(executor=pool)).identical(expected)
    assert threading.get_ident() not in where
    where.clear()
    options = rpp.RunOptions(checkpoint=tmp_path / "run.nc")
    with monkeypatch.context() as patch:
        patch.setattr(conditions.Conditions, "chunks", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(study, options)
    assert len(where) == 3
    assert run(study, options).identical(expected)
    assert len(where) == 3


def stopped(*_):
    raise KeyboardInterrupt


def test_a_network_is_packed_once_for_all_stages_and_anew_once_it_has_changed(processes, monkeypatch):
    calls = []
    monkeypatch.setattr(worker_pool, "packed", lambda network: calls.append(network) or packed(network))
    model = network()
    with torch.no_grad():
        model.head.bias.add_(0.5)  # one that the pool has not seen
    expected = run("recalibrated", model=model)  # two stages
    assert run("recalibrated", rpp.RunOptions(executor=processes), model=model).identical(expected)
    assert len(calls) == 1
    model.to(memory_format=torch.channels_last)
    run("recalibrated", rpp.RunOptions(executor=processes), model=model)
    assert len(calls) == 2
    with torch.no_grad():
        model.head.bias.add_(0.5)
    changed = run("lesions", rpp.RunOptions(executor=processes), model=model)
    assert len(calls) == 3
    assert changed.identical(run("lesions", model=model))
