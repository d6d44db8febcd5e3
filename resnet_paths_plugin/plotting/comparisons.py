"""Figures of models side by side: one colour and one legend entry for each model, its interval as a band.

Draws the groups of `rpp.compare`. A second comparison in the same Axes goes on with the next colours.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting import effects, model_curves, style
from resnet_paths_plugin.plotting.figure import Drawing, Figure, FigureStudy, has
from resnet_paths_plugin.plotting.wording import listed, number, percent

BlockAxis = Literal["relative_depth", "index", "stage"]
SizeAxis = Literal["size", "share"]

_SIZES = {
    "n_deleted": ("number of deleted blocks", "share of the network's blocks that is deleted"),
    "n_swaps": ("number of swaps", None),
    "path_length": ("path length", "path length over the network's longest"),
}
"""The axes of curves: their names, and those of the share of the network's blocks."""


class ComparedLesions(Figure):
    """What deleting single blocks does to several models, on a common axis."""

    name = "compared_lesions"
    title = "Deleting single blocks, models side by side"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it is the group `single_lesions` of a comparison."""
        return has(ds, "relative_depth", "model", "position") and bool(_measures(ds, "position"))

    def draw(self, ds: xr.Dataset, **options: Any) -> Axes:
        """Draw `plot_compared_lesions`."""
        return plot_compared_lesions(ds, **options)

    def sentence(self, ds: xr.Dataset) -> str:
        """Return the mean over blocks for each model."""
        return _described(ds, "position", None, "with one block deleted, on average over blocks,")

    def drawings(self, study: FigureStudy) -> Iterator[Drawing]:
        """Yield the default measure, and the normalised effect where a model does better than guessing."""
        ds = study.dataset
        for measure, ending in ((None, ""), ("normalised_effect", "normalised")):
            if measure is None or (measure in ds and bool(ds[measure].notnull().any())):
                yield Drawing(
                    title=self.title + (", relative to guessing" if measure else ""),
                    sentence=_described(ds, "position", measure, "of deleting one block, on average over blocks,")
                    if measure
                    else self.sentence(ds),
                    draw=partial(plot_compared_lesions, ds, measure=measure),
                    ending=ending,
                )


class ComparedCurves(Figure):
    """What random lesions, reorderings and path lengths say of several models, by size."""

    name = "compared_curves"
    title = "Changes of several models by their size"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it is another group of a comparison with a common axis."""
        return "model" in ds.coords and any(_measures(ds, size) for size in _SIZES)

    def draw(self, ds: xr.Dataset, **options: Any) -> Axes:
        """Draw `plot_compared_curves`."""
        return plot_compared_curves(ds, **options)

    def sentence(self, ds: xr.Dataset) -> str:
        """Return the value at the largest size that all models have; of path lengths their mean."""
        size = _size_of(ds, "the report")
        if size == "path_length":
            share = ds["gradient_norm_share"]
            means = (share * ds[size]).sum(size) / share.sum(size)
            parts = [f"{number(mean)} in {name}" for name, mean in _by_model(means)]
            return f"The mean path length, weighted by the norm of the gradient, is {listed(parts)}."
        values = ds[_default(ds, size, "the report")]
        common = values[size].values[values.notnull().all("model").values]
        if not common.size:
            return ""
        largest = int(common[-1])
        plural = "" if largest == 1 else "s"
        when = f"with {largest} block{plural} deleted" if size == "n_deleted" else f"after {largest} swap{plural}"
        return _described(ds.sel({size: [largest]}), size, None, f"{when}, on average over draws,")

    def drawings(self, study: FigureStudy) -> Iterator[Drawing]:
        """Yield the curve, named after what is changed."""
        ds = study.dataset
        titles = {
            "n_deleted": "Deleting random sets of blocks, models side by side",
            "n_swaps": "Letting blocks trade places, models side by side",
            "path_length": "The gradient by path length, models side by side",
        }
        title = titles[_size_of(ds, "the report")]
        yield Drawing(title=title, sentence=self.sentence(ds), draw=partial(plot_compared_curves, ds), ending="")


