"""Figures of the blocks' influence: what predicts the effect of a deletion, and how far gates are open.

Draws the Dataset of `BlockInfluence`.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting import block_axis, effects, labels, style
from resnet_paths_plugin.plotting.figure import Drawing, Figure, FigureStudy, has
from resnet_paths_plugin.plotting.proxies import (
    correlations,
    describe_influence,
    described_in_order,
    find_influence,
    plot_proxies,
)
from resnet_paths_plugin.plotting.style import FloatArray
from resnet_paths_plugin.plotting.wording import NAMED
from resnet_paths_plugin.results.derived import refreshed

PERCENTILES = (5, 95)
PROJECTIONS = "with a projection skip"
WIDE_SPREAD = 30
"""Largest over median size from which an axis is linear around 0 and logarithmic beyond."""

_POINT: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 5, "markeredgewidth": 0.6}
POINT = {**_POINT, "markerfacecolor": style.SKY, "markeredgecolor": style.BLUE}
PROJECTION = {**_POINT, "marker": "s", "markersize": 7, "color": style.VERMILLION}


class Influence(Figure):
    """The effect of deleting each block against what predicts it."""

    name = "influence"
    title = "What predicts the effect of deleting a block"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it is a study of influence with lesion results."""
        return has(ds, "lesion_effect", "block") and has(ds, "rank_correlation", "proxy") and "proxy" in ds.coords

    def draw(self, ds: xr.Dataset, **options: Any) -> Axes:
        """Draw `plot_proxies`; with `proxy`, `plot_influence`."""
        return plot_influence(ds, **options) if "proxy" in options else plot_proxies(ds, **options)

    def sentence(self, ds: xr.Dataset) -> str:
        """Return how well each proxy ranks the blocks as their deletions do."""
        return describe_influence(ds)

    def finding(self, ds: xr.Dataset) -> str:
        """Return which proxy ranks the blocks best, where one does."""
        return find_influence(ds)

    def drawings(self, study: FigureStudy) -> Iterator[Drawing]:
        """Yield the correlations of all proxies, and the blocks behind them."""
        ds = study.dataset
        if np.isfinite(ds["rank_correlation"].values).any():
            yield Drawing(title=self.title, sentence=describe_influence(ds), draw=partial(plot_proxies, ds), ending="")
        if set(ds["proxy"].values.tolist()) & set(ds.data_vars):
            yield Drawing(
                title="Every proxy against the effect of deletion",
                sentence=described_in_order(ds),
                draw=partial(plot_influences, ds),
                ending="proxies",
            )


