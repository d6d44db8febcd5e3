"""Figures of lesions: the effect of deleting blocks on the network's outputs (Figs. 3 and 5a).

Draws the Dataset of `BlockLesion`, whichever measure of the effect it holds.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from resnet_paths_plugin.plotting import block_axis, style
from resnet_paths_plugin.plotting.classes import class_rises, describe_class_lesions, names_of, plot_class_lesions
from resnet_paths_plugin.plotting.effects import Effect, default_measure, effect_of, finish, mark_levels, measures
from resnet_paths_plugin.plotting.figure import Drawing, Figure, FigureStudy, has
from resnet_paths_plugin.plotting.intervals import Intervals, intervals_of, mean_effect
from resnet_paths_plugin.plotting.wording import (
    SMALL_RISE,
    amount,
    effect_texts,
    extremes,
    intact,
    interval_texts,
    listed,
    measure_name,
    study_effect,
)
from resnet_paths_plugin.results.arguments import arguments_of
from resnet_paths_plugin.results.derived import refreshed

SIZES_SHOWN = 5
LINE: dict[str, Any] = {"linewidth": 1}
ONE_DELETED = {**LINE, "color": style.BLUE, "marker": "o"}
PLAIN = {**LINE, "color": style.ORANGE, "marker": "D", "linestyle": "-.", "markersize": 4}
INTERVAL: dict[str, Any] = {"color": style.SKY, "linewidth": 1.6}
BAND: dict[str, Any] = {"color": style.BLUE, "alpha": 0.18, "linewidth": 0}
PROJECTION: dict[str, Any] = {"linestyle": "none", "marker": "s", "markersize": 8, "color": style.VERMILLION}


def is_lesions(ds: xr.Dataset) -> bool:
    """Whether a dataset is a lesion study with a measure."""
    return (
        has(ds, "deleted", "lesion", "block")
        and {"lesion", "block"} <= set(ds.coords)
        and "training" not in ds.dims
        and all(ds.sizes[dim] for dim in ("lesion", "block"))
        and bool(measures(ds, "lesion"))
    )


def deletes_single_units(ds: xr.Dataset) -> bool:
    """Whether each lesion of a lesion study deletes one block, or one group."""
    counted = ds["deleted"].transpose("lesion", "block").values.sum(axis=1)
    units = ds["n_deleted_units"].values if has(ds, "n_deleted_units", "lesion") else counted
    return bool(np.all(units == 1))


class SingleLesions(Figure):
    """What deleting each single block does, against its place in the network; and class by class."""

    name = "single_lesions"
    title = "Deleting single blocks (Fig. 3 of the paper)"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it is a study of lesions of one block, or one group, each."""
        return is_lesions(ds) and deletes_single_units(ds)

    def draw(self, ds: xr.Dataset, **options: Any) -> Axes:
        """Draw `plot_single_lesions`."""
        return plot_single_lesions(ds, **options)

    def sentence(self, ds: xr.Dataset) -> str:
        """Return the intact network's, the median and the worst deletions' measure."""
        return describe_single_lesions(ds)

    def finding(self, ds: xr.Dataset) -> str:
        """Return the mean effect of a deletion, and how many deletions have one."""
        return find_single_lesions(ds)

    def drawings(self, study: FigureStudy) -> Iterator[Drawing]:
        """Yield Fig. 3, and the map by class where classes are known."""
        ds, measure = study.dataset, default_measure(study.dataset, "lesion")
        beside = ", and of a plain network without one of its layers" if study.plain is not None else ""
        options: dict[str, Any] = {"measure": measure, "chance": study.chance("lesion"), "plain": study.plain}
        yield Drawing(
            title=f"Deleting single blocks{beside} (Fig. 3 of the paper)",
            sentence=describe_single_lesions(ds, study.plain),
            draw=partial(plot_single_lesions, ds, **options),
            ending="",
        )
        if {"label", "correct", "intact_correct"} <= set(ds.variables):
            found = class_rises(ds, "the report")
            known = study.class_names
            if known is not None and not 0 <= found.labels.min() <= found.labels.max() < len(known):
                known = None  # names that do not fit the labels are worse than numbers
            yield Drawing(
                title="Deleting single blocks, class by class",
                sentence=describe_class_lesions(found, names_of(found.labels, known)),
                draw=partial(plot_class_lesions, ds, class_names=known),
                ending="by-class",
            )