def plot_compared_lesions(
    ds: xr.Dataset, ax: Axes | None = None, *, measure: str | None = None, by: BlockAxis = "relative_depth"
) -> Axes:
    """Draw what deleting single blocks does to several models, on a common axis.

    Bands are the intervals of the comparison; horizontal lines are the intact networks.

    Args:
        ds: group `single_lesions` of `rpp.compare`.
        ax: where to draw; by default in a figure of its own. Models of a comparison that was drawn there keep their
            colours, others take the next ones.
        measure: variable with dims (model, position), such as `"normalised_effect"`; by default `error`, else the share
            of `prediction_changed`, else the first by name.
        by: the axis: `"relative_depth"`, `"index"` of the block, or `"stage"`, whose stages are equally wide.

    Returns:
        The Axes.

    Raises:
        InputError: if the dataset lacks what is drawn, or stages are not known.

    Examples:
        >>> other = rpp.unravel(demo.DigitsResNet(blocks_per_stage=1).eval(), images)
        >>> studies = {name: rpp.BlockLesion(one).attribute(images, target=labels)
        ...            for name, one in {"six blocks": net, "three blocks": other}.items()}
        >>> lesions = rpp.compare(studies)["single_lesions"].to_dataset()
        >>> ax = rpp.plotting.plot_compared_lesions(lesions, measure="error_effect", by="stage")
    """
    name = _chosen(ds, "position", measure, "plot_compared_lesions")
    places = _places(ds, by)
    ax = style.own_axes(7.2, 3.8) if ax is None else ax
    model_curves.draw(ax, ds, name, model_curves.curves_of(ds, name, places))
    labels = {
        "relative_depth": "relative depth of the deleted block",
        "index": "index of the deleted block, in execution order",
        "stage": "stage of the deleted block",
    }
    ax.set_xlabel(labels[by])
    if by == "index":
        style.integer_axis(ax)
    elif by == "stage":
        _mark_stages(ax, ds)
    else:
        ax.set_xlim(0, 1)
    return ax


def plot_compared_curves(
    ds: xr.Dataset, ax: Axes | None = None, *, measure: str | None = None, by: SizeAxis = "size"
) -> Axes:
    """Draw what random lesions, reorderings or path lengths say of several models, by size.

    Args:
        ds: group `random_lesions`, `reorderings` or `path_lengths` of `rpp.compare`.
        ax: where to draw; by default in a figure of its own, else as `plot_compared_lesions`.
        measure: variable along `model` and the size; by default `error`, else the share of `prediction_changed`, else
            the first by name.
        by: the axis: `"size"`, or `"share"` of the network's blocks, which reorderings do not have.

    Returns:
        The Axes.

    Raises:
        InputError: if the dataset lacks what is drawn.

    Examples:
        >>> other = rpp.unravel(demo.DigitsResNet(blocks_per_stage=1).eval(), images)
        >>> studies = {name: rpp.PathLengthGradient(one).attribute(images, target=labels)
        ...            for name, one in {"six blocks": net, "three blocks": other}.items()}
        >>> lengths = rpp.compare(studies, n_resamples=100)["path_lengths"].to_dataset()
        >>> ax = rpp.plotting.plot_compared_curves(lengths, by="share")
    """
    size = _size_of(ds, "plot_compared_curves")
    name = _chosen(ds, size, measure, "plot_compared_curves")
    whole, share = _SIZES[size]
    if by not in {"size", "share"}:
        raise InputError(f"by must be 'size' or 'share', not {by!r}")
    if by == "share" and (share is None or "share_of_blocks" not in ds.coords):
        raise InputError(f"a {whole} has no share of the network's blocks: draw it by='size'")
    places = ds["share_of_blocks"] if by == "share" else ds[size].astype(np.float64)
    ax = style.own_axes(7.2, 3.8) if ax is None else ax
    model_curves.draw(ax, ds, name, model_curves.curves_of(ds, name, places))
    ax.set_xlabel(str(share if by == "share" else whole))
    if by == "size":
        style.integer_axis(ax)
    return ax


