"""Networks trained by others on CIFAR-10, on its first 1,000 test images.

The weights and images are no part of this repository; the expected numbers come from a lesion by hand in the networks'
own code.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin.cli import main

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"
pytestmark = pytest.mark.skipif(
    not (DATA / "test1000.npz").exists(),
    reason="the trained CIFAR-10 networks are not here: put them into ../shared/data/cifar10",
)


class BasicBlock(nn.Module):
    """He et al. 2015, with the shortcut of option A."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.stride = stride
        self.new = out - channels
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.stride > 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new // 2))
        return (x + y).relu()


class CifarResNet(nn.Module):
    def __init__(self, depth):
        super().__init__()
        n = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64]
        for stage in (1, 2, 3):
            first = BasicBlock(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)
            others = (BasicBlock(widths[stage], widths[stage], 1) for _ in range(n - 1))
            setattr(self, f"layer{stage}", nn.Sequential(first, *others))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def trained(depth):
    model = CifarResNet(depth)
    model.load_state_dict(load_file(DATA / f"resnet{depth}.safetensors"))
    return model.eval()


@pytest.fixture(scope="module")
def batch():
    with np.load(DATA / "test1000.npz") as file:
        images, labels = file["images"], file["labels"]
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean[:, None, None]) / std[:, None, None], torch.from_numpy(labels)


def errors(fractions):
    return np.rint(1000 * np.asarray(fractions)).astype(int)


def test_lesions_of_resnet20_make_the_known_errors(batch):
    result = rpp.BlockLesion(trained(20)).attribute(*batch)
    assert list(result["block"].values) == [f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)]
    assert errors(result["intact_error"]) == 85
    expected = [230, 211, 371, 633, 224, 154, 615, 276, 385]
    np.testing.assert_allclose(errors(result["error"]), expected, atol=1)


def test_blocks_of_resnet56_that_change_resolution_are_among_the_worst(batch):
    result = rpp.BlockLesion(trained(56)).attribute(*batch)
    assert result.sizes["block"] == 27
    assert errors(result["intact_error"]) == 74
    worst = result["lesion"].values[np.argsort(result["error"].values)[-3:]]
    projections = set(result["block"].values[result["skip_kind"].values == "projection"])
    assert projections == {"layer2.0", "layer3.0"}
    assert projections <= set(worst)


def test_the_command_line_finds_the_same(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr("test_cifar.build", lambda: CifarResNet(20), raising=False)
    arguments = ["analyze", "test_cifar:build", "--weights", DATA / "resnet20.safetensors"]
    arguments += ["--images", DATA / "test1000.npz", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
    arguments += ["--max-deleted", 1, "--draws", 1, "--path-images", 0, "--output", tmp_path / "a.nc"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    single = rpp.load(tmp_path / "a.nc")["single_lesions"]
    assert round(float(single["intact_error"]) * 1000) == 85
    errors = single["error"].values * 1000
    np.testing.assert_allclose(errors, [230, 211, 371, 633, 224, 154, 615, 276, 385], atol=1.5)
