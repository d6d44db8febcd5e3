"""Figures of lesions: what deleting blocks does to the network's answers (Figs. 3, 5a and 8).

Draws the Dataset of `BlockLesion`, or of a comparison of trainings, whichever measure of the damage it holds.
"""

from collections.abc import Sized
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from resnet_paths_plugin.plotting import block_axis, style
from resnet_paths_plugin.plotting.damage import Damage, damage, finish, mark_levels

LINE: dict[str, Any] = {"linewidth": 1}
ONE_DELETED = {**LINE, "color": style.BLUE, "marker": "o"}
PLAIN = {**LINE, "color": style.ORANGE, "marker": "D", "linestyle": "-.", "markersize": 4}
PROJECTION: dict[str, Any] = {"linestyle": "none", "marker": "s", "markersize": 8, "color": style.VERMILLION}
TRAININGS: tuple[dict[str, Any], ...] = (
    {**LINE, "color": style.BLUE, "marker": "o", "linestyle": "-"},
    {**LINE, "color": style.VERMILLION, "marker": "s", "linestyle": "--"},
    {**LINE, "color": style.GREEN, "marker": "^", "linestyle": ":"},
    {**LINE, "color": style.ORANGE, "marker": "D", "linestyle": "-."},
)


def plot_single_lesions(
    ds: xr.Dataset,
    ax: Axes | None = None,
    *,
    measure: str | None = None,
    chance: float | None = None,
    plain: xr.Dataset | None = None,
) -> Axes:
    """Draw what deleting each single block does, against the block's place in the network (Fig. 3).

    Blocks whose skip is a projection are marked, stages are shaded in turn. Where every lesion deletes one
    whole group (`level="group"`), groups are drawn instead of blocks; no other lesion of several blocks is.

    Args:
        ds: result of `BlockLesion`, with lesions of one block each.
        ax: where to draw; by default in a figure of its own.
        measure: variable with dimension `lesion` to draw; by default `error`, else the share of
            `prediction_changed`, else the first of the user's own by name.
        chance: what guessing would give, in the measure's unit (errors are fractions).
        plain: result of `BlockLesion` on the layers of a network without skips, for comparison: drawn in the same
            Axes, its layers spread evenly over the axis.

    Returns:
        The Axes.

    Raises:
        InputError: if the dataset, or that of the plain network, lacks what is drawn.
    """
    effect = damage(ds, "lesion", measure, "plot_single_lesions")
    lesions = block_axis.single_lesions(ds, "plot_single_lesions")
    values = effect.values[lesions.chosen]
    plain_effect = None if plain is None else damage(plain, "lesion", effect.name, "plot_single_lesions(plain=)")
    plain_lesions = None if plain is None else block_axis.single_lesions(plain, "plot_single_lesions(plain=)")
    ax = style.own_axes(7.2, 3.6) if ax is None else ax

    block_axis.shade_stages(ax, lesions.position, lesions.stage)
    ax.plot(lesions.position, values, label=f"one {lesions.unit} deleted", **_sized(ONE_DELETED, values))
    if lesions.projection.any():
        place, height = lesions.position[lesions.projection], values[lesions.projection]
        ax.plot(place, height, label="with a projection skip", **PROJECTION)
    mark_levels(ax, effect, chance)
    if plain_effect is not None and plain_lesions is not None:
        _draw_plain(ax, plain_effect, plain_lesions, lesions.n_places)
    finish(ax, effect)
    block_axis.fit(ax, lesions.stage)
    style.leave_room(ax, 0.08)
    block_axis.name_blocks(ax, lesions.position, lesions.names, f"deleted {lesions.unit}")
    return ax


def plot_random_lesions(
    ds: xr.Dataset, ax: Axes | None = None, *, measure: str | None = None, chance: float | None = None
) -> Axes:
    """Draw what deleting random sets of blocks does, against their number (Fig. 5a).

    Boxes show the quartiles and the median over the draws, whiskers all draws; the line joins the means.

    Args:
        ds: result of `BlockLesion`, with `n_deleted`.
        ax: where to draw; by default in a figure of its own.
        measure: variable with dimension `lesion` to draw; by default `error`, else the share of
            `prediction_changed`, else the first of the user's own by name.
        chance: what guessing would give, in the measure's unit (errors are fractions).

    Returns:
        The Axes.

    Raises:
        InputError: if the dataset lacks what is drawn.
    """
    effect = damage(ds, "lesion", measure, "plot_random_lesions")
    deletions = style.variable(ds, "n_deleted", "plot_random_lesions").values
    numbers = np.unique(deletions)
    draws = [effect.values[deletions == number] for number in numbers]
    ax = style.own_axes(7.2, 3.8) if ax is None else ax

    if max(map(len, draws)) > 1:
        boxes = ax.boxplot(
            draws,
            positions=numbers,
            widths=0.6 * _spacing(numbers),
            whis=(0, 100),
            showfliers=False,
            manage_ticks=False,
            patch_artist=True,
            boxprops={"facecolor": style.SKY, "linewidth": 0.8, "alpha": 0.6},
            medianprops={"color": style.BLACK},
            whiskerprops={"linewidth": 0.8},
            capprops={"linewidth": 0.8},
        )["boxes"]
        boxes[0].set_label("quartiles, range")
    means = [draw.mean() for draw in draws]
    ax.plot(
        numbers,
        means,
        color=style.BLUE,
        marker="o",
        markersize=4,
        label="mean over draws" if max(map(len, draws)) > 1 else "one draw",
    )
    mark_levels(ax, effect, chance)
    finish(ax, effect)
    style.integer_axis(ax)
    style.leave_room(ax, 0.03)
    ax.set_xlabel("number of deleted blocks")
    return ax