class Gates(Figure):
    """How far the gates of gated blocks are open."""

    name = "gates"
    title = "How far the gates are open"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it knows gates."""
        return has(ds, "gate_openness", "block", "sample")

    def draw(self, ds: xr.Dataset, **options: Any) -> Axes:
        """Draw `plot_gates`."""
        return plot_gates(ds, **options)

    def sentence(self, ds: xr.Dataset) -> str:
        """Return how far open the gates are."""
        return describe_gates(ds)

    def drawings(self, study: FigureStudy) -> Iterator[Drawing]:
        """Yield the gates, where the openness of one is known."""
        ds = study.dataset
        if np.isfinite(ds["gate_openness"].values).any():
            yield Drawing(title=self.title, sentence=describe_gates(ds), draw=partial(plot_gates, ds), ending="gates")


def plot_influence(ds: xr.Dataset, ax: Axes | None = None, *, proxy: str | None = None) -> Axes:
    """Draw the effect of deleting each block against what predicts it without a deletion.

    Every point is a block; the worst three are named. The legend states Spearman's rank correlation over the blocks.

    Args:
        ds: result of `BlockInfluence` with lesion results at hand: `lesion_effect` (block), `rank_correlation` (proxy).
        ax: where to draw; by default in a figure of its own.
        proxy: variable on the x axis, averaged over samples; by default the one that ranks the blocks best (or, if
            its correlation is negative, most nearly the other way round).

    Returns:
        The Axes.

    Raises:
        InputError: if the dataset lacks what is drawn.

    Examples:
        >>> lesions = rpp.BlockLesion(net).attribute(images, target=labels)
        >>> influence = rpp.BlockInfluence(net).attribute(images, target=labels, lesions=lesions)
        >>> ax = rpp.plotting.plot_influence(influence, proxy="lesion_estimate")
    """
    ds = refreshed(ds)
    found = correlations(ds, "plot_influence")
    name = proxy or best_proxy(ds, "plot_influence")
    if name not in found or name not in ds.data_vars:
        raise InputError(f"plot_influence finds no proxy '{name}' in this dataset; it has {', '.join(found)}")
    ax = style.own_axes(5.8, 4.2) if ax is None else ax
    values, effect = _scatter(ax, ds, name, f"one block{_in_words(found[name])}")
    ax.margins(0.14)
    style.leave_room(ax, 0.06)
    style.legend_above(ax)
    points = np.stack([values, effect], axis=1)
    shown = np.where(np.isfinite(values), effect, np.nan)
    labels.place(ax, points, {place: str(ds["block"].values[place]) for place in effects.worst(shown, NAMED)})
    return ax


def plot_influences(ds: xr.Dataset, axes: Iterable[Axes] | None = None) -> NDArray[Any]:
    """Draw the effect of deleting each block against every proxy, one panel each, the best first.

    Args:
        ds: result of `BlockInfluence` with lesion results at hand.
        axes: one Axes per proxy; by default those of a figure of its own, three in a row.

    Returns:
        The Axes, shape `[proxies]`.

    Raises:
        InputError: if the dataset lacks what is drawn, or the number of Axes is another.

    Examples:
        >>> lesions = rpp.BlockLesion(net).attribute(images, target=labels)
        >>> influence = rpp.BlockInfluence(net).attribute(images, target=labels, lesions=lesions)
        >>> len(rpp.plotting.plot_influences(influence))
        5
    """
    ds = refreshed(ds)
    found = correlations(ds, "plot_influences")
    names = [name for name in _ranked(found) if name in ds.data_vars]
    if not names:
        raise InputError("plot_influences finds none of the proxies that 'proxy' names in this dataset")
    columns = min(3, len(names))
    if axes is None:
        rows = -(-len(names) // columns)
        panels = style.own_grid(rows, columns, 3.7 * columns, 0.4 + 2.9 * rows).ravel()
        for unused in panels[len(names) :]:
            unused.remove()
        panels = panels[: len(names)]
    else:
        panels = style.grid_of(axes, 1, len(names)).ravel()
    for ax, name in zip(panels, names, strict=True):
        _scatter(ax, ds, name, "one block")
        if axes is None and names.index(name) % columns:
            ax.set_ylabel("")  # the first of the row says it
        ax.set_title(_in_words(found[name]).removeprefix(", ") or "no rank correlation", fontsize=style.legend_size())
        if ax.get_xscale() == "linear":
            ax.locator_params(axis="x", nbins=5)
    with_projections = [ax for ax in panels if PROJECTIONS in ax.get_legend_handles_labels()[1]]
    if with_projections:
        handles, labels = with_projections[0].get_legend_handles_labels()
        shown = [pair for pair in zip(handles, labels, strict=True) if pair[1] in {"one block", PROJECTIONS}]
        with_projections[0].legend(*zip(*shown, strict=True), fontsize=style.legend_size())
    return panels


def plot_gates(ds: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw how far the gate of each gated block lets its branch through: mean over samples, and their spread.

    Args:
        ds: result of `BlockInfluence` on a network with gated blocks: `gate_openness` (block, sample), NaN or absent
            for other blocks.
        ax: where to draw; by default in a figure of its own.

    Returns:
        The Axes.

    Raises:
        InputError: if the dataset has no gates.

    Examples:
        >>> class Highway(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gate, self.branch = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        ...
        ...     def forward(self, x):
        ...         t = self.gate(x).sigmoid()
        ...         return t * self.branch(x).relu() + (1 - t) * x
        >>> influence = rpp.BlockInfluence(Highway()).attribute(torch.randn(8, 4), target=0)
        >>> ax = rpp.plotting.plot_gates(influence)
    """
    ds = refreshed(ds)
    gates = style.variable(ds, "gate_openness", "plot_gates").transpose("block", "sample").values.astype(np.float64)
    (position,) = np.nonzero(np.isfinite(gates).any(axis=1))
    if not len(position):
        raise InputError("plot_gates finds no gated block: every value of 'gate_openness' is NaN")
    mean = np.nanmean(gates[position], axis=1)
    ax = style.own_axes(7.2, 3.6) if ax is None else ax
    block_axis.shade_stages(ax, position, block_axis.stages(ds)[position])
    look: dict[str, Any] = {
        "color": style.BLUE,
        "marker": "o",
        "markersize": style.marker_size(len(mean)),
        "linewidth": 1,
    }
    if gates.shape[1] > 1:
        low, high = np.nanpercentile(gates[position], PERCENTILES, axis=1)
        # Not error bars: of a skewed gate the mean may lie outside.
        ranks = f"{PERCENTILES[0]}th to {PERCENTILES[1]}th percentile of samples"
        width = 0.75 * style.marker_size(len(mean))
        ax.vlines(position, low, high, color=style.SKY, linewidth=width, label=ranks)
    ax.plot(position, mean, label="mean over samples" if gates.shape[1] > 1 else "one sample", **look)
    ax.set_ylim(0, max(1.0, float(np.nanmax(gates[position]))))
    ax.set_ylabel("openness of the gate\n(0: skip only, 1: branch only)")
    style.legend_above(ax)
    block_axis.fit(ax, block_axis.stages(ds)[position])
    style.leave_room(ax, 0.08)
    block_axis.name_blocks(ax, position, [str(name) for name in ds["block"].values[position]], "gated block")
    return ax


