"""Messages that once said the wrong thing: each says what is wrong and what to do."""

import fcntl
import io
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import ModelOutput

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import (
    CaptureError,
    FileError,
    InputError,
    NoResidualBlocksError,
    UnsupportedMethodError,
)
from resnet_paths_plugin.plugins.weights import load_weights

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Three residual blocks and a head, whose scores may be wrapped."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda scores: scores) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f, self.h, self.wrap = nn.ModuleList(nn.Linear(5, 5) for _ in range(3)), nn.Linear(5, 4), wrap
        self.eval()

    def forward(self, x: Tensor) -> Any:
        for f in self.f:
            x = x + torch.tanh(f(x))
        return self.wrap(self.h(x))


# --- outputs


@dataclass
class Scored(ModelOutput):  # type: ignore[misc]  # of transformers, which is untyped here
    logits: Tensor | None = None


@dataclass
class ScoredTwice(ModelOutput):  # type: ignore[misc]
    hidden: Tensor | None = None
    logits: Tensor | None = None


@pytest.mark.parametrize(
    "wrap", [lambda y: Scored(logits=y), lambda y: ScoredTwice(hidden=y * 2, logits=y)], ids=["alone", "with more"]
)
def test_scores_in_a_model_output_are_found(wrap: Callable[[Tensor], Any]) -> None:
    expected, found = (rpp.BlockLesion(Net(*args)).attribute(X, 0) for args in ((), (wrap,)))
    np.testing.assert_array_equal(found.target_score, expected.target_score)
    paths = rpp.PathLengthGradient(Net(wrap)).attribute(X, target=0)
    assert float(paths.completeness_error.max()) < 1e-6


# --- inputs and targets


def test_a_dict_of_other_names_is_told_the_names_of_the_arguments() -> None:
    for inputs in ({"a": X}, OrderedDict(a=X, b=X)):
        for target in (0, None):
            with pytest.raises(CaptureError, match="pass example_inputs as a dict of arguments by name: 'x'"):
                rpp.BlockLesion(Net()).attribute(inputs, target)


def test_a_single_batch_may_be_a_dict() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    found = rpp.BlockLesion(Net()).attribute({"inputs": X, "target": labels})
    np.testing.assert_array_equal(found.target_score, rpp.BlockLesion(Net()).attribute(X, labels).target_score)


def test_tensors_of_one_batch_in_a_list_are_told_to_be_a_tuple() -> None:
    with pytest.raises(InputError, match="several inputs of one batch as a tuple of tensors"):
        rpp.BlockLesion(Net()).attribute([X, X], 0)


def test_a_batch_of_another_form_is_described() -> None:
    for batch, form in (([X, X, X], "a list of 3"), (None, "None"), ("ab", "a str of 2")):
        with pytest.raises(InputError, match=rf"not {form}: map each batch"):
            rpp.BlockLesion(Net()).attribute([batch])


# --- blocks


def test_a_network_without_blocks_is_told_what_to_do() -> None:
    with pytest.raises(NoResidualBlocksError, match=r"no sum that was read.*units='layers'"):
        rpp.BlockLesion(nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4))).attribute(X, 0)


class Still(Net):
    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            return super().forward(x)


def test_blocks_in_a_region_are_blocks() -> None:
    assert rpp.BlockLesion(Still()).attribute(X, 0).sizes["lesion"] == 3


class FrozenTokens(nn.Module):
    """A frozen batch as large as the width, of token ids, so that nothing tells which dimension is the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 4)
        self.net = Net()
        self.net.f, self.net.h = nn.ModuleList(nn.Linear(4, 4) for _ in range(2)), nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Any:
        return self.net(torch.stack([self.tokens(row) for row in ids]))


def test_a_frozen_batch_that_is_not_known_is_not_told_to_take_another_tap() -> None:
    net = rpp.unravel(FrozenTokens().eval(), torch.tensor([1, 2, 3, 4]))
    with pytest.raises(
        InputError, match=r"froze the batch size at 4: unravel it with a batch size that no other"
    ) as told:
        rpp.PathLengthGradient(net).attribute(torch.tensor([1, 2, 3, 4]), target=0, tap="stem")
    assert "another tap" not in str(told.value)
    other = torch.tensor([1, 2, 3])
    found = rpp.PathLengthGradient(rpp.unravel(FrozenTokens().eval(), other)).attribute(other, target=0, tap="stem")
    assert float(found.completeness_error.max()) < 1e-6


# --- views


@pytest.mark.parametrize("kind", ["network", "lesioned", "restricted", "sampling"])
def test_what_exports_copies_or_saves_a_view_is_told_what_to_take(kind: str) -> None:
    net = rpp.unravel(Net(), X)
    view = {
        "network": net,
        "lesioned": net.lesioned([0]),
        "restricted": net.restricted([1]),
        "sampling": net.sampling(n_active=1),
    }[kind]
    with pytest.raises(UnsupportedMethodError, match=r"to export \(torch\.export, ONNX\), take the model"):
        torch.export.export(view, (X,))
    with pytest.raises(UnsupportedMethodError, match=r"copied \(copy\.deepcopy\) or pickled \(torch\.save\)"):
        torch.save(view, io.BytesIO())


# --- files


def test_a_file_that_is_locked_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    rpp.save(rpp.BlockLesion(Net()).attribute(X, 0), path)
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(FileError, match="HDF5_USE_FILE_LOCKING=FALSE") as told:
            rpp.load(path)
    assert "damaged" not in str(told.value)
    assert rpp.load(path).sizes["lesion"] == 3


def test_a_file_that_this_process_writes_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    rpp.save(rpp.BlockLesion(Net()).attribute(X, 0), path)
    with h5py.File(path, "a"), pytest.raises(FileError, match="HDF5_USE_FILE_LOCKING=FALSE"):
        rpp.load(path)
    assert rpp.load(path).sizes["lesion"] == 3


def test_a_damaged_file_is_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    rpp.save(rpp.BlockLesion(Net()).attribute(X, 0), path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(FileError, match="damaged") as told:
        rpp.load(path)
    assert "LOCKING" not in str(told.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "state_dict.", "state_dict.module."])
def test_weights_with_a_prefix_are_loaded_and_the_prefix_is_told(prefix: str, tmp_path: Path) -> None:
    saved, model = Net(), Net()
    nn.init.ones_(saved.h.weight)
    save_file({f"{prefix}{name}": value for name, value in saved.state_dict().items()}, tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match=f"'{prefix}'"):
        load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model(X), saved(X))
