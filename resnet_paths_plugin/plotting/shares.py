"""Figure of Shapley values: each block's share of a measure, beside the effect of deleting it alone.

Draws the Dataset of `BlockShapley`.
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from resnet_paths_plugin.plotting import block_axis, effects, style
from resnet_paths_plugin.plotting.figure import Figure, has
from resnet_paths_plugin.plotting.style import FloatArray
from resnet_paths_plugin.plotting.wording import NAMED, listed, number, spoken
from resnet_paths_plugin.results.derived import refreshed

WIDTH = 0.62
_ALONE: dict[str, Any] = {
    "linestyle": "none",
    "marker": "D",
    "markersize": 5,
    "markerfacecolor": "white",
    "markeredgecolor": style.VERMILLION,
    "markeredgewidth": 1.3,
}


class Shares(Figure):
    """What each block adds to a measure, on average over the orders in which blocks come in."""

    name = "shapley"
    title = "Shapley values of blocks"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it holds Shapley values."""
        return has(ds, "shapley_value", "block") and "block" in ds.coords

    def draw(self, ds: xr.Dataset, **options: Any) -> Axes:
        """Draw `plot_shapley_values`."""
        return plot_shapley_values(ds, **options)

    def sentence(self, ds: xr.Dataset) -> str:
        """Return what the shares add up to, which are the largest, and what single deletions say."""
        return describe_shapley_values(ds)


def plot_shapley_values(ds: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the Shapley value of each block as a bar, beside the effect of deleting the block alone.

    Both are drawn so that positive means that the block helps: of a loss, how much the block takes away. Where it is
    not known which way a measure is better, shares are drawn as they are. Whiskers are 95 % intervals, where values are
    estimates.

    Args:
        ds: result of `BlockShapley`.
        ax: where to draw; by default in a figure of its own.

    Returns:
        The Axes.

    Raises:
        InputError: if the dataset lacks what is drawn.

    Examples:
        >>> shares = rpp.BlockShapley(net).attribute(images, labels, value="loss")
        >>> ax = rpp.plotting.plot_shapley_values(shares)
    """
    ds = refreshed(ds)
    share = _help(ds, "plot_shapley_values")
    ax = style.own_axes(7.2, 3.8) if ax is None else ax
    position = np.arange(len(share))
    block_axis.shade_stages(ax, position, block_axis.stages(ds))
    ax.bar(position, share, WIDTH, color=style.SKY, edgecolor=style.BLUE, linewidth=0.8, label="Shapley value")
    reach = _reach(ds)
    if reach is not None:
        look: dict[str, Any] = {"linestyle": "none", "color": style.BLACK, "linewidth": 1, "capsize": 2.5}
        ax.errorbar(position, share, reach, label="its 95 % interval", **look)
    if "single_effect" in ds:
        ax.plot(position, ds["single_effect"].values, label="deleted alone", zorder=3, **_ALONE)
    ax.axhline(0, color=style.BLACK, linewidth=0.8)
    ax.set_ylabel(_label(ds))
    style.leave_room(ax, 0.08)
    style.legend_above(ax)
    block_axis.fit(ax, block_axis.stages(ds))
    block_axis.name_blocks(ax, position, [str(name) for name in ds["block"].values], str(_player(ds)))
    return ax


def describe_shapley_values(ds: xr.Dataset) -> str:
    """Shapley values: their sum, the largest ones, and how single deletions rank the blocks."""
    share = _help(ds, "the report")
    measure = spoken(_measure(ds))
    names = [str(name) for name in ds["block"].values]
    blocks = f"{len(share)} {_player(ds)}s"
    told = f"The shares of {blocks} in {_what(ds)} add up to {number(share.sum())}"
    most = [f"{names[place]} ({number(share[place])})" for place in effects.worst(share, NAMED)]
    if most:
        told += f"; the largest {'is that' if len(most) == 1 else 'are those'} of {listed(most)}"
    if (share < 0).any():
        count = int((share < 0).sum())
        told += f"; {count} {'is' if count == 1 else 'are'} negative"
        if _is_directed(ds):
            told += f": without {'it' if count == 1 else 'them'} the {measure} would be better on average"
    if "single_effect" in ds:
        alone = ds["single_effect"].values
        told += f". The effects of deleting each {_player(ds)} alone add up to {number(alone.sum())}"
    return told + "."


def _measure(ds: xr.Dataset) -> str:
    return style.plain(ds["shapley_value"].attrs.get("measure", "measure"))


def _what(ds: xr.Dataset) -> str:
    """Return what is shared out: of a measure of which less is better, its fall."""
    return f"the {'fall of the ' if _lowers(ds) else ''}{spoken(_measure(ds))}"


def _is_directed(ds: xr.Dataset) -> bool:
    """Whether it is known which way the measure is better."""
    return "higher_is_better" in ds["shapley_value"].attrs


def _player(ds: xr.Dataset) -> str:
    return "group" if ds.attrs.get("argument_level") == "group" else "block"


def _lowers(ds: xr.Dataset) -> bool:
    return int(ds["shapley_value"].attrs.get("higher_is_better", 1)) == 0


def _help(ds: xr.Dataset, figure: str) -> FloatArray:
    """Return what is drawn of each block: of a measure of which less is better, the negative of its value."""
    share = style.variable(ds, "shapley_value", figure).values.astype(np.float64)
    return -share if _lowers(ds) else share


def _reach(ds: xr.Dataset) -> FloatArray | None:
    """Return half the width of each 95 % interval; None where values are exact or their errors are not known."""
    if "shapley_stderr" not in ds or "n_orders" not in ds:
        return None
    from scipy import stats  # noqa: PLC0415 - it takes a while

    reach: FloatArray = stats.t.ppf(0.975, int(ds["n_orders"]) // 2 - 1) * ds["shapley_stderr"].values
    return reach


def _label(ds: xr.Dataset) -> str:
    unit = str(ds["shapley_value"].attrs.get("units", "1"))
    change = ("fall" if _lowers(ds) else "gain") if _is_directed(ds) else "change"
    what = f"{change} of {_measure(ds).replace('_', ' ')} by the {_player(ds)}"
    return style.wrapped(what if unit in {"", "1"} else f"{what} ({unit})")
