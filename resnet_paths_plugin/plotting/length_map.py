"""A map of blocks and path lengths: one cell for each pair, with stages marked and blocks named."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm

from resnet_paths_plugin.plotting import block_axis, style
from resnet_paths_plugin.plotting.figure import drawn_figure
from resnet_paths_plugin.plotting.style import FloatArray

SIGNED = "RdBu_r"
"""Red where a value is positive, blue where it is negative; white is none."""
UNSIGNED = "Greys"
NOTHING = 1e-3
"""Share of the largest value below which the last lengths are left out."""


def draw_length_map(ax: Axes, ds: xr.Dataset, values: FloatArray, label: str, *, signed: bool) -> None:
    """Draw values by block, along x, and path length, along y, up to the last length at which there is something.

    Args:
        ax: where to draw.
        ds: the study, for its blocks and lengths.
        values: shape `[n, K + 1]`.
        label: what they are.
        signed: whether they may be negative.
    """
    size = np.nan_to_num(np.abs(values))
    reach = float(size.max()) or 1.0
    some = np.nonzero((size > NOTHING * reach).any(axis=0))[0]
    last = int(some.max()) if some.size else 0
    image = ax.imshow(
        values[:, : last + 1].T,
        origin="lower",
        aspect="auto",
        cmap=SIGNED if signed else UNSIGNED,
        # Where one cell holds all, the others would hardly be seen.
        norm=Normalize(-reach, reach) if signed else PowerNorm(0.5, 0.0, reach),
        extent=(-0.5, len(values) - 0.5, -0.5, last + 0.5),
    )
    stage = block_axis.stages(ds)
    for at in range(len(stage) - 1):
        if np.isfinite(stage[at]) and stage[at] != stage[at + 1]:
            ax.axvline(at + 0.5, color=style.GREY, linewidth=0.8, linestyle=":")
    bar = drawn_figure(ax).colorbar(image, ax=ax, fraction=0.05, pad=0.02)
    bar.set_label(style.wrapped(label), fontsize=style.legend_size())
    bar.ax.tick_params(labelsize=style.legend_size())
    ax.set_ylabel("path length")


def means(values: xr.DataArray) -> FloatArray:
    """Return means over samples."""
    return np.asarray(values.mean("sample").values, dtype=np.float64)


def counted(ds: xr.Dataset) -> str:
    """Return how many samples a study is of, to stand behind a label."""
    size = int(ds.sizes["sample"]) if "sample" in ds.sizes else int(ds["n_samples"]) if "n_samples" in ds else 0
    return "" if not size else " (one sample)" if size == 1 else f" ({size} samples)"
