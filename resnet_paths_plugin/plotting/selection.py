"""The figure of a selection: what the chosen sets of blocks do to the outputs, against what the network then costs.

Draws the Dataset of `BlockSelection`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from resnet_paths_plugin.plotting import labels, style
from resnet_paths_plugin.plotting.figure import Figure, has
from resnet_paths_plugin.plotting.intervals import LEVEL
from resnet_paths_plugin.plotting.style import FloatArray
from resnet_paths_plugin.plotting.wording import number, spoken
from resnet_paths_plugin.results.derived import refreshed

_LOOKS: Mapping[str, Mapping[str, Any]] = {
    "exhaustive": {"color": style.BLACK, "marker": "D", "markersize": 5},
    "greedy": {"color": style.BLUE, "marker": "o", "markersize": 6},
    "beam": {"color": style.GREEN, "marker": "^", "markersize": 6},
    "evolutionary": {"color": style.VERMILLION, "marker": "v", "markersize": 6},
    "influence": {"color": style.ORANGE, "marker": "s", "markersize": 5, "linestyle": "--"},
}
_OTHER: Mapping[str, Any] = {"color": style.GREY, "marker": "P", "markersize": 6}
_RANDOM: Mapping[str, Any] = {
    "linestyle": "none", "marker": "o", "markersize": 3.5, "color": "0.72", "markeredgewidth": 0, "zorder": 1,
}  # fmt: skip
_WIDE_SPREAD = 20
"""Largest over smallest size of an effect that is told apart, from which the axis is logarithmic away from 0."""


class Selection(Figure):
    """What chosen sets of blocks do to the outputs, against latency or multiply-adds."""

    name = "selection"
    title = "Which blocks to delete: effect against cost"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it is a selection."""
        return has(ds, "searched_effect", "selection") and has(ds, "multiply_adds", "selection") and "method" in ds

    def draw(self, ds: xr.Dataset, **options: Any) -> Axes:
        """Draw `plot_selection`."""
        return plot_selection(ds, **options)

    def sentence(self, ds: xr.Dataset) -> str:
        """Return what the largest set that was chosen does, and what it saves."""
        return describe_selection(ds)


@dataclass(frozen=True, slots=True)
class _Cost:
    """A cost of networks, as it is drawn.

    Attributes:
        name: the variable.
        factor: from its unit to the one that is drawn.
        label: what it is, with the unit that is drawn.
    """

    name: str
    factor: float
    label: str


def plot_selection(ds: xr.Dataset, ax: Axes | None = None, *, cost: str | None = None) -> Axes:
    """Draw the effect of the chosen sets of blocks against what the network costs without them.

    The effect is that on the samples held out, where there are such. A line joins the sets of a search, by their sizes,
    which stand beside the points of the first; bars are one standard error over samples. Random sets of the same sizes
    and the ranking by influence lie behind.

    Args:
        ds: result of `BlockSelection`.
        ax: where to draw; by default in a figure of its own.
        cost: `"latency"`, `"multiply_adds"` or `"parameters"`; by default the latency where it was measured.

    Returns:
        The Axes.

    Raises:
        InputError: if the dataset lacks what is drawn.

    Examples:
        >>> chosen = rpp.BlockSelection(net).attribute(images, target=labels, k=(1, 2, 3), latency=False)
        >>> ax = rpp.plotting.plot_selection(chosen, cost="multiply_adds")
    """
    ds = refreshed(ds)
    methods = style.variable(ds, "method", "plot_selection").values
    axis = _cost(ds, cost)
    effect = _effect(ds)
    style.variable(ds, axis.name, "plot_selection")
    ax = style.own_axes(6.4, 4.2) if ax is None else ax
    if f"random_{axis.name}" in ds:
        ax.plot(axis.factor * ds[f"random_{axis.name}"].values, ds[f"random_{effect}"].values, label="random sets",
                **_RANDOM)  # fmt: skip
    first: list[NDArray[np.intp]] = []
    for method in dict.fromkeys(methods.tolist()):
        places = np.flatnonzero(methods == method)
        places = places[np.argsort(ds["n_deleted"].values[places], kind="stable")]
        _draw_method(ax, ds.isel(selection=places), method, axis, effect)
        first.append(places)
    intact = axis.factor * float(ds[f"intact_{axis.name}"])
    ax.plot([intact], [0], label="intact network", linestyle="none", marker="*", markersize=11, color=style.BLACK)
    ax.axhline(0, color=style.GREY, linewidth=0.8, linestyle=":", zorder=0)
    _spread_out(ax, ds, effect)
    ax.set_xlabel(axis.label)
    ax.set_ylabel(_effect_label(ds, effect))
    ax.margins(x=0.08, y=0.1)
    style.legend_above(ax)
    _name_sizes(ax, ds, first[0], axis, effect)
    return ax