class RandomLesions(Figure):
    """What deleting sets of blocks does, against their number."""

    name = "random_lesions"
    title = "Deleting sets of blocks, by their size (Fig. 5a of the paper)"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it is a study of lesions of several blocks."""
        return is_lesions(ds) and has(ds, "n_deleted", "lesion") and not deletes_single_units(ds)

    def draw(self, ds: xr.Dataset, **options: Any) -> Axes:
        """Draw `plot_random_lesions`."""
        return plot_random_lesions(ds, **options)

    def sentence(self, ds: xr.Dataset) -> str:
        """Return the mean effect at a few numbers of deletions."""
        return describe_random_lesions(ds)

    def finding(self, ds: xr.Dataset) -> str:
        """Return what the fewest and the most deletions do."""
        return find_random_lesions(ds)

    def drawings(self, study: FigureStudy) -> Iterator[Drawing]:
        """Yield Fig. 5a."""
        ds, chance = study.dataset, study.chance("lesion")
        yield Drawing(
            title=f"Deleting {'random ' if is_random(ds) else ''}sets of blocks, by their size (Fig. 5a of the paper)",
            sentence=describe_random_lesions(ds, chance),
            draw=partial(plot_random_lesions, ds, measure=default_measure(ds, "lesion"), chance=chance),
            ending="",
        )


def plot_single_lesions(
    ds: xr.Dataset,
    ax: Axes | None = None,
    *,
    measure: str | None = None,
    chance: float | None = None,
    plain: xr.Dataset | None = None,
    color: str | None = None,
    label: str | None = None,
) -> Axes:
    """Draw what deleting each single block does, against the block's place in the network (Fig. 3).

    Blocks whose skip is a projection are marked, stages are shaded in turn. Bars are 95 % intervals over samples: of
    the difference from the intact network on the same samples, for an error or a loss, else of the measure itself.
    Where every lesion deletes one whole group (`level="group"`), groups are drawn instead of blocks; no other lesion
    of several blocks is.

    Args:
        ds: result of `BlockLesion`, with lesions of one block each.
        ax: where to draw; by default in a figure of its own.
        measure: variable with dimension `lesion` to draw; by default `error`, else the share of
            `prediction_changed`, else the first of the user's own by name.
        chance: what guessing would give, in the measure's unit (errors are fractions).
        plain: result of `BlockLesion` on the layers of a network without skips, for comparison: drawn in the same
            Axes, its layers spread evenly over the axis.
        color: colour of what is drawn, for several studies in the same Axes.
        label: legend entry of it, likewise.

    Returns:
        The Axes.

    Raises:
        InputError: if the dataset, or that of the plain network, lacks what is drawn.

    Examples:
        >>> lesions = rpp.BlockLesion(net).attribute(images, target=labels)
        >>> ax = rpp.plotting.plot_single_lesions(lesions, measure="target_score_drop")
        >>> ax.figure.savefig("lesions.png")
    """
    ds = refreshed(ds)
    effect = effect_of(ds, "lesion", measure, "plot_single_lesions")
    lesions = block_axis.single_lesions(ds, "plot_single_lesions")
    values = effect.values[lesions.chosen]
    plain_effect = None if plain is None else effect_of(plain, "lesion", effect.name, "plot_single_lesions(plain=)")
    plain_lesions = None if plain is None else block_axis.single_lesions(plain, "plot_single_lesions(plain=)")
    ax = style.own_axes(7.2, 3.6) if ax is None else ax

    block_axis.shade_stages(ax, lesions.position, lesions.stage)
    found, counted = intervals_of(ds, effect.name, "lesion"), ""
    if found is not None:
        low, high, told = found.beside_intact(effect.intact)
        ax.vlines(lesions.position, low[lesions.chosen], high[lesions.chosen], **style.coloured(INTERVAL, color))
        counted = f"\n({found.counted}, {told})"
    entry = f"one {lesions.unit} deleted" if label is None else style.plain(label)
    ax.plot(lesions.position, values, label=entry, **style.sized(style.coloured(ONE_DELETED, color), values))
    if lesions.projection.any():
        place, height = lesions.position[lesions.projection], values[lesions.projection]
        ax.plot(place, height, label=style.once(ax, "with a projection skip"), **style.coloured(PROJECTION, color))
    mark_levels(ax, effect, chance, color=color, label=label)
    if plain_effect is not None and plain_lesions is not None:
        _draw_plain(ax, plain_effect, plain_lesions, lesions.n_places)
    finish(ax, effect)
    block_axis.fit(ax, lesions.stage)
    style.leave_room(ax, 0.08)
    block_axis.name_blocks(ax, lesions.position, lesions.names, f"deleted {lesions.unit}", counted)
    return ax


def plot_random_lesions(
    ds: xr.Dataset,
    ax: Axes | None = None,
    *,
    measure: str | None = None,
    chance: float | None = None,
    color: str | None = None,
    label: str | None = None,
) -> Axes:
    """Draw what deleting random sets of blocks does, against their number (Fig. 5a).

    Boxes show the quartiles and the median over the draws, whiskers all draws; the line joins the means, and the band
    is their 95 % interval over samples and draws.

    Args:
        ds: result of `BlockLesion`, with `n_deleted`.
        ax: where to draw; by default in a figure of its own.
        measure: variable with dimension `lesion` to draw; by default `error`, else the share of
            `prediction_changed`, else the first of the user's own by name.
        chance: what guessing would give, in the measure's unit (errors are fractions).
        color: colour of what is drawn, for several studies in the same Axes.
        label: legend entry of it, likewise.

    Returns:
        The Axes.

    Raises:
        InputError: if the dataset lacks what is drawn.

    Examples:
        >>> lesions = rpp.BlockLesion(net).attribute(images, target=labels, n_deleted=range(1, 5), draws=4)
        >>> ax = rpp.plotting.plot_random_lesions(lesions, chance=0.9)
    """
    ds = refreshed(ds)
    effect = effect_of(ds, "lesion", measure, "plot_random_lesions")
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
            boxprops={"facecolor": color or style.SKY, "linewidth": 0.8, "alpha": 0.6},
            medianprops={"color": style.BLACK},
            whiskerprops={"linewidth": 0.8},
            capprops={"linewidth": 0.8},
        )["boxes"]
        boxes[0].set_label(style.once(ax, "quartiles, range"))
    found = intervals_of(ds, effect.name, "lesion", "n_deleted")
    if found is not None:
        ax.fill_between(
            numbers,
            found.low,
            found.high,
            label=style.once(ax, "95 % interval of the mean"),
            **style.coloured(BAND, color),
        )
    means = [draw.mean() for draw in draws]
    entry = "mean over draws" if max(map(len, draws)) > 1 else "one draw"
    entry = entry if label is None else f"{style.plain(label)}, {entry}"
    ax.plot(numbers, means, color=color or style.BLUE, marker="o", markersize=4, label=entry)
    mark_levels(ax, effect, chance, color=color, label=label)
    finish(ax, effect)
    style.integer_axis(ax)
    style.leave_room(ax, 0.03)
    style.below(ax, "number of deleted blocks" + ("" if found is None else f" ({found.counted})"))
    return ax


def describe_single_lesions(ds: xr.Dataset, plain: xr.Dataset | None = None) -> str:
    """Fig. 3: the intact network, the median deletion, the worst ones; beside them a plain network's."""
    effect, lesions = study_effect(ds, "lesion"), block_axis.single_lesions(ds, "the report")
    values = effect.values[lesions.chosen]
    found = intervals_of(ds, effect.name, "lesion")
    ranges = [""] * len(ds["lesion"]) if found is None else interval_texts(effect, found.low, found.high)
    names = [
        f"{name} ({amount(effect, value)}{ranges[place]}{', projection skip' if projection else ''})"
        for name, value, place, projection in zip(
            lesions.names, values, lesions.chosen, lesions.projection, strict=True
        )
    ]
    sentence = f"The {measure_name(ds, effect)} is {intact(ds, effect)}"
    if len(values) == 1:
        sentence += f"{amount(effect, values[0])} without {lesions.names[0]}, the only {lesions.unit} deleted"
    elif np.ptp(values) == 0:
        sentence += f"{amount(effect, values[0])} whichever one of {len(values)} {lesions.unit}s is deleted"
    else:
        sentence += (
            f"{amount(effect, np.nanmedian(values))} in the median of {len(values)} deletions of one {lesions.unit}; "
            f"{extremes(effect, values, names, 'without')}"
        )
    sentence += _resolved(effect, found, lesions.chosen)
    if plain is not None:
        other = effect_of(plain, "lesion", effect.name, "the report")
        layers = block_axis.single_lesions(plain, "the report")
        median = amount(other, np.nanmedian(other.values[layers.chosen]))
        sentence += (
            f". In the plain network it is {intact(plain, other)}{median} in the median of {len(layers.chosen)} "
            f"deletions of one {layers.unit}"
        )
    return sentence + "."


