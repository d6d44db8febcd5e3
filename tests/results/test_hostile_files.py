"""Files made to harm: none runs code or takes memory that it does not fill, and none steers a page or a terminal."""

import html
import os
import pickle
import re
import resource
import subprocess
import sys
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path

import hostile_files as hostile
import netCDF4
import numpy as np
import pytest
import synthetic_studies as synthetic
import torch
import xarray as xr
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from resnet_paths_plugin import report
from resnet_paths_plugin.cli import main
from resnet_paths_plugin.cli.models import build_model
from resnet_paths_plugin.errors import FileError, InputError, ResnetPathsError
from resnet_paths_plugin.files import limits
from resnet_paths_plugin.plotting.block_axis import single_lesions
from resnet_paths_plugin.plugins import manager as plugins
from resnet_paths_plugin.plugins.weights import load_weights, tensors_only
from resnet_paths_plugin.results import datasets, file_checks
from resnet_paths_plugin.results.file_checks import check_opening
from resnet_paths_plugin.visible_text import visible

EVIL = "\x1b]0;owned\x07\x1b[2J<script>\"'&]]>\n$x_{\u202e\u2067\u200f"


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What is told of each hostile file where memory is short."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (write, _) in hostile.FILES.items():
        write(folder / name)
    ended = subprocess.run(  # noqa: S603 - this very interpreter
        [sys.executable, "-W", "ignore", hostile.__file__, folder],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return dict(line.split("\t", 1) for line in ended.stdout.splitlines())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does")
@pytest.mark.parametrize("name", hostile.FILES)
def test_a_hostile_file_is_refused_before_memory_is_taken(told, name):
    assert told["limited"] == "memory"
    message = hostile.FILES[name][1]
    if message is None:
        assert told[name] == "opened"
    else:
        assert re.match(r"(File|Input)Error: ", told[name]), told[name]
        assert re.search(message, told[name]), told[name]
        assert name in told[name]
        assert "memory that is left" not in told[name]


@pytest.mark.parametrize("name", ["external.nc", "virtual.nc"])
def test_values_of_another_file_are_not_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    secret = np.array([3.0, 1.0, 4.0, 1.0])
    (tmp_path / "secret.bin").write_bytes(secret.tobytes())
    with netCDF4.Dataset("secret.h5", "w") as file:
        file.createDimension("d", 4)
        file.createVariable("x", "f8", ("d",))[:] = secret
    hostile.FILES[name][0](tmp_path / name)
    with netCDF4.Dataset(name) as file:
        assert file["x"][:].tolist() == secret.tolist()  # so the trap is one
    with pytest.raises(FileError, match="lie in another file"):
        datasets.load(name)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does")
@pytest.mark.parametrize("name", hostile.BEYOND_CHECKS)
def test_the_command_line_opens_no_file_that_netcdf_would_take_all_memory_for(tmp_path, monkeypatch, name):
    write, message = hostile.BEYOND_CHECKS[name]
    write(tmp_path / name)
    monkeypatch.setattr(datasets, "load", lambda path: pytest.fail(f"{path} was opened in this process"))
    result = CliRunner().invoke(main, ("report", str(tmp_path / name)))
    assert result.exit_code == 2, result.output
    assert re.match(rf"Error: .*{name}.*{message}", result.output)


@pytest.mark.parametrize("name", ["hard-circle.nc", "soft-circle.nc"])
def test_groups_in_a_circle_are_refused_before_netcdf_descends_into_them(tmp_path, name):
    write, message = hostile.BEYOND_CHECKS[name]
    write(tmp_path / name)
    with pytest.raises(FileError, match=message):
        datasets.load(tmp_path / name)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does")
def test_the_process_that_opens_a_file_first_takes_no_module_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "netCDF4.py").write_text("import os\nos.mkdir('sprung')\n")
    path = datasets.save(datasets.build({"error": ((), 0.5)}, coords={}, attrs={"schema_version": 1}), "some.nc")
    check_opening(path)
    assert not (tmp_path / "sprung").exists()