def describe_selection(ds: xr.Dataset) -> str:
    """What the largest set of the first search does on the samples held out, beside random sets, and what it saves."""
    ds = refreshed(ds)
    methods, sizes = ds["method"].values, ds["n_deleted"].values
    first = np.flatnonzero(methods == methods[0])
    place = int(first[np.argmax(sizes[first])])
    chosen, effect = ds.isel(selection=place), _effect(ds)
    size, n_blocks = int(chosen["n_deleted"]), ds.sizes["block"]
    is_held_out = effect == "held_out_effect"
    where = (
        f"On {int(ds['n_held_out_samples'])} samples held out"
        if is_held_out
        else f"On the {int(ds['n_searched_samples'])} samples that were searched on"
    )
    measure = spoken(str(ds.attrs.get("measure", "the measure")))
    harm = f"{number(float(chosen[effect]))} ({measure}{_interval(chosen) if is_held_out else ''})"
    told = [f"{where}, the {size} of {n_blocks} blocks that the {methods[0]} search deletes do harm of {harm}"]
    ranked = np.flatnonzero((methods == "influence") & (sizes == size))
    if len(ranked) and methods[0] != "influence":
        told.append(f"the ranking by influence {number(float(ds[effect].values[ranked[0]]))}")
    if "random_n_deleted" in ds:
        same = ds["random_n_deleted"].values == size
        if same.any():
            told.append(
                f"{same.sum()} random sets of that size {number(float(ds[f'random_{effect}'].values[same].mean()))} on "
                "average"
            )
    axis = _cost(ds, None)
    before, after = float(ds[f"intact_{axis.name}"]), float(chosen[axis.name])
    return (
        f"{', '.join(told)}. {spoken(axis.name).capitalize()}: {after / before:.0%} of the intact network's."
        f"{_left_out(ds)}"
    )


def _interval(chosen: xr.Dataset) -> str:
    """The 95 % interval of a set's effect over the samples held out, by Student's t."""
    from scipy import stats  # noqa: PLC0415 - it takes a while

    stderr, count = float(chosen["held_out_effect_stderr"]), int(chosen["n_held_out_samples"])
    if not np.isfinite(stderr) or count < 2:
        return ""
    effect, reach = float(chosen["held_out_effect"]), float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * stderr
    return f", 95 % interval {number(effect - reach)} to {number(effect + reach)}"


def _left_out(ds: xr.Dataset) -> str:
    """Return what to say of sets whose effect is no finite number; nothing where there are none."""
    if "step_left_out" not in ds or not ds["step_left_out"].any():
        return ""
    left_out = ds["step_left_out"].values
    count, whole = (len(np.unique(sets, axis=0)) for sets in (ds["step_deleted"].values[left_out], ds["step_deleted"]))
    return f" {count} of {whole} sets that were measured are left out, as their effect is NaN or infinite."


def _effect(ds: xr.Dataset) -> str:
    style.variable(ds, "searched_effect", "plot_selection")
    return "held_out_effect" if "held_out_effect" in ds else "searched_effect"


def _cost(ds: xr.Dataset, name: str | None) -> _Cost:
    name = name or ("latency" if "latency" in ds else "multiply_adds")
    style.variable(ds, f"intact_{name}", "plot_selection")
    if name == "latency":
        how = ds["latency"].attrs
        batch = f"batch of {how['batch_size']}, " if "batch_size" in how else ""
        return _Cost(name, 1e3, f"latency in ms ({batch}{how.get('device', 'device not known')})")
    largest = float(ds[f"intact_{name}"])
    exponent = int(min(3 * max(0, np.floor(np.log10(max(largest, 1)) / 3)), 9))
    unit = {0: "", 3: " in thousands", 6: " in millions", 9: " in billions"}[exponent]
    return _Cost(name, 10.0**-exponent, f"{'multiply-adds of a sample' if name == 'multiply_adds' else name}{unit}")


def _effect_label(ds: xr.Dataset, effect: str) -> str:
    measure = style.plain(spoken(str(ds.attrs.get("measure", "the measure"))))
    unit = str(ds[effect].attrs.get("units", "1"))
    where = "samples held out" if effect == "held_out_effect" else "samples searched"
    return style.wrapped(f"harm: {measure}{'' if unit in {'', '1'} else f' ({unit})'}, {where}")


def _draw_method(ax: Axes, ds: xr.Dataset, method: str, axis: _Cost, effect: str) -> None:
    look = {"linewidth": 1.2, **_LOOKS.get(method, _OTHER), "zorder": 2 if method == "influence" else 3}
    label = "ranking by influence" if method == "influence" else f"{style.plain(method)} search"
    values = ds[effect].values
    spread = ds[f"{effect}_stderr"].values if f"{effect}_stderr" in ds else None
    ax.errorbar(axis.factor * ds[axis.name].values, values, yerr=spread, label=label, elinewidth=0.8, **look)


def _spread_out(ax: Axes, ds: xr.Dataset, effect: str) -> None:
    """Scale the y axis so that the harm of random sets does not press that of chosen ones together."""
    random: FloatArray = ds[f"random_{effect}"].values if f"random_{effect}" in ds else np.zeros(0)
    sizes = np.abs(np.concatenate([ds[effect].values, random]))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    if len(sizes) and sizes.max() > _WIDE_SPREAD * np.quantile(sizes, 0.25):
        ax.set_yscale("symlog", linthresh=10.0 ** np.round(np.log10(np.quantile(sizes, 0.25))))


def _name_sizes(ax: Axes, ds: xr.Dataset, places: NDArray[np.intp], axis: _Cost, effect: str) -> None:
    """Write the number of deleted blocks beside the points of a search."""
    lines = [line for line in ax.get_lines() if isinstance(line, Line2D) and line.get_linestyle() != ":"]
    marks = np.concatenate([np.column_stack([line.get_xdata(), line.get_ydata()]) for line in lines]).astype(float)
    points = np.column_stack([axis.factor * ds[axis.name].values[places], ds[effect].values[places]])
    sizes = ds["n_deleted"].values[places].tolist()
    names = {place: f"{size} deleted" if not place else str(size) for place, size in enumerate(sizes)}
    labels.place(ax, points, names, obstacles=marks)