def describe_random_lesions(ds: xr.Dataset, chance: float | None = None) -> str:
    """Fig. 5a: the mean effect at a few numbers of deletions."""
    effect = study_effect(ds, "lesion")
    sizes = ds["n_deleted"].values
    numbers = np.unique(sizes)
    shown = numbers[np.unique(np.linspace(0, len(numbers) - 1, SIZES_SHOWN).round().astype(int))]
    found = intervals_of(ds, effect.name, "lesion", "n_deleted")
    ranges, counted = [""] * len(numbers), ""
    if found is not None:
        ranges = interval_texts(effect, found.low, found.high)
        counted = f" (95 % intervals over {found.counted})"
    amounts = [
        f"{amount(effect, np.nanmean(effect.values[sizes == size]))}{ranges[int(np.searchsorted(numbers, size))]} "
        f"with {size}"
        for size in shown
    ]
    amounts[0] += f" {'random ' if is_random(ds) else ''}{'block' if shown[0] == 1 else 'blocks'} deleted"
    guess = "" if chance is None else f"; guessing would give {amount(effect, chance)}"
    return f"The {measure_name(ds, effect)} is {intact(ds, effect)}on average {listed(amounts)}{counted}{guess}."


def find_single_lesions(ds: xr.Dataset) -> str:
    """Fig. 3 in one sentence: the mean effect of deleting one block, and how many deletions change anything."""
    effect, lesions = study_effect(ds, "lesion"), block_axis.single_lesions(ds, "the report")
    mean = mean_effect(ds.isel(lesion=lesions.chosen), effect.name, "lesion")
    if mean is None or effect.intact is None:
        return ""
    what, each = measure_name(ds, effect), effect_texts(effect, mean)
    counted = _resolved(effect, intervals_of(ds, effect.name, "lesion"), lesions.chosen)
    return f"Deleting one {lesions.unit} changes the {what} by {each} on average over {lesions.unit}s{counted}."


