"""LinearMap: an affine map over channels, the same at each position, that stands in for a branch.

It is run as a 1x1 convolution, or as a linear layer where channels come last. This module does not fit maps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.operators import aten

_CONVOLUTIONS = {3: aten.conv1d.default, 4: aten.conv2d.default, 5: aten.conv3d.default}
"""By the number of dimensions of what they are applied to."""


@dataclass(frozen=True, eq=False)
class LinearMap:
    """The map `A x + b` over the channels of a block's source, at each position alike.

    Attributes:
        weight: `A`, shape `[C_out, C_in]`, in the dtype of the source.
        bias: `b`, shape `[C_out]`.
        dim: the dimension of the source that holds its channels, counted from the last (`-1`).
        strides: for each dimension of the source, the map reads every `stride`-th position. Each is 1 unless the branch
            has fewer positions than its source; those of the batch and of the channels are always 1.

    Raises:
        InputError: if weight, bias, dimension and strides do not fit each other.

    Examples:
        >>> halves = rpp.LinearMap(0.5 * torch.eye(8), torch.zeros(8), dim=-3, strides=(1, 1, 1, 1))
        >>> x = torch.ones(2, 8, 4, 4)
        >>> torch.equal(halves(x), 0.5 * x)
        True
    """

    weight: Tensor
    bias: Tensor
    dim: int
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that the parts fit each other."""
        ndim = len(self.strides)
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            raise InputError(
                "a linear map has a weight of shape [C_out, C_in] and a bias of shape [C_out], not "
                f"{list(self.weight.shape)} and {list(self.bias.shape)}"
            )
        if self.bias.dtype != self.weight.dtype:
            raise InputError(f"weight and bias must have one dtype, not {self.weight.dtype} and {self.bias.dtype}")
        if not -ndim <= self.dim < 0:
            raise InputError(
                f"dim counts from the last dimension: it must be from {-ndim} to -1 for {ndim} strides, one for each "
                f"dimension of the source, not {self.dim}"
            )
        if any(stride < 1 for stride in self.strides) or self.strides[self.dim] != 1:
            raise InputError(
                f"strides must be at least 1, and 1 at the channels (dimension {self.dim}), not {tuple(self.strides)}"
            )

    def __call__(self, source: Tensor) -> Tensor:
        """Return the map of a source `[..., C_in, ...]`: as many dimensions, with `C_out` channels."""
        found: Tensor = self.written(lambda target, *args: target(*args), source, self.weight, self.bias)
        return found

    def to(self, device: torch.device) -> "LinearMap":
        """Return the map with its tensors on a device."""
        return LinearMap(self.weight.to(device), self.bias.to(device), self.dim, self.strides)

    def written(self, call: Callable[..., Any], source: Any, weight: Any, bias: Any) -> Any:
        """Return what the map makes of a source, by calls of operators.

        Args:
            call: calls an operator, its first argument, on the others; or writes that call into a graph.
            source: the source, or what stands for it.
            weight: `A`, likewise.
            bias: `b`, likewise.
        """
        ndim = len(self.strides)
        convolution = _CONVOLUTIONS.get(ndim)
        if convolution is not None and self.dim == 1 - ndim and self.strides[0] == 1:
            kernel = call(aten.view.default, weight, [*self.weight.shape, *[1] * (ndim - 2)])
            return call(convolution, source, kernel, bias, list(self.strides[2:]))
        value = source
        for dim, stride in enumerate(self.strides):
            if stride != 1:
                value = call(aten.slice.Tensor, value, dim, None, None, stride)
        if self.dim != -1:
            value = call(aten.movedim.int, value, self.dim, -1)
        # Of other layouts torch rounds otherwise where the weight is a parameter.
        value = call(aten.linear.default, call(aten.contiguous.default, value), weight, bias)
        return value if self.dim == -1 else call(aten.movedim.int, value, -1, self.dim)
