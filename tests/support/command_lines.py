"""The command line on a tiny model, in a folder of its own with weights and images."""

import base64
import importlib
import sys
import textwrap
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from resnet_paths_plugin.cli import main
from resnet_paths_plugin.report.figures import ReportFigure

MODEL = "tiny_residual_network:build"
SHAPE = (12, 8, 8, 3)
N_CLASSES = 5
OPTIONS = ("--draws", 2, "--max-deleted", 2, "--max-swaps", 1, "--path-images", 2, "--path-draws", 2, "--batch-size", 5)
STATISTICS = ("--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.3")

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
"""A picture of one pixel."""

SOURCE = """
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return x + self.conv(x).relu()

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.blocks = nn.Sequential(Block(), Block(), Block())
            self.head = nn.Linear(4, 5)

        def forward(self, x):
            return self.head(self.blocks(self.stem(x)).mean((2, 3)))

    class Frozen(Tiny):
        def forward(self, x):
            return super().forward(torch.stack([image * 1 for image in x]))

    def build():
        return Tiny()

    def frozen():
        return Frozen()

    def stack():
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 5),
        )

    def plain():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))

"""


def trained(model):
    """Give a model weights that make each block matter."""
    torch.manual_seed(129)  # which gives every lesion an error of its own
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def told(*arguments, code=2):
    """Return the one line that a command says of a mistake."""
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    (line,) = result.output.splitlines()
    return line


@contextmanager
def undrawn():
    """Let a picture of one pixel stand for each figure: most of a small analysis is the drawing of its ten figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReportFigure, "picture", lambda *_, **__: PIXEL)
        yield


@pytest.fixture
def no_pictures():
    """For tests that do not look at figures."""
    with undrawn():
        yield


def files_of(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix in {".nc", ".png", ".html", ".tmp"})


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """The current folder of these tests, with a model, weights and images."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "tiny_residual_network.py").write_text(textwrap.dedent(SOURCE))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [str(folder), *sys.path])
        module = importlib.import_module("tiny_residual_network")
        save_file(trained(module.build()).state_dict(), folder / "weights.safetensors")
        generator = np.random.default_rng(0)
        colours = generator.integers(0, 200, (SHAPE[0], 1, 1, SHAPE[3]), dtype=np.uint8)
        images = colours + generator.integers(0, 56, SHAPE, dtype=np.uint8)
        labels = generator.permutation(np.arange(SHAPE[0]) % N_CLASSES)
        np.savez(folder / "images.npz", images=images, labels=labels)
        yield folder
        del sys.modules["tiny_residual_network"]


def analysis(*arguments, output):
    given = (MODEL, "--weights", "weights.safetensors", "--images", "images.npz", *STATISTICS)
    return ("analyze", *given, "--output", output, *arguments)
