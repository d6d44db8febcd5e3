"""No output takes the place of an input or of another output, and none is ever half written."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import synthetic_studies as synthetic
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from small_studies import STUDIES, batches, captured
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin import report
from resnet_paths_plugin.cli import main
from resnet_paths_plugin.cli.models import files_of
from resnet_paths_plugin.cli.outputs import default_output, figure_path
from resnet_paths_plugin.errors import FileError, InputError
from resnet_paths_plugin.files.file_roles import FileRoles
from resnet_paths_plugin.files.output_files import replacing, writable
from resnet_paths_plugin.results import datasets

N = 6
posix = pytest.mark.skipif(os.name != "posix", reason="kinds of files that POSIX has")


def result():
    return synthetic.random_lesions(N)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# One file in two roles: by the same name, another way to it, links, or capitals


WAYS = ("name", "way", "link", "hard link")


def by(way, path, other):
    """A second name of a file, at another place where the way needs one."""
    if way == "name":
        return path
    if way == "way":
        return path.parent / "." / ".." / path.parent.name / path.name
    other.parent.mkdir(parents=True, exist_ok=True)
    if way == "link":
        other.symlink_to(path)
    else:
        os.link(path, other)
    return other


def analyze(*arguments, model="nowhere:build", images=()):
    line = ("analyze", model, *images, "--mean", "0.5", "--std", "0.5", *map(str, arguments))
    ended = CliRunner().invoke(main, line)
    assert ended.exit_code == 2, ended.output
    (told,) = ended.output.splitlines()
    return told


@pytest.mark.parametrize(("way", "role"), [*product(WAYS, ["--images", "--weights"])])
@pytest.mark.parametrize("written", ["result", "report", "figure"])
def test_an_output_of_an_analysis_that_is_an_input_is_refused(tmp_path, way, role, written):
    output = tmp_path / "out" / "x.nc"
    output.parent.mkdir()
    place = {"result": output, "report": output.with_suffix(".html"), "figure": output.with_name("x-lesions.png")}
    given = tmp_path / "given" / "input" if "link" in way else place[written]
    given.parent.mkdir(exist_ok=True)
    given.write_bytes(b"precious")
    by(way, given, place[written])
    spelled = by("way", output, None) if way == "way" else output
    before = contents(tmp_path)
    images = () if role == "--images" else ("--images", tmp_path / "i.npz")
    told = analyze(role, given, *images, "--output", spelled)
    assert f"is also read ({role}: " in told
    assert contents(tmp_path) == before


def module(tmp_path, monkeypatch, name):
    """The file of a module in the current folder, which says so if it is run."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text("raise SystemExit('was run')")
    return file


def analyze_module(name, *arguments):
    return analyze(*arguments, model=f"{name}:build", images=("--images", "i.npz"))


LINKED = product(["link", "hard link"], ["result", "report", "figure"])


@pytest.mark.parametrize(("way", "written"), [("name", "result"), ("way", "result"), *LINKED])
@pytest.mark.parametrize("name", ["my_model", "my_package.my_model"])
def test_no_output_takes_the_place_of_the_model_s_own_file(tmp_path, monkeypatch, way, written, name):
    file = module(tmp_path, monkeypatch, name)
    output = tmp_path / "out" / "x.nc"
    output.parent.mkdir()
    place = {"result": output, "report": output.with_suffix(".html"), "figure": output.with_name("x-lesions.png")}
    same = by(way, file, place[written])
    before = contents(tmp_path)
    assert "is also read (MODEL: " in analyze_module(name, "--output", output if "link" in way else same)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["my_package", "my_package.inner"])
def test_no_output_takes_the_place_of_a_package_s_own_file(tmp_path, monkeypatch, name):
    module(tmp_path, monkeypatch, f"{name}.my_model")
    own = tmp_path.joinpath(*name.split("."), "__init__.py")
    own.write_text("raise SystemExit('was run')")
    assert "is also read (MODEL: " in analyze_module(f"{name}.my_model", "--output", own)
    assert "raise" in own.read_text()


