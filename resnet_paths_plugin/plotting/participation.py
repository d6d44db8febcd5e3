"""Figure of participation: which blocks the paths of each length go through.

Draws the Dataset of `PathParticipation`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from resnet_paths_plugin.plotting import block_axis, effects, style
from resnet_paths_plugin.plotting.figure import Figure, has
from resnet_paths_plugin.plotting.length_map import counted, draw_length_map, means
from resnet_paths_plugin.plotting.wording import NAMED, listed, number
from resnet_paths_plugin.results.derived import refreshed

_PANELS = 2
NOTABLE = 1e-3
"""Share of what the largest length carries from which on a length is told of."""


class Participation(Figure):
    """Which blocks the paths of each length go through."""

    name = "participation"
    title = "Participation of blocks in the paths of each length"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it holds participation by block and length."""
        return has(ds, "participation", "block", "path_length", "sample")

    def draw(self, ds: xr.Dataset, **options: Any) -> NDArray[Any]:
        """Draw `plot_participation`."""
        return plot_participation(ds, **options)

    def sentence(self, ds: xr.Dataset) -> str:
        """Return which blocks carry most, and how exactly the parts add up."""
        return describe_participation(ds)


def plot_participation(ds: xr.Dataset, axes: Iterable[Axes] | None = None) -> NDArray[Any]:
    """Draw what goes through each block, by path length, and below it each block's sum over lengths of `P_i[k] / k`.

    A path of length `k` goes through `k` blocks: divided by it, the parts of all blocks add up to the gradient along
    the direction. Means over samples.

    Args:
        ds: result of `PathParticipation`.
        axes: two Axes, of the map and of the sums; by default those of a figure of its own.

    Returns:
        The Axes, shape `[2]`.

    Raises:
        InputError: if the dataset lacks what is drawn, or the number of Axes is another.

    Examples:
        >>> found = rpp.PathParticipation(net).attribute(images, target=labels)
        >>> by_length, sums = rpp.plotting.plot_participation(found)
    """
    ds = refreshed(ds)
    values = style.variable(ds, "participation", "plot_participation").transpose("block", "path_length", "sample")
    upper, lower = (style.own_grid(2, 1, 7.2, 6.4) if axes is None else style.grid_of(axes, _PANELS, 1)).ravel()
    draw_length_map(upper, ds, means(values), "part of the gradient along the direction", signed=True)
    upper.set_xticks([])
    position = np.arange(ds.sizes["block"])
    block_axis.shade_stages(lower, position, block_axis.stages(ds))
    lower.bar(position, _sums(ds), 0.62, color=style.SKY, edgecolor=style.BLUE, linewidth=0.8)
    lower.axhline(0, color=style.BLACK, linewidth=0.8)
    lower.set_ylabel(style.wrapped("sum over lengths of participation / length", 26))
    block_axis.fit(lower, block_axis.stages(ds))
    lower.set_xlim(upper.get_xlim())
    block_axis.name_blocks(lower, position, [str(name) for name in ds["block"].values], "block", counted(ds))
    return np.array([upper, lower], dtype=object)


def describe_participation(ds: xr.Dataset) -> str:
    """Participation: what the blocks carry together, which carry most, and the identity."""
    ds = refreshed(ds)
    sums = _sums(ds)
    names = [str(name) for name in ds["block"].values]
    whole = float(means(ds["directional_derivative"]).sum()) if "directional_derivative" in ds else float(sums.sum())
    most = [f"{names[at]} ({number(sums[at])})" for at in effects.worst(np.abs(sums), NAMED)]
    if not most:
        return f"Nothing goes through any block{counted(ds)}."
    told = (
        f"Along the direction the gradients of all lengths add up to {number(whole)} on average{counted(ds)}; shared "
        f"out among the blocks that each path goes through, the largest parts are those of {listed(most)}"
    )
    if "completeness_error" in ds:
        size = xr.DataArray(abs(ds["participation"])).sum("block")
        worst = float(ds["completeness_error"].where(size > NOTABLE * size.max("path_length"), 0.0).max())
        told += (
            f". For each length k that carries more than {NOTABLE:.1%} of the largest, the parts add up to k times its "
            f"gradient within {worst:.0e} of their size"
        )
    return told + "."


def _sums(ds: xr.Dataset) -> NDArray[np.float64]:
    """Return each block's participation over the length, summed over lengths, mean over samples."""
    values = ds["participation"].transpose("block", "path_length", "sample")
    length = values["path_length"].values.astype(np.float64)
    weight = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
    return means(values) @ weight
