"""Figures of the lesion study: what deleting blocks does to the network's answers (Figs. 3 and 5a).

Draws the Dataset of `BlockLesion`, whichever measure of the damage it holds.
"""

import textwrap
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting import style
from resnet_paths_plugin.plotting.style import FloatArray

LONGEST_TICK_NAME = 20
"""Characters; longer block names would take more room than the data."""

INCHES_PER_TICK_NAME = 0.17
"""What one upright tick label needs along the x axis."""

LABEL_WIDTH = 36
"""Characters of a y label before it is broken into lines."""


@dataclass(frozen=True)
class Damage:
    """One number for each change of the network, and how to read it.

    Attributes:
        values: mean over samples, shape `[changes]`.
        intact: the same for the intact network; None where it is not known or says nothing.
        label: what the number is, with its unit.
        is_fraction: whether it is a share of the samples.
    """

    values: FloatArray
    intact: float | None
    label: str
    is_fraction: bool


@dataclass(frozen=True)
class SingleLesions:
    """The lesions of one block (or one group) each, in execution order.

    Attributes:
        chosen: which of the dataset's lesions, shape `[m]`.
        position: where each is drawn, shape `[m]`.
        names: the block or group that each deletes.
        projection: whether each deletes a block whose skip is a projection, shape `[m]`.
        stage: stage of the network, shape `[m]`; NaN where it is not known.
        unit: "block" or "group".
    """

    chosen: NDArray[np.intp]
    position: NDArray[np.intp]
    names: list[str]
    projection: NDArray[np.bool_]
    stage: FloatArray
    unit: str


def damage(dataset: xr.Dataset, change: str, measure: str | None, figure: str) -> Damage:
    """What each change did: the named measure, else the error, else the share of changed predictions.

    Args:
        dataset: result of a study of changed networks.
        change: its study dimension, such as `"lesion"`.
        measure: a variable that has that dimension; it is averaged over all others.
        figure: name of the figure, for the error's text.

    Raises:
        InputError: if the measure is not there, or none is named and neither default is there.
    """
    measures = sorted(str(name) for name, values in dataset.data_vars.items() if _is_measure(values, change))
    defaults = [name for name in ("error", "prediction_changed") if name in measures]
    name = measure or next(iter(defaults), None)
    if name not in measures:
        missing = f"'{measure}'" if measure else "'error' nor 'prediction_changed'"
        raise InputError(
            f"{figure} finds no {missing} along '{change}' in this dataset; "
            f"pass measure= one of: {', '.join(measures) or '(it holds no measure at all)'}"
        )
    values = dataset[name]
    is_fraction = name == "error" or values.dtype == np.bool_
    intact = dataset.get(f"intact_{name}")
    return Damage(
        values=_mean(values, keep=change),
        intact=None if intact is None else float(_mean(intact)),
        label=_label(name, values, is_fraction=is_fraction),
        is_fraction=is_fraction,
    )


def plot_single_lesions(
    ds: xr.Dataset, ax: Axes | None = None, *, measure: str | None = None, chance: float | None = None
) -> Axes:
    """Draw what deleting each single block does, against the block's place in the network (Fig. 3).

    Blocks whose skip is a projection are marked, stages are shaded in turn. Where every lesion deletes one
    whole group (`level="group"`), groups are drawn instead of blocks; no other lesion of several blocks is.

    Args:
        ds: result of `BlockLesion`, with lesions of one block each.
        ax: where to draw; by default in a figure of its own.
        measure: variable with dimension `lesion` to draw; by default `error`, else the share of
            `prediction_changed`.
        chance: what guessing would give, in the measure's unit (errors are fractions).

    Returns:
        The Axes.

    Raises:
        InputError: if the dataset lacks what is drawn.
    """
    effect = damage(ds, "lesion", measure, "plot_single_lesions")
    lesions = _single_lesions(ds)
    values = effect.values[lesions.chosen]
    ax = style.own_axes(7.2, 3.6) if ax is None else ax

    _shade_stages(ax, lesions)
    line: dict[str, Any] = {"color": style.BLUE, "linewidth": 1, "marker": "o", "markersize": 4}
    ax.plot(lesions.position, values, label=f"one {lesions.unit} deleted", **line)
    if lesions.projection.any():
        mark: dict[str, Any] = {
            "linestyle": "none",
            "marker": "s",
            "markersize": 8,
            "color": style.VERMILLION,
        }
        place, height = lesions.position[lesions.projection], values[lesions.projection]
        ax.plot(place, height, label="with a projection skip", **mark)
    _mark_levels(ax, effect, chance)
    _finish(ax, effect)
    ax.margins(x=0.02 if np.isnan(lesions.stage).any() else 0)
    style.leave_room(ax, 0.08)
    _name_positions(ax, lesions)
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
            `prediction_changed`.
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
    _mark_levels(ax, effect, chance)
    _finish(ax, effect)
    style.leave_room(ax, 0.03)
    ax.set_xlabel("number of deleted blocks")
    return ax