@pytest.mark.parametrize("name", ["my_model", "gone", "my_model.gone", "a..b", ".a", "sys", "json.decoder"])
def test_files_of_a_model_are_found_without_its_code(tmp_path, monkeypatch, name):
    file = module(tmp_path, monkeypatch, "my_model")
    found = files_of(f"{name}:build")
    assert (file in found) == name.startswith("my_model")
    assert found if name == "json.decoder" else set(found) <= {file}
    assert files_of("timm/resnet18") == []


@pytest.mark.parametrize("place", ["x.nc", "cat/x.nc"])
def test_no_output_lies_among_the_images(tmp_path, place):
    (tmp_path / "cat").mkdir()
    told = analyze("--images", tmp_path, "--output", tmp_path / place)
    assert "lies inside" in told
    assert "(--images): choose another folder" in told


def test_an_input_inside_the_folder_of_finished_units_is_refused(tmp_path):
    (tmp_path / "x.nc.partial").mkdir()
    weights = tmp_path / "x.nc.partial" / "w.safetensors"
    weights.write_bytes(b"precious")
    told = analyze("--images", tmp_path / "i.npz", "--weights", weights, "--output", tmp_path / "x.nc")
    assert "lies inside" in told


@pytest.mark.parametrize("name", ["x.html", "x.HTML"])
def test_two_outputs_of_one_name_are_refused(tmp_path, name):
    told = analyze("--images", tmp_path / "i.npz", "--output", tmp_path / name)
    assert "is also written (the result" in told


@pytest.mark.parametrize("way", WAYS)
def test_a_report_never_takes_the_place_of_its_file(tmp_path, way):
    path = datasets.save(result(), tmp_path / "a.nc")
    output = by(way, path, tmp_path / "other" / "b.html")
    before = contents(tmp_path)
    ended = CliRunner().invoke(main, ["report", str(path), "--output", str(output)])
    assert ended.exit_code == 2
    assert "is also read (FILE.nc" in ended.output
    assert contents(tmp_path) == before


def test_a_file_that_is_called_like_its_report_is_kept(tmp_path):
    path = datasets.save(result(), tmp_path / "a.html")
    before = path.read_bytes()
    assert CliRunner().invoke(main, ["report", str(path)]).exit_code == 2
    assert path.read_bytes() == before


NAMES = st.sampled_from(["a.nc", "A.nc", "b.nc", "link.nc", "hard.nc", "in/a.nc", "in/link", "in", "new.nc", "NEW.nc"])


@settings(deadline=None, max_examples=300)
@given(read=st.lists(NAMES, max_size=2), written=st.lists(NAMES, min_size=1, max_size=3))
def test_what_is_allowed_loses_nothing(tmp_path_factory, read, written):
    """The oracle writes: a set of roles is allowed only if each written file can be told apart from all others."""
    folder = tmp_path_factory.mktemp("roles")
    (folder / "in").mkdir()
    for name in ("a.nc", "A.nc", "b.nc", "in/a.nc"):
        (folder / name).write_text(name)
    (folder / "link.nc").symlink_to(folder / "a.nc")
    os.link(folder / "a.nc", folder / "hard.nc")
    (folder / "in/link").symlink_to(folder / "b.nc")
    roles = FileRoles()
    try:
        for number, name in enumerate(read):
            roles.reads(f"input {number}", folder / name)
        for number, name in enumerate(written):
            roles.writes(f"output {number}", folder / name)
    except FileError:
        # Nothing is refused without a reason: two different plain files, one read and one written, are allowed.
        assert len(read) + len(written) > 1
        return
    given = {name: (folder / name).read_text() for name in read if (folder / name).is_file()}
    for name in written:
        if (folder / name).is_dir():
            continue
        target = writable(folder / name)
        with replacing(folder / name, target) as temporary:
            temporary.write_text(f"new {name}")
    for name, content in given.items():
        assert (folder / name).read_text() == content
    for name in written:
        if (folder / name).is_file():
            assert (folder / name).read_text() == f"new {name}"


def test_different_files_are_allowed(tmp_path):
    (tmp_path / "a").touch()
    roles = FileRoles({"one": tmp_path / "a", "none": None})
    roles.writes("other", tmp_path / "b")
    roles.writes("third", tmp_path / "c")


