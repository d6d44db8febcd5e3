"""What the figures share: colours that colour-blind readers tell apart, axes, fractions shown in percent.

Nothing here knows a study; series also differ in marker or line style, so that a grey print can be read.
"""

import textwrap
from collections.abc import Iterable, Sequence, Sized
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from resnet_paths_plugin.errors import InputError

FloatArray = NDArray[np.float64]

# The palette of Okabe and Ito (2008).
BLACK = "#000000"
BLUE = "#0072B2"
SKY = "#56B4E9"
GREEN = "#009E73"
ORANGE = "#E69F00"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"

SHADE = "0.93"
GREY = "0.35"
LEGEND_SIZE = 9
LABEL_WIDTH = 36
"""Characters of an axis' label before it is broken into lines."""

INCHES_PER_LEGEND_CHARACTER = 0.065
INCHES_PER_LEGEND_HANDLE = 0.48
LAYOUT_GAIN = 1.12
MANY_MARKERS = 80


def own_axes(width: float, height: float) -> Axes:
    """The Axes of a new pyplot figure of that size, in inches."""
    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def own_grid(rows: int, columns: int, width: float, height: float) -> NDArray[Any]:
    """The Axes of a new pyplot figure of that size, in inches; shape `[rows, columns]`."""
    _, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)
    return axes


def own_row(width: float, height: float, shares: Sequence[float]) -> NDArray[Any]:
    """The Axes of a new pyplot figure of that size, in inches, side by side in these shares of its width."""
    options = {"width_ratios": list(shares)}
    _, axes = plt.subplots(1, len(shares), figsize=(width, height), layout="constrained", gridspec_kw=options)
    return np.asarray(axes, dtype=object)


def grid_of(axes: Iterable[Axes], rows: int, columns: int) -> NDArray[Any]:
    """The caller's Axes, shape `[rows, columns]`.

    Raises:
        InputError: if their number is another.
    """
    given = np.asarray(axes, dtype=object)
    if given.size != rows * columns:
        raise InputError(f"{given.size} Axes were given: this figure needs {rows} x {columns}")
    return given.reshape(rows, columns)


def variable(dataset: xr.Dataset, name: str, figure: str) -> xr.DataArray:
    """The variable or coordinate that a figure cannot do without.

    Raises:
        InputError: if the dataset does not have it.
    """
    if name not in dataset.variables:
        raise InputError(
            f"{figure} needs the variable '{name}', which this dataset does not have; "
            f"it has {', '.join(sorted(map(str, dataset.data_vars))) or 'no variables at all'}"
        )
    return dataset[name]


def percent_ticks(ax: Axes) -> None:
    """Show fractions on the y axis as percent; the unit belongs into the label."""
    ax.yaxis.set_major_formatter(FuncFormatter(as_percent))


def percent_axis(ax: Axes) -> None:
    """Show fractions on the y axis as percent, from zero up; the unit belongs into the label."""
    percent_ticks(ax)
    # auto=None keeps the axis free to grow when a second study is drawn into the same Axes.
    ax.set_ylim(bottom=0, auto=None)


def leave_room(ax: Axes, share: float) -> None:
    """Keep that share of the Axes' height, at its top, free of data: for a legend or labels."""
    scale = ax.yaxis.get_transform()
    low, high = scale.transform(np.array(ax.get_ylim()))
    top = low + (high - low) / (1 - share)
    ax.set_ylim(top=float(scale.inverted().transform(np.array([top]))[0]), auto=None)


def integer_axis(ax: Axes) -> None:
    """Tick whole numbers only on the x axis."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def width_of(ax: Axes) -> float:
    """About the width of the Axes in inches."""
    figure = ax.get_figure(root=True)
    width = float(ax.get_window_extent().width / figure.dpi)  # type: ignore[union-attr]
    # Before it is drawn, an Axes that a layout engine will widen still has the default margins.
    return width if figure.get_layout_engine() is None else LAYOUT_GAIN * width  # type: ignore[union-attr]


def marker_size(count: int) -> float:
    """Size of the markers of a line of so many points: smaller where they would hide each other."""
    return 4 if count <= MANY_MARKERS else 2


def sized(look: dict[str, Any], points: Sized) -> dict[str, Any]:
    """The look of a line of some points, with markers that do not hide each other."""
    return {**look, "markersize": marker_size(len(points))}


def legend_above(ax: Axes) -> None:
    """A legend above the axes, where it covers no data; in as few rows as its width allows."""
    labels = ax.get_legend_handles_labels()[1]
    width = width_of(ax)
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=next(count for count in (4, 3, 2, 1) if count == 1 or _legend_width(labels, count) <= width),
        columnspacing=1.2,
        fontsize=LEGEND_SIZE,
        frameon=False,
        borderaxespad=0.2,
    )


def plain(text: object) -> str:
    """Text that came with a model or a file, in one line and safe to draw: a dollar sign starts no formula."""
    return " ".join(str(text).split()).replace("$", r"\$")


def shortened(name: str, longest: int = 28) -> str:
    """A name that is no longer than that: of a longer one, the beginning and more of the end."""
    if len(name) <= longest:
        return name
    head = (longest - 1) // 3
    return f"{name[:head]}\N{HORIZONTAL ELLIPSIS}{name[len(name) - (longest - 1 - head) :]}"


def wrapped(text: str, width: int = LABEL_WIDTH) -> str:
    """A label in lines that are no longer than an axis, or so many characters."""
    return textwrap.fill(text, width)


def signed(value: float) -> str:
    """A correlation with its sign and two decimals."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def as_percent(fraction: float, _position: int | None = None) -> str:
    """A tick's fraction as percent, without the sign."""
    return f"{100 * fraction:g}"


def _legend_width(labels: Sequence[str], columns: int) -> float:
    """About how wide a legend with so many columns is, in inches."""
    # As matplotlib fills it: column by column, the first ones longer.
    filled = np.array_split([len(label) for label in labels], columns)
    longest = [int(column.max()) for column in filled if column.size]
    return sum(INCHES_PER_LEGEND_HANDLE + INCHES_PER_LEGEND_CHARACTER * characters for characters in longest)