def test_a_file_of_many_texts_is_read_in_few_pieces(tmp_path, monkeypatch):
    """300,000 names took 40 s one by one; a count of reads depends on no machine."""
    names = np.array([f"block {i}" for i in range(20_000)])
    ds = datasets.build({}, coords={"lesion": ("lesion", names)}, attrs={"schema_version": 1})
    path = datasets.save(ds, tmp_path / "some.nc")
    monkeypatch.setattr(limits, "SMALL", 1)  # so that it counts as a large file
    pieces = []

    class Counted:
        def __init__(self, variable):
            self.variable = variable

        def __getattr__(self, name):
            return getattr(self.variable, name)

        def __getitem__(self, place):
            pieces.append(place)
            return self.variable[place]

    with netCDF4.Dataset(path) as file:
        texts = list(file_checks._texts(Counted(file["lesion"]), path.stat().st_size))
    assert texts == names.tolist()
    assert len(pieces) == 200


@pytest.mark.parametrize("name", ["some.nc", "some.npz", "some.safetensors", "folder"])
@pytest.mark.parametrize("write", [lambda canary, path: path.write_bytes(pickle.dumps(canary)), torch.save])
def test_no_pickle_is_opened_by_whatever_name(tmp_path, name, write):
    path = tmp_path / name
    if name == "folder":
        (path / "cat").mkdir(parents=True)
    write(hostile.Canary(tmp_path / "sprung"), path / "cat" / "0.png" if name == "folder" else path)
    with pytest.raises(FileError):
        hostile.open_file(path)
    assert not (tmp_path / "sprung").exists()


def test_no_program_is_started_for_an_image_of_another_format(tmp_path, monkeypatch):
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    hostile.image(eps)(tmp_path / "images")
    picture = tmp_path / "images" / "cat" / "0.png"
    with pytest.raises(OSError, match=r"."), Image.open(picture) as image:
        image.load()
    assert (tmp_path / "started").exists()  # so Pillow alone would have
    (tmp_path / "started").unlink()
    with pytest.raises(FileError, match=r"0\.png cannot be read as an image"):
        hostile.open_file(tmp_path / "images")
    assert not (tmp_path / "started").exists()


def test_weights_of_another_kind_change_nothing(tmp_path):
    hostile.complex_weights(tmp_path / "some.safetensors")
    model = hostile.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(FileError, match="of another kind"):
        load_weights(model, tmp_path / "some.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class WithStatistics(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)
        self.register_buffer("order", torch.tensor([1, 0]))


def test_weights_that_were_all_halved_are_read(tmp_path):
    source, target = WithStatistics(), WithStatistics()
    source.norm.num_batches_tracked += 12
    source.order += 3
    save_file({name: value.half() for name, value in source.state_dict().items()}, tmp_path / "some.safetensors")
    load_weights(target, tmp_path / "some.safetensors")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize("order", [[0.5, 1], [float("nan"), 1], [1e30, 0]])
def test_fractions_in_place_of_whole_numbers_are_refused(tmp_path, order):
    save_file(WithStatistics().state_dict() | {"order": torch.tensor(order)}, tmp_path / "some.safetensors")
    with pytest.raises(FileError, match=r"order torch\.float32 instead of torch\.int64 of another kind"):
        load_weights(WithStatistics(), tmp_path / "some.safetensors")


def test_weights_of_another_model_are_not_read(tmp_path):
    hostile.large_weights(tmp_path / "some.safetensors")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FileError, match=r"0\.bias, 0\.weight missing; other unexpected"):
        load_weights(hostile.model(), tmp_path / "some.safetensors")
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert kibibytes < 2**18  # the file is of 1 GiB


# Weights that libraries keep as pickles


