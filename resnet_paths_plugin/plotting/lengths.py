"""Figures by path length: how many paths there are, what one carries, what all carry (Fig. 6).

Draws the Dataset of `PathLengthGradient`, with whichever estimators it was run.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting import style
from resnet_paths_plugin.plotting.attribution import holds_maps
from resnet_paths_plugin.plotting.figure import Drawing, Figure, FigureStudy
from resnet_paths_plugin.plotting.length_intervals import (
    LengthBand,
    exact_shares,
    gradient_shares,
    of_sampled_paths,
)
from resnet_paths_plugin.plotting.style import FloatArray
from resnet_paths_plugin.plotting.survival import (
    chain_length,
    default_deletions,
    describe_path_survival,
    plot_path_survival,
)
from resnet_paths_plugin.plotting.wording import share_of
from resnet_paths_plugin.results.derived import refreshed

FARTHEST = 1e6
"""How far from the mean an interval is drawn, as a factor."""
LINE: dict[str, Any] = {"markersize": 3.5, "linewidth": 1.2}
EXACT = {**LINE, "color": style.BLUE, "marker": "o", "linestyle": "-"}
SAMPLED = {**LINE, "color": style.VERMILLION, "marker": "s", "linestyle": "--", "markerfacecolor": "white"}
# Root mean squares lie so close above the means that they have to be on top to be seen.
SIGNS = {**LINE, "color": style.GREEN, "marker": "^", "linestyle": ":", "zorder": 4}
ALONG = {**LINE, "color": style.BLACK, "marker": "D", "linestyle": "-.", "markersize": 3, "markerfacecolor": "white"}

COUNTS = {"path_count", "log10_path_count", "gradient_norm", "path_gradient_norm", "path_gradient_rms"}
"""Variables of which one is enough to draw."""


class PathLengths(Figure):
    """Numbers of paths and their gradients by path length."""

    name = "path_lengths"
    title = "Paths and gradients by path length (Fig. 6 of the paper)"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it is a study of paths by one length, without maps."""
        return "path_length" in ds.coords and bool(COUNTS & set(ds.data_vars)) and not holds_maps(ds)

    def draw(self, ds: xr.Dataset, **options: Any) -> NDArray[Any]:
        """Draw `plot_path_lengths`."""
        return plot_path_lengths(ds, **options)

    def sentence(self, ds: xr.Dataset) -> str:
        """Return how many paths there are, and which lengths hold the gradient."""
        return " ".join(filter(None, (describe_path_lengths(ds), describe_completeness(ds))))

    def finding(self, ds: xr.Dataset) -> str:
        """Return which lengths hold the exact gradient."""
        span, ranges = _effective_range(ds, "gradient_norm"), _ranges(ds)
        if span is None or not ranges:
            return ""
        return (
            f"95 % of the gradient, summed over lengths, is in paths of {span[0]:g} to {span[1]:g} of "
            f"{int(ds['path_length'].values[-1])} {_grade(ds)}{ranges}."
        )

    def drawings(self, study: FigureStudy) -> Iterator[Drawing]:
        """Yield Fig. 6, and Fig. 7 of a chain."""
        ds = study.dataset
        yield Drawing(title=self.title, sentence=self.sentence(ds), draw=partial(plot_path_lengths, ds), ending="")
        n = chain_length(ds, "the report")  # refuses what is no chain: there, paths survive in other numbers
        yield Drawing(
            title="Paths left after deletions, by length (Fig. 7 of the paper)",
            sentence=describe_path_survival(n, default_deletions(n)),
            draw=partial(plot_path_survival, n),
            ending="survival",
        )


