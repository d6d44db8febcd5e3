"""Figure of interactions: what deleting two blocks does beyond what deleting each does, beside the single effects.

Draws the Dataset of `BlockInteraction`.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from resnet_paths_plugin.plotting import block_axis, effects, style
from resnet_paths_plugin.plotting.figure import Figure, drawn_figure, has
from resnet_paths_plugin.plotting.intervals import LEVEL, N_RESAMPLES
from resnet_paths_plugin.plotting.style import FloatArray
from resnet_paths_plugin.plotting.wording import NAMED, listed, number, spoken
from resnet_paths_plugin.results.derived import refreshed
from resnet_paths_plugin.statistics.bootstrap import bootstrap

MOST_NAMED_BLOCKS = 30
"""More blocks are numbered along the matrix."""

COLOURS = "RdBu_r"
"""Red where two deletions harm more than their sum, blue where they harm less; white is none."""

_PANELS = 2
_FEWEST = 2
"""Samples that an interval takes."""


class Interactions(Figure):
    """What deleting two blocks does beyond what deleting each does."""

    name = "interactions"
    title = "Interactions of pairs of blocks"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it holds interactions of pairs, and single effects."""
        return has(ds, "interaction", "block", "other_block") and has(ds, "single_effect", "block")

    def draw(self, ds: xr.Dataset, **options: Any) -> NDArray[Any]:
        """Draw `plot_interactions`."""
        return plot_interactions(ds, **options)

    def sentence(self, ds: xr.Dataset) -> str:
        """Return the strongest pairs, and how nearly effects add."""
        return describe_interactions(ds)


def plot_interactions(ds: xr.Dataset, axes: Iterable[Axes] | None = None) -> NDArray[Any]:
    """Draw the interaction of each pair of blocks as a matrix, and beside it the effect of deleting each block alone.

    Red pairs harm more together than their effects add up to, blue ones less. Lines separate the stages.

    Args:
        ds: result of `BlockInteraction`.
        axes: two Axes, of the matrix and of the single effects; by default those of a figure of its own.

    Returns:
        The Axes, shape `[2]`.

    Raises:
        InputError: if the dataset lacks what is drawn, or the number of Axes is another.

    Examples:
        >>> pairs = rpp.BlockInteraction(net).attribute(images, labels, value="loss")
        >>> matrix, single = rpp.plotting.plot_interactions(pairs)
    """
    ds = refreshed(ds)
    values = style.variable(ds, "interaction", "plot_interactions").transpose("block", "other_block").values
    alone = style.variable(ds, "single_effect", "plot_interactions").values
    if axes is None:
        matrix, beside = style.own_row(7.2, 6.4, (4, 1))
    else:
        matrix, beside = style.grid_of(axes, 1, _PANELS).ravel()
    image = _matrix(matrix, ds, values)
    bar = drawn_figure(matrix).colorbar(image, ax=matrix, location="bottom", fraction=0.05, pad=0.02, aspect=40)
    bar.set_label(_label(ds, "harm of both beyond the sum of single ones"), fontsize=style.legend_size())
    bar.ax.tick_params(labelsize=style.legend_size())
    _single_effects(beside, ds, alone)
    beside.set_ylim(matrix.get_ylim())
    return np.array([matrix, beside], dtype=object)


def describe_interactions(ds: xr.Dataset) -> str:
    """Interactions: how many pairs have them, the strongest of either sign, and the additive share, with intervals."""
    values = ds["interaction"].transpose("block", "other_block").values
    names = [str(name) for name in ds["block"].values]
    first, other = np.triu_indices(len(names), 1)
    pairs = values[first, other]
    if not len(pairs):
        return "There is no pair of blocks that could interact."
    measure = spoken(str(ds["interaction"].attrs.get("measure", "measure")))
    ends = _ends(ds)
    lows, highs = (pairs * np.nan,) * 2 if ends is None else (end[first, other] for end in ends)
    more = int(((pairs if ends is None else lows) > 0).sum())
    told = f"Of {len(pairs)} pairs {more} harm the {measure} more together than their effects add up to"
    if ends is not None:
        less = int((highs < 0).sum())
        told += (
            f", {less} less, and {len(pairs) - more - less} are not resolved (95 % intervals{_samples(ds, ' over')})"
        )
    else:
        told += _samples(ds, ", in the mean over")
    most = [
        f"{names[first[at]]} with {names[other[at]]} ({number(pairs[at])}"
        + (f", {number(lows[at])} to {number(highs[at])})" if np.isfinite(lows[at]) else ")")
        for at in effects.worst(np.abs(pairs), NAMED)
    ]
    if most:
        told += f"; the strongest {'is' if len(most) == 1 else 'are'} {listed(most)}"
    if "additive_share" in ds and np.isfinite(ds["additive_share"]):
        low, high = float(ds["additive_share_low"]), float(ds["additive_share_high"])
        reach = f", 95 % interval {number(low)} to {number(high)}" if np.isfinite(low) else ""
        told += (
            f". The best additive model explains {number(float(ds['additive_share']))} (R squared{reach}) of the "
            f"effects of {ds.sizes['random_set']} random sets that it was not fitted to"
        )
    return told + "."