def test_a_result_that_is_read_when_used_is_not_overwritten(tmp_path):
    found = STUDIES["lesions"](captured(), batches(), rpp.RunOptions(checkpoint=tmp_path / "run.nc"))
    before = (tmp_path / "run.nc").read_bytes()
    for write in (datasets.save, report.write_report):
        with pytest.raises(FileError, match="is also read"):
            write(found, tmp_path / "run.nc")
        with pytest.raises(FileError, match="is also read"):
            write(found.isel(sample=slice(2)), tmp_path / "run.nc")
    assert (tmp_path / "run.nc").read_bytes() == before
    datasets.save(found.load(), tmp_path / "run.nc")


# Only files are replaced, with their mode and owner, and not where it is not wanted


@posix
@pytest.mark.parametrize("kind", ["FIFO", "device", "socket", "link to a device", "circle", "folder"])
def test_only_files_are_replaced(tmp_path, kind):
    import socket

    path = tmp_path / "x.nc"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(path))
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a device":
        path.symlink_to("/dev/null")
    else:
        path = Path("/dev/null")
    before = os.lstat(path).st_mode
    for write in (datasets.save, report.write_report):
        with pytest.raises(FileError, match=r"only files are replaced|is a folder"):
            write(result(), path)
    assert os.lstat(path).st_mode == before
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(FileError, match=r"only files are replaced|is a folder"):
        STUDIES["lesions"](captured(), batches(), rpp.RunOptions(checkpoint=path))
    assert not any(one.suffix in {".tmp", ".partial"} for one in tmp_path.iterdir())


@posix
def test_a_replaced_file_keeps_its_mode_and_owner(tmp_path):
    path = datasets.save(result(), tmp_path / "x.nc")
    path.chmod(0o604)
    group = os.getgid() if os.getuid() else 12345
    if not os.getuid():
        os.chown(path, 23456, group)
    owner = path.stat().st_uid
    writes = (
        lambda: datasets.save(result(), path),
        lambda: report.write_report(result(), path),
        lambda: STUDIES["lesions"](captured(), batches(), rpp.RunOptions(checkpoint=path)),
    )
    for write in writes:
        write()
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o604, owner, group)


@pytest.mark.parametrize("write", [datasets.save, report.write_report])
def test_an_older_file_is_not_replaced_in_mode_x(tmp_path, write, monkeypatch):
    path = write(result(), tmp_path / "x.nc", mode="x")
    before = path.read_bytes()
    with pytest.raises(FileError, match="exists already, and is not to be replaced"):
        write(result(), path, mode="x")
    path.unlink()
    with pytest.raises(InputError, match='must be "w"'):
        write(result(), path, mode="a")
    # One that comes in between is not replaced either.
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (path.write_bytes(b"other"), flush(handle)))
    with pytest.raises(FileError, match="exists by now"):
        write(result(), path, mode="x")
    assert path.read_bytes() == b"other" != before
    assert [one.name for one in tmp_path.iterdir()] == ["x.nc"]


@pytest.mark.parametrize("name", ["x.nc", "x.html", "x-lesions.png"])
def test_no_clobber_is_told_before_the_run(tmp_path, name):
    (tmp_path / name).write_text("older")
    given = ("--images", tmp_path / "i.npz", "--output", tmp_path / "x.nc", "--no-clobber")
    assert "exists already" in analyze(*given)


# Names


@posix
@pytest.mark.parametrize("name", ["a\\b.nc", os.fsdecode(b"\xff.nc"), "a\\b/c.nc"])
def test_names_that_netcdf_cannot_take_back_are_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    for refused in (
        lambda: datasets.save(result(), tmp_path / name),
        lambda: STUDIES["lesions"](captured(), batches(), rpp.RunOptions(checkpoint=tmp_path / name)),
    ):
        with pytest.raises(FileError, match="a backslash or bytes that are no UTF-8"):
            refused()
    assert "no UTF-8" in analyze("--images", tmp_path / "i.npz", "--output", tmp_path / name)


