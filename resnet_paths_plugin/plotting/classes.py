"""The heat map of single lesions by class: which class needs which block.

Draws the Dataset of `BlockLesion`, where its targets are class labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting import block_axis, style
from resnet_paths_plugin.plotting.style import FloatArray
from resnet_paths_plugin.results.derived import refreshed

COLOUR_MAP = "RdBu_r"
MOST_NAMED_CLASSES = 30
LONGEST_CLASS_NAME = 24


@dataclass(frozen=True)
class ClassRises:
    """The rise of each class's error, for each lesion of one block.

    Attributes:
        rise: error with the lesion minus error of the intact network, shape `[classes, m]`; fractions.
        intact: error of the intact network by class, shape `[classes]`.
        labels: the classes that samples are labelled with, shape `[classes]`.
        samples: samples of each, shape `[classes]`.
        lesions: the lesions.
    """

    rise: FloatArray
    intact: FloatArray
    labels: NDArray[np.int_]
    samples: NDArray[np.int_]
    lesions: block_axis.SingleLesions


def class_rises(ds: xr.Dataset, figure: str) -> ClassRises:
    """How much more often each class is mistaken, for each lesion of one block.

    Raises:
        InputError: if the dataset lacks labels, or which predictions are correct.
    """
    labels = style.variable(ds, "label", f"{figure} (a study with class labels as targets)").values
    correct = style.variable(ds, "correct", figure).transpose("lesion", "sample").values
    intact = style.variable(ds, "intact_correct", figure).values
    lesions = block_axis.single_lesions(ds, figure)
    known, place, samples = np.unique(labels, return_inverse=True, return_counts=True)
    members = (place == np.arange(len(known))[:, None]) / samples[:, None]  # averages over each class's samples
    lost = intact.astype(np.float64) - correct[lesions.chosen]
    return ClassRises(
        rise=members @ lost.T, intact=members @ (1.0 - intact), labels=known, samples=samples, lesions=lesions
    )


def plot_class_lesions(ds: xr.Dataset, ax: Axes | None = None, *, class_names: Sequence[str] | None = None) -> Axes:
    """Draw the rise of each class's error when single blocks are deleted: classes down, blocks across.

    Red is a rise over the intact network's error of that class, blue a fall, white neither; in percentage points.
    Triangles mark blocks whose skip is a projection.

    Args:
        ds: result of `BlockLesion` with lesions of one block each and class labels as targets: `label`, `correct`,
            `intact_correct`.
        ax: where to draw; by default in a figure of its own.
        class_names: names of the model's classes, by number.

    Returns:
        The Axes of the map; its colour bar is beside it.

    Raises:
        InputError: if the dataset lacks what is drawn, or there are labels without a name.

    Examples:
        >>> lesions = rpp.BlockLesion(net).attribute(images, target=labels)
        >>> ax = rpp.plotting.plot_class_lesions(lesions, class_names=demo.CLASS_NAMES)
    """
    ds = refreshed(ds)
    found = class_rises(ds, "plot_class_lesions")
    names = names_of(found.labels, class_names)
    lesions, points = found.lesions, 100 * found.rise
    shown = np.full((len(names), lesions.n_places), np.nan)
    shown[:, lesions.position] = points
    ax = style.own_axes(7.6, float(np.clip(1.6 + 0.22 * len(names), 3.0, 7.0))) if ax is None else ax

    bound = float(np.abs(points).max()) or 1.0
    ax.set_facecolor(style.SHADE)
    picture = ax.imshow(shown, cmap=COLOUR_MAP, vmin=-bound, vmax=bound, aspect="auto", interpolation="nearest")
    bar = ax.get_figure().colorbar(picture, ax=ax, pad=0.02)  # type: ignore[union-attr]
    bar.set_label("rise of the class's error (percentage points)")
    # White stays at 0, but colours that nothing has would only take room.
    bar.ax.set_ylim(min(0.0, points.min()), bound if points.max() <= 0 else points.max())
    if lesions.projection.any():
        ax.plot(
            lesions.position[lesions.projection],
            np.full(lesions.projection.sum(), 1.0),
            transform=ax.get_xaxis_transform(),
            linestyle="none",
            marker="v",
            markersize=6,
            color=style.BLACK,
            clip_on=False,
            label="projection skip",
        )
        style.legend_above(ax)
    _name_classes(ax, names, found.samples)
    block_axis.name_blocks(ax, lesions.position, lesions.names, f"deleted {lesions.unit}")
    return ax


def names_of(labels: NDArray[np.int_], class_names: Sequence[str] | None) -> list[str]:
    """The names of the classes, or their numbers.

    Raises:
        InputError: if there are labels without a name.
    """
    if class_names is None:
        return [str(label) for label in labels]
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise InputError(
            f"class_names has {len(class_names)} names, and labels go from {labels.min()} to {labels.max()}"
        )
    return [str(class_names[label]) for label in labels]


def _name_classes(ax: Axes, names: Sequence[str], samples: NDArray[np.int_]) -> None:
    if len(names) <= MOST_NAMED_CLASSES:
        ticks = [
            f"{style.shortened(style.plain(name), LONGEST_CLASS_NAME)} ({count})"
            for name, count in zip(names, samples, strict=True)
        ]
        ax.set_yticks(np.arange(len(names)), ticks, fontsize=style.legend_size())
        ax.set_ylabel("class (samples)")
    else:
        ax.set_ylabel(f"class ({len(names)}, in the order of their numbers)")


def describe_class_lesions(found: ClassRises, names: Sequence[str]) -> str:
    """Heat map by class: where the error rises most, and how often it does at all."""
    pairs = f"{found.rise.size} pairs of class and deleted {found.lesions.unit}"
    if found.rise.max() <= 0:
        return f"In none of {pairs} does the error of the class rise."
    row, column = divmod(int(found.rise.argmax()), found.rise.shape[1])
    equals = int(np.isclose(found.rise, found.rise.max(), rtol=0, atol=1e-12).sum())
    raised = int((found.rise > 0).sum())
    where = f"of class {names[row]} ({found.samples[row]} samples) without {found.lesions.names[column]}"
    return (
        f"The largest rise of a class's error is {100 * found.rise.max():.1f} percentage points, "
        f"{where if equals == 1 else f'in {equals} of {pairs}'}; the error of the class rises in {raised} of {pairs}."
    )