def _is_measure(values: xr.DataArray, change: str) -> bool:
    """Whether the mean of a variable says what a change did: not so the change itself, or a class."""
    return change in values.dims and values.name not in {"deleted", "n_deleted", "draw", "prediction"}


def _mean(values: xr.DataArray, keep: Hashable | None = None) -> FloatArray:
    others = [dim for dim in values.dims if dim != keep]
    return np.asarray(values.astype(np.float64).mean(others).values, dtype=np.float64)


def _label(name: str, values: xr.DataArray, *, is_fraction: bool) -> str:
    known = {"error": "error", "prediction_changed": "changed predictions", "correct": "correct predictions"}
    text = known.get(name) or str(values.attrs.get("long_name", name.replace("_", " ")))
    unit = "%" if is_fraction else str(values.attrs.get("units", "1"))
    return textwrap.fill(text if unit in {"", "1"} else f"{text} ({unit})", LABEL_WIDTH)


def _single_lesions(ds: xr.Dataset) -> SingleLesions:
    """The lesions of one block each, or of one group each if that is what all of them are.

    Raises:
        InputError: if there are none.
    """
    deleted = style.variable(ds, "deleted", "plot_single_lesions").transpose("lesion", "block").values.astype(bool)
    names = style.variable(ds, "block", "plot_single_lesions").values
    groups = ds["group"].values if "group" in ds.coords else names
    whole_groups = (deleted[:, None, :] == (groups == np.unique(groups)[:, None])).all(axis=-1).any(axis=-1)
    one_block = deleted.sum(axis=1) == 1
    by_group = bool(whole_groups.all() and not one_block.all())
    (candidates,) = np.nonzero(whole_groups if by_group else one_block)
    if not candidates.size:
        raise InputError(
            "plot_single_lesions needs lesions of one block each, and this dataset has none; run BlockLesion "
            "with its default lesions, or draw random sets of blocks with plot_random_lesions"
        )
    # A block that was drawn twice at random is one point.
    block, which = np.unique(deleted[candidates].argmax(axis=1), return_index=True)
    chosen = candidates[which]
    projection = np.zeros(len(names), dtype=bool)
    if "skip_kind" in ds.coords:
        projection = ds["skip_kind"].values == "projection"
    stage = ds["stage"].values.astype(np.float64) if "stage" in ds.coords else np.full(len(names), np.nan)
    return SingleLesions(
        chosen=chosen,
        position=np.arange(len(block)) if by_group else block,
        names=[str(name) for name in (groups if by_group else names)[block]],
        projection=np.asarray((deleted[chosen] & projection).any(axis=1)),
        stage=np.where(stage < 0, np.nan, stage)[block],
        unit="group" if by_group else "block",
    )


def _shade_stages(ax: Axes, lesions: SingleLesions) -> None:
    """Shade every other stage and write each one's number at the top."""
    stages = np.unique(lesions.stage[~np.isnan(lesions.stage)])
    for count, stage in enumerate(stages):
        members = lesions.position[lesions.stage == stage]
        low, high = members.min() - 0.5, members.max() + 0.5
        # The stages in between get a span as well, unseen, so that the axis ends where the last stage does.
        ax.axvspan(low, high, facecolor=style.SHADE if count % 2 else "none", linewidth=0, zorder=0)
        if len(stages) == 1:
            break
        ax.text(
            (low + high) / 2,
            0.98,
            f"stage {stage:g}" if len(members) * len(stages) > len(lesions.position) / 2 else f"{stage:g}",
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="top",
            color=style.GREY,
            fontsize=style.LEGEND_SIZE,
        )


def _mark_levels(ax: Axes, effect: Damage, chance: float | None) -> None:
    """Lines that the damage is to be compared with."""
    if effect.intact is not None:
        ax.axhline(effect.intact, color=style.BLACK, linestyle="--", linewidth=1.2, label="intact network")
    if chance is not None:
        ax.axhline(chance, color=style.GREY, linestyle=":", linewidth=1.2, label="chance")


def _finish(ax: Axes, effect: Damage) -> None:
    ax.set_ylabel(effect.label)
    if effect.is_fraction:
        style.percent_axis(ax)
    style.integer_axis(ax)
    style.legend_above(ax)


def _name_positions(ax: Axes, lesions: SingleLesions) -> None:
    """Tick the blocks' names where they can be read, else their index."""
    width = ax.get_window_extent().width / ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    room = width >= INCHES_PER_TICK_NAME * len(lesions.names)
    if room and max(map(len, lesions.names)) <= LONGEST_TICK_NAME:
        ax.set_xticks(lesions.position, lesions.names, rotation=90, fontsize=style.LEGEND_SIZE)
        ax.set_xlabel(f"deleted {lesions.unit}, in execution order")
    else:
        ax.set_xlabel(f"index of the deleted {lesions.unit}, in execution order")


def _spacing(numbers: NDArray[np.int_]) -> float:
    """The smallest distance between neighbours, so that boxes never overlap."""
    return float(np.diff(numbers).min()) if len(numbers) > 1 else 1.0