@pytest.mark.parametrize("name", ["a\0b.nc", "a" * 300 + ".nc"])
def test_names_that_the_system_refuses_are_told_of(tmp_path, name):
    with pytest.raises(FileError, match="cannot write"):
        datasets.save(result(), tmp_path / name)
    with pytest.raises(FileError, match="cannot be read"):
        datasets.load(tmp_path / name)


@pytest.mark.parametrize("path", [None, 3, ["a.nc"]])
def test_what_is_no_name_is_told_of(path):
    for call in (datasets.load, lambda path: datasets.save(result(), path)):
        with pytest.raises(InputError, match="expected the name of a file"):
            call(path)


@pytest.mark.parametrize("name", ["-rf", ".hidden", "a b/c", "ä" * 400, "...", "x" * 400])
def test_names_of_models_become_safe_names_of_files(name, tmp_path):
    output = default_output(type(name, (nn.Module,), {})(), None)
    assert output.name[0] not in "-."
    assert output.name == output.as_posix()
    for path in (output, figure_path(output, "f" * 300), figure_path(output, "lesions")):
        (tmp_path / path).touch()
    assert figure_path(output, "f" * 300) != figure_path(output, "f" * 301)


def test_a_relative_path_is_that_of_the_call(tmp_path, monkeypatch):
    class Wandering(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            os.chdir(tmp_path / "elsewhere")
            return (x + self.conv(x)).mean((2, 3))

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = rpp.RunOptions(checkpoint="run.nc")
    rpp.BlockLesion(Wandering()).attribute(torch.randn(4, 3, 8, 8), target=0, run=run)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["elsewhere", "run.nc"]
    assert not any((tmp_path / "elsewhere").iterdir())


# Killed in the middle


WRITER = """
import os, signal, sys
from pathlib import Path
from resnet_paths_plugin.files import output_files

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(*((Path, "replace") if sys.argv[2] == "before" else (output_files, "sync_folder")), kill)
path = Path(sys.argv[1])
with output_files.replacing(path, output_files.writable(path)) as temporary:
    temporary.write_text("new")
"""


@posix
@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, moment):
    path = tmp_path / "x.nc"
    path.write_text("old")
    command = [sys.executable, "-c", WRITER, path, moment]
    ended = subprocess.run(command, check=False, env={"PYTHONPATH": str(Path(__file__).parents[2])})  # noqa: S603
    assert ended.returncode == -signal.SIGKILL
    assert path.read_text() == ("old" if moment == "before" else "new")
    (left,) = (one for one in tmp_path.iterdir() if one != path)
    datasets.save(result(), tmp_path / "other.nc")
    assert not left.exists()
    assert {one.name for one in tmp_path.iterdir()} == {"x.nc", "other.nc"}


@posix
def test_what_another_process_is_writing_stays_and_so_does_what_is_others(tmp_path):
    with replacing("x", tmp_path / "x") as temporary:
        temporary.write_text("x")
        foreign = tmp_path / f".resnet-paths-{'0' * 32}.tmp"
        foreign.mkdir()
        (foreign / "mine").write_text("mine")
        link = tmp_path / f".resnet-paths-{'1' * 32}.tmp"
        link.symlink_to(foreign)
        with replacing("y", tmp_path / "y") as other:
            other.write_text("y")
        assert temporary.read_text() == "x"
    assert (foreign / "mine").read_text() == "mine"
    assert link.is_symlink()
    assert (tmp_path / "x").read_text() == "x"


def test_a_full_disk_is_called_so(tmp_path, monkeypatch):
    def failing(_tree, target, **_options):
        Path(target).write_bytes(b"half")
        raise RuntimeError("NetCDF: HDF error")

    monkeypatch.setattr("xarray.DataTree.to_netcdf", failing)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(FileError, match=r"cannot write .*x\.nc: No space left on device \(NetCDF: HDF error\)"):
        datasets.save(result(), tmp_path / "x.nc")
    assert not any(tmp_path.iterdir())


def test_numbers_of_a_result_in_memory_are_those_of_its_file(tmp_path):
    path = datasets.save(result(), tmp_path / "x.nc")
    np.testing.assert_array_equal(datasets.load(path)["lesion"], result()["lesion"])