def find_random_lesions(ds: xr.Dataset) -> str:
    """Fig. 5a in one sentence: the mean effect of the fewest and of the most deletions."""
    effect = study_effect(ds, "lesion")
    found = intervals_of(ds, effect.name, "lesion", "n_deleted")
    if found is None or not np.isfinite([found.low[[0, -1]], found.high[[0, -1]]]).all():
        return ""
    sizes = ds["n_deleted"].values
    numbers = np.unique(sizes)
    ranges = interval_texts(effect, found.low, found.high)
    ends = [
        f"{amount(effect, np.nanmean(effect.values[sizes == numbers[end]]))}{ranges[end]} with {numbers[end]}"
        for end in sorted({0, len(numbers) - 1})
    ]
    ends[0] += f" {'random ' if is_random(ds) else ''}block{'' if numbers[0] == 1 else 's'} deleted"
    return f"The {measure_name(ds, effect)} is {listed(ends)}, on average over {found.counted}."


def _resolved(effect: Effect, found: Intervals | None, chosen: NDArray[np.intp]) -> str:
    """How many deletions are equal to the intact network within a point, how many are not, and how many are open.

    Said of score intervals of a share only: others shrink to a point where no sample changes.
    """
    if not effect.is_fraction or found is None or found.effect_low is None or found.effect_high is None:
        return ""
    if not found.is_score:
        return f"; what {found.counted} resolve is not known, as some predictions are missing or right in part"
    low, high = found.effect_low[chosen], found.effect_high[chosen]
    equal, apart = (low > -SMALL_RISE) & (high < SMALL_RISE), (low > SMALL_RISE) | (high < -SMALL_RISE)
    by = f"; by {'its' if len(chosen) == 1 else 'their'} 95 % interval{'s' * (len(chosen) > 1)} over {found.counted}"
    if len(chosen) == 1:
        far = "less" if equal[0] else "more" if apart[0] else None
        return f"{by} that is {far} than one percentage point away" if far else f"{by} a difference is not resolved"
    n_equal, n_apart = int(equal.sum()), int(apart.sum())
    rest = len(chosen) - n_equal - n_apart
    return (
        f"{by}, {n_equal} of {len(chosen)} deletions change it by less than one percentage point, {n_apart} by more, "
        f"and {rest} {'is' if rest == 1 else 'are'} not resolved"
    )


def is_random(ds: xr.Dataset) -> bool:
    """Whether the sets of blocks were drawn at random, as far as the study's provenance tells."""
    return arguments_of(ds.attrs).get("n_deleted") is not None


def _draw_plain(ax: Axes, effect: Effect, lesions: block_axis.SingleLesions, n_places: int) -> None:
    """Draw the lesions of a network without skips, its layers spread over the places of the other's blocks."""
    # A layer stands in the middle of its share of the axis, which begins half a place before the first block.
    position = (lesions.position + 0.5) / lesions.n_places * n_places - 0.5
    label = f"plain net, one of {lesions.n_places} {lesions.unit}s deleted (spread over the axis)"
    ax.plot(position, effect.values[lesions.chosen], label=label, **PLAIN)
    if effect.intact is not None:
        look = {"color": PLAIN["color"], "linewidth": 1.2, "linestyle": (0, (1, 1))}
        ax.axhline(effect.intact, label="plain net, intact", **look)


def _spacing(numbers: NDArray[np.int_]) -> float:
    """The smallest distance between neighbours, so that boxes never overlap."""
    return float(np.diff(numbers).min()) if len(numbers) > 1 else 1.0
