"""The figure of reorderings: the effect of swapping blocks on the outputs (Fig. 5b).

Draws the Dataset of `BlockReordering`, whichever measure of the effect it holds.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting import style
from resnet_paths_plugin.plotting.effects import default_measure, effect_of, finish, mark_levels, measures
from resnet_paths_plugin.plotting.figure import Drawing, Figure, FigureStudy, has
from resnet_paths_plugin.plotting.intervals import correlation_of_samples
from resnet_paths_plugin.plotting.style import FloatArray
from resnet_paths_plugin.plotting.wording import (
    amount,
    correlation_of,
    intact,
    measure_name,
    number,
    span,
    study_effect,
)
from resnet_paths_plugin.results.derived import rank_correlation, refreshed

TAUS = {"movable": "kendall_tau", "all": "kendall_tau_all_blocks"}
TAU_BINS = 8
FEWEST_IN_BINS = 10
"""Orders below which each is seen for itself and means would hide more than they show."""


class Reorderings(Figure):
    """What reordering the blocks does, against how far the order is from the intact one."""

    name = "reorderings"
    title = "Reordering the blocks (Fig. 5b of the paper)"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it is a study of reorderings."""
        return has(ds, "kendall_tau", "reordering") and bool(measures(ds, "reordering"))

    def draw(self, ds: xr.Dataset, **options: Any) -> Axes:
        """Draw `plot_reorderings`."""
        return plot_reorderings(ds, **options)

    def sentence(self, ds: xr.Dataset) -> str:
        """Return how the effect goes with Kendall's tau."""
        return describe_reorderings(ds)

    def finding(self, ds: xr.Dataset) -> str:
        """Return how the effect goes with Kendall's tau."""
        return find_reorderings(ds)

    def drawings(self, study: FigureStudy) -> Iterator[Drawing]:
        """Yield Fig. 5b, where some order has a tau."""
        ds = study.dataset
        if np.isfinite(ds["kendall_tau"].values).any():
            options: dict[str, Any] = {
                "measure": default_measure(ds, "reordering"),
                "chance": study.chance("reordering"),
            }
            yield Drawing(
                title=self.title,
                sentence=describe_reorderings(ds),
                draw=partial(plot_reorderings, ds, **options),
                ending="",
            )


def plot_reorderings(
    ds: xr.Dataset,
    ax: Axes | None = None,
    *,
    measure: str | None = None,
    chance: float | None = None,
    over: Literal["movable", "all"] = "movable",
    color: str | None = None,
    label: str | None = None,
) -> Axes:
    """Draw what reordering the blocks does, against how far the order is from the intact one (Fig. 5b).

    Corruption grows to the right: Kendall's tau is 1 at the left, where the order is the intact network's. Every point
    is one order; the line joins the means of orders with similar tau. The legend states Spearman's rank
    correlation of tau and measure over the orders, where it is defined, and where it lies when samples are resampled.

    Args:
        ds: result of `BlockReordering`.
        ax: where to draw; by default in a figure of its own.
        measure: variable with dimension `reordering` to draw; by default `error`, else the share of
            `prediction_changed`, else the first of the user's own by name.
        chance: what guessing would give, in the measure's unit (errors are fractions).
        over: whose order tau compares: the `"movable"` blocks', or that of `"all"` blocks.
        color: colour of what is drawn, for several studies in the same Axes.
        label: legend entry of it, likewise.

    Returns:
        The Axes.

    Raises:
        InputError: if the dataset lacks what is drawn, or no order has a tau.

    Examples:
        >>> orders = rpp.BlockReordering(net).attribute(images, target=labels, n_swaps=[1, 2], draws=3)
        >>> ax = rpp.plotting.plot_reorderings(orders, over="all")
    """
    ds = refreshed(ds)
    if over not in TAUS:
        raise InputError(f"over is {over!r}: expected 'movable' or 'all'")
    effect = effect_of(ds, "reordering", measure, "plot_reorderings")
    tau = style.variable(ds, TAUS[over], "plot_reorderings").values.astype(np.float64)
    known = np.isfinite(tau)
    if not known.any():
        raise InputError(f"plot_reorderings finds no order with a '{TAUS[over]}': it takes two {over} blocks at least")
    tau, values = tau[known], effect.values[known]
    ax = style.own_axes(7.2, 3.8) if ax is None else ax

    correlation = rank_correlation(tau, values)
    ranks = "" if correlation is None else f", Spearman's \N{GREEK SMALL LETTER RHO} {style.signed(correlation)}"
    found = correlation_of_samples(ds, TAUS[over], effect.name, "reordering")
    if correlation is not None and found is not None:
        ranks += f" {found.text}"
    ax.plot(
        tau,
        values,
        linestyle="none",
        marker="o",
        markersize=5,
        markerfacecolor=color or style.SKY,
        markeredgecolor=color or style.BLUE,
        markeredgewidth=0.6,
        alpha=0.7,
        label=f"{'one order' if label is None else style.plain(label)}{ranks}",
    )
    if len(tau) >= FEWEST_IN_BINS and np.ptp(tau) > 0:
        ax.plot(
            *_means(tau, values),
            color=color or style.BLACK,
            marker="D",
            markersize=4,
            linewidth=1.2,
            label=style.once(ax, "mean of similar tau"),
        )
    mark_levels(ax, effect, chance, color=color, label=label)
    finish(ax, effect)
    ax.update_datalim([(1, values.mean())])
    ax.autoscale_view(scaley=False)
    if not ax.xaxis_inverted():
        ax.invert_xaxis()
    style.leave_room(ax, 0.03)
    counted = "" if found is None else f"; {found.n_samples} samples"
    style.below(ax, f"Kendall's tau of old and new order, over {over} blocks (1: intact order{counted})")
    return ax


