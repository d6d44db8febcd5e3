"""Names beside points, placed where they cover neither each other nor, if there is room, other points."""

from collections.abc import Mapping
from itertools import product

import numpy as np
from matplotlib.axes import Axes

from resnet_paths_plugin.plotting import style
from resnet_paths_plugin.plotting.style import FloatArray

CHARACTER = 0.6
"""Width of a character over its height, on average."""

LINE = 1.3
GAP = 7.0
"""Points of a typographer between a mark and its name."""

CLEAR = 3.0
"""Points of a typographer between a name and marks of others."""

REACHES = (1.0, 3.0, 6.0)
"""Times the gap at which a name is put: beside its mark, else farther away with a line to it."""

_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


def place(
    ax: Axes,
    points: FloatArray,
    names: Mapping[int, str],
    obstacles: FloatArray | None = None,
    taken_top: float = 0,
    longest: int = 28,
) -> None:
    """Write names beside those of some points that have room for them, to be called when all else is drawn.

    Args:
        ax: where the points are drawn.
        points: data coordinates of all points, shape `[n, 2]`; NaN where there is none.
        names: which of them to name, and how.
        obstacles: what names should not cover, shape `[m, 2]`; by default the points.
        taken_top: share of the Axes' height, at its top, that is taken.
        longest: characters beyond which a name is shortened.
    """
    figure = ax.get_figure(root=True)
    figure.draw_without_rendering()  # type: ignore[union-attr]  # the layout may still move the Axes
    dots = figure.dpi / 72  # type: ignore[union-attr]
    size = style.legend_size() * dots
    avoided = points if obstacles is None else obstacles
    marks = ax.transData.transform(avoided[np.isfinite(avoided).all(axis=1)])
    frame = ax.get_window_extent()
    low, high = frame.min, frame.max - np.array([0, taken_top * frame.height])
    taken: list[FloatArray] = []
    for index, name in names.items():
        if not np.isfinite(points[index]).all():
            continue
        text = style.shortened(style.plain(name), longest)
        extent = np.array([CHARACTER * size * len(text), LINE * size])
        mark = ax.transData.transform(points[index])
        best = None
        for reach, side in product(REACHES, _SIDES):
            corner = mark + np.array(side) * GAP * dots * reach + (np.array(side) - 1) / 2 * extent
            box = np.array([corner, corner + extent])
            out = np.clip(low - box[0], 0, None).sum() + np.clip(box[1] - high, 0, None).sum()
            hidden = int(((marks > box[0] - CLEAR * dots) & (marks < box[1] + CLEAR * dots)).all(axis=1).sum())
            crossed = sum(bool(((box[0] < other[1]) & (box[1] > other[0])).all()) for other in taken)
            cost = (crossed, out > 0, hidden, reach, out)
            if best is None or cost < best[0]:
                best = cost, box, side, reach
        if best is None or best[0][:2] != (0, False):
            continue  # no room at all: a name on another, or outside, tells less than none
        _, box, side, reach = best
        taken.append(box)
        alignment = ("right", "center", "left")[side[0] + 1], ("top", "center", "bottom")[side[1] + 1]
        ax.annotate(
            text,
            tuple(points[index]),
            xytext=(side[0] * GAP * reach, side[1] * GAP * reach),
            textcoords="offset points",
            ha=alignment[0],
            va=alignment[1],
            fontsize=style.legend_size(),
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": style.GREY} if reach > 1 else None,
            annotation_clip=False,
        )