def _ends(ds: xr.Dataset) -> tuple[FloatArray, FloatArray] | None:
    """Return the ends of each pair's interval over samples; None where the study does not keep their values."""
    if ds.sizes.get("sample", 0) < _FEWEST or "interaction_per_sample" not in ds:
        return None
    found = bootstrap(ds, "interaction_per_sample", level=LEVEL, n_resamples=N_RESAMPLES)
    low, high = (
        found[f"interaction_per_sample_{end}"].transpose("block", "other_block").values for end in ("low", "high")
    )
    return low, high


def _samples(ds: xr.Dataset, before: str) -> str:
    """How many samples there are, after some words; empty where the study does not say."""
    count = int(ds["n_samples"]) if "n_samples" in ds else 0
    return f"{before} {count} sample{'s' if count > 1 else ''}" if count else ""


def _matrix(ax: Axes, ds: xr.Dataset, values: FloatArray) -> AxesImage:
    """Draw the matrix with its blocks named and its stages marked."""
    n = len(values)
    finite = np.abs(values[np.isfinite(values)])
    reach = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    image = ax.imshow(values, cmap=COLOURS, vmin=-reach, vmax=reach, aspect="auto")
    diagonal = np.arange(n)
    ax.plot(diagonal, diagonal, linestyle="none", marker="x", markersize=3, color=style.GREY)
    names = [style.plain(style.shortened(str(name), block_axis.LONGEST_TICK_NAME)) for name in ds["block"].values]
    if n <= MOST_NAMED_BLOCKS:
        ax.set_xticks(diagonal, names, rotation=90, fontsize=style.legend_size())
        ax.set_yticks(diagonal, names, fontsize=style.legend_size())
    ax.xaxis.tick_top()
    for line in _borders(ds):
        ax.axhline(line, color=style.GREY, linewidth=0.8)
        ax.axvline(line, color=style.GREY, linewidth=0.8)
    return image


def _single_effects(ax: Axes, ds: xr.Dataset, alone: FloatArray) -> None:
    """Draw the effect of deleting each block alone, beside its row of the matrix, with the stages' numbers."""
    ax.barh(np.arange(len(alone)), alone, 0.62, color=style.SKY, edgecolor=style.BLUE, linewidth=0.8)
    ax.axvline(0, color=style.BLACK, linewidth=0.8)
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.set_yticks([])
    ax.locator_params(axis="x", nbins=3)
    ax.tick_params(labelsize=style.legend_size())
    ax.set_xlabel(_label(ds, "harm alone", 14), fontsize=style.legend_size())
    borders = _borders(ds)
    for line in borders:
        ax.axhline(line, color=style.GREY, linewidth=0.8)
    stage = block_axis.stages(ds)
    for low, high in pairwise([-0.5, *borders, len(alone) - 0.5]) if borders else ():
        ax.text(
            0.98,
            high - 0.15,
            f"stage {stage[int(low + 0.5)]:g}",
            transform=ax.get_yaxis_transform(),
            ha="right",
            va="bottom",
            color=style.GREY,
            fontsize=style.legend_size(),
        )
    for side in ("bottom", "right", "left"):
        ax.spines[side].set_visible(False)


def _borders(ds: xr.Dataset) -> list[float]:
    """Return where one stage ends and the next begins."""
    stage = block_axis.stages(ds)
    return [at + 0.5 for at in range(len(stage) - 1) if stage[at] != stage[at + 1] and np.isfinite(stage).all()]


def _label(ds: xr.Dataset, what: str, width: int = 60) -> str:
    attrs = ds["interaction"].attrs
    unit = str(attrs.get("units", "1"))
    told = f"{what}: {style.plain(str(attrs.get('measure', 'measure')).replace('_', ' '))}"
    return style.wrapped(told if unit in {"", "1"} else f"{told} ({unit})", width)
