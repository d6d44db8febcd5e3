"""The derivative of a convolution for a bank of rows at once, in the layout that suits the device."""

import math
from collections.abc import Sequence
from functools import reduce
from operator import add, mul
from typing import Any

import torch
from torch import Tensor

from resnet_paths_plugin.engine.calls import Call
from resnet_paths_plugin.graph.operators import aten

_MOST_EXCESS = 1.5
"""Products that `Phases` may take for each that is needed; beyond it the transposed convolution is faster."""
_ROWS = 4
"""How many rows a weight may be as large as, to be multiplied in their place, turned around or laid out anew."""
_MANY = 700
"""Points from which on oneDNN's product of matrices is faster than the other one of a CPU."""


class Convolution:
    """Carries gradients from a convolution's value, `[R, B, *value]`, to its source, `[R, B, *source]`; tangents on.

    On a CPU, images have their channels last. A convolution of stride 1 is pulled back by a convolution with its
    kernels turned around, which is faster there than the transposed one, unless the weight is large beside a row; a
    kernel of one point is a product of matrices at the points that the stride meets; a kernel that is large beside the
    stride or as large (a stem, patches) is turned around for each place within a stride, whose results are further
    channels of one convolution. Elsewhere the device's own routine serves.

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
        positions = [
            (size + 2 * zeros - step * (points - 1) - 1) // along + 1
            for size, zeros, step, points, along in zip(
                source[2:], padding, dilation, weight.shape[2:], stride, strict=True
            )
        ]
        self._small = weight.numel() <= _ROWS * source[0] * weight.shape[0] * math.prod(positions)
        on_cpu = weight.device.type == "cpu" and groups == 1
        self._pointwise = on_cpu and weight.ndim == 4 and weight.shape[2:] == (1, 1) and not any(padding)
        served = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's
        self._dense = served and weight.dtype is torch.float32
        turnable = set(stride) == {1} and min(self._turned_padding) >= 0
        self._turned = on_cpu and self._small and not self._pointwise and turnable
        self._phases = None
        if on_cpu and weight.ndim == 4 and max(stride) > 1 and set(dilation) == {1} and not self._pointwise:
            phases = Phases(source, weight, stride, padding)
            self._phases = phases if phases.excess <= _MOST_EXCESS else None
        self._ready: tuple[tuple[Tensor, ...], Tensor] | None = None

    def absorbs(self, slope: Tensor) -> bool:
        """Whether a slope of the value is one factor per channel, which the weight is multiplied by instead.

        A weight that is large beside a row, as those of coarse images are, is left as it is.
        """
        return self._small and slope.shape == (self._weight.shape[0], *[1] * len(self._dims))

    def pull(self, bank: Tensor) -> list[Tensor]:
        """Return the gradients at the one operand."""
        return [self.pull_with(bank)]

    def push(self, banks: Sequence[Tensor | None]) -> Tensor | None:
        """Return the tangents at the value, `[R, B, *value]`."""
        (bank,) = banks
        if bank is None:
            return None
        if self._pointwise:
            down, across = self._stride
            met = self._folded(bank).movedim(1, -1)[:, ::down, ::across]
            product = met.reshape(-1, met.shape[-1]) @ self._weight.flatten(1).mT
            at_points: Tensor = product.view(*bank.shape[:2], *met.shape[1:-1], -1).movedim(-1, 2)
            return at_points
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
        if self._pointwise:
            found = self._at_points(flat.movedim(1, -1), weight).movedim(-1, 1)
        elif self._phases is not None:
            found = self._phases.pull(flat, weight)
        elif self._turned:
            found = aten.convolution(
                flat, weight, None, self._stride, self._turned_padding, self._dilation, False, plain, 1
            )
        else:
            # Only the source's size and layout matter to its gradient; this memory is never touched.
            size = (rows * batch, *self._source[1:])
            like = torch.empty(size, dtype=flat.dtype, device=flat.device, memory_format=self._layout)
            options = (self._stride, self._padding, self._dilation, False, plain, self._groups, [True, False, False])
            found = aten.convolution_backward(flat, like, weight, None, *options)[0]
        pulled: Tensor = found.view(rows, batch, *found.shape[1:])
        return pulled

    def _at_points(self, flat: Tensor, matrix: Tensor) -> Tensor:
        """Return the gradients `[R * B, *source]`, the channels last, of a kernel of one point; 0 where none is met."""
        if self._dense and flat.shape[:-1].numel() >= _MANY:
            kernel = matrix.mT[..., None, None]
            met = aten.mkldnn_convolution(flat.movedim(-1, 1), kernel, None, [0, 0], [1, 1], [1, 1], 1).movedim(1, -1)
        else:
            met = (flat.reshape(-1, flat.shape[-1]) @ matrix).view(*flat.shape[:-1], matrix.shape[-1])
        points: Tensor = met
        if set(self._stride) == {1}:
            return points
        (down, across), sizes = self._stride, self._source[2:]
        found = points.new_zeros((flat.shape[0], *sizes, points.shape[-1]))
        found[:, ::down, ::across] = points
        return found

    def _folded(self, bank: Tensor) -> Tensor:
        """Return the rows of a bank as further samples, in the layout that suits the device."""
        return folded(bank, self._layout)

    def _weight_with(self, slopes: tuple[Tensor, ...]) -> Tensor:
        """Return the weight with slopes worked in, laid out for the operator; the last one is kept."""
        if self._ready is None or not _same(self._ready[0], slopes):
            weight = self._weight * reduce(mul, slopes).unsqueeze(1) if slopes else self._weight
            if self._pointwise:
                self._ready = slopes, weight.flatten(1)
                return self._ready[1]
            if self._phases is not None:
                weight = self._phases.kernels(weight)
            elif self._turned:
                weight = weight.flip(self._dims).transpose(0, 1)
            self._ready = slopes, weight.contiguous(memory_format=self._layout) if self._small else weight
        return self._ready[1]


class Phases:
    """A strided convolution's gradients at its source, by place within a stride: each has a kernel of stride 1.

    The gradient at `stride * m + a` is a sum over the value's positions `m + o`, with the kernel's points
    `a + padding - stride * o`. One convolution has all places for channels.

    Attributes:
        excess: how many products it takes for each that is needed.

    Args:
        source: shape of the source, `[B, C, H, W]`.
        weight: shape `[C', C, *kernel]`.
        stride: down and across.
        padding: zeros on both sides.
    """

    def __init__(self, source: torch.Size, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> None:
        self._sizes, self._stride, self._padding = source[2:], stride, padding
        self._first = [
            -((size - 1 - zeros) // step) for size, step, zeros in zip(weight.shape[2:], stride, padding, strict=True)
        ]
        self._last = [(step - 1 + zeros) // step for step, zeros in zip(stride, padding, strict=True)]
        self._points = [last - first + 1 for first, last in zip(self._first, self._last, strict=True)]
        self.excess = math.prod(map(mul, self._points, stride)) / math.prod(weight.shape[2:])

    def kernels(self, weight: Tensor) -> Tensor:
        """Return the weight of the one convolution, `[places * C, C', *points]`."""
        found = weight.new_zeros((*self._stride, weight.shape[1], weight.shape[0], *self._points))
        places = [self._by_place(at, weight.shape[2 + at]) for at in range(2)]
        for a, i, y in places[0]:
            for b, j, x in places[1]:
                found[a, b, :, :, i, j] = weight[:, :, y, x].mT
        return found.flatten(0, 2)

    def _by_place(self, dim: int, size: int) -> list[tuple[int, int, int]]:
        """Return place, point of the new kernel and point of the old one, for each of these."""
        stride, padding, first = self._stride[dim], self._padding[dim], self._first[dim]
        found = [
            (place, point, place + padding - stride * (first + point))
            for place in range(stride)
            for point in range(self._points[dim])
        ]
        return [one for one in found if 0 <= one[2] < size]

    def pull(self, flat: Tensor, kernels: Tensor) -> Tensor:
        """Return the gradients at the source, `[N, C, H, W]` with the channels last, for those at the value."""
        (down, across), (height, width) = self._stride, self._sizes
        counts = [-(-size // step) for size, step in zip(self._sizes, self._stride, strict=True)]
        zeros = [
            max(-first, count - 1 + last - (size - 1), 0)
            for first, last, count, size in zip(self._first, self._last, counts, flat.shape[2:], strict=True)
        ]
        if self._points == [1, 1] and not any(zeros):  # as patches have, which is a product of matrices
            last = flat.movedim(1, -1)
            product = last.reshape(-1, last.shape[-1]) @ kernels.flatten(1).mT
            found = product.view(*last.shape[:-1], -1).movedim(-1, 1)
        else:
            found = aten.convolution(flat, kernels, None, [1, 1], zeros, [1, 1], False, [0, 0], 1)
        top, left = map(add, zeros, self._first)
        places = found.movedim(1, -1)[:, top : top + counts[0], left : left + counts[1]]
        split = places.reshape(*places.shape[:-1], down, across, -1).permute(0, 1, 3, 2, 4, 5)
        whole: Tensor = split.reshape(flat.shape[0], counts[0] * down, counts[1] * across, -1)
        return whole[:, :height, :width].movedim(-1, 1)


def folded(bank: Tensor, layout: torch.memory_format) -> Tensor:
    """Return the rows of a bank, `[R, B, *]`, as further samples, laid out as asked.

    A sample alone may have any stride along its dimension, but torch's operators look for the one that fits the layout.
    """
    flat = bank.reshape(-1, *bank.shape[2:]).contiguous(memory_format=layout)
    if len(flat) != 1 or layout is not torch.channels_last:
        return flat
    return flat.movedim(1, -1).flatten().view(1, *flat.shape[2:], flat.shape[1]).movedim(-1, 1)


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
