"""Where the windows of convolutions and poolings lie: which position of a source each position of a branch is about.

Only operators whose windows are known are followed; behind any other that changes sizes nothing is known.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor, fx

from resnet_paths_plugin.graph.operators import CONVOLUTIONS, WINDOWED_POOLING, aten, same_sizes

Grid = tuple[tuple[int, Fraction], ...]
"""For each dimension of the positions the stride, and where the centre of the first window lies."""
_PADDING = frozenset(
    {
        aten.pad.default, aten.constant_pad_nd.default, aten.reflection_pad1d.default, aten.reflection_pad2d.default,
        aten.reflection_pad3d.default, aten.replication_pad1d.default, aten.replication_pad2d.default,
        aten.replication_pad3d.default,
    }
)  # fmt: skip


def window_strides(source: fx.Node, region: Iterable[fx.Node], value: fx.Node) -> tuple[int, ...] | None:
    """Return the strides from the positions of a source `[B, C, *]` to a branch's; None where they are not known.

    They are known where position `i` of the branch is about position `stride * i` of the source: the windows there are
    centred nearer to it than to any other multiple of the stride, or on it where there is only one window.

    Args:
        source: the source.
        region: the operators that the branch computes from it, in order.
        value: the branch's value.
    """
    grids: dict[fx.Node, Grid | None] = {source: ((1, Fraction(0)),) * (source.meta["val"].ndim - 2)}
    for node in region:
        grids[node] = _grid_of(node, grids)
    grid = grids.get(value)
    if grid is None:
        return None
    for size, (stride, centre) in zip(value.meta["val"].shape[2:], grid, strict=True):
        is_whole = size == 1 and stride > 1  # one window over all positions is a global pooling
        if abs(centre) > (0 if is_whole else Fraction(stride - 1, 2)):
            return None
    return tuple(stride for stride, _ in grid)


def _grid_of(node: fx.Node, grids: dict[fx.Node, Grid | None]) -> Grid | None:
    """Return where the positions of an operator's value lie in the source."""
    made = node.meta.get("val")
    operands = [operand for operand in node.all_input_nodes if operand in grids]
    if not isinstance(made, Tensor) or not operands:
        return None
    if node.target in CONVOLUTIONS | WINDOWED_POOLING | _PADDING:
        before = grids[operands[0]] if node.args[0] is operands[0] and len(operands) == 1 else None
        windows = _windows(node, made.ndim - 2)
        if before is None or windows is None or len(windows) != len(before):
            return None
        return tuple(
            (stride * step, centre + stride * offset)
            for (stride, centre), (step, offset) in zip(before, windows, strict=True)
        )
    whole = [one for one in operands if not _is_single(one)] or operands
    found = {grids[one] if _same_positions(one, made) else None for one in whole}
    return found.pop() if len(found) == 1 else None


def _windows(node: fx.Node, ndim: int) -> list[tuple[int, Fraction]] | None:
    """Return for each dimension of the positions the stride, and where the centre of the first window lies."""
    arguments: dict[str, Any] = {
        one.name: node.kwargs.get(one.name, node.args[at] if at < len(node.args) else one.default_value)
        for at, one in enumerate(node.target._schema.arguments)  # type: ignore[union-attr]  # noqa: SLF001 - torch's
    }
    if node.target in _PADDING:
        pads: Any = arguments.get("pad", arguments.get("padding"))
        if len(pads) > 2 * ndim:
            return None
        before = [*(pads[at] for at in range(0, len(pads), 2)), *[0] * (ndim - len(pads) // 2)]
        return [(1, Fraction(-pad)) for pad in reversed(before)]
    if arguments.get("transposed") or ("output_padding" in arguments and "transposed" not in arguments):
        return None
    kernel = _each(
        arguments["weight"].meta["val"].shape[2:] if "weight" in arguments else arguments["kernel_size"], ndim
    )
    strides = _each(arguments["stride"] or kernel, ndim)
    dilations = _each(arguments.get("dilation", 1), ndim)
    reach = [dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=True)]
    padding = arguments["padding"]
    if isinstance(padding, str):
        padding = [one // 2 for one in reach] if padding == "same" else 0
    return [
        (stride, Fraction(one, 2) - pad) for stride, one, pad in zip(strides, reach, _each(padding, ndim), strict=True)
    ]


def _each(values: Any, ndim: int) -> list[int]:
    """Return one number for each dimension."""
    given = list(values) if isinstance(values, Sequence) else [values]
    return given * ndim if len(given) == 1 else given


def _is_single(node: fx.Node) -> bool:
    """Whether a value has one position, such as a gate that is made from a global pooling."""
    return same_sizes(node.meta["val"].shape[2:], [1] * (node.meta["val"].ndim - 2))


def _same_positions(node: fx.Node, made: Tensor) -> bool:
    return bool(node.meta["val"].ndim == made.ndim and same_sizes(node.meta["val"].shape[2:], made.shape[2:]))
