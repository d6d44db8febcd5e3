"""Texts on the command line: files, folders, JSON Lines, and what is refused."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import resnet_paths_plugin as rpp
from resnet_paths_plugin.cli import main
from resnet_paths_plugin.cli.texts import Text, TextBatches, Texts, as_bytes, read_texts
from resnet_paths_plugin.errors import FileError, InputError

MODEL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))

    def forward(self, x):
        return x + self.branch(x)

class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(256, 8), nn.Linear(8, 256)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(x)}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "ownlanguage.py").write_text(MODEL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("ownlanguage", None)


def test_sequences_are_cut_filled_and_labelled():
    texts = Texts("here", (Text("a", "abcdefgh"), Text("b", "xyz"), Text("c", "q")))
    batches = TextBatches(texts, as_bytes, 3, batch_size=2)
    found = list(batches)
    ids = np.concatenate([inputs["input_ids"].numpy() for inputs, _ in found])
    mask = np.concatenate([inputs["attention_mask"].numpy() for inputs, _ in found])
    labels = np.concatenate([label.numpy() for _, label in found])
    assert [bytes(row[one == 1].tolist()) for row, one in zip(ids, mask, strict=True)] == [
        b"abc",
        b"def",
        b"gh",
        b"xyz",
    ]
    assert np.array_equal(labels, np.where(mask == 1, ids, -100))
    assert batches.sample_names == ("a, token 0", "a, token 3", "a, token 6", "b, token 0")
    assert len(list(batches.head(3))) == 1
    few = TextBatches(texts, as_bytes, 3, limit=2, seed=1)
    assert few.counted == "2 sequences of 3 tokens of here"
    assert set(few.sample_names) < set(batches.sample_names)
    with pytest.raises(InputError, match="holds no document of 2 tokens"):
        TextBatches(Texts("here", (Text("c", "q"),)), as_bytes, 3)


def test_files_and_folders_are_read(tmp_path):
    (tmp_path / "one.txt").write_text("früh", encoding="utf-8")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "two.jsonl").write_text('{"text": "a b"}\n\n{"text": "c", "id": 3}\n', encoding="utf-8")
    (tmp_path / ".hidden.txt").write_text("secret", encoding="utf-8")
    (tmp_path / "empty.md").write_text("", encoding="utf-8")
    found = read_texts(tmp_path)
    assert [(text.name, text.content) for text in found.documents] == [
        ("deep/two.jsonl, line 1", "a b"), ("deep/two.jsonl, line 3", "c"), ("one.txt", "früh"),
    ]  # fmt: skip
    assert read_texts(tmp_path / "one.txt").documents == (Text("one.txt", "früh"),)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no text: all of it is empty"),
        ("a.txt", b"abc\xff", r"is no UTF-8 text \(byte 3 is 0xff\)"),
        ("a.jsonl", b"{", "a.jsonl, line 1: no JSON"),
        ("a.jsonl", b'{"content": "x"}', "line 1: expected an object with a text under the key 'text'"),
        ("a.jsonl", b"[" * 100_000, "line 1: no JSON"),
    ],
)
def test_files_that_are_no_texts_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=message):
        read_texts(tmp_path / name)


def test_missing_texts_are_refused(tmp_path):
    with pytest.raises(FileError, match="there is no file or folder"):
        read_texts(tmp_path / "none.txt")
    with pytest.raises(FileError, match=r"holds no texts \(\.jsonl, \.md, \.rst, \.txt\)"):
        read_texts(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*has random weights")
def test_a_language_model_is_studied_on_a_text(folder):
    (folder / "book.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20, encoding="utf-8")
    options = "--tokens 32 --limit 6 --task next_token --draws 2 --path-draws 3 --figure-format none --output out.nc"
    run = CliRunner().invoke(main, ["analyze", "ownlanguage:Language", "--text", "book.txt", *options.split()])
    assert run.exit_code == 0, run.output
    assert "6 sequences of 32 tokens of book.txt" in run.output
    assert "each byte a token" in run.output
    tree = rpp.load(folder / "out.nc")
    lesions = tree["single_lesions"].to_dataset()
    assert lesions.sizes["sample"] == 6
    assert float(lesions.intact_perplexity) > 1
    assert str(lesions.sample_name[0].item()).startswith("book.txt, token ")
    assert float(tree["path_lengths"].completeness_error.max()) < 1e-5
    assert "path_maps" not in tree


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--text book.txt", "--text needs a MODEL"),
        ("ownlanguage:Language --text book.txt --images x.npz", "and no --images"),
        ("ownlanguage:Language", "or --text, for a language model"),
        ("ownlanguage:Language --text book.txt", "no model that predicts the next token"),
        ("ownlanguage:Language --text book.txt --task nothing", "task must be one of"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*has random weights")
def test_what_does_not_fit_is_refused(arguments, message, folder):
    (folder / "book.txt").write_text(json.dumps("some text"), encoding="utf-8")
    run = CliRunner().invoke(main, ["analyze", *arguments.split()])
    assert run.exit_code != 0
    assert message in " ".join(run.output.split())