def _measures(ds: xr.Dataset, dim: str) -> list[str]:
    """Return what a comparison has along `model` and an axis, without ends of intervals, by name."""
    return sorted(
        str(name)
        for name, values in ds.data_vars.items()
        if set(values.dims) == {"model", dim} and {f"{name}_low", f"{name}_high"} <= set(ds.data_vars)
    )


def _default(ds: xr.Dataset, dim: str, figure: str) -> str:
    known = _measures(ds, dim)
    if not known:
        raise InputError(f"{figure} needs a group of rpp.compare with a measure along 'model' and '{dim}'")
    return next(name for name in (*effects.DEFAULT_MEASURES, *known) if name in known)


def _chosen(ds: xr.Dataset, dim: str, measure: str | None, figure: str) -> str:
    """Return the measure to draw.

    Raises:
        InputError: if it is not there.
    """
    name = _default(ds, dim, figure) if measure is None else measure
    if name not in _measures(ds, dim):
        raise InputError(f"{figure} finds no {measure!r}: measure must be one of {', '.join(_measures(ds, dim))}")
    return name


def _size_of(ds: xr.Dataset, figure: str) -> str:
    """Return the axis of a group of curves.

    Raises:
        InputError: if it has none.
    """
    found = next((size for size in _SIZES if "model" in ds.coords and _measures(ds, size)), None)
    if found is None:
        raise InputError(f"{figure} needs group 'random_lesions', 'reorderings' or 'path_lengths' of rpp.compare")
    return found


def _places(ds: xr.Dataset, by: str) -> xr.DataArray:
    """Return where each block of each model stands, dims (model, position).

    Raises:
        InputError: if there is no such axis, or the stages of a model are not known.
    """
    if by == "relative_depth":
        return ds["relative_depth"]
    if by == "index":
        return ds["position"].astype(np.float64)
    if by != "stage":
        raise InputError(f"by must be 'relative_depth', 'index' or 'stage', not {by!r}")
    there = ds["relative_depth"].notnull()
    stage = ds["stage"].where(there)
    unknown = [name for name, found in _by_model(((stage < 0) & there).any("position")) if found]
    if unknown:
        raise InputError(f"the stages of {', '.join(map(repr, unknown))} are not known: draw by='relative_depth'")
    position = ds["position"].where(there)
    first, last = (xr.zeros_like(stage) for _ in range(2))
    for own in (stage == number_ for number_ in np.unique(stage.values[there.values])):
        first = first.where(~own, position.where(own).min("position"))
        last = last.where(~own, position.where(own).max("position"))
    return stage + (position - first + 0.5) / (last - first + 1)


def _mark_stages(ax: Axes, ds: xr.Dataset) -> None:
    """Name the stages in their middle, with a line between two."""
    stages = np.unique(ds["stage"].values[ds["relative_depth"].notnull().values])
    for stage in stages[1:]:
        ax.axvline(stage, color=style.GREY, linewidth=0.6, alpha=0.6, zorder=0)
    ax.set_xticks(stages + 0.5, [f"stage {stage}" for stage in stages])
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(stages.min(), stages.max() + 1)


def _by_model(values: xr.DataArray) -> list[tuple[str, Any]]:
    return list(zip(values["model"].values.tolist(), values.values.tolist(), strict=True))


def _described(ds: xr.Dataset, dim: str, measure: str | None, when: str) -> str:
    """Return the mean of a measure along an axis for each model, and the intact network's."""
    name = _chosen(ds, dim, measure, "the report")
    tell = percent if name in model_curves.FRACTIONS | model_curves.DIFFERENCES else number
    intact = dict(_by_model(ds[f"intact_{name}"])) if f"intact_{name}" in ds else {}
    parts = [
        f"{tell(mean)} in {model}" + (f" (intact {tell(intact[model])})" if model in intact else "")
        for model, mean in _by_model(ds[name].mean(dim))
        if np.isfinite(mean)
    ]
    what = model_curves.LABELS.get(name, name.replace("_", " ")).partition(" (")[0]
    return f"The {what} {when} is {listed(parts)}." if parts else ""
