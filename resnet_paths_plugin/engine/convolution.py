"""The derivative of a convolution for a bank of rows at once, in the layout that suits the device."""

from collections.abc import Sequence
from functools import reduce
from operator import mul
from typing import Any

import torch
from torch import Tensor

from resnet_paths_plugin.engine.calls import Call
from resnet_paths_plugin.graph.operators import aten


class Convolution:
    """Carries gradients from a convolution's value, `[R, B, *value]`, to its source, `[R, B, *source]`; tangents on.

    On a CPU, images have their channels last, and a convolution of stride 1 is pulled back by a convolution with its
    kernels turned around, which is faster there than the transposed one. Elsewhere the device's own routine serves.

    Args:
        source: shape of the source, `[B, C, *]`.
        weight: shape `[C', C / groups, *kernel]`.
        stride: one for each dimension of the kernel, as are all that follow.
        padding: zeros on both sides.
        dilation: distance between the kernel's points.
        groups: number of groups of channels.
    """

    def __init__(
        self,
        source: torch.Size,
        weight: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> None:
        self._source, self._weight = source, weight
        self._stride, self._padding, self._dilation, self._groups = stride, padding, dilation, groups
        self._layout = image_layout(weight)
        self._dims = tuple(range(2, weight.ndim))
        self._turned_padding = [
            step * (size - 1) - zeros for size, step, zeros in zip(weight.shape[2:], dilation, padding, strict=True)
        ]
        self._turned = (
            weight.device.type == "cpu" and groups == 1 and set(stride) == {1} and min(self._turned_padding) >= 0
        )
        self._ready: tuple[tuple[Tensor, ...], Tensor] | None = None

    def absorbs(self, slope: Tensor) -> bool:
        """Whether a slope of the value is one factor per channel, which the weight can be multiplied by instead."""
        return slope.shape == (self._weight.shape[0], *[1] * len(self._dims))

    def pull(self, bank: Tensor) -> list[Tensor]:
        """Return the gradients at the one operand."""
        return [self.pull_with(bank)]

    def push(self, banks: Sequence[Tensor | None]) -> Tensor | None:
        """Return the tangents at the value, `[R, B, *value]`."""
        (bank,) = banks
        if bank is None:
            return None
        weight = self._weight.contiguous(memory_format=self._layout)
        plain = [0] * len(self._dims)
        options = (self._stride, self._padding, self._dilation, False, plain, self._groups)
        found = aten.convolution(self._folded(bank), weight, None, *options)
        pushed: Tensor = found.unflatten(0, (bank.shape[0], self._source[0]))
        return pushed

    def pull_with(self, bank: Tensor, slopes: tuple[Tensor, ...] = ()) -> Tensor:
        """Return the gradients at the source, in memory of their own.

        Args:
            bank: shape `[R, B, *value]`.
            slopes: what the bank is still to be multiplied by, each one factor per channel.
        """
        rows, batch = bank.shape[0], self._source[0]
        flat = self._folded(bank)
        weight = self._weight_with(slopes)
        plain = [0] * len(self._dims)
        if self._turned:
            found = aten.convolution(
                flat, weight, None, self._stride, self._turned_padding, self._dilation, False, plain, 1
            )
        else:
            # Only the source's size and layout matter to its gradient; this memory is never touched.
            size = (rows * batch, *self._source[1:])
            like = torch.empty(size, dtype=flat.dtype, device=flat.device, memory_format=self._layout)
            options = (self._stride, self._padding, self._dilation, False, plain, self._groups, [True, False, False])
            found = aten.convolution_backward(flat, like, weight, None, *options)[0]
        pulled: Tensor = found.unflatten(0, (rows, batch))
        return pulled

    def _folded(self, bank: Tensor) -> Tensor:
        """Return the rows of a bank as further samples, in the layout that suits the device."""
        rows, batch = bank.shape[:2]
        return bank.reshape(rows * batch, *bank.shape[2:]).contiguous(memory_format=self._layout)

    def _weight_with(self, slopes: tuple[Tensor, ...]) -> Tensor:
        """Return the weight with slopes worked in, laid out for the operator; the last one is kept."""
        if self._ready is None or not _same(self._ready[0], slopes):
            weight = self._weight * reduce(mul, slopes).unsqueeze(1) if slopes else self._weight
            if self._turned:
                weight = weight.flip(self._dims).transpose(0, 1)
            self._ready = slopes, weight.contiguous(memory_format=self._layout)
        return self._ready[1]


def _same(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def image_layout(value: Tensor) -> torch.memory_format:
    """Return the layout in which gradients of a value are fastest: images on a CPU have their channels last."""
    image = value.ndim == 4 and value.device.type == "cpu"
    return torch.channels_last if image else torch.contiguous_format


def convolution_options(call: Call) -> tuple[list[int], list[int], list[int], int] | None:
    """Return stride, padding and dilation along each dimension, and the number of groups, of a convolution's call.

    None for a call that says them otherwise.
    """
    source, weight = call.args[:2]
    spatial = weight.ndim - 2
    defaults = (None, 1, 0, 1, 1)
    given: list[Any] = [*call.args[2:], *defaults[len(call.args) - 2 :]]
    stride, padding, dilation, groups = given[1:]
    if source.ndim != weight.ndim or call.kwargs or isinstance(padding, str):
        return None
    stride, padding, dilation = (_per_dimension(size, spatial) for size in (stride, padding, dilation))
    return stride, padding, dilation, groups


def _per_dimension(size: int | Sequence[int], dimensions: int) -> list[int]:
    sizes = [size] if isinstance(size, int) else list(size)
    return sizes * dimensions if len(sizes) == 1 else sizes