def _means(tau: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean tau and mean value in intervals of tau of equal width, those without orders left out."""
    edges = np.linspace(tau.min(), tau.max(), TAU_BINS + 1)[1:-1]
    place = np.digitize(tau, edges)
    counts = np.bincount(place, minlength=TAU_BINS)
    sums = np.bincount(place, tau, TAU_BINS), np.bincount(place, values, TAU_BINS)
    there = counts > 0
    return sums[0][there] / counts[there], sums[1][there] / counts[there]


def describe_reorderings(ds: xr.Dataset) -> str:
    """Fig. 5b: how the effect goes with Kendall's tau."""
    effect = study_effect(ds, "reordering")
    tau = ds["kendall_tau"].values
    known = np.isfinite(tau)
    tau, values = tau[known], effect.values[known]
    what = measure_name(ds, effect)
    sentence = f"The {what} is {intact(ds, effect)}"
    if not len(tau):
        return f"{sentence}not comparable between orders: no order has a Kendall's tau."
    if np.ptp(tau) == 0 or np.ptp(values) == 0:
        return (
            f"{sentence}{span(effect, values)} over {len(tau)} {'orders' if len(tau) > 1 else 'order'} of the blocks."
        )
    quarter = np.quantile(tau, [0.75, 0.25])
    near, far = np.nanmean(values[tau >= quarter[0]]), np.nanmean(values[tau <= quarter[1]])
    sentence += (
        f"{amount(effect, near)} on average over the orders nearest to the intact one (Kendall's tau from "
        f"{number(quarter[0])}) and {amount(effect, far)} over those farthest from it (up to {number(quarter[1])})"
    )
    correlation = rank_correlation(tau, values)
    sentence += correlation_of(correlation, f"of tau and {what} over {len(tau)} orders")
    found = correlation_of_samples(ds, "kendall_tau", effect.name, "reordering")
    if correlation is not None and found is not None:
        sentence += found.sentence
    return f"{sentence}."


def find_reorderings(ds: xr.Dataset) -> str:
    """Fig. 5b in one sentence: the rank correlation of the effect and Kendall's tau."""
    effect = study_effect(ds, "reordering")
    found = correlation_of_samples(ds, "kendall_tau", effect.name, "reordering")
    if found is None:
        return ""
    return (
        f"Over {int(np.isfinite(ds['kendall_tau'].values).sum())} orders of the blocks Spearman's rank correlation of "
        f"the {measure_name(ds, effect)} and Kendall's tau is {style.signed(found.value)} {found.text}, when "
        f"{found.n_samples} samples are resampled."
    )
