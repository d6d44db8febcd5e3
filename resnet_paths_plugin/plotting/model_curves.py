"""Curves of models in one Axes: a colour, a marker, a line style and a legend entry for each, intervals as bands.

Knows no study: it draws any measure along `model` and an axis of `rpp.compare`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from resnet_paths_plugin.plotting import effects, style
from resnet_paths_plugin.plotting.style import FloatArray

_COLOURS = (style.BLUE, style.VERMILLION, style.GREEN, style.ORANGE, style.PURPLE, style.SKY, style.BLACK)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)))
"""The looks of the first models, in their order: also told apart in grey."""
_MODEL = "model "
"""Before the place of a model's look, and its name, in the `gid` of its line, by which a later call finds it."""
_LONGEST_NAME = 32
"""Characters of a name in the legend."""

FRACTIONS = frozenset({"error", "prediction_changed", "gradient_norm_share"})
"""Measures that are shown in percent, from zero up."""

DIFFERENCES = frozenset({"error_effect"})
"""Differences of such, which may be negative."""

LABELS = {
    "error_effect": "rise of the error",
    "normalised_effect": "normalised effect (1: guessing)",
    "gradient_norm_share": "share of the sum of gradient norms",
}


@dataclass(frozen=True)
class Curve:
    """What is drawn of one model, each array of shape `[points]`.

    Attributes:
        name: the model's name.
        label: its entry in the legend.
        x: where its points stand.
        value: the measure.
        low: lower end of its interval, NaN where there is none.
        high: upper end.
        intact: the intact network's value; NaN where it is not known.
    """

    name: str
    label: str
    x: FloatArray
    value: FloatArray
    low: FloatArray
    high: FloatArray
    intact: float


def curves_of(ds: xr.Dataset, name: str, places: xr.DataArray) -> list[Curve]:
    """Return what is drawn of each model that has the measure."""
    found = []
    for index, model in enumerate(ds["model"].values.tolist()):
        own = ds.isel(model=index)
        x = (places.isel(model=index) if "model" in places.dims else places).values
        value, low, high = (own[f"{name}{end}"].values for end in ("", "_low", "_high"))
        there = np.isfinite(value) & np.isfinite(x)
        if not there.any():
            continue
        trainings = int(own["n_replicates"]) if "n_replicates" in own else 1
        label = style.shortened(style.plain(model), _LONGEST_NAME)
        found.append(
            Curve(
                name=str(model),
                label=label if trainings == 1 else f"{label} ({trainings} trainings)",
                x=x[there],
                value=value[there],
                low=low[there],
                high=high[there],
                intact=float(own.get(f"intact_{name}", np.nan)),
            )
        )
    return found


def draw(ax: Axes, ds: xr.Dataset, name: str, curves: Sequence[Curve]) -> None:
    """Draw the curves, the levels to compare them with, and the legend."""
    drawn = _places_of_models(ax)
    taken = dict(drawn)
    for model in map(str, ds["model"].values):
        taken.setdefault(model, max(taken.values(), default=-1) + 1)
    for curve in curves:
        place = taken[curve.name]
        look = _look(place)
        colour = look["color"]
        label = "_again" if curve.name in drawn else curve.label
        gid = f"{_MODEL}{place}: {curve.name}"
        ax.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(curve.x, curve.value, label=label, gid=gid, linewidth=1.2, **style.sized(look, curve.x))
        if np.isfinite(curve.intact):
            ax.axhline(curve.intact, color=colour, linestyle=look["linestyle"], linewidth=0.8, alpha=0.7, zorder=1)
    _explain(ax, ds, name, curves)
    ax.set_ylabel(style.wrapped(_axis_label(ds[name])))
    if name in FRACTIONS:
        style.percent_axis(ax)
    elif name in DIFFERENCES:
        style.percent_ticks(ax)
    style.legend_above(ax)


def _look(place: int) -> dict[str, Any]:
    """Return the colour, marker and line style of the model in some place; the first 49 differ in one of them."""
    round_ = place // len(_COLOURS)  # in each round of colours, markers and lines go with others
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "marker": _MARKERS[(place + round_) % len(_MARKERS)],
        "linestyle": _LINES[(place + 2 * round_) % len(_LINES)],
    }


def _places_of_models(ax: Axes) -> dict[str, int]:
    """Return the models that are drawn in some Axes, with the places of their looks."""
    drawn = [str(line.get_gid()).removeprefix(_MODEL).partition(": ") for line in ax.get_lines() if _is_model(line)]
    return {name: int(place) for place, _, name in drawn}


def _is_model(line: Line2D) -> bool:
    return str(line.get_gid()).startswith(_MODEL)


def _explain(ax: Axes, ds: xr.Dataset, name: str, curves: Sequence[Curve]) -> None:
    """Add to the legend, once, what bands and horizontal lines are; draw the level of guessing."""
    told = set(ax.get_legend_handles_labels()[1])
    if any(np.isfinite(curve.intact) for curve in curves) and (text := "horizontal: intact network") not in told:
        ax.plot([], [], color=style.GREY, linewidth=0.8, label=text)
    level = ds.attrs.get("level")
    text = "band: interval" if level is None else f"band: {100 * level:g} % interval"
    if any(np.isfinite(curve.low).any() for curve in curves) and text not in told:
        ax.fill_between([], [], [], color=style.GREY, alpha=0.2, linewidth=0, label=text)
    chance = np.unique(ds["chance_error"].dropna("model")) if "chance_error" in ds and name == "error" else np.array([])
    if chance.size == 1:
        label = "chance" if "chance" not in told else "_again"
        ax.axhline(float(chance[0]), color=style.GREY, linestyle=(0, (1, 3)), linewidth=1.2, label=label)


def _axis_label(values: xr.DataArray) -> str:
    name = str(values.name)
    if name in LABELS:
        return LABELS[name] + (" (%)" if name in FRACTIONS | DIFFERENCES else "")
    return effects.label(values, is_fraction=name in FRACTIONS)
