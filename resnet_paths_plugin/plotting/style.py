"""What the figures share: colours that colour-blind readers tell apart, axes, fractions shown in percent.

Nothing here knows a study; series also differ in marker or line style, so that a grey print can be read.
"""

from collections.abc import Iterable
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

SHADE = "0.93"
GREY = "0.35"
LEGEND_SIZE = 9


def own_axes(width: float, height: float) -> Axes:
    """The Axes of a new pyplot figure of that size, in inches."""
    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def own_grid(rows: int, columns: int, width: float, height: float) -> NDArray[Any]:
    """The Axes of a new pyplot figure of that size, in inches; shape `[rows, columns]`."""
    _, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)
    return axes


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


def percent_axis(ax: Axes) -> None:
    """Show fractions on the y axis as percent, from zero up; the unit belongs into the label."""
    ax.yaxis.set_major_formatter(FuncFormatter(_percent))
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


def legend_above(ax: Axes) -> None:
    """A legend in one row above the axes, where it covers no data."""
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        columnspacing=1.2,
        fontsize=LEGEND_SIZE,
        frameon=False,
        borderaxespad=0.2,
    )


def _percent(fraction: float, _position: int | None) -> str:
    return f"{100 * fraction:g}"
