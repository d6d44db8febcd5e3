"""Input checks: whether the arguments of a call fit those that a graph was captured with, each with what to do."""

from typing import Any

import torch
from torch import Tensor

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.export import check_dense


def check_input(position: int, expected: Tensor, given: Any) -> None:
    """Check one argument's type, shape, dtype and device.

    Raises:
        InputError: if one of them differs.
    """
    if not isinstance(given, Tensor):
        raise InputError(f"input {position} must be a tensor, not {type(given).__name__}")
    check_dense(given, f"input {position}")
    fits = given.ndim == expected.ndim and all(
        isinstance(want, torch.SymInt) or want == got for want, got in zip(expected.shape, given.shape, strict=True)
    )
    if not fits and given.ndim and tuple(given.shape[1:]) == tuple(expected.shape[1:]):
        size = int(expected.shape[0])
        raise InputError(
            f"input {position} has shape {tuple(given.shape)}; the network was captured for {tuple(expected.shape)}, "
            f"and a batch of {size} {'sample' if size == 1 else 'samples'} is all that holds, as the model takes no "
            "other, or its Python turns the batch size into a number (len(x), int(...), a shape that it keeps): pass "
            f"batches of {size} (drop_last=True of a DataLoader leaves a smaller last one out), or unravel "
            "the model again with example_inputs of this shape"
        )
    if not fits:
        want = ", ".join("B" if isinstance(size, torch.SymInt) else str(size) for size in expected.shape)
        raise InputError(
            f"input {position} has shape {tuple(given.shape)}; the network was captured for ({want}): "
            "resize the input, or unravel the model again with example_inputs of this shape"
        )
    if given.dtype != expected.dtype:
        raise InputError(
            f"input {position} is {given.dtype}; the network was captured with {expected.dtype}: convert it"
        )
    if given.device.type != expected.device.type:
        raise InputError(
            f"input {position} is on {given.device}; the network was captured on {expected.device}: move it, or "
            "unravel the model again where it is now"
        )


def check_batch(position: int, expected: Tensor, given: Tensor, samples: dict[Any, tuple[int, int]]) -> None:
    """Check that inputs that shared their batch when they were captured still do; `samples` collects the sizes."""
    if not given.ndim or not isinstance(expected.shape[0], torch.SymInt):
        return
    first, size = samples.setdefault(expected.shape[0].node.expr, (position, given.shape[0]))
    if given.shape[0] != size:
        raise InputError(
            f"input {position} has {given.shape[0]} samples and input {first} has {size}: "
            "all inputs of a batch need as many"
        )
