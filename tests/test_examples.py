"""The examples run as they are, and show what they say."""

import argparse
import gzip
import io
import re
import runpy
import sys
import tarfile
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import save_file
from scipy.stats import rankdata
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin import demo

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_effective_paths_explain_what_all_paths_do_and_long_ones_do_not(monkeypatch, capsys, tmp_path):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn, extra 'demo'")
    script, picture = EXAMPLES / "captum_short_paths.py", tmp_path / "maps.png"
    monkeypatch.setattr(sys, "argv", [str(script), "--images", "4", "--output", str(picture)])
    runpy.run_path(str(script), run_name="__main__")

    lines = capsys.readouterr().out.splitlines()
    assert "54 blocks, 1.8e+16 paths, 4 digits" in lines[0]
    table = {line.split()[0]: line.split()[1:] for line in lines[2:5]}
    lengths = {group: [int(end) for end in cells[0].split("-")] for group, cells in table.items()}
    share, saliency, integrated = ({group: float(cells[at]) for group, cells in table.items()} for at in (1, 2, 3))
    assert lengths["all"] == [0, 54]
    assert lengths["long"] == [lengths["effective"][1] + 1, 54]
    assert share["effective"] < 1e-3
    for similarity in (saliency, integrated):
        assert similarity["all"] == 1
        assert similarity["effective"] > 0.95
        assert similarity["long"] < 0.9
    assert imread(picture).std() > 0


def test_the_papers_studies_run_on_any_cifar_resnet(monkeypatch, capsys, tmp_path):
    script, weights = EXAMPLES / "reproduce_paper.py", tmp_path / "weights.safetensors"
    model = runpy.run_path(str(script))["CifarResNet"](14)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_file(model.state_dict(), weights)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=generator.integers(0, 10, 8))
    options = {
        "--depth": 14, "--weights": weights, "--images": tmp_path / "images.npz", "--output": tmp_path / "out",
        "--path-images": 1, "--path-draws": 2, "--draws": 2, "--changes": 2,
    }  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(script), *(str(part) for option in options.items() for part in option)])
    runpy.run_path(str(script), run_name="__main__")

    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[0].strip("| ") for row in rows] == ["figure", "---|---|---|---", "3", "5a", "5b", "6a", "6b", "6c"]
    assert "exactly Binomial(6, 1/2)" in rows[5][2]
    tree = rpp.load(tmp_path / "out" / "resnet14.nc")
    assert set(tree.children) == {"single_lesions", "random_lesions", "reorderings", "influence", "path_lengths"}
    assert (tmp_path / "out" / "resnet14.html").exists()
    assert imread(tmp_path / "out" / "resnet14-reorderings.png").std() > 0


def test_networks_that_segment_follow_and_detect_are_studied(monkeypatch, capsys, tmp_path):
    script, file = EXAMPLES / "other_outputs.py", tmp_path / "studies.nc"
    monkeypatch.setattr(sys, "argv", [str(script), "--samples", "1", "--output", str(file)])
    runpy.run_path(str(script), run_name="__main__")

    printed = capsys.readouterr().out
    assert "lraspp_mobilenet_v3_large: share of pixels that keep their class, smallest without" in printed
    assert len(re.findall(r"^  update_block.recurrent_block.convgru1:\d+: ", printed, re.MULTILINE)) == 3
    assert "of the boxes are found again without body.layer3.0" in printed
    tree = rpp.load(file)
    # An intact network keeps all that it says.
    for group, name, value in (
        ("segment", "mean_iou", 1),
        ("follow", "end_point_error", 0),
        ("detect", "score_shift", 0),
    ):
        np.testing.assert_allclose(tree[group][f"intact_{name}"], value, atol=1e-6)
        assert np.isfinite(tree[group][name]).all()
    assert tree["follow"].sizes["lesion"] == 12


