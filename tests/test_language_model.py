"""The small language model of the examples: it is what its page says, and its script trains one."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

import resnet_paths_plugin as rpp
import resnet_paths_transformers

pytest.importorskip("transformers", reason="the model is one of transformers, extra 'transformers'")

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "examples" / "language_model"
SCRIPT = runpy.run_path(str(FOLDER / "train_language_model.py"))
RECORD = json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model():
    manager = rpp.create_plugin_manager(entry_points=False)
    manager.register(resnet_paths_transformers, name="transformers")
    return rpp.load_model(f"transformers/{FOLDER}", pretrained=True, plugin_manager=manager).eval()


def test_the_model_predicts_text_that_it_was_not_trained_on(model):
    length, text = SCRIPT["LENGTH"], SCRIPT["tokens"](SCRIPT["text"](held_out=True))
    some = text[: text.numel() // length * length].view(-1, length)[::5].flatten()
    loss = SCRIPT["loss_on"](model, some)
    assert loss == pytest.approx(RECORD["held_out_loss"], abs=0.1)  # of a part, and of this version's text
    assert RECORD["loss_on_text"] < RECORD["held_out_loss"] < 1.4 < RECORD["held_out_loss_before"]


def test_the_model_has_twelve_layers_and_is_small(model):
    assert len(model.model.layers) == 12
    assert next(model.parameters()).dtype == torch.float32
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 3_000_000


def test_no_document_is_on_both_sides():
    kept = {name for name, _ in SCRIPT["documents"]() if SCRIPT["is_held_out"](name)}
    every = [name for name, _ in SCRIPT["documents"]()]
    assert len(every) == len(set(every))
    assert 0.03 < len(kept) / len(every) < 0.12
    sizes = {side: len(SCRIPT["text"](held_out=side)) for side in (False, True)}
    assert sum(sizes.values()) <= sum(len(text) + 1 for _, text in SCRIPT["documents"]())


def test_the_page_has_the_numbers_of_the_training():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in ("bytes_of_text", "bytes_held_out", "bytes_trained_on"):
        assert f"{RECORD[name]:,}" in page
    losses = [float(number) for number in re.findall(r"([\d.]+) nats per byte\*{0,2} (?:\||\()", page)]
    for name in ("held_out_loss_before", "held_out_loss", "loss_on_text"):
        assert any(abs(RECORD[name] - loss) < 6e-4 for loss in losses), name


def test_the_script_trains_and_writes_a_model(monkeypatch, tmp_path, capsys):
    out, text = tmp_path / "out", tmp_path / "text.txt"
    monkeypatch.setitem(SCRIPT["main"].__globals__, "text", lambda held_out: (b"\0abcd" * 200)[: 600 + 100 * held_out])
    options = ["--out", str(out), "--held-out", str(text), "--steps", "3", "--batch", "2"]
    monkeypatch.setattr(sys, "argv", ["train_language_model.py", *options])
    SCRIPT["main"]()
    record = json.loads((out / "training.json").read_text())
    assert record["held_out_loss"] < record["held_out_loss_before"]
    assert record["bytes_trained_on"] == 3 * 2 * SCRIPT["LENGTH"]
    assert text.stat().st_size == 700
    assert json.loads(capsys.readouterr().out) == record
    assert (out / "model.safetensors").stat().st_size == pytest.approx((FOLDER / "model.safetensors").stat().st_size)
