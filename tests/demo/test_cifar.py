"""Networks trained by others on CIFAR-10, on its first 1,000 test images.

The weights and images are no part of this repository; the expected numbers come from a lesion by hand in the networks'
own code.
"""

from pathlib import Path

import numpy as np
import pytest
from cifar import DATA, CifarResNet, images_and_labels, needs_cifar, trained
from click.testing import CliRunner

import resnet_paths_plugin as rpp
from resnet_paths_plugin.cli import main

pytestmark = [pytest.mark.slow, needs_cifar]


@pytest.fixture(scope="module")
def batch():
    return images_and_labels()


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
    projections = set(result["block"].values[result["block_skip_kind"].values == "projection"])
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
