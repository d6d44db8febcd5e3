"""Weights from safetensors files into a model, all or nothing. Nothing is ever unpickled."""

from collections import defaultdict
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from resnet_paths_plugin.errors import FileError

_NAMES_SHOWN = 3


def load_weights(model: nn.Module, path: str | PathLike[str]) -> None:
    """Copy every parameter and buffer of a safetensors file into a model, in place.

    The names in file and model must be the same; what a model shares under two names needs to be there once, and batch
    norm's count of training batches, which older files lack, not at all. After an error the model is as it was.

    Raises:
        FileError: the file is missing or no safetensors file, or its names or shapes are not the model's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"there is no file {path}: expected weights in a safetensors file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
    except (OSError, SafetensorError) as error:
        raise FileError(
            f"{path} is no complete safetensors file ({error}). Other formats are not read, since unpickling "
            "weights can run code: convert them with safetensors.torch.save_file(model.state_dict(), path)"
        ) from error
    problems = _problems(model, shapes)
    if problems:
        raise FileError(f"the weights {path} are not those of a {type(model).__name__}: {'; '.join(problems)}")
    safetensors.torch.load_model(model, path, strict=False)


def _problems(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Say what does not fit, before anything is copied."""
    state = model.state_dict()
    counters = {
        f"{path}.num_batches_tracked".removeprefix(".")
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001 - the root of torch's batch norms
    }
    shared: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, tensor in state.items():
        shared[tensor.data_ptr() or name, tensor.shape, tensor.stride()].append(name)
    missing = [
        name
        for names in shared.values()
        if not any(name in shapes or name in counters for name in names)
        for name in names
    ]
    unexpected = [name for name in shapes if name not in state]
    reshaped = [
        f"{name} {shape} instead of {tuple(state[name].shape)}"
        for name, shape in shapes.items()
        if name in state and shape != tuple(state[name].shape)
    ]
    complaints = ((sorted(missing), "missing"), (sorted(unexpected), "unexpected"), (reshaped, "of another shape"))
    return [f"{_first(names)} {complaint}" for names, complaint in complaints if names]


def _first(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
