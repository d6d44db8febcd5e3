"""The figure of the paths that deletions leave, by length, in a chain of blocks (Fig. 7)."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from resnet_paths_plugin import paths
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting import style
from resnet_paths_plugin.plotting.wording import listed, share_of

PAPER_BLOCKS = 54
PAPER_DELETIONS = (1, 10, 20)
STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
COLOURS = (style.BLUE, style.VERMILLION, style.GREEN, style.ORANGE, style.SKY, style.BLACK)


def plot_path_survival(
    network: int | xr.Dataset, deletions: Sequence[int] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the share of paths of each length that is left after deleting blocks of a chain (Fig. 7).

    Args:
        network: number of residual blocks of the chain; or a study of it: the result of `PathLengthGradient`, whose
            path counts tell whether the network is a chain, or a study of its blocks, which is taken to be of one.
        deletions: numbers of deleted blocks, one line each; by default the paper's for its 54 blocks, and as large
            a part of others.
        ax: where to draw; by default in a figure of its own.

    Returns:
        The Axes.

    Raises:
        InputError: if the network is no chain or its blocks cannot be counted; if a number of deletions is negative
            or no integer, if more blocks are deleted than there are, or if there is no number of deletions.

    Examples:
        >>> ax = rpp.plotting.plot_path_survival(54, deletions=[1, 10, 20])
    """
    n = chain_length(network, "plot_path_survival") if isinstance(network, xr.Dataset) else network
    deletions = default_deletions(n) if deletions is None else deletions
    remaining = [paths.survival(n, d) for d in deletions]
    if not remaining:
        raise InputError("plot_path_survival got no numbers of deletions: expected at least one")
    ax = style.own_axes(5.6, 3.6) if ax is None else ax
    for index, (d, fraction) in enumerate(zip(deletions, remaining, strict=True)):
        line, marker = STYLES[index % len(STYLES)]
        ax.plot(
            fraction,
            color=COLOURS[index % len(COLOURS)],
            linestyle=line,
            marker=marker,
            markersize=3.5 * style.marker_size(n) / 4,
            linewidth=1.2,
            label=f"{d} of {n} blocks deleted: $2^{{{n - d}}}$ paths left",
        )
    ax.set_xlabel("path length (blocks)")
    ax.set_ylabel("paths left (% of that length)")
    style.integer_axis(ax)
    style.percent_axis(ax)
    ax.legend(fontsize=style.legend_size())
    return ax


def describe_path_survival(n: int, deletions: Sequence[int]) -> str:
    """Fig. 7: what is left of short and of long paths."""
    d = deletions[-1]
    left = paths.survival(n, d)
    shown = sorted({min(n, length) for length in (1, max(1, n // 10), max(1, n // 4))})
    shares = [f"{share_of(left[length])} of the paths of length {length}" for length in shown]
    return f"Deleting {d} of {n} blocks leaves {listed(shares)}."


def default_deletions(n: int) -> list[int]:
    """The paper's numbers of deletions, scaled from its 54 blocks to `n`: each once, and at least 1."""
    if not isinstance(n, int) or n < 1:
        return [0]  # of no blocks none can be deleted; what is no number is refused where it is used
    return sorted({min(n, max(1, round(d * n / PAPER_BLOCKS))) for d in PAPER_DELETIONS})


def chain_length(ds: xr.Dataset, figure: str) -> int:
    """The number of residual blocks of the chain that a study is of.

    Raises:
        InputError: if the network is no chain of residual blocks, as far as the study tells, or has no blocks.
    """
    n = ds.sizes.get("block", 0)
    if "path_length" in ds.dims and not n:
        n = int(ds["path_length"].values[-1])
    if not n:
        raise InputError(f"{figure} needs the number of residual blocks, and this dataset has no dimension 'block'")
    if ds.attrs.get("units") == "layers" or (
        "block_skip_kind" in ds.coords and (ds["block_skip_kind"].values == "none").any()
    ):
        raise InputError(f"{figure} draws the paths of residual blocks, and this is a study of a network's layers")
    if "log10_path_count" in ds and "path_length" in ds.dims and not _are_binomials(ds, n):
        raise InputError(
            f"{figure} draws chains of blocks only, where C(n-d, k) of C(n, k) paths of length k survive d deletions: "
            f"this network of {n} blocks has other numbers of paths, or its lengths count no blocks"
        )
    return n


def _are_binomials(ds: xr.Dataset, n: int) -> bool:
    """Whether the paths of each length are as many as in a chain of n blocks."""
    lengths = ds["path_length"].values
    counts = ds["log10_path_count"].values
    if "tail_gradient_norm" not in ds and len(lengths) != n + 1:
        return False
    if lengths.max() > n:
        return False
    return bool(np.allclose(counts, paths.log10_counts(n)[lengths], rtol=1e-9, atol=1e-9))
