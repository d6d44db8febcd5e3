"""Figures of schedules, family by family: ranges skipped, branches scaled, blocks swapped, repeated, reversed.

Draws the Dataset of `BlockSchedules`, whichever measure of the effect it holds.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting import block_axis, labels, style
from resnet_paths_plugin.plotting.effects import (
    Effect,
    default_measure,
    effect_of,
    finish,
    mark_levels,
    measures,
    worst,
)
from resnet_paths_plugin.plotting.figure import Drawing, Figure, FigureStudy, has
from resnet_paths_plugin.plotting.intervals import intervals_of
from resnet_paths_plugin.plotting.wording import (
    NAMED,
    SMALL_RISE,
    amount,
    extremes,
    intact,
    listed,
    measure_name,
    study_effect,
)
from resnet_paths_plugin.results.derived import refreshed

RANGES = "skipped_ranges"
SCALES = "scaled_branches"
COLOUR_MAP = "cividis_r"
LONGEST_NAME = 44
STAGE_BAND = 0.08
"""Share of the Axes' height, at its top, where the stages' numbers stand."""

TITLES = {
    "adjacent_swaps": "neighbours trade places",
    "reversed_ranges": "ranges of blocks run in reverse",
    "repeated_blocks": "the middle block of a range runs at all its places",
    "parallel_ranges": "ranges of blocks run side by side",
    SCALES: "branches scaled",
    RANGES: "ranges of blocks skipped",
}
"""What the families built in do."""


class Schedules(Figure):
    """What each family of schedules does, one picture for each."""

    name = "schedules"
    title = "Schedules"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it is a study of schedules."""
        return (
            has(ds, "family", "schedule") and has(ds, "changed", "schedule", "block") and bool(measures(ds, "schedule"))
        )

    def draw(self, ds: xr.Dataset, **options: Any) -> Axes:
        """Draw `plot_schedules`."""
        return plot_schedules(ds, **options)

    def variants(self, ds: xr.Dataset) -> Mapping[str, Mapping[str, Any]]:
        """Return the families."""
        return {family: {"family": family} for family in families(ds)}

    def drawings(self, study: FigureStudy) -> Iterator[Drawing]:
        """Yield a picture for each family."""
        ds = study.dataset
        options: dict[str, Any] = {"measure": default_measure(ds, "schedule"), "chance": study.chance("schedule")}
        for family in families(ds):
            yield Drawing(
                title=f"Schedules: {TITLES.get(family, family)}",
                sentence=describe_schedules(ds, family),
                draw=partial(plot_schedules, ds, family=family, **options),
                ending=family,
            )


def families(ds: xr.Dataset, figure: str = "plot_schedules") -> list[str]:
    """The families of a dataset's schedules, in its order.

    Raises:
        InputError: if the dataset does not hold them.
    """
    return list(dict.fromkeys(str(name) for name in style.variable(ds, "family", figure).values))


def plot_schedules(
    ds: xr.Dataset,
    ax: Axes | None = None,
    *,
    family: str | None = None,
    measure: str | None = None,
    chance: float | None = None,
) -> Axes:
    """Draw what one family of schedules does.

    `skipped_ranges`: a map, first block skipped across, last one up. `scaled_branches`: a curve over the weight of the
    branches. Any other: each schedule as a bar from the first to the last block that it changes, at the height of its
    effect; the worst three are named.

    Args:
        ds: result of `BlockSchedules`.
        ax: where to draw; by default in a figure of its own.
        family: which family; may be left out if the dataset has one only.
        measure: variable with dimension `schedule` to draw; by default `error`, else the share of
            `prediction_changed`, else the first of the user's own by name.
        chance: what guessing would give, in the measure's unit (errors are fractions).

    Returns:
        The Axes; the map's colour bar is beside it.

    Raises:
        InputError: if the dataset lacks what is drawn, or has several families and none is named.

    Examples:
        >>> study = rpp.BlockSchedules(net).attribute(images, target=labels, schedules=rpp.schedules.scaled_branches)
        >>> ax = rpp.plotting.plot_schedules(study)
    """
    ds = refreshed(ds)
    known = families(ds)
    if family is None and len(known) != 1:
        raise InputError(f"this dataset has {len(known)} families of schedules: pass family= one of {', '.join(known)}")
    name = family or known[0]
    if name not in known:
        raise InputError(f"this dataset has no schedules of the family '{name}'; it has {', '.join(known)}")
    (chosen,) = np.nonzero(ds["family"].values == name)
    effect = effect_of(ds, "schedule", measure, "plot_schedules")
    changed = style.variable(ds, "changed", "plot_schedules").transpose("schedule", "block").values[chosen]
    values = effect.values[chosen]
    if name == SCALES:
        return _draw_scales(ax, scales(ds, chosen), effect, values, chance)
    if not changed.any():
        raise InputError(f"no schedule of the family '{name}' changes any block: there is nothing to draw")
    # What changes nothing has no place among the blocks.
    there = changed.any(axis=1)
    chosen, values, changed = chosen[there], values[there], changed[there]
    if name == RANGES:
        return _draw_ranges(ax, ds, effect, values, changed, chance)
    return _draw_changes(ax, ds, chosen, effect, values, changed, chance)


