"""Figure of all proxies: how well each ranks the blocks as their deletions do, with an interval beside each number.

Draws the Dataset of `BlockInfluence` with lesion results.
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting import effects, style
from resnet_paths_plugin.plotting.intervals import Correlation, correlations_of_proxies
from resnet_paths_plugin.plotting.style import signed
from resnet_paths_plugin.plotting.wording import listed, spoken
from resnet_paths_plugin.results.derived import refreshed

_POINT: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 6, "color": style.BLUE}
_RANGE: dict[str, Any] = {"color": style.BLUE, "linewidth": 1.6}
_ITSELF: dict[str, Any] = {"color": style.VERMILLION, "linewidth": 1.2, "linestyle": (0, (4, 2))}


def plot_proxies(ds: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw the rank correlation of every proxy with the effects of deletions, a row each, the farthest from 0 first.

    Lines are the ranges that 95 % of the resamples of the samples give; they say what other samples would give, not
    other blocks. They are there where the study holds the effects on each of its samples. A dashed line is the rank
    correlation of the effects themselves on halves of the samples: what cannot be predicted.

    Args:
        ds: result of `BlockInfluence` with lesion results at hand: `rank_correlation` (proxy).
        ax: where to draw; by default in a figure of its own.

    Returns:
        The Axes.

    Raises:
        InputError: if the dataset lacks what is drawn, or no correlation is defined.

    Examples:
        >>> lesions = rpp.BlockLesion(net).attribute(images, target=labels)
        >>> influence = rpp.BlockInfluence(net).attribute(images, target=labels, lesions=lesions)
        >>> ax = rpp.plotting.plot_proxies(influence)
        >>> len(ax.get_yticks())
        5
    """
    ds = refreshed(ds)
    known = _ranked(correlations(ds, "plot_proxies"))
    if not known:
        raise InputError("plot_proxies finds no proxy whose rank correlation is defined")
    ranges = correlations_of_proxies(ds)
    ax = style.own_axes(7.2, 1.5 + 0.4 * len(known)) if ax is None else ax
    rows = np.arange(len(known))
    shown = [row for row, name in enumerate(known) if name in ranges]
    if shown:
        low, high = ([getattr(ranges[name], end) for name in known if name in ranges] for end in ("low", "high"))
        ax.hlines(shown, low, high, label="95 % of resamples", **_RANGE)
    ax.plot(list(known.values()), rows, label="rank correlation", **_POINT)
    itself = _itself(ranges)
    if itself is not None:
        ax.axvline(itself, label="effect with itself", zorder=1, **_ITSELF)
    ax.axvline(0, color=style.GREY, linewidth=0.8, zorder=1)
    ax.set_yticks(rows, [spoken(name) for name in known])
    ax.set_ylim(len(known) - 0.4, -0.6)
    ax.set_xlim(-1.02, 1.02)
    counted = f"; {next(iter(ranges.values())).n_samples} samples" if ranges else ""
    blocks = {_n_compared(ds, name) for name in known}
    over = f"{min(blocks)}" if len(blocks) == 1 else f"{min(blocks)} to {max(blocks)}"
    style.below(ax, f"Spearman's rank correlation with {_effect_of(ds)} (over {over} blocks{counted})", room=0.7)
    style.legend_above(ax, room=0.7)
    return ax


def describe_influence(ds: xr.Dataset) -> str:
    """Return how well each proxy ranks the blocks; the best is named only where its range lies apart from the others'.

    Args:
        ds: result of `BlockInfluence` with lesion results.
    """
    known = _ranked(correlations(ds, "the report"))
    if not known:
        return f"No proxy has a rank correlation over blocks with {_effect_of(ds)}."
    ranges = correlations_of_proxies(ds)
    counts = {name: _n_compared(ds, name) for name in known}
    most = max(counts.values())
    parts = [
        f"{spoken(name)} {signed(value)}{f' {ranges[name].text}' if name in ranges else ''}"
        f"{f' over {counts[name]} blocks' if counts[name] < most else ''}"
        for name, value in known.items()
    ]
    told = f"Spearman's rank correlation over {most} blocks with {_effect_of(ds)}: {listed(parts)}"
    if not ranges:
        return f"{told}; ranges are not known, as the study does not hold the effect on each of its samples."
    one = next(iter(ranges.values()))
    told += f" (in brackets 95 % when the {one.n_samples} samples are resampled, which leans towards 0)"
    if len(known) > 1:
        best = winner(known, ranges)
        told += f"; {spoken(best)} is the farthest from 0" if best else "; which is the farthest from 0 is not resolved"
    itself = _itself(ranges)
    if itself is not None:
        told += f". On halves of the samples the effect agrees with itself by {signed(itself)}"
    return f"{told}."