def plot_path_lengths(ds: xr.Dataset, axes: Iterable[Axes] | None = None) -> NDArray[Any]:
    """Draw, by path length, the number of paths, one path's gradient and the total gradient (Figs. 6a-c).

    The single path: mean of sampled ones, root mean square from random signs. Where neither
    was run, the norm of the mean path instead (exact norm over number of paths), a lower bound of the paths'
    mean norm. The total: the exact `||G_k||`, mean over samples, beside number of paths times mean norm, each
    as its share of its own sum over lengths: paths cancel, so their absolute sizes are decades apart. Where the study
    has `gradient_share`, also `m_k`, the share of `G_k` along the gradient, which may be negative. Bands are 95 %
    intervals, over samples of what is exact, over draws of sampled paths. Bars above mark the effective ranges. A panel
    whose data are not there says which estimator gives them.

    Args:
        ds: result of `PathLengthGradient` with one grade.
        axes: three Axes; by default those of a figure of its own.

    Returns:
        The three Axes, shape `[3]`.

    Raises:
        InputError: if the dataset has no `path_length`, or the number of Axes is not three.

    Examples:
        >>> estimator = ["exact", "sampled"]
        >>> lengths = rpp.PathLengthGradient(net).attribute(images, target=labels, estimator=estimator, draws=5)
        >>> counted, single, total = rpp.plotting.plot_path_lengths(lengths)
    """
    if "path_length" not in ds.dims:
        raise InputError(
            "plot_path_lengths needs the dimension 'path_length', as PathLengthGradient gives it for one "
            f"grade; this dataset has the dimensions {', '.join(map(str, ds.sizes)) or '(none)'}"
        )
    panels = (style.own_grid(1, 3, 11, 3.8) if axes is None else style.grid_of(axes, 1, 3)).ravel()
    ds = refreshed(ds)
    counted, single, total = panels
    lengths = ds["path_length"].values
    log_counts = _log10_path_count(ds)
    grade = ds.attrs.get("argument_grade", "blocks")
    for ax in panels:
        style.integer_axis(ax)
        ax.set_xlabel(f"path length ({grade})" if grade in {"blocks", "layers"} else "path length")
    for ax in panels[1:]:
        ax.set_xlabel(ax.get_xlabel() + _counted(ds))
    _draw_counts(counted, lengths, log_counts)
    _draw_single_paths(single, lengths, ds, log_counts)
    _draw_totals(total, lengths, ds, log_counts)
    return panels


def describe_path_lengths(ds: xr.Dataset) -> str:
    """Fig. 6: how many paths there are, and which lengths hold the gradient."""
    sentence = []
    shares = None
    if "log10_path_count" in ds:
        digits = ds["log10_path_count"].values
        # Relative to the largest, since counts of deep networks are beyond the range of floats.
        counts = 10.0 ** (digits - digits.max())
        total = digits.max() + np.log10(counts.sum())
        longest = int(ds["path_length"].values[-1])
        cut = "tail_gradient_norm" in ds
        shares = None if cut else counts / counts.sum()
        count = f"{10**total:.0f}" if total < 6 else f"about {10 ** (total % 1):.1f} x 10^{int(total)}"
        sentence.append(f"There are {count} paths of {'up to' if cut else 'lengths 0 to'} {longest} {_grade(ds)}")
    for measure, estimator in (("gradient_norm", "exact"), ("total_path_gradient", "sampled paths")):
        span = _effective_range(ds, measure)
        if span is not None:
            low, high = span
            inside = (ds["path_length"].values >= low) & (ds["path_length"].values <= high)
            share = "" if shares is None else f", which {share_of(shares[inside].sum())} of all paths have"
            sentence.append(
                f"95 % of the gradient ({estimator}, summed over lengths) is in lengths {low:g} to {high:g}{share}"
                f"{_ranges(ds) if measure == 'gradient_norm' else ''}"
            )
    along = _effective_range(ds, "gradient_share")
    if along is not None:
        sentence.append(
            f"as shares of the gradient itself, which sum to 1 (m_k), 95 % are in lengths {along[0]:g} to {along[1]:g}"
        )
    drawn = of_sampled_paths(ds)
    if drawn is not None and drawn.heaviest > 0:
        sentence.append(
            f"of the total of the paths that were drawn, {drawn.n_draws} of each length{_for_each(ds)}, a single draw, "
            f"of length {drawn.heaviest_length}, holds {share_of(drawn.heaviest)}"
        )
    if not sentence:
        return "This study holds neither counts of paths nor an effective range."
    return "; ".join(sentence) + "."


def _for_each(ds: xr.Dataset) -> str:
    """Whether each sample has paths of its own, in which case a draw is one of each."""
    own = ds.attrs.get("sampled_paths") == "own" and ds.sizes.get("sample", 1) > 1
    return " and sample" if own else ""


def _ranges(ds: xr.Dataset) -> str:
    """Where the ends of the exact effective range lie when samples are resampled, in brackets."""
    exact = exact_shares(ds)
    if exact is None or not np.isfinite([*exact.range_low, *exact.range_high]).all():
        return ""
    ends = [f"{low:g} to {high:g}" if low != high else f"{low:g}" for low, high in (exact.range_low, exact.range_high)]
    return f" (95 % intervals of the ends over {ds.sizes['sample']} samples: {ends[0]} and {ends[1]})"


