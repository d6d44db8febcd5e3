"""The strip of attribution maps by path length: what the paths of each length see in an image.

Draws the Dataset of `PathLengthGradient` run with `keep_maps`.
"""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting import style
from resnet_paths_plugin.plotting.figure import Drawing, Figure, FigureStudy, has
from resnet_paths_plugin.results.derived import refreshed

COLOUR_MAP = "RdBu_r"
PERCENTILE = 99
"""Where the colours end: a handful of extreme pixels would leave the rest of a map white."""

IMAGE_DIMS = 3
MAP_COLUMNS = 8
SAMPLE_ROWS = 4
CHANNELS = (1, 3)
SIZE_OF_CHARACTERS = 9
CHARACTERS_PER_INCH = 13


STUDY_DIMS = 5
"""Of the gradient of images by length: path_length, sample, channel, height, width."""


class PathMaps(Figure):
    """What the paths of each length see in an image."""

    name = "path_maps"
    title = "Input gradients by path length"

    def fits(self, ds: xr.Dataset) -> bool:
        """Whether it holds maps of images by length."""
        return holds_maps(ds)

    def draw(self, ds: xr.Dataset, **options: Any) -> NDArray[Any]:
        """Draw `plot_path_attribution`."""
        return plot_path_attribution(ds, **options)

    def sentence(self, ds: xr.Dataset) -> str:
        """Return which length carries most, what is beyond, and whether the parts add up."""
        return describe_path_maps(ds)

    def drawings(self, study: FigureStudy) -> Iterator[Drawing]:
        """Yield the maps."""
        ds = study.dataset
        yield Drawing(
            title=self.title, sentence=describe_path_maps(ds), draw=partial(plot_path_attribution, ds), ending=""
        )


def holds_maps(ds: xr.Dataset) -> bool:
    """Whether a dataset holds gradients of images by path length."""
    return has(ds, "gradient", "path_length", "sample") and ds["gradient"].ndim == STUDY_DIMS


def plot_path_attribution(
    ds: xr.Dataset,
    images: ArrayLike | None = None,
    axes: Iterable[Axes] | None = None,
    *,
    samples: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
) -> NDArray[Any]:
    """Draw input gradients of a few samples by path length: all paths, then length 0, 1, 2, ...

    One row per sample, one column per length. The gradient is summed over channels; red is positive, blue
    negative, white zero. Each map has its own scale: colours end at the 99th percentile of its absolute
    values, which is written below it.

    Args:
        ds: result of `PathLengthGradient(...).attribute(..., keep_maps=True)` on images.
        images: the study's images, one for each of its samples, for a first column; by default its `input`. Shape
            `[B, C, H, W]` or `[B, H, W, C]`. Floats outside [0, 1] are stretched to it, image by image.
        axes: one Axes per panel, row by row; by default those of a figure of its own.
        samples: which samples, counted from 0; by default the first four.
        lengths: which path lengths; by default the first eight.

    Returns:
        The Axes, shape `[samples, columns]`.

    Raises:
        InputError: if the dataset has no maps of images, a sample or length is not in it, or `images` or
            `axes` do not fit.

    Examples:
        >>> maps = rpp.PathLengthGradient(net).attribute(images, target=labels, keep_maps=True)
        >>> axes = rpp.plotting.plot_path_attribution(maps, samples=[0, 1], lengths=[0, 1, 2])
    """
    ds = refreshed(ds)
    maps = _maps(ds)
    rows = list(range(min(SAMPLE_ROWS, maps.shape[1]))) if samples is None else list(samples)
    known = [int(length) for length in ds["path_length"].values]
    shown = known[:MAP_COLUMNS] if lengths is None else list(lengths)
    _check_members("sample", rows, range(maps.shape[1]))
    _check_members("path length", shown, known)
    images = ds.get("input") if images is None else images
    pictures = None if images is None else _pictures(images, maps.shape[1])

    first = 0 if pictures is None else 1
    columns = first + 1 + len(shown)
    panels = _own_panels(len(rows), columns) if axes is None else style.grid_of(axes, len(rows), columns)
    # With max_length the longer paths are only known by their norm.
    everything = f"lengths 0\N{EN DASH}{known[-1]}" if "tail_gradient_norm" in ds else "all paths"
    for row, sample in zip(panels, rows, strict=True):
        for ax in row:
            ax.set_xticks([])
            ax.set_yticks([])
        row[0].set_ylabel(f"sample {sample}")
        if pictures is not None:
            row[0].imshow(pictures[sample], cmap="gray", vmin=0, vmax=1)
        _draw_map(row[first], maps[:, sample].sum(axis=0))
        for ax, length in zip(row[first + 1 :], shown, strict=True):
            _draw_map(ax, maps[known.index(length), sample])
    titles = ["image"] * first + [everything] + [f"length {length}" for length in shown]
    for ax, title in zip(panels[0], titles, strict=True):
        ax.set_title(title, fontsize=style.legend_size())
    return panels


