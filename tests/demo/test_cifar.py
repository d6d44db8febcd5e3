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


@pytest.fixture(scope="module")
def resnet20(batch):
    return rpp.BlockLesion(trained(20)).attribute(*batch)


def errors(fractions):
    return np.rint(1000 * np.asarray(fractions)).astype(int)


def test_lesions_of_resnet20_make_the_known_errors(resnet20):
    assert list(resnet20["block"].values) == [f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)]
    assert errors(resnet20["intact_error"]) == 85
    expected = [230, 211, 371, 633, 224, 154, 615, 276, 385]
    np.testing.assert_allclose(errors(resnet20["error"]), expected, atol=1)


@pytest.mark.zoo
def test_blocks_of_resnet56_that_change_resolution_are_among_the_worst(batch):
    result = rpp.BlockLesion(trained(56)).attribute(*batch)
    assert result.sizes["block"] == 27
    assert errors(result["intact_error"]) == 74
    worst = result["lesion"].values[np.argsort(result["error"].values)[-3:]]
    projections = set(result["block"].values[result["block_skip_kind"].values == "projection"])
    assert projections == {"layer2.0", "layer3.0"}
    assert projections <= set(worst)


def test_the_command_line_finds_the_same(tmp_path, monkeypatch, resnet20):
    few = 100
    with np.load(DATA / "test1000.npz") as file:
        np.savez(tmp_path / "few.npz", images=file["images"][:few], labels=file["labels"][:few])
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr("test_cifar.build", lambda: CifarResNet(20), raising=False)
    arguments = ["analyze", "test_cifar:build", "--weights", DATA / "resnet20.safetensors"]
    arguments += ["--images", tmp_path / "few.npz", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
    arguments += ["--analyzer", "BlockLesion", "--max-deleted", 1, "--draws", 1, "--output", tmp_path / "a.nc"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    single = rpp.load(tmp_path / "a.nc")["single_lesions"]
    expected = resnet20.isel(sample=slice(few))
    assert 0 < float(single["intact_error"]) < 0.2
    assert float(single["intact_error"]) == pytest.approx(1 - float(expected["intact_correct"].mean()))
    np.testing.assert_allclose(single["error"], 1 - expected["correct"].mean("sample"), atol=0.011)
