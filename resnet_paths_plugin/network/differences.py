"""How far tensors of a network are from those of its model, and how far rounding alone may take them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.graph.process_state import autocast_now

_LEAST_IN_FLOAT64 = 1e-9
_LEAST = 1e-3
"""Relative differences that are not looked into: operators round in another order, and some devices more coarsely."""
_EPS = torch.finfo(torch.float32).eps
_DIGITS = 4
"""Units of rounding by which outputs on a CPU may differ where nothing of the model has changed."""
_MOST = 5e-2
"""Relative difference beyond which values are different, however the model rounds."""
_TIMES_NOISE = 16
"""Units of rounding of the largest gradient by which another one may be wrong."""
_TIMES = 3
"""How many times as far as two right evaluations are apart a value may be from one of them."""
_TIMES_FROM_MEAN = 1.5
"""How many standard deviations of right evaluations a value may be from their mean."""


def unit_of(graph: CapturedGraph) -> float:
    """Return the unit of rounding of the coarsest floating-point values in a graph, and of this thread's autocast.

    Of float32 on other devices than a CPU it is that of products with 10 bits (TF32).
    """
    values = [node.meta.get("val") for node in graph.graph.nodes]
    floats = [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]
    own = torch.finfo(torch.float32).eps
    unit = max((torch.finfo(value.dtype).eps for value in floats), default=own)
    elsewhere = any(value.device.type not in {"cpu", "meta"} for value in floats)
    devices = {value.device.type for value in floats}
    unit = max([unit, *(torch.finfo(dtype).eps for device, dtype in autocast_now().items() if device in devices)])
    return max(unit, 2**-10) if elsewhere and unit >= own else unit


def tolerated(leaf: Tensor, unit: float) -> float:
    """Return the relative difference from a model's value that is not looked into.

    Args:
        leaf: the value.
        unit: the unit of rounding of the coarsest values on the way to it.
    """
    if not (leaf.is_floating_point() or leaf.is_complex()):
        return 0.0
    # What a model in float64 computes in float32 on the way is as coarse as that.
    least = _LEAST_IN_FLOAT64 if unit < torch.finfo(torch.float32).eps else _LEAST
    return max(least, unit if unit > _LEAST else 0.0)


def is_short(unit: float) -> bool:
    """Whether values on the way are shorter than float32."""
    return unit > torch.finfo(torch.float32).eps


def within(
    error: Sequence[float] | None, theirs: Sequence[Tensor], unit: float, apart: Sequence[float] | None = None
) -> bool:
    """Whether differences are no larger than rounding makes them.

    Args:
        error: the relative differences; None where the forms differ.
        theirs: the model's values.
        unit: the unit of rounding of the coarsest values on the way.
        apart: relative differences of another right evaluation, None where there is none.
    """
    if error is None:
        return False
    own = [0.0] * len(error) if apart is None else apart
    return all(
        one <= max(tolerated(leaf, unit), min(_MOST, _TIMES * other))
        for one, leaf, other in zip(error, theirs, own, strict=True)
    )


def within_noise(ours: Sequence[Tensor], theirs: Sequence[Tensor], unit: float) -> bool:
    """Whether gradients that belong together differ by no more than rounding makes them, as the largest is rounded.

    What a batch norm behind it takes back has a gradient of 0, such as a bias: all of its digits are rounding.
    """
    sizes = [float(other.detach().norm()) for other in theirs]
    noise = _TIMES_NOISE * unit * max(sizes, default=0.0)
    error = difference(ours, theirs)
    return error is not None and all(
        one <= tolerated(other, unit)
        or (
            float((mine.detach() - other.detach()).norm()) <= noise
            and bool(mine.any()) == bool(other.any())  # what is cut off has none at all
        )
        for one, mine, other in zip(error, ours, theirs, strict=True)
    )


def in_last_digits(error: Sequence[float] | None, theirs: Sequence[Tensor]) -> bool:
    """Whether differences are no larger than a few units of rounding of the values themselves, in float32 or longer."""
    return error is not None and all(
        one == 0 or (leaf.is_floating_point() and one <= _DIGITS * min(torch.finfo(leaf.dtype).eps, _EPS))
        for one, leaf in zip(error, theirs, strict=True)
    )


def near_mean(ours: Tensor, mean: Tensor, deviation: float) -> bool:
    """Whether a value is as near to the mean of right evaluations as each of these is.

    Args:
        ours: the value.
        mean: the mean.
        deviation: the relative standard deviation.
    """
    error = difference([ours], [mean], dtypes=False)
    return error is not None and error[0] <= min(_MOST, _TIMES_FROM_MEAN * deviation)


def is_lost(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two values differ by less than the dtype of the model's can hold."""
    if ours.shape != theirs.shape:
        return False
    missing = (ours.double() - theirs.double()).abs().max().item() if ours.numel() else 0.0
    return missing < float(torch.finfo(theirs.dtype).smallest_normal)


def same_bits(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors are equal, NaN in the same places included."""
    return len(ours) == len(theirs) and all(
        one.shape == other.shape and one.dtype == other.dtype and _equal(one, other)
        for one, other in zip(ours, theirs, strict=True)
    )


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor], *, dtypes: bool = True) -> list[float] | None:
    """Return for each pair the norm of the difference over the norm of theirs; None where the forms differ.

    Args:
        ours: tensors of the network.
        theirs: those of the model.
        dtypes: whether another dtype is another form.
    """
    if len(ours) != len(theirs):
        return None
    found: list[float] = []
    for one, other in zip(ours, theirs, strict=True):
        if one.shape != other.shape or (dtypes and one.dtype != other.dtype):
            return None
        if _equal(one, other):
            found.append(0.0)
            continue
        wide = torch.complex128 if other.is_complex() else torch.float64
        a, b = one.detach().to("cpu", wide), other.detach().to("cpu", wide)
        both = ~torch.isclose(a, b, rtol=0, atol=0, equal_nan=True)
        missing, size = (a - b)[both].norm().item(), b[torch.isfinite(b)].norm().item()
        found.append(missing / size if size and math.isfinite(missing) else math.inf)
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or bool(torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all())