def scales(ds: xr.Dataset, chosen: NDArray[np.intp]) -> NDArray[np.float64]:
    """The weight of the branches that each of some schedules scales, shape `[chosen]`: 1 where it changes nothing.

    Raises:
        InputError: if the dataset has no list of weights.
    """
    owner, weight = (style.variable(ds, f"entry_{part}", "plot_schedules").values for part in ("schedule", "weight"))
    changed = ds["changed"].transpose("schedule", "block").values
    # Weights of 0 are not listed, nor are sums that stay as they are.
    return np.array(
        [
            weight[owner == index].mean() if (owner == index).any() else float(not changed[index].any())
            for index in chosen
        ]
    )


def ends(changed: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The first and the last block that each schedule changes, shape `[schedules]`."""
    return changed.argmax(axis=1), changed.shape[1] - 1 - changed[:, ::-1].argmax(axis=1)


def describe_schedules(ds: xr.Dataset, family: str) -> str:
    """One family of schedules: its effect, and what is particular to ranges skipped and branches scaled."""
    (chosen,) = np.nonzero(ds["family"].values == family)
    effect = study_effect(ds, "schedule")
    values = effect.values[chosen]
    sentence = f"The {measure_name(ds, effect)} is {intact(ds, effect)}"
    if family == "scaled_branches" and "entry_weight" in ds:
        weights = scales(ds, chosen)
        order = np.argsort(weights, kind="stable")
        ends = [f"{amount(effect, values[place])} at weight {weights[place]:g}" for place in order[[0, -1]]]
        return f"{sentence}{listed(ends) if len(order) > 1 else ends[0]} of the scaled branches."
    if len(values) == 1:
        return f"{sentence}{amount(effect, values[0])} in the one schedule, {ds['schedule'].values[chosen[0]]}."
    names = [
        f"{name} ({amount(effect, value)})" for name, value in zip(ds["schedule"].values[chosen], values, strict=True)
    ]
    sentence += f"{amount(effect, np.nanmedian(values))} in the median of {len(values)} schedules"
    if np.ptp(values) > 0:
        sentence += f"; {extremes(effect, values, names, 'in')}"
    if family == "skipped_ranges" and effect.is_fraction and effect.intact is not None:
        counts = ds["changed"].transpose("schedule", "block").values[chosen].sum(axis=1)
        found = intervals_of(ds, effect.name, "schedule")
        rises, shown = values - effect.intact, " as measured"
        if found is not None and found.is_score and found.effect_high is not None:
            rises, shown = found.effect_high[chosen], f" (95 % intervals over {found.counted})"
        harmless = np.flatnonzero(rises < SMALL_RISE)
        if len(harmless):
            longest = harmless[counts[harmless].argmax()]
            sentence += (
                f"; the longest range that raises it by less than one percentage point{shown} has {counts[longest]} "
                f"{'block' if counts[longest] == 1 else 'blocks'} ({ds['schedule'].values[chosen[longest]]})"
            )
        else:
            sentence += f"; of no range it is shown that it raises it by less than one percentage point{shown}"
    return sentence + "."


def _draw_ranges(
    ax: Axes | None,
    ds: xr.Dataset,
    effect: Effect,
    values: NDArray[np.float64],
    changed: NDArray[np.bool_],
    chance: float | None,
) -> Axes:
    n = changed.shape[1]
    first, last = ends(changed)
    table = np.full((n, n), np.nan)
    table[last, first] = values
    ax = style.own_axes(6.2, 4.9) if ax is None else ax
    low = effect.intact if effect.intact is not None else np.nanmin(values)
    high = max(np.nanmax(values), low if chance is None else chance)
    picture = ax.imshow(
        table, cmap=COLOUR_MAP, vmin=min(low, np.nanmin(values)), vmax=high, origin="lower", interpolation="nearest"
    )
    bar = ax.get_figure().colorbar(picture, ax=ax, pad=0.02)  # type: ignore[union-attr]
    bar.set_label(effect.label)
    if effect.is_fraction:
        bar.ax.yaxis.set_major_formatter(FuncFormatter(style.as_percent))
    levels = [("intact", effect.intact, "--"), ("chance", chance, ":")]
    for name, level, line in levels:
        if level is not None:
            bar.ax.axhline(level, color=style.BLACK if name == "chance" else style.VERMILLION, linestyle=line)
            bar.ax.annotate(
                name,
                (0, level),
                xytext=(-3, 0),
                textcoords="offset points",
                xycoords=("axes fraction", "data"),
                ha="right",
                va="center",
                fontsize=style.legend_size(),
            )
    stage = block_axis.stages(ds)
    for border in np.flatnonzero(np.diff(stage) != 0) + 0.5 if not np.isnan(stage).any() else ():
        look: dict[str, Any] = {"color": style.GREY, "linewidth": 0.7, "linestyle": ":"}
        ax.plot([border, border], [border, n - 0.5], **look)
        ax.plot([-0.5, border], [border, border], **look)
    style.integer_axis(ax)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.set_xlim(-0.5, n - 0.5)
    ax.set_ylim(-0.5, n - 0.5)
    ax.set_xlabel("index of the first block skipped")
    ax.set_ylabel("index of the last block skipped")
    return ax


def _draw_scales(
    ax: Axes | None,
    weight: NDArray[np.float64],
    effect: Effect,
    values: NDArray[np.float64],
    chance: float | None,
) -> Axes:
    order = np.argsort(weight, kind="stable")
    ax = style.own_axes(5.8, 3.6) if ax is None else ax
    ax.plot(weight[order], values[order], color=style.BLUE, marker="o", markersize=4, label=TITLES[SCALES])
    mark_levels(ax, effect, chance)
    ax.axvline(1, color=style.GREY, linewidth=0.8, linestyle=(0, (1, 3)))
    finish(ax, effect)
    style.leave_room(ax, 0.03)
    ax.set_xlabel("weight of the scaled branches (1: intact, 0: deleted)")
    return ax


def _draw_changes(
    ax: Axes | None,
    ds: xr.Dataset,
    chosen: NDArray[np.intp],
    effect: Effect,
    values: NDArray[np.float64],
    changed: NDArray[np.bool_],
    chance: float | None,
) -> Axes:
    n = changed.shape[1]
    first, last = ends(changed)
    ax = style.own_axes(7.2, 3.8) if ax is None else ax
    block_axis.shade_stages(ax, np.arange(n), block_axis.stages(ds))
    name = str(ds["family"].values[chosen[0]])
    label = f"one schedule: {TITLES.get(name, style.plain(name))}"
    look: dict[str, Any] = {"linestyle": "none", "color": style.BLUE, "markersize": 5}
    if (last > first).any():
        bars = [((a, value), (b, value)) for a, b, value in zip(first, last, values, strict=True)]
        ax.add_collection(LineCollection(bars, colors=style.BLUE, linewidths=1.6, alpha=0.7, label=label))
        ax.plot(first, values, marker="|", **look)
        ax.plot(last, values, marker="|", **look)
    else:
        ax.plot(first, values, marker="o", label=label, **look)
    mark_levels(ax, effect, chance)
    finish(ax, effect)
    block_axis.fit(ax, block_axis.stages(ds))
    style.leave_room(ax, 0.16)
    block_axis.name_blocks(ax, np.arange(n), [str(one) for one in ds["block"].values], "changed block")
    middle = np.stack([(first + last) / 2, values], axis=1)
    levels = [level for level in (effect.intact, chance) if level is not None]
    covered = [(place, level) for level in levels for place in np.linspace(-0.5, n - 0.5, 2 * n + 1)]
    covered += [(place, value) for a, b, value in zip(first, last, values, strict=True) for place in range(a, b + 1)]
    names = {place: str(ds["schedule"].values[chosen[place]]) for place in worst(values, NAMED)}
    labels.place(ax, middle, names, np.array(covered), taken_top=STAGE_BAND, longest=LONGEST_NAME)
    return ax