def describe_gates(ds: xr.Dataset) -> str:
    """How far open the gates are."""
    opened = ds["gate_openness"].mean("sample").dropna("block")
    if not opened.size:
        return "No block has a gate whose openness is known."
    low, high = (opened["block"].values[place] for place in (opened.values.argmin(), opened.values.argmax()))
    sentence = f"The {opened.size} gates are open to {float(opened.mean()):.2f} on average over blocks and samples"
    return sentence + (
        "."
        if opened.size == 1
        else f", least at {low} ({float(opened.min()):.2f}) and most at {high} ({float(opened.max()):.2f})."
    )


def best_proxy(ds: xr.Dataset, figure: str) -> str:
    """The proxy with the largest rank correlation, whatever its sign."""
    return _ranked(correlations(ds, figure))[0]


def _ranked(found: dict[str, float]) -> list[str]:
    return sorted(found, key=lambda name: -abs(found[name]) if np.isfinite(found[name]) else 0.0)


def _in_words(correlation: float) -> str:
    if not np.isfinite(correlation):
        return ""
    return f", Spearman's rank correlation {style.signed(correlation)}"


def _scatter(ax: Axes, ds: xr.Dataset, name: str, label: str) -> tuple[FloatArray, FloatArray]:
    """Draw the blocks as points and return their coordinates."""
    values = effects.mean(ds[name], keep="block")
    effect = ds["lesion_effect"].values.astype(np.float64)
    projection = block_axis.projections(ds)
    known = np.isfinite(values) & np.isfinite(effect)
    ax.plot(values[known & ~projection], effect[known & ~projection], label=label, **POINT)
    if (known & projection).any():
        ax.plot(values[known & projection], effect[known & projection], label=PROJECTIONS, **PROJECTION)
    if not known.all():
        ax.plot([], [], linestyle="none", label=f"{int((~known).sum())} of {len(known)} blocks have no value")
    ax.axhline(0, color=style.GREY, linewidth=0.8, linestyle=":", zorder=1)
    ax.margins(0.08)
    _spread_out(ax, values, effect)
    ax.set_xlabel(style.wrapped(effects.label(ds[name])))
    ax.set_ylabel(_effect_label(ds))
    if _is_fraction(ds):
        style.percent_ticks(ax)
    return values, effect


def _spread_out(ax: Axes, values: FloatArray, effect: FloatArray) -> None:
    """Scale each axis so that a few large values do not press all others together."""
    for known, scale in ((values, ax.set_xscale), (effect, ax.set_yscale)):
        sizes = np.abs(known[np.isfinite(known) & (known != 0)])
        if len(sizes) and sizes.max() > WIDE_SPREAD * np.median(sizes):
            # At a power of ten, so that no tick falls between it and 0.
            scale("symlog", linthresh=10.0 ** np.floor(np.log10(np.median(sizes))))


def _effect_label(ds: xr.Dataset) -> str:
    measure = str(ds["lesion_effect"].attrs.get("measure", ""))
    if not measure:
        return style.wrapped(effects.label(ds["lesion_effect"]))
    unit = str(ds["lesion_effect"].attrs.get("units", "1"))
    unit = " (percentage points)" if _is_fraction(ds) else "" if unit in {"", "1"} else f" ({unit})"
    return style.wrapped(f"rise of {style.plain(measure.replace('_', ' '))} when deleted alone{unit}")


def _is_fraction(ds: xr.Dataset) -> bool:
    return ds["lesion_effect"].attrs.get("measure") in {"error", "prediction_changed"}