def test_pretrained_weights_that_were_exchanged_run_no_code(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    cache.parent.mkdir(parents=True)
    torch.save({"fc.bias": hostile.Canary(tmp_path / "sprung")}, cache)
    with pytest.raises(ResnetPathsError, match="Weights only load failed"):
        build_model("torchvision/resnet18", pretrained=True, plugin_manager=plugins.create_plugin_manager())
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("before", [{}, {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}])
def test_the_callers_own_way_of_loading_is_left_as_it_was(tmp_path, monkeypatch, before):
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    torch.save(hostile.Canary(tmp_path / "sprung"), tmp_path / "some.pt")
    environment = dict(os.environ)
    with pytest.raises(pickle.UnpicklingError), tensors_only():
        torch.load(tmp_path / "some.pt", weights_only=False)
    assert dict(os.environ) == environment
    torch.load(tmp_path / "some.pt", weights_only=False)
    assert (tmp_path / "sprung").exists()


# Names


def test_a_terminal_sees_text_and_obeys_none():
    assert visible(EVIL) == "\\x1b]0;owned\\x07\\x1b[2J<script>\"'&]]>\n$x_{\\u202e\\u2067\\u200f"
    assert visible("\udcff\x85\u2028\x9b") == "\\udcff\\x85\\u2028\\x9b"
    assert visible("層 é 👩\u200d🔬 نص") == "層 é 👩\u200d🔬 نص"


def test_names_in_weights_do_not_steer_the_terminal(tmp_path):
    save_file({EVIL: torch.zeros(1)}, tmp_path / "some.safetensors")
    given = ("blocks", "torchvision/resnet18", "--weights", str(tmp_path / "some.safetensors"))
    result = CliRunner().invoke(main, given, color=True)
    assert result.exit_code == 2
    assert r"\x1b]0;owned\x07" in result.output
    assert not re.search(r"[^\n -~]", result.output)


def test_names_of_files_do_not_steer_the_terminal(tmp_path):
    name = os.fsdecode(b"\xff\x1b[2J.nc")
    result = CliRunner().invoke(main, ("report", str(tmp_path / name)), color=True)
    assert result.exit_code == 2
    assert r"\udcff\x1b[2J.nc is missing" in result.output


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, _):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def test_a_report_of_a_hostile_file_is_the_page_of_a_harmless_one(tmp_path):
    def page(name):
        made = synthetic.blocks(4, name=name.replace("{", "{{") + "{index}")
        ds = synthetic.single_lesions(4, made=made).assign_attrs(model_architecture=name, class_names=str([name] * 10))
        path = datasets.save(datasets.build_tree({"single_lesions": ds}), tmp_path / "some.nc")
        text = report.write_report(datasets.load(path), tmp_path / "some.html").read_text("utf-8")
        path.unlink()
        found = Tags()
        found.feed(text)
        return found

    long_evil = EVIL * 5  # so that attributes are folded in both
    harmless, evil = page("b" * len(long_evil)), page(long_evil)
    assert evil.tags == harmless.tags
    assert visible(long_evil) in "".join(evil.text)
    assert not re.search("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f]", "".join(evil.text))
    assert html.escape(EVIL) not in "".join(evil.text)


@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_an_error_that_nobody_foresaw_does_not_steer_the_terminal(monkeypatch, debug):
    def fail(*_, **__):
        raise RuntimeError(EVIL)

    monkeypatch.setattr(plugins, "create_plugin_manager", fail)
    result = CliRunner().invoke(main, ("plugins", *debug), color=True)
    assert result.exit_code == 1
    assert r"Error: RuntimeError: \x1b]0;owned\x07\x1b[2J<script>" in result.output
    assert "This is a bug: please report it" in result.output
    assert ("Traceback" in result.output) == bool(debug)
    assert not re.search(r"[^\n -~]", result.output)


def test_a_traceback_does_not_steer_the_terminal(tmp_path, monkeypatch):
    def fail(_):
        raise FileError(EVIL)

    monkeypatch.setattr(datasets, "load", fail)
    result = CliRunner().invoke(main, ("report", str(tmp_path / "some.nc"), "--debug"), color=True)
    assert result.exit_code == 2
    assert "Traceback" in result.output
    assert not re.search(r"[^\n -~]", result.output)


# Results that are well-formed and make no sense


def result_with(name, values):
    ds = synthetic.single_lesions(4, made=synthetic.blocks(4))
    changed = ds.drop_vars(name)
    return changed.assign_coords({name: values}) if name in ds.coords else changed.assign({name: values})


@pytest.mark.parametrize(("name", "dtype"), [("error", "U1"), ("lesion", "i4")])
def test_texts_under_a_name_of_numbers_are_refused_and_the_reverse(tmp_path, name, dtype):
    values = ("lesion", np.ones(4, dtype))
    with pytest.raises(InputError, match=f"variable '{name}' holds"):
        datasets.save(result_with(name, values), tmp_path / "some.nc")
    ds = synthetic.single_lesions(4, made=synthetic.blocks(4)).drop_vars(name).assign(other=values)
    path = datasets.save(ds, tmp_path / "some.nc")
    with netCDF4.Dataset(path, "a") as file:
        file.renameVariable("other", name)
    with pytest.raises(FileError, match=f"variable '{name}' holds (text|number)s, and the schema has (text|number)s"):
        datasets.load(path)


