"""Weights from safetensors files into a model, all or nothing. Nothing is ever unpickled.

The library itself refuses a header whose tensors do not fill the file exactly; what is checked here is whether they are
the model's, before any of them is read.
"""

import os
import struct
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import safetensors
import torch
from torch import nn

from resnet_paths_plugin.errors import FileError
from resnet_paths_plugin.files import limits
from resnet_paths_plugin.files.input_files import check_file, file_name

_NAMES_SHOWN = 3
_LENGTH_BYTES = 8  # of the number at the beginning of a safetensors file, which is the length of its header
_PREFIXES = ("module.", "_orig_mod.", "model.", "state_dict.")
"""What wrappers and checkpoints put before every name."""

_TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_ANYTHING = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@dataclass(eq=False)
class _Loading:
    """How many threads load tensors only, and what the environment said before the first of them."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    threads: int = 0
    before: dict[str, str | None] = field(default_factory=dict)


_LOADING = _Loading()


def load_weights(model: nn.Module, path: str | PathLike[str]) -> None:
    """Copy every parameter and buffer of a safetensors file into a model, in place.

    The names in file and model must be the same; what a model shares under two names needs to be there once, and batch
    norm's count of training batches, which older files lack, not at all. A prefix that wrappers put before every name
    (`module.`, `_orig_mod.`, `model.`, `state_dict.`) is dropped with a warning. After an error the model is as it was.

    Raises:
        InputError: this is no path.
        FileError: the file is missing or no safetensors file, or its names, shapes or kinds of numbers are not the
            model's.
    """
    path = file_name(path)
    check_file(path, "weights in a safetensors file")
    try:
        _check_header(path)
        with safetensors.safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
            prefix = _prefix(model, shapes)
            shapes = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
            problems = _problems(model, shapes)
            tensors = {} if problems else {name: file.get_tensor(f"{prefix}{name}") for name in shapes}
    except FileError:
        raise
    except MemoryError as error:
        raise FileError(f"the weights {path} do not fit into the memory that is left ({error})") from error
    except Exception as error:  # SafetensorError, but also what torch says of types of numbers that it lacks
        raise FileError(
            f"{path} is no complete safetensors file ({error}). Other formats are not read, since unpickling "
            "weights can run code: convert them with safetensors.torch.save_file(model.state_dict(), path)"
        ) from error
    problems = problems or _other_numbers(model, tensors)
    if problems:
        raise FileError(f"the weights {path} are not those of a {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict(tensors, strict=False)
    if prefix:
        warnings.warn(f"the names in {path} begin with {prefix!r}, which was dropped", UserWarning, stacklevel=2)


def _check_header(path: Path) -> None:
    """Refuse a file whose header names far more tensors than a model has, before it is read."""
    with path.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(_LENGTH_BYTES).ljust(_LENGTH_BYTES, b"\0"))
    if limits.LARGEST_HEADER < size <= path.stat().st_size:
        raise FileError(
            f"the weights {path} have a header of {limits.format_bytes(size)}, more than "
            f"{limits.format_bytes(limits.LARGEST_HEADER)}: no model has so many tensors"
        )


@contextmanager
def tensors_only() -> Iterator[None]:
    """Within it, `torch.load` reads tensors and plain containers alone, whatever the library that calls it asks for.

    Some libraries keep their pretrained weights as pickles and read them in a way that runs what is in them.
    """
    with _LOADING.lock:
        if not _LOADING.threads:
            _LOADING.before = {name: os.environ.pop(name, None) for name in (_TENSORS_ONLY, _ANYTHING)}
            os.environ[_TENSORS_ONLY] = "1"
        _LOADING.threads += 1
    try:
        yield
    finally:
        with _LOADING.lock:
            _LOADING.threads -= 1
            if not _LOADING.threads:
                os.environ.pop(_TENSORS_ONLY, None)
                os.environ.update({name: value for name, value in _LOADING.before.items() if value is not None})


def _prefix(model: nn.Module, names: Iterable[str]) -> str:
    """Return what stands before every name and is none of the model's, such as `module._orig_mod.`; `""` if nothing."""
    state, names = model.state_dict(), list(names)
    prefix = ""
    while names and not any(name.removeprefix(prefix) in state for name in names):
        longer = [f"{prefix}{more}" for more in _PREFIXES if all(name.startswith(f"{prefix}{more}") for name in names)]
        if not longer:
            return ""
        prefix = longer[0]
    return prefix


def _other_numbers(model: nn.Module, tensors: dict[str, torch.Tensor]) -> list[str]:
    """Say which numbers the model cannot hold: complex ones in place of real ones, or fractions in place of counts."""
    state = model.state_dict()
    counters = _counters(model)
    wrong = [
        f"{name} {tensor.dtype} instead of {state[name].dtype}"
        for name, tensor in tensors.items()
        if tensor.shape != state[name].shape  # of numbers of less than a byte, several are in one
        or (not _holds(tensor, state[name].dtype) and (tensor.is_complex() or name not in counters))
    ]
    return [f"{_first(wrong)} of another kind"] if wrong else []


def _holds(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether numbers of that type can be what the tensor's are; floating-point numbers may be rounded."""
    if tensor.dtype == dtype or dtype.is_complex:
        return True
    if dtype.is_floating_point or tensor.dtype.is_complex:
        return not tensor.dtype.is_complex
    return torch.equal(tensor.to(dtype).to(tensor.dtype), tensor)


def _counters(model: nn.Module) -> set[str]:
    """Return the names of batch norms' counts of training batches, which no answer of a trained model depends on."""
    return {
        f"{path}.num_batches_tracked".removeprefix(".")
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001 - the root of torch's batch norms
    }


def _problems(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Say what does not fit, before anything is copied."""
    state = model.state_dict()
    counters = _counters(model)
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