def find_influence(ds: xr.Dataset) -> str:
    """Return in one sentence which proxy ranks the blocks best; that none is shown to, where ranges do not part."""
    known, ranges = _ranked(correlations(ds, "the report")), correlations_of_proxies(ds)
    if not set(known) & set(ranges):
        return ""
    best = winner(known, ranges)
    first = best or next(name for name in known if name in ranges)
    of_it = f"{spoken(first)}, {signed(known[first])} {ranges[first].text}"
    what, over = _effect_of(ds), f"over {_n_compared(ds, first)} blocks and {ranges[first].n_samples} samples"
    if len(known) == 1:
        return f"Spearman's rank correlation with {what}, {over}: {of_it}."
    if best:
        return f"Of {len(known)} proxies the one that ranks the blocks best by {what} is {of_it}, {over}."
    return (
        f"Which of {len(known)} proxies ranks the blocks best as {what} does is not resolved; first is {of_it}, {over}."
    )


def winner(known: dict[str, float], ranges: dict[str, Correlation]) -> str | None:
    """Return the proxy whose range lies farther from 0 than all others' ranges; None where there is none.

    Args:
        known: the correlation of each proxy, the farthest from 0 first.
        ranges: their ranges; a proxy without one is as far from 0 as can be.
    """
    best, *others = known
    if best not in ranges:
        return None
    own = ranges[best]
    nearest = 0.0 if own.low <= 0 <= own.high else min(abs(own.low), abs(own.high))
    farthest = [max(abs(ranges[one].low), abs(ranges[one].high)) if one in ranges else 1.0 for one in others]
    return best if all(nearest > end for end in farthest) else None


def correlations(ds: xr.Dataset, figure: str) -> dict[str, float]:
    """Return the rank correlation of each proxy.

    Raises:
        InputError: if the dataset has none.
    """
    style.variable(ds, "lesion_effect", f"{figure} (BlockInfluence run with lesion results)")
    values = style.variable(ds, "rank_correlation", figure).values
    names = [str(name) for name in style.variable(ds, "proxy", figure).values]
    if not names:
        raise InputError(f"{figure} finds no proxy in this dataset")
    return dict(zip(names, values.tolist(), strict=True))


def _ranked(found: dict[str, float]) -> dict[str, float]:
    """Return those that are defined, the farthest from 0 first."""
    defined = {name: value for name, value in found.items() if np.isfinite(value)}
    return dict(sorted(defined.items(), key=lambda one: -abs(one[1])))


def _itself(ranges: dict[str, Correlation]) -> float | None:
    """Return the rank correlation of the effects with themselves, on halves of the samples."""
    found = [one.reliability for one in ranges.values() if np.isfinite(one.reliability)]
    return found[0] if found else None


def _effect_of(ds: xr.Dataset) -> str:
    measure = style.plain(ds["lesion_effect"].attrs.get("measure", ""))
    return f"the rise of {spoken(measure)} when each is deleted" if measure else "the effect of deleting each"


def _n_compared(ds: xr.Dataset, proxy: str) -> int:
    """The number of blocks that have both the proxy and an effect."""
    effect = np.isfinite(ds["lesion_effect"].values)
    return int((effect & np.isfinite(effects.mean(ds[proxy], keep="block"))).sum() if proxy in ds else effect.sum())


def described_in_order(ds: xr.Dataset) -> str:
    """Return every proxy with its correlation, the farthest from 0 first, in the order of the panels."""
    found = correlations(ds, "the report")
    order = [*_ranked(found), *(name for name, value in found.items() if not np.isfinite(value))]
    parts = [f"{spoken(name)} {signed(found[name]) if np.isfinite(found[name]) else 'none'}" for name in order]
    return f"A point is a block, a panel a proxy. Spearman's rank correlations: {listed(parts)}."