@pytest.mark.parametrize("name", ["block_index", "block_stage", "deleted", "error", "block_skip_kind"])
@pytest.mark.parametrize("values", [(), ("other",), ("lesion", "more")])
def test_a_report_is_made_or_refused_whatever_the_dims_are(tmp_path, name, values):
    old = synthetic.single_lesions(4, made=synthetic.blocks(4))[name]
    changed = result_with(name, (values, np.full((4,) * len(values), old.values.flat[0], old.dtype)))
    path = datasets.save(datasets.build_tree({"single_lesions": changed}), tmp_path / "some.nc")
    result = CliRunner().invoke(main, ("report", str(path)))
    assert result.exit_code in (0, 2), result.output
    if result.exit_code:
        assert result.output.count("\n") == 1, result.output


def lesions(deleted, groups):
    n_blocks = len(groups)
    return xr.Dataset(
        {"deleted": (("lesion", "block"), deleted)},
        {"block": [f"block {index}" for index in range(n_blocks)], "block_group": ("block", groups)},
    )


def test_lesions_of_many_blocks_take_no_cube_of_them():
    ds = lesions(np.eye(1000, dtype=bool), [f"block {index}" for index in range(1000)])
    tracemalloc.start()
    try:
        found = single_lesions(ds, "a figure")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.position.tolist() == list(range(1000))
    assert peak < 10**8


@pytest.mark.parametrize("seed", range(20))
def test_lesions_of_groups_are_those_that_delete_all_blocks_of_one(seed):
    rng = np.random.default_rng(seed)
    groups = rng.choice(["a", "b", "c"], 6)
    whole = np.array([groups == name for name in rng.permutation(np.unique(groups))])
    other = whole.copy()
    other[0] ^= rng.random(6) < 0.3
    for deleted in (whole, other):
        by_hand = all(any((row == (groups == name)).all() for name in groups) for row in deleted)
        single = (deleted.sum(axis=1) == 1).all()
        if not by_hand and not (deleted.sum(axis=1) == 1).any():
            with pytest.raises(InputError, match="needs lesions of one block each"):
                single_lesions(lesions(deleted, groups), "a figure")
            continue
        assert single_lesions(lesions(deleted, groups), "a figure").unit == (
            "group" if by_hand and not single else "block"
        )


def test_a_report_of_what_makes_no_sense_says_so_and_where_if_asked(tmp_path, monkeypatch):
    def fail(*_):
        raise IndexError("index 7 is out of bounds")

    path = datasets.save(
        datasets.build({"error": ((), 0.5)}, coords={}, attrs={"schema_version": 1}), tmp_path / "a.nc"
    )
    monkeypatch.setattr(report, "write_report", fail)
    result = CliRunner().invoke(main, ("report", str(path), "--debug"))
    assert result.exit_code == 2
    assert "is not what save writes, so no report can be made of it (IndexError: index 7" in result.output
    assert "in fail" in result.output


# Code


@pytest.mark.parametrize("command", ["blocks", "analyze"])
def test_the_help_names_the_only_way_to_run_code(command):
    text = " ".join(CliRunner().invoke(main, (command, "--help")).output.split())
    assert "module:callable MODULE is imported" in text
    assert "This runs that module's code, and it is the only way to run code of your own from here." in text


@pytest.mark.parametrize("spec", ["canary", "canary.py", "canary/build", "./canary", "canary:", ":canary"])
def test_nothing_but_module_and_callable_imports_a_module(tmp_path, monkeypatch, spec):
    (tmp_path / "canary.py").write_text("import os\nos.mkdir('sprung')\ndef build(): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert CliRunner().invoke(main, ("blocks", spec)).exit_code == 2
    assert not (tmp_path / "sprung").exists()
    CliRunner().invoke(main, ("blocks", "canary:build"))
    assert (tmp_path / "sprung").exists()
    del sys.modules["canary"]