def _maps(ds: xr.Dataset) -> NDArray[np.float64]:
    """The gradients summed over channels, shape `[lengths, B, H, W]`."""
    gradient = style.variable(ds, "gradient", "plot_path_attribution (run with keep_maps=True)")
    inputs = [dim for dim in gradient.dims if dim not in {"path_length", "sample"}]
    if len(inputs) != IMAGE_DIMS or not {"path_length", "sample"} <= set(gradient.dims):
        raise InputError(
            f"plot_path_attribution draws images, but 'gradient' has the dimensions "
            f"{', '.join(map(str, gradient.dims))}: expected path_length, sample, channel, height, width"
        )
    ordered = gradient.transpose("path_length", "sample", *inputs).values
    return np.asarray(ordered.sum(axis=2, dtype=np.float64))


def _check_members(what: str, asked: list[int], known: Sequence[int]) -> None:
    unknown = [item for item in asked if item not in known]
    if unknown or not asked:
        complaint = f"{what} {unknown[0]} is not in this dataset" if unknown else f"no {what} was chosen"
        raise InputError(f"{complaint}: it has {known[0]} to {known[-1]}")


def _pictures(images: ArrayLike, samples: int) -> NDArray[np.float64]:
    """The images as `[B, H, W, C]` (or `[B, H, W]` with one channel), within [0, 1]."""
    given = np.asarray(images)
    if given.ndim != IMAGE_DIMS + 1 or len(given) != samples or not {given.shape[1], given.shape[3]} & set(CHANNELS):
        raise InputError(
            f"images have shape {given.shape}: expected (B, C, H, W) or (B, H, W, C) with 1 or 3 channels "
            f"and B = {samples}, the samples of the dataset"
        )
    last = given if given.shape[3] in CHANNELS else np.moveaxis(given, 1, 3)
    pictures = last / 255.0 if last.dtype == np.uint8 else last.astype(np.float64)
    for picture in pictures:
        low, high = picture.min(), picture.max()
        if low < 0 or high > 1:
            picture[...] = (picture - low) / (high - low if high > low else 1.0)
    return pictures[..., 0] if pictures.shape[3] == 1 else pictures


def _own_panels(rows: int, columns: int) -> NDArray[Any]:
    width = 0.4 + 1.15 * columns
    panels = style.own_grid(rows, columns, width, 0.7 + 1.35 * rows, stacks=False)
    note = (
        "gradient summed over channels: red positive, blue negative; "
        f"below each map, where its colours end ({PERCENTILE}th percentile)"
    )
    scale = float(panels[0, 0].figure.get_figwidth()) / style.legend_size() * SIZE_OF_CHARACTERS
    note = textwrap.fill(note, int(scale * CHARACTERS_PER_INCH))
    panels[0, 0].figure.supxlabel(note, fontsize=style.legend_size())
    return panels


def _draw_map(ax: Axes, values: NDArray[np.float64]) -> None:
    limit = float(np.percentile(np.abs(values), PERCENTILE))
    bound = limit if limit > 0 else 1.0
    ax.imshow(values, cmap=COLOUR_MAP, vmin=-bound, vmax=bound)
    ax.set_xlabel(f"\N{PLUS-MINUS SIGN}{limit:.2g}", fontsize=style.legend_size())


def describe_path_maps(ds: xr.Dataset) -> str:
    """Maps: which length shown carries most, what is beyond, and whether the parts add up."""
    sentence = []
    if "gradient_norm" in ds:
        norms = ds["gradient_norm"].mean("sample")
        most = int(norms["path_length"].values[norms.values.argmax()])
        sentence.append(
            f"of the lengths up to {int(norms['path_length'].values[-1])}, length {most} has the largest gradient "
            f"(mean norm {float(norms.max()):.2g})"
        )
    if "tail_gradient_norm" in ds:
        sentence.append(f"all longer paths together have one of norm {float(ds['tail_gradient_norm'].mean()):.2g}")
    if "completeness_error" in ds:
        sentence.append(_completeness(ds))
    text = "; ".join(sentence) or "the gradients are shown without their norms"
    return f"{text[0].upper()}{text[1:]}."


def _completeness(ds: xr.Dataset) -> str:
    largest = float(ds["completeness_error"].max())
    rest = ", with the rest," if "tail_gradient_norm" in ds else ""
    return f"all lengths{rest} add up to the ordinary gradient within {largest:.0e} of its norm"