def test_a_network_is_pruned_fine_tuned_and_exported(monkeypatch, capsys, tmp_path):
    script, weights = EXAMPLES / "smaller_resnet.py", tmp_path / "weights.safetensors"
    monkeypatch.syspath_prepend(EXAMPLES)
    model = runpy.run_path(str(EXAMPLES / "reproduce_paper.py"))["CifarResNet"](14)
    torch.manual_seed(0)
    save_file(model.state_dict(), weights)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=generator.integers(0, 10, 24))
    options = {
        "--depth": 14, "--weights": weights, "--images-file": tmp_path / "images.npz", "--output": tmp_path / "out",
        "--delete": 2, "--epochs": 1,
    }  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(script), *(str(part) for option in options.items() for part in option)])
    runpy.run_path(str(script), run_name="__main__")

    table = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in table] == ["| blocks", "| 6 of 6", "| 4 of 6"]
    chosen = rpp.load(tmp_path / "out" / "smaller.nc")
    assert int(chosen.n_held_out_samples) == 12
    small = torch.export.load(tmp_path / "out" / "without_2.pt2").module()
    assert sum(one.numel() for one in small.parameters()) == int(chosen.parameters[0])
    assert imread(tmp_path / "out" / "smaller.png").std() > 0


def test_a_transformers_model_is_studied_without_a_download(monkeypatch, capsys):
    pytest.importorskip("transformers", reason="the models are those of transformers, extra 'test'")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    script = EXAMPLES / "transformers_models.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--models", "gpt2", "--samples", "3"])
    runpy.run_path(str(script), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "GPT2LMHeadModel: 4 blocks"
    # An adapter that is installed calls a block by its role, transformers calls the module otherwise.
    rises = {line.split()[0].replace("attention", "attn"): float(line.split()[-1]) for line in lines[2:6]}
    lengths = [line.split() for line in lines if line and line[0].isdigit()]
    assert [cells[:2] for cells in lengths] == [["0", "1"], ["1", "4"], ["2", "6"], ["3", "4"], ["4", "1"]]

    subject = runpy.run_path(str(script))["build"]("gpt2", 3, "sdpa")
    module = subject.model.eval()

    def losses():
        scores, labels = module(**subject.inputs).logits, subject.labels
        return torch.stack([functional.cross_entropy(scores[at, :-1], labels[at, 1:]) for at in range(3)])

    with torch.no_grad():
        intact = losses().mean().item()
        for name, rise in rises.items():
            # The layer adds the first value that an attention returns, and what an MLP returns.
            zero = lambda _, __, out: (out[0] * 0, *out[1:]) if isinstance(out, tuple) else out * 0  # noqa: E731
            hook = module.get_submodule(name).register_forward_hook(zero)
            assert rise == pytest.approx(losses().mean().item() - intact, rel=0.01, abs=1e-5)
            hook.remove()

    # Along the one path of length 0 the head reads the embeddings.
    embeddings = {}
    module.transformer.drop.register_forward_hook(
        lambda _, __, out: embeddings.setdefault("stem", out.detach().requires_grad_())
    )
    for name in rises:
        module.get_submodule(name).register_forward_hook(
            lambda _, __, out: (out[0].detach(), *out[1:]) if isinstance(out, tuple) else out.detach()
        )
    losses().sum().backward()
    norm = embeddings["stem"].grad.flatten(1).norm(dim=1).mean().item()
    assert float(lengths[0][2]) == pytest.approx(norm, rel=0.01)


def run_example(name, options, monkeypatch):
    script = EXAMPLES / name
    given = [str(part) for option, value in options.items() for part in (option, *np.atleast_1d(value))]
    monkeypatch.setattr(sys, "argv", [str(script), *given])
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.filterwarnings("ignore::resnet_paths_plugin.errors.OmittedStudyWarning")
def test_several_trainings_are_compared(monkeypatch, capsys, tmp_path):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn, extra 'demo'")
    weights = []
    for seed in range(3):
        torch.manual_seed(seed)
        weights.append(tmp_path / f"seed{seed}.safetensors")
        network = demo.DigitsResNet(2)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        save_file(network.state_dict(), weights[-1])
    options = {
        "--weights": weights, "--output": tmp_path / "out", "--images": 60, "--draws": 2, "--path-images": 2,
        "--path-draws": 2, "--blocks-per-stage": 2,
    }  # fmt: skip
    run_example("several_trainings.py", options, monkeypatch)
    told = capsys.readouterr().out
    tree = rpp.load(tmp_path / "out" / "several_trainings.nc")
    assert int(tree["models"].n_replicates[0]) == 3
    trainings = [rpp.load(tmp_path / "out" / f"seed{seed}.nc")["single_lesions"].to_dataset() for seed in range(3)]
    rises = [(one.error - one.intact_error).values for one in trainings]
    every = (np.array(rises) > 0.01).all(axis=0).sum()
    assert f"of 6 blocks {every} raise the error by over 1% in every training" in told
    ranks = [rankdata(rise) for rise in rises if np.ptp(rise)]
    correlations = [np.corrcoef(one, other)[0, 1] for one, other in combinations(ranks, 2)] or [np.nan]
    assert f"correlate by {np.mean(correlations):.2f} on average" in told
    assert imread(tmp_path / "out" / "single-lesions.png").std() > 0
    table = np.genfromtxt(tmp_path / "out" / "several_trainings.csv", delimiter=",", skip_header=1)[:, 1:]
    np.testing.assert_allclose(table, np.transpose(rises), atol=1e-4)


class Volumes(torch.nn.Module):
    """A small residual network on volumes, whose second block is needed by all that follows."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv3d(1, 4, 3, stride=8)
        self.blocks = torch.nn.ModuleList(torch.nn.Conv3d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(torch.relu(x))
        return x


def test_a_network_of_features_is_studied_by_retrieval(tmp_path):
    script = runpy.run_path(str(EXAMPLES / "deep_networks.py"))
    torch.manual_seed(0)
    grey = torch.rand(200, 200, 80)
    crops, gallery = (script["cut"](grey, shift) for shift in (0, 8))
    assert crops.shape == (8, 1, 96, 96, 40)
    np.testing.assert_array_equal(crops[0, 0, 8:, 8:], gallery[0, 0, :-8, :-8])
    model = script["Retrieval"](Volumes(), gallery).eval()
    features = [model.backbone(one[None]).mean((2, 3, 4))[0] for one in gallery]
    centre = torch.stack(features).mean(0)
    wanted = [torch.cosine_similarity(features[0] - centre, one - centre, dim=0) for one in features]
    torch.testing.assert_close(model(gallery[:1])[0] * script["TEMPERATURE"], torch.stack(wanted), atol=1e-5, rtol=1e-4)
    options = argparse.Namespace(output=tmp_path, path_images=2, path_draws=2, draws=1)
    tree = script["studies"](model, crops, torch.arange(8), options)
    told = script["sentences"](tree)
    lesions = tree["single_lesions"].to_dataset()
    assert told[0] == f"3 blocks; of 8 crops the intact network finds {int(lesions.intact_correct.sum())}."
    falls, fit = script["decay"](tree["path_lengths"].to_dataset())
    slope = np.polyfit(range(4), np.log(tree["path_lengths"].path_gradient_norm), 1)[0]
    np.testing.assert_allclose(falls, np.exp(-slope))
    assert 0 <= fit <= 1
    script["draw"](tree, tmp_path)
    assert imread(tmp_path / "path-lengths.png").std() > 0


def test_a_ct_volume_is_turned_and_resampled(tmp_path):
    script = runpy.run_path(str(EXAMPLES / "deep_networks.py"))
    values = np.full((4, 6, 2), -1000, "<i2")
    values[0, 0, 1] = 1000  # right, front, head
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 6 2\nspace directions: (1.5,0,0) (0,1.5,0) (0,0,3)\n"
        "endian: little\nencoding: gzip\n\n"
    )
    content = header.encode() + gzip.compress(values.tobytes(order="F"))
    with tarfile.open(tmp_path / "pyradiomics-3.0.1.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("pyradiomics-3.0.1/data/lung1_image.nrrd")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    grey = script["volume"](tmp_path, "lung1")
    assert grey.shape == (4, 6, 2)
    assert grey[3, 5, 1] == 1
    assert grey.sum() == 1
