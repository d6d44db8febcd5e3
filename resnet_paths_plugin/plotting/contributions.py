"""Figure of contributions: what each block adds to the objective directly, and through later blocks.

Draws the Dataset of `BlockContribution`.
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from resnet_paths_plugin.plotting import block_axis, effects, style
from resnet_paths_plugin.plotting.figure import Figure, has
from resnet_paths_plugin.plotting.intervals import LEVEL, N_RESAMPLES
from resnet_paths_plugin.plotting.length_map import counted, means
from resnet_paths_plugin.plotting.wording import NAMED, listed, number
from resnet_paths_plugin.results.derived import refreshed
from resnet_paths_plugin.statistics.summary import summary

WIDTH = 0.4
_LOOKS: dict[str, dict[str, Any]] = {
    "direct": {"color": style.BLUE, "edgecolor": style.BLUE},
    "indirect": {"color": "white", "edgecolor": style.VERMILLION, "hatch": "////"},
}


class Contributions(Figure):
    """What each block adds to the objective, directly and through later blocks."""

    name = "contributions"
    title = "Direct and indirect contributions of blocks"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it holds direct and indirect contributions."""
        return has(ds, "direct", "block", "sample") and has(ds, "indirect", "block", "sample")

    def draw(self, ds: xr.Dataset, **options: Any) -> Axes:
        """Draw `plot_contributions`."""
        return plot_contributions(ds, **options)

    def sentence(self, ds: xr.Dataset) -> str:
        """Return the largest direct parts, and what all parts add up to."""
        return describe_contributions(ds)


def plot_contributions(ds: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the direct and the indirect contribution of each block, means over samples with 95 % intervals.

    Args:
        ds: result of `BlockContribution`.
        ax: where to draw; by default in a figure of its own.

    Returns:
        The Axes.

    Raises:
        InputError: if the dataset lacks what is drawn.

    Examples:
        >>> found = rpp.BlockContribution(net).attribute(images, target=labels)
        >>> ax = rpp.plotting.plot_contributions(found)
    """
    ds = refreshed(ds)
    for name in _LOOKS:
        style.variable(ds, name, "plot_contributions")
    ax = style.own_axes(7.2, 3.8) if ax is None else ax
    position = np.arange(ds.sizes["block"])
    block_axis.shade_stages(ax, position, block_axis.stages(ds))
    whiskers: dict[str, Any] = {"linestyle": "none", "color": style.BLACK, "linewidth": 0.9, "capsize": 1.5}
    found = _intervals(ds)
    for side, (name, look) in zip((-0.5, 0.5), _LOOKS.items(), strict=True):
        place, value = position + side * WIDTH, means(ds[name])
        ax.bar(place, value, WIDTH, linewidth=0.8, label=name, **look)
        if found is not None:
            low, high = (found[f"{name}_{end}"].values for end in ("low", "high"))
            ax.errorbar(place, value, np.clip([value - low, high - value], 0, None), **whiskers)
    ax.axhline(0, color=style.BLACK, linewidth=0.8)
    ax.set_ylabel(style.wrapped(f"contribution to the objective ({_objective(ds)})"))
    style.leave_room(ax, 0.08)
    style.legend_above(ax)
    block_axis.fit(ax, block_axis.stages(ds))
    block_axis.name_blocks(ax, position, [str(name) for name in ds["block"].values], "block", counted(ds))
    return ax


def describe_contributions(ds: xr.Dataset) -> str:
    """Contributions: the largest direct parts with their intervals, and how they share the objective."""
    ds = refreshed(ds)
    direct, names = means(ds["direct"]), [str(name) for name in ds["block"].values]
    found = _intervals(ds)

    def one(at: int) -> str:
        if found is None:
            return f"{names[at]} ({number(direct[at])})"
        low, high = (float(found[f"direct_{end}"][at]) for end in ("low", "high"))
        return f"{names[at]} ({number(direct[at])}, 95 % interval {number(low)} to {number(high)})"

    most = [one(at) for at in effects.worst(np.abs(direct), NAMED)]
    if not most:
        return f"No block contributes to the objective ({_objective(ds)}) directly{counted(ds)}."
    told = f"The largest direct contributions to the objective ({_objective(ds)}) are those of {listed(most)}"
    told += f", means over {counted(ds).strip(' ()') or 'no samples'}"
    if "stem" in ds and "remainder" in ds and np.isfinite(direct).all():
        parts = [float(means(ds[name])) for name in ("stem", "remainder")]
        total = parts[0] + parts[1] + float(direct.sum())
        told += (
            f". Of {number(total)} the blocks give {number(direct.sum())} directly and the stem {number(parts[0])}; "
            f"{number(parts[1])} remain, such as biases and what is not linear"
        )
    return told + "."


def _intervals(ds: xr.Dataset) -> xr.Dataset | None:
    """Return the intervals of the means over samples; None where there are too few samples."""
    if ds.sizes["sample"] < 2:
        return None
    return summary(ds[[*_LOOKS]], level=LEVEL, n_resamples=N_RESAMPLES)


def _objective(ds: xr.Dataset) -> str:
    return style.plain(str(ds.attrs.get("argument_objective", "score")).strip("'").replace("_", " "))
