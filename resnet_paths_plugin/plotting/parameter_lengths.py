"""Figure of gradients at parameters: along paths of which lengths each block is trained.

Draws the Dataset of `PathLengthGradient` with `tap="parameters"`.
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from resnet_paths_plugin.plotting import block_axis, style
from resnet_paths_plugin.plotting.figure import Figure, has
from resnet_paths_plugin.plotting.length_map import counted, draw_length_map
from resnet_paths_plugin.plotting.style import FloatArray
from resnet_paths_plugin.plotting.wording import number
from resnet_paths_plugin.results.derived import refreshed

_MEAN: dict[str, Any] = {
    "color": style.VERMILLION, "marker": "o", "markersize": 4, "linewidth": 1.2, "markerfacecolor": "white",
}  # fmt: skip


class ParameterLengths(Figure):
    """Along paths of which lengths the gradient reaches each block's parameters."""

    name = "parameter_lengths"
    title = "Paths that train each block, by length"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it holds norms of parameter gradients by block and length."""
        return has(ds, "parameter_gradient_norm", "block", "path_length")

    def draw(self, ds: xr.Dataset, **options: Any) -> Axes:
        """Draw `plot_parameter_lengths`."""
        return plot_parameter_lengths(ds, **options)

    def sentence(self, ds: xr.Dataset) -> str:
        """Return how the mean length changes with depth, and how exactly the lengths add up."""
        return describe_parameter_lengths(ds)


def plot_parameter_lengths(ds: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw each block's share of gradient norm by path length, and the mean length over it.

    A cell is the norm of the gradient of the block's parameters along all paths of the length, as a share of the sum of
    these norms. The line is the mean length, weighted by the shares of the block's whole gradient.

    Args:
        ds: result of `PathLengthGradient` with `tap="parameters"`.
        ax: where to draw; by default in a figure of its own.

    Returns:
        The Axes.

    Raises:
        InputError: if the dataset lacks what is drawn.

    Examples:
        >>> found = rpp.PathLengthGradient(net).attribute(images, target=labels, tap="parameters")
        >>> ax = rpp.plotting.plot_parameter_lengths(found)
    """
    ds = refreshed(ds)
    norms = style.variable(ds, "parameter_gradient_norm", "plot_parameter_lengths").transpose("block", "path_length")
    ax = style.own_axes(7.2, 4.2) if ax is None else ax
    draw_length_map(ax, ds, _shares(norms.values), "share of the block's sum of norms", signed=False)
    position = np.arange(ds.sizes["block"])
    if "mean_path_length" in ds:
        top, blocks = ax.get_ylim(), _are_blocks(ds)
        mean = ds["mean_path_length"].values
        ax.plot(position[blocks], mean[blocks], label="mean length, by shares of the gradient", **_MEAN)
        ax.plot(position[~blocks], mean[~blocks], **{**_MEAN, "linestyle": "none"})
        for at in np.nonzero(~blocks)[0].tolist():
            name = style.plain(style.shortened(str(ds["block"].values[at])))
            place: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "top", "fontsize": style.legend_size()}
            ax.text(at, 0.97, name, transform=ax.get_xaxis_transform(), color=style.GREY, **place)
        ax.set_ylim(top)
        style.legend_above(ax)
    block_axis.name_blocks(ax, position, [str(name) for name in ds["block"].values], "block", counted(ds))
    return ax


def describe_parameter_lengths(ds: xr.Dataset) -> str:
    """Gradients at parameters: the mean length by depth, and completeness."""
    told = []
    blocks = _are_blocks(ds)
    names = [str(name) for name in ds["block"].values[blocks]]
    if "mean_path_length" in ds and len(names) > 1:
        mean = ds["mean_path_length"].values[blocks]
        longest = int(np.nanargmax(mean)) if np.isfinite(mean).any() else 0
        told.append(
            f"The gradient{counted(ds)} of the parameters of {names[0]} flows along paths of length {number(mean[0])} "
            f"on average, that of {names[-1]} along {number(mean[-1])}; the longest mean is {number(mean[longest])}, "
            f"of {names[longest]}, in a network of {len(names)} blocks"
        )
    if "completeness_error" in ds:
        worst = float(ds["completeness_error"].max())
        told.append(f"All lengths add up to autograd's parameter gradients within {worst:.0e} of their norms")
    return ". ".join(told) + "." if told else ""


def _are_blocks(ds: xr.Dataset) -> NDArray[np.bool_]:
    """Whether each row is a block, and not a part of the trunk."""
    if "block_index" not in ds.coords:
        return np.ones(ds.sizes["block"], dtype=bool)
    return np.asarray(ds["block_index"].values >= 0)


def _shares(norms: FloatArray) -> FloatArray:
    total = norms.sum(axis=1, keepdims=True)
    shares: FloatArray = np.divide(norms, total, out=np.zeros_like(norms), where=total > 0)
    return shares
