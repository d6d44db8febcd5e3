"""The figure of trainings: which of them leaves a network that single deletions harm least (Fig. 8).

Draws a comparison of lesion studies of one network, trained in different ways.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from resnet_paths_plugin.plotting import block_axis, style
from resnet_paths_plugin.plotting.effects import default_measure, effect_of, finish
from resnet_paths_plugin.plotting.figure import Drawing, Figure, FigureStudy, has
from resnet_paths_plugin.plotting.lesions import LINE, PROJECTION
from resnet_paths_plugin.plotting.wording import amount, listed, measure_name, study_effect
from resnet_paths_plugin.results.derived import refreshed

TRAININGS: tuple[dict[str, Any], ...] = (
    {**LINE, "color": style.BLUE, "marker": "o", "linestyle": "-"},
    {**LINE, "color": style.VERMILLION, "marker": "s", "linestyle": "--"},
    {**LINE, "color": style.GREEN, "marker": "^", "linestyle": ":"},
    {**LINE, "color": style.ORANGE, "marker": "D", "linestyle": "-."},
)


class Trainings(Figure):
    """What deleting single blocks does to networks that were trained in different ways."""

    name = "trainings"
    title = "Deleting single blocks after different trainings (Fig. 8 of the paper)"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it compares trainings by their error."""
        return has(ds, "training", "training") and has(ds, "error", "training", "lesion")

    def draw(self, ds: xr.Dataset, **options: Any) -> Axes:
        """Draw `plot_training_lesions`."""
        return plot_training_lesions(ds, **options)

    def sentence(self, ds: xr.Dataset) -> str:
        """Return the mean effect of each training."""
        return describe_trainings(ds)

    def drawings(self, study: FigureStudy) -> Iterator[Drawing]:
        """Yield Fig. 8."""
        ds = study.dataset
        options: dict[str, Any] = {"measure": default_measure(ds, "lesion"), "chance": study.chance("lesion")}
        yield Drawing(
            title=self.title,
            sentence=describe_trainings(ds),
            draw=partial(plot_training_lesions, ds, **options),
            ending="",
        )


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

    Examples:
        >>> import pandas as pd
        >>> import xarray as xr
        >>> lesions = rpp.BlockLesion(net).attribute(images, target=labels)[["error", "intact_error", "deleted"]]
        >>> trainings = pd.Index(["all blocks", "30 of 54 blocks"], name="training")
        >>> ax = rpp.plotting.plot_training_lesions(xr.concat([lesions, lesions], trainings, data_vars=["error"]))
    """
    ds = refreshed(ds)
    names = style.variable(ds, "training", "plot_training_lesions").values.tolist()
    ds = _with_deleted(ds)
    effect = effect_of(ds, "lesion", measure, "plot_training_lesions")
    lesions = block_axis.single_lesions(ds, "plot_training_lesions")
    ax = style.own_axes(7.2, 3.8) if ax is None else ax

    block_axis.shade_stages(ax, lesions.position, lesions.stage)
    each = [ds.isel(training=index) for index in range(len(names))]
    means = [effect_of(own, "lesion", effect.name, "plot_training_lesions") for own in each]
    for index, (name, own, mean) in enumerate(zip(names, each, means, strict=True)):
        look = TRAININGS[index % len(TRAININGS)]
        seeds = own.sizes.get("seed", 1)
        label = f"training: {style.shortened(style.plain(name), 40)}" + (
            f" (mean, range of {seeds} seeds)" if seeds > 1 else ""
        )
        if seeds > 1:
            every = own[effect.name].transpose("lesion", "seed", ...).values[lesions.chosen]
            every = every.reshape(len(every), seeds, -1).mean(axis=-1)
            low, high = every.min(axis=1), every.max(axis=1)
            ax.fill_between(lesions.position, low, high, color=look["color"], alpha=0.18, linewidth=0)
        ax.plot(lesions.position, mean.values[lesions.chosen], label=label, **style.sized(look, lesions.names))
        if mean.intact is not None:
            level = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1}
            ax.axhline(mean.intact, alpha=0.7, zorder=1, **level)
    if lesions.projection.any():
        ring = {**PROJECTION, "markerfacecolor": "none", "color": style.BLACK, "markersize": 9}
        highest = np.max([mean.values[lesions.chosen] for mean in means], axis=0)
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


def describe_trainings(ds: xr.Dataset) -> str:
    """Fig. 8: mean effect of each training; with two, for how many blocks the second suffers less."""
    effects = [
        effect_of(ds.isel(training=index), "lesion", study_effect(ds, "lesion").name, "")
        for index in range(ds.sizes["training"])
    ]
    names = [str(name) for name in ds["training"].values]
    amounts = [
        f"{amount(effect, effect.values.mean())} after training '{name}'"
        + ("" if effect.intact is None else f" (intact {amount(effect, effect.intact)})")
        for effect, name in zip(effects, names, strict=True)
    ]
    sentence = (
        f"The {measure_name(ds, effects[0])} with one block deleted is, on average over blocks, {listed(amounts)}"
    )
    if len(effects) == 2:
        lower = int((effects[1].values < effects[0].values).sum())
        sentence += f"; it is lower after '{names[1]}' for {lower} of {len(effects[0].values)} blocks"
    return sentence + "."


def _with_deleted(ds: xr.Dataset) -> xr.Dataset:
    """The dataset with `deleted`, read from the labels of its lesions where it is not there: one block each."""
    if "deleted" in ds.variables or not {"lesion", "block"} <= set(ds.variables):
        return ds
    return ds.assign(deleted=(("lesion", "block"), ds["lesion"].values[:, None] == ds["block"].values))