def plot_training_lesions(
    ds: xr.Dataset, ax: Axes | None = None, *, measure: str | None = None, chance: float | None = None
) -> Axes:
    """Draw what deleting each single block does to networks that were trained in different ways (Fig. 8).

    One line for each training, the mean over seeds; a band shows the range over seeds. The horizontal line of the
    same colour is the intact network's.

    Args:
        ds: comparison with the dimensions `training`, `lesion` and, if there are several, `seed`: `error`
            (training, seed, lesion), `intact_error` (training, seed), `deleted` (lesion, block).
        ax: where to draw; by default in a figure of its own.
        measure: variable with the dimensions `training` and `lesion` to draw; by default `error`.
        chance: what guessing would give, in the measure's unit (errors are fractions).

    Returns:
        The Axes.

    Raises:
        InputError: if the dataset lacks what is drawn.
    """
    names = style.variable(ds, "training", "plot_training_lesions").values.tolist()
    ds = _with_deleted(ds)
    effect = damage(ds, "lesion", measure, "plot_training_lesions")
    lesions = block_axis.single_lesions(ds, "plot_training_lesions")
    ax = style.own_axes(7.2, 3.8) if ax is None else ax

    block_axis.shade_stages(ax, lesions.position, lesions.stage)
    for index, name in enumerate(names):
        own = ds.isel(training=index)
        mean = damage(own, "lesion", effect.name, "plot_training_lesions")
        look = TRAININGS[index % len(TRAININGS)]
        seeds = own.sizes.get("seed", 1)
        told = f"training: {style.shortened(style.plain(name), 40)}" + (
            f" (mean, range of {seeds} seeds)" if seeds > 1 else ""
        )
        if seeds > 1:
            every = own[effect.name].transpose("lesion", "seed", ...).values[lesions.chosen]
            every = every.reshape(len(every), seeds, -1).mean(axis=-1)
            low, high = every.min(axis=1), every.max(axis=1)
            ax.fill_between(lesions.position, low, high, color=look["color"], alpha=0.18, linewidth=0)
        ax.plot(lesions.position, mean.values[lesions.chosen], label=told, **_sized(look, lesions.names))
        if mean.intact is not None:
            level = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1}
            ax.axhline(mean.intact, alpha=0.7, zorder=1, **level)
    if lesions.projection.any():
        ring = {**PROJECTION, "markerfacecolor": "none", "color": style.BLACK, "markersize": 9}
        highest = damage(ds.max("training", keep_attrs=True), "lesion", effect.name, "").values[lesions.chosen]
        place = lesions.position[lesions.projection]
        ax.plot(place, highest[lesions.projection], label="with a projection skip", **ring)
    if effect.intact is not None:
        ax.plot([], [], color=style.GREY, linewidth=1, label="horizontal: intact networks")
    if chance is not None:
        ax.axhline(chance, color=style.GREY, linestyle=(0, (1, 3)), linewidth=1.2, label="chance")
    finish(ax, effect)
    block_axis.fit(ax, lesions.stage)
    style.leave_room(ax, 0.08)
    block_axis.name_blocks(ax, lesions.position, lesions.names, f"deleted {lesions.unit}")
    return ax


def _draw_plain(ax: Axes, effect: Damage, lesions: block_axis.SingleLesions, n_places: int) -> None:
    """Draw the lesions of a network without skips, its layers spread over the places of the other's blocks."""
    # A layer stands in the middle of its share of the axis, which begins half a place before the first block.
    position = (lesions.position + 0.5) / lesions.n_places * n_places - 0.5
    told = f"plain net, one of {lesions.n_places} {lesions.unit}s deleted (spread over the axis)"
    ax.plot(position, effect.values[lesions.chosen], label=told, **PLAIN)
    if effect.intact is not None:
        look = {"color": PLAIN["color"], "linewidth": 1.2, "linestyle": (0, (1, 1))}
        ax.axhline(effect.intact, label="plain net, intact", **look)


def _sized(look: dict[str, Any], points: Sized) -> dict[str, Any]:
    return {**look, "markersize": style.marker_size(len(points))}


def _with_deleted(ds: xr.Dataset) -> xr.Dataset:
    """The dataset with `deleted`, read from the labels of its lesions where it is not there: one block each."""
    if "deleted" in ds.variables or not {"lesion", "block"} <= set(ds.variables):
        return ds
    return ds.assign(deleted=(("lesion", "block"), ds["lesion"].values[:, None] == ds["block"].values))


def _spacing(numbers: NDArray[np.int_]) -> float:
    """The smallest distance between neighbours, so that boxes never overlap."""
    return float(np.diff(numbers).min()) if len(numbers) > 1 else 1.0
