"""What the figures share: colours that colour-blind readers tell apart, axes, fractions shown in percent.

Nothing here knows a study; series also differ in marker or line style, so that a grey print can be read.
"""

import textwrap
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

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
LEGEND_SHARE = 0.9
"""Size of a legend's text over that of other text."""
LABEL_WIDTH = 36
"""Characters of an axis' label before it is broken into lines."""

INCHES_PER_CHARACTER = 0.075
"""Of matplotlib's default size of text."""
INCHES_PER_LEGEND_CHARACTER = 0.065
INCHES_PER_LEGEND_HANDLE = 0.48
"""Of a legend in matplotlib's default size of text."""
LAYOUT_GAIN = 1.12
MANY_MARKERS = 80


FigureWidth = Literal["one-column", "two-column"]
"""Widths of figures in a paper."""
WIDTHS: dict[FigureWidth, float] = {"one-column": 3.5, "two-column": 7.2}
"""The same in inches: 89 and 183 mm."""
_TEXT_SIZES: dict[FigureWidth, float] = {"one-column": 7, "two-column": 8}
_DEFAULT_TEXT_SIZE = 10
_LEAST_HEIGHT = 0.85
"""Least share of its height that a figure keeps when it is made narrower: text does not shrink as much."""
_STACKED_HEIGHT = 2.3
"""Height in inches of each of the panels that are put one below the other."""
_WIDTH: ContextVar[FigureWidth | None] = ContextVar("figure width", default=None)


@contextmanager
def figure_width(width: FigureWidth) -> Iterator[None]:
    """Let figures that are made in the block fit the column of a paper, with text of 7 or 8 points.

    Panels that stand side by side are put one below the other where a single column has no room for them; maps of
    gradients keep two columns. It does nothing to Axes that the caller made.

    Args:
        width: `"one-column"` (89 mm) or `"two-column"` (183 mm).

    Raises:
        InputError: if it is another.

    Examples:
        >>> lesions = rpp.BlockLesion(net).attribute(images, target=labels)
        >>> with rpp.plotting.figure_width("one-column"):
        ...     ax = rpp.plotting.plot_single_lesions(lesions)
        >>> float(ax.figure.get_figwidth())
        3.5
    """
    if width not in WIDTHS:
        raise InputError(f"width must be {' or '.join(map(repr, WIDTHS))}, not {width!r}")
    token = _WIDTH.set(width)
    try:
        with plt.rc_context({"font.size": _TEXT_SIZES[width], "axes.titlesize": _TEXT_SIZES[width]}):
            yield
    finally:
        _WIDTH.reset(token)


def legend_size() -> float:
    """Size of a legend's text, and of other small text, in points."""
    return LEGEND_SHARE * float(plt.rcParams["font.size"])


def own_axes(width: float, height: float) -> Axes:
    """The Axes of a new pyplot figure of that size, in inches, or of a paper's column."""
    _, ax = plt.subplots(figsize=_fitted(width, height), layout="constrained")
    return ax


def own_grid(rows: int, columns: int, width: float, height: float, *, stacks: bool = True) -> NDArray[Any]:
    """The Axes of a new pyplot figure of that size, in inches, or of a paper's column; shape `[rows, columns]`.

    Args:
        rows: number of rows.
        columns: number of columns.
        width: width.
        height: height.
        stacks: whether panels are put one below the other where a single column has no room for them side by side; if
            not, they take two columns.
    """
    if stacks and columns > 1 and _WIDTH.get() == "one-column":
        size = (WIDTHS["one-column"], _STACKED_HEIGHT * rows * columns)
        _, axes = plt.subplots(rows * columns, 1, figsize=size, layout="constrained", squeeze=False)
        return np.asarray(axes, dtype=object).reshape(rows, columns)
    size = _fitted(width, height)
    if not stacks and _WIDTH.get() is not None:
        own = WIDTHS["two-column"]
        size = (own, height * own / width)
    _, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    return axes


def own_row(width: float, height: float, shares: Sequence[float]) -> NDArray[Any]:
    """The Axes of a new pyplot figure of that size, in inches, side by side in these shares of its width."""
    options = {"width_ratios": list(shares)}
    size = _fitted(width, height, least=0)
    _, axes = plt.subplots(1, len(shares), figsize=size, layout="constrained", gridspec_kw=options)
    return np.asarray(axes, dtype=object)


def _fitted(width: float, height: float, least: float = _LEAST_HEIGHT) -> tuple[float, float]:
    """Return a figure's size, or the one that it has in a paper's column."""
    column = _WIDTH.get()
    if column is None:
        return width, height
    own = WIDTHS[column]
    return own, height * max(least, own / width)


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


def legend_above(ax: Axes, room: float = 1) -> None:
    """A legend above the axes, where it covers no data; in as few rows as its width allows.

    Args:
        ax: the axes.
        room: share of the estimated width that there is, where long labels stand beside the axes.
    """
    labels = ax.get_legend_handles_labels()[1]
    width = room * width_of(ax)
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=next(count for count in (4, 3, 2, 1) if count == 1 or _legend_width(labels, count) <= width),
        columnspacing=1.2,
        fontsize=legend_size(),
        frameon=False,
        borderaxespad=0.2,
    )


def once(ax: Axes, label: str) -> str:
    """A legend entry, which matplotlib leaves out where the Axes have it already."""
    return f"_{label}" if label in ax.get_legend_handles_labels()[1] else label


def coloured(look: dict[str, Any], color: str | None) -> dict[str, Any]:
    """A look in another colour; the same where none is given."""
    return look if color is None else {**look, "color": color}


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


def below(ax: Axes, text: str, room: float = 1) -> None:
    """Label the x axis, in lines that are no longer than it.

    Args:
        ax: the axes.
        text: the label.
        room: as of `legend_above`.
    """
    character = INCHES_PER_CHARACTER * float(plt.rcParams["font.size"]) / _DEFAULT_TEXT_SIZE
    ax.set_xlabel(textwrap.fill(text, max(20, int(room * width_of(ax) / character))))


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
    scale = float(plt.rcParams["font.size"]) / _DEFAULT_TEXT_SIZE
    return scale * sum(INCHES_PER_LEGEND_HANDLE + INCHES_PER_LEGEND_CHARACTER * characters for characters in longest)