def describe_completeness(ds: xr.Dataset) -> str | None:
    """Whether the gradients by length add up to the ordinary one; None where the study does not say."""
    if "completeness_error" not in ds:
        return None
    return (
        f"All lengths add up to the ordinary gradient within {float(ds['completeness_error'].max()):.0e} of its norm."
    )


def _draw_counts(ax: Axes, lengths: NDArray[Any], log_counts: FloatArray | None) -> None:
    ax.set_title("(a) number of paths", loc="left")
    if log_counts is None:
        _say_missing(ax, "the number of paths\n(path_count)")
        return
    ax.bar(lengths, _shares(log_counts), width=0.9, color=style.SKY, edgecolor=style.BLUE, linewidth=0.4)
    ax.set_ylabel("share of all paths (%)")
    style.percent_axis(ax)


def _draw_single_paths(ax: Axes, lengths: NDArray[Any], ds: xr.Dataset, log_counts: FloatArray | None) -> None:
    ax.set_title("(b) gradient of one path", loc="left")
    if "path_gradient_norm" in ds:
        mean, paths_drawn = _positive(ds["path_gradient_norm"].values), of_sampled_paths(ds)
        if paths_drawn is not None:
            # Of very few draws it may span hundreds of decades.
            band = paths_drawn.norm
            near = replace(band, low=np.maximum(band.low, mean / FARTHEST), high=np.minimum(band.high, mean * FARTHEST))
            _fill(ax, lengths, near, SAMPLED)
            ax.plot(lengths, mean, label="sampled: mean, 95 % interval", **SAMPLED)
        else:  # of a file that keeps no draws
            error = np.zeros_like(mean)
            if "path_gradient_norm_stderr" in ds:
                error = np.nan_to_num(ds["path_gradient_norm_stderr"].values)
            # A bar down to zero has no end on a logarithmic axis: there only the upper half is drawn.
            bars = [np.where(error < mean, error, 0), error]
            ax.errorbar(lengths, mean, bars, label="sampled: mean, standard error", **SAMPLED)
    if "path_gradient_rms" in ds:
        ax.plot(lengths, _positive(_root_mean_square(ds)), label="random signs: root mean square", **SIGNS)
    if not ax.lines and "gradient_norm" in ds and log_counts is not None:
        mean_path = 10.0 ** (_log10(_mean_over_samples(ds["gradient_norm"])) - log_counts)
        ax.plot(lengths, _positive(mean_path), label="exact: norm of the mean path", **EXACT)
    if not ax.lines:
        _say_missing(ax, 'gradients of single paths\n(estimator "sampled" or "signs")')
        return
    ax.set_yscale("log")
    ax.set_ylabel("gradient norm")
    style.leave_room(ax, 0.22)
    ax.legend(fontsize=style.legend_size(), loc="upper right")


_Series = tuple[str, FloatArray, str, dict[str, Any]]
"""A line of totals: its name, their logarithms by length, the measure that it is of, its look."""


def _draw_totals(ax: Axes, lengths: NDArray[Any], ds: xr.Dataset, log_counts: FloatArray | None) -> None:
    ax.set_title("(c) total gradient by length", loc="left")
    series = list(_series(ds, log_counts))
    if not series:
        _say_missing(ax, 'gradients by length\n(estimator "exact" or "sampled")')
        return
    bands = _bands(ds)
    for rank, (name, log_values, measure, look) in enumerate(series):
        _fill(ax, lengths, bands.get(measure), look)
        effective = _effective_range(ds, measure)
        note = "" if effective is None else f", 95 % in {effective[0]:g}\N{EN DASH}{effective[1]:g}"
        ax.plot(lengths, _shares(log_values), label=name + note, **look)
        if effective is not None:
            height = 0.77 - 0.04 * rank
            bar = {**look, "marker": "|", "markersize": 8, "linewidth": 2.5, "linestyle": "-"}
            ax.plot(effective, [height, height], transform=ax.get_xaxis_transform(), **bar)
    ax.set_ylabel("share of the sum over lengths (%)")
    style.percent_axis(ax)
    _draw_along(ax, lengths, ds)
    style.leave_room(ax, 0.3)
    ax.legend(fontsize=style.legend_size(), loc="upper right")


def _series(ds: xr.Dataset, log_counts: FloatArray | None) -> Iterator[_Series]:
    """Yield the lines of totals that a study holds."""
    if "gradient_norm" in ds:
        yield "exact", _log10(_mean_over_samples(ds["gradient_norm"])), "gradient_norm", EXACT
    if "log10_total_path_gradient" in ds:
        yield "sampled", ds["log10_total_path_gradient"].values, "total_path_gradient", SAMPLED
    elif "total_path_gradient" in ds:
        yield "sampled", _log10(ds["total_path_gradient"].values), "total_path_gradient", SAMPLED
    elif "path_gradient_rms" in ds and log_counts is not None:
        yield "random signs", log_counts + _log10(_root_mean_square(ds)), "path_gradient_rms", SIGNS


