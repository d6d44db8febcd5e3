"""The x axis of single blocks: which lesion stands at which place, stages shaded, blocks named.

Shared by every figure that shows something block by block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting import style
from resnet_paths_plugin.plotting.style import FloatArray

LONGEST_TICK_NAME = 20
"""Characters; longer block names would take more room than the data."""

INCHES_PER_TICK_NAME = 0.17
"""What one upright tick label needs along the x axis."""

INCHES_PER_CHARACTER = 0.085
"""What a character of a stage's number needs."""


@dataclass(frozen=True)
class SingleLesions:
    """The lesions of one block (or one group) each, in execution order.

    Attributes:
        chosen: which of the dataset's lesions, shape `[m]`.
        position: where each is drawn, shape `[m]`.
        names: the block or group that each deletes.
        projection: whether each deletes a block whose skip is a projection, shape `[m]`.
        stage: stage of the network, shape `[m]`; NaN where it is not known.
        unit: "block" or "group"; "layer" in a network without skips.
        n_places: places on the axis.
    """

    chosen: NDArray[np.intp]
    position: NDArray[np.intp]
    names: list[str]
    projection: NDArray[np.bool_]
    stage: FloatArray
    unit: str
    n_places: int


def single_lesions(ds: xr.Dataset, figure: str) -> SingleLesions:
    """The lesions of one block each, or of one group each if that is what all of them are.

    Raises:
        InputError: if there are none.
    """
    deleted = style.variable(ds, "deleted", figure).transpose("lesion", "block").values.astype(bool)
    names = style.variable(ds, "block", figure).values
    groups = ds["block_group"].values if "block_group" in ds.coords else names
    by_owner = groups == np.unique(groups)[:, None]
    # A lesion is a group's if it has as many blocks as the group and shares them all. Counts up to 2**24 are exact.
    owned = by_owner.sum(axis=1)
    shared = deleted.astype(np.float32) @ by_owner.T.astype(np.float32)
    whole_groups = ((shared == owned) & (deleted.sum(axis=1)[:, None] == owned)).any(axis=1)
    one_block = deleted.sum(axis=1) == 1
    by_group = bool(whole_groups.all() and not one_block.all())
    (candidates,) = np.nonzero(whole_groups if by_group else one_block)
    if not candidates.size:
        raise InputError(
            f"{figure} needs lesions of one block each, and this dataset has none; run BlockLesion "
            "with its default lesions, or draw random sets of blocks with plot_random_lesions"
        )
    # A block that was drawn twice at random is one point.
    block, which = np.unique(deleted[candidates].argmax(axis=1), return_index=True)
    chosen = candidates[which]
    unit = "layer" if ds.attrs.get("units") == "layers" else "block"
    return SingleLesions(
        chosen=chosen,
        position=np.arange(len(block)) if by_group else block,
        names=[str(name) for name in (groups if by_group else names)[block]],
        projection=np.asarray((deleted[chosen] & projections(ds)).any(axis=1)),
        stage=stages(ds)[block],
        unit="group" if by_group else unit,
        n_places=len(block) if by_group else len(names),
    )


def projections(ds: xr.Dataset) -> NDArray[np.bool_]:
    """Whether each block's skip is a projection, shape `[n]`."""
    if "block_skip_kind" in ds.coords:
        return np.asarray(ds["block_skip_kind"].values == "projection")
    return np.zeros(ds.sizes["block"], dtype=bool)


def stages(ds: xr.Dataset) -> FloatArray:
    """Each block's stage, shape `[n]`; NaN where it is not known."""
    if "block_stage" not in ds.coords:
        return np.full(ds.sizes["block"], np.nan)
    stage = ds["block_stage"].values.astype(np.float64)
    return np.where(stage < 0, np.nan, stage)


def shade_stages(ax: Axes, position: NDArray[np.intp], stage: FloatArray) -> None:
    """Shade every other stage and write each one's number at the top, where there is room."""
    numbers = np.unique(stage[~np.isnan(stage)])
    spans = [(position[stage == number].min() - 0.5, position[stage == number].max() + 0.5) for number in numbers]
    for count, (low, high) in enumerate(spans):
        # The stages in between get a span as well, unseen, so that the axis ends where the last stage does.
        ax.axvspan(low, high, facecolor=style.SHADE if count % 2 else "none", linewidth=0, zorder=0)
    if len(spans) < 2:
        return
    inches = style.width_of(ax) / (max(high for _, high in spans) - min(low for low, _ in spans))
    for number, (low, high) in zip(numbers, spans, strict=True):
        room = (high - low) * inches / INCHES_PER_CHARACTER
        text = next((text for text in (f"stage {number:g}", f"{number:g}") if len(text) < room), "")
        ax.text(
            (low + high) / 2,
            0.98,
            text,
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="top",
            color=style.GREY,
            fontsize=style.legend_size(),
        )


def fit(ax: Axes, stage: FloatArray) -> None:
    """End the x axis where the shaded stages end; where none are known, a little beyond the blocks."""
    ax.margins(x=0.02 if np.isnan(stage).any() else 0)


def name_blocks(ax: Axes, position: NDArray[np.intp], names: Sequence[str], what: str, counted: str = "") -> None:
    """Tick the blocks' names where they can be read, else their index.

    Args:
        ax: where.
        position: place of each block on the x axis.
        names: what stands there.
        what: what the axis shows, such as "deleted block".
        counted: what the figure is of, to stand behind it, such as " (500 samples)", or on a line of its own.
    """
    room = style.width_of(ax) >= INCHES_PER_TICK_NAME * len(names)
    if room and max(map(len, names)) <= LONGEST_TICK_NAME:
        ax.set_xticks(position, [style.plain(name) for name in names], rotation=90, fontsize=style.legend_size())
        ax.set_xlabel(f"{what}, in execution order{counted}")
    else:
        style.integer_axis(ax)
        ax.set_xlabel(f"index of the {what}, in execution order{counted}")
