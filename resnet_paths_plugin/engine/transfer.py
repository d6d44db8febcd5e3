"""Values on their way to a device, which nobody waits for: a walk over a graph must not stop the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def sent(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a few numbers of the host as a tensor on a device."""
    return moved(torch.tensor(values, dtype=dtype), device)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; from the host to a CUDA device by way of memory that the device reads itself."""
    if tensor.device == device:
        return tensor
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