def _bands(ds: xr.Dataset) -> dict[str, LengthBand]:
    """Return the intervals of the lines of totals, by measure."""
    exact, drawn = exact_shares(ds), of_sampled_paths(ds)
    found = {}
    if exact is not None:
        found["gradient_norm"] = exact.share
    if drawn is not None:
        found["total_path_gradient"] = drawn.share
    return found


def _draw_along(ax: Axes, lengths: NDArray[Any], ds: xr.Dataset) -> None:
    """Draw the share of each length along the gradient, which may be negative, where the study has it."""
    along = gradient_shares(ds)
    if along is None:
        return
    values, band = along
    _fill(ax, lengths, band, ALONG)
    ax.plot(lengths, values, label="exact, along the gradient ($m_k$)", **ALONG)
    low = np.nanmin([*values, *band.low])
    if low < 0:
        ax.set_ylim(bottom=1.05 * low, auto=None)
        ax.axhline(0, color=style.GREY, linewidth=0.8, zorder=1)


def _fill(ax: Axes, lengths: NDArray[Any], band: LengthBand | None, look: dict[str, Any]) -> None:
    """Draw the intervals of a line, if there are any."""
    if band is not None:
        ax.fill_between(lengths, band.low, band.high, color=look["color"], alpha=0.18, linewidth=0)


def _counted(ds: xr.Dataset) -> str:
    """How many samples and draws there are, in lines below the axis; empty where the study does not say."""
    samples = ds.sizes.get("sample") or (int(ds["n_samples"]) if "n_samples" in ds else 0)
    parts = [f"{samples} sample{'s' if samples > 1 else ''}"] if samples else []
    if "n_draws" in ds and "path_gradient_norm" in ds:
        parts.append(f"{int(ds['n_draws'])} paths of each length{_for_each(ds)}")
    return "".join(f"\n{part}" for part in parts)


def _log10_path_count(ds: xr.Dataset) -> FloatArray | None:
    if "log10_path_count" in ds:
        return np.asarray(ds["log10_path_count"].values, dtype=np.float64)
    if "path_count" in ds:
        return _log10(ds["path_count"].values)
    return None


def _effective_range(ds: xr.Dataset, measure: str) -> tuple[float, float] | None:
    if not {"effective_length_low", "effective_length_high"} <= set(ds.data_vars):
        return None
    if measure not in ds["measure"].values:
        return None
    low, high = (float(ds[f"effective_length_{end}"].sel(measure=measure)) for end in ("low", "high"))
    return None if np.isnan(low) else (low, high)


def _mean_over_samples(values: xr.DataArray) -> FloatArray:
    return np.asarray(values.mean("sample").values, dtype=np.float64)


def _root_mean_square(ds: xr.Dataset) -> FloatArray:
    norms = ds["path_gradient_rms"]
    # Squares of single paths' norms underflow long before the norms do.
    largest = norms.max("sample")
    scale = largest.where(largest > 0, 1)
    return np.asarray((scale * np.sqrt(((norms / scale) ** 2).mean("sample"))).values, dtype=np.float64)


def _log10(values: NDArray[Any]) -> FloatArray:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log10(values.astype(np.float64)))


def _shares(log_values: FloatArray) -> FloatArray:
    """Each value's share of the sum, from logarithms that may be beyond the range of floats."""
    finite = log_values[np.isfinite(log_values)]
    if not finite.size:
        return np.zeros_like(log_values)
    values = 10.0 ** (log_values - finite.max())
    return np.asarray(values / np.nansum(values))


def _positive(values: NDArray[Any]) -> FloatArray:
    """The values that a logarithmic axis can show; NaN, a gap in the line, for the others."""
    return np.where(values > 0, values, np.nan)


def _say_missing(ax: Axes, what: str) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel("")
    ax.text(
        0.5,
        0.5,
        f"not in this dataset:\n{what}",
        transform=ax.transAxes,
        ha="center",
        va="center",
        color=style.GREY,
    )


def _grade(ds: xr.Dataset) -> str:
    grade = str(ds.attrs.get("argument_grade", "blocks"))
    return grade if grade in {"blocks", "layers"} else "steps"
