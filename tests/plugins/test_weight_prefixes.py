"""Weights whose names carry a wrapper's prefix are loaded, and it is told. Oracle: the tensors saved."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from resnet_paths_plugin.errors import FileError
from resnet_paths_plugin.plugins.weights import load_weights


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "state_dict.model.", "module._orig_mod."])
def test_a_prefix_is_dropped_and_told(prefix: str, tmp_path: Path) -> None:
    saved, model = nn.Linear(3, 2), nn.Linear(3, 2)
    save_file({f"{prefix}{name}": value for name, value in saved.state_dict().items()}, tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match=f"'{prefix}'"):
        load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), saved.parameters(), strict=True))


def test_a_partial_fit_is_refused(tmp_path: Path) -> None:
    save_file({"module.weight": torch.zeros(2, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(FileError, match="bias missing"):
        load_weights(nn.Linear(3, 2), tmp_path / "w.safetensors")
