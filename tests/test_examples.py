"""The examples run as they are, and show what they say."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import save_file
from torch.nn import functional

import resnet_paths_plugin as rpp

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


def test_a_transformers_model_is_studied_without_an_adapter_or_a_download(monkeypatch, capsys):
    pytest.importorskip("transformers", reason="the models are those of transformers, extra 'test'")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    script = EXAMPLES / "transformers_models.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--models", "gpt2", "--samples", "3"])
    runpy.run_path(str(script), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "GPT2LMHeadModel: 4 blocks"
    rises = {line.split()[0]: float(line.split()[-1]) for line in lines[2:6]}
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
