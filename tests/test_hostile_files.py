"""Files made to harm: none runs code or takes memory that it does not fill, and none steers a page or a terminal."""

import html
import os
import pickle
import re
import resource
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import hostile_files as hostile
import netCDF4
import numpy as np
import pytest
import synthetic_studies as synthetic
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from resnet_paths_plugin import datasets, plugins, report
from resnet_paths_plugin.cli import main
from resnet_paths_plugin.cli.models import build_model
from resnet_paths_plugin.cli.terminal import visible
from resnet_paths_plugin.errors import FileError, ResnetPathsError
from resnet_paths_plugin.weights import load_weights, tensors_only

EVIL = "\x1b]0;owned\x07\x1b[2J<script>\"'&]]>\n$x_{\u202e"


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What is told of each hostile file where memory is short."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (write, _) in hostile.FILES.items():
        write(folder / name)
    ended = subprocess.run(  # noqa: S603 - this very interpreter
        [sys.executable, "-W", "ignore", hostile.__file__, folder],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return dict(line.split("\t", 1) for line in ended.stdout.splitlines())


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
    with pytest.raises(FileError, match="values may be those of another file"):
        datasets.load(name)


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
    assert visible(EVIL) == "\\x1b]0;owned\\x07\\x1b[2J<script>\"'&]]>\n$x_{\\u202e"
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
    assert long_evil in "".join(evil.text)
    assert html.escape(EVIL) not in "".join(evil.text)


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
