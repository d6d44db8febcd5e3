"""Rank correlations over the changes of a network, or its blocks, with intervals over samples."""

import numpy as np
import scipy
import xarray as xr
from numpy.typing import NDArray

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.statistics.bootstrap import check_options
from resnet_paths_plugin.statistics.measured import SAMPLE
from resnet_paths_plugin.statistics.resampling import Resampling

Numbers = NDArray[np.float64]

_FEWEST_RANKED = 3
_FEWEST_HALVED = 4
_N_HALVINGS = 200


def rank_correlation(
    one: xr.DataArray, other: xr.DataArray, *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> xr.Dataset:
    """Return Spearman's rank correlation of two variables, and where it lies when samples are resampled.

    Both are averaged over samples, and the correlation is over what is left: the lesions, orders or blocks of the
    study. These are taken as they are: the range says what other samples would give, not other blocks. It is the
    percentile interval of the bootstrap, made to hold the correlation itself. Noise of the means draws a rank
    correlation towards 0, and resampled means are noisier still, so that the range leans towards 0, and holds what
    endless samples would give less often than its level says where the reliability is low: that is the mean rank
    correlation of a variable on one half of the samples with itself on the other half. A variable that does not agree
    with itself cannot be predicted (Spearman 1904).

    Args:
        one: dims of a study's changes or blocks, and `sample` or not.
        other: the same dim, and `sample` or not; one of both has samples.
        level: share of the resamples inside the range.
        n_resamples: number of bootstrap resamples.
        seed: seed of their choice, and of the halves'.

    Returns:
        A Dataset of single numbers: `rank_correlation`, `rank_correlation_low`, `rank_correlation_high`,
        `reliability_of_one` and `reliability_of_other` (NaN without samples), `n_samples`, `n_ranked`. A correlation
        that is not defined, as of equal values, is NaN.

    Raises:
        InputError: if the variables do not share one dim of at least three, or samples, or an option is out of range.

    Examples:
        >>> orders = rpp.BlockReordering(net).attribute(images, target=labels, n_swaps=[1, 2], draws=3)
        >>> found = rpp.statistics.rank_correlation(orders.kendall_tau, orders.loss)
        >>> -1 <= float(found.rank_correlation_low) <= float(found.rank_correlation_high) <= 1
        True
    """
    check_options(level, n_resamples, seed)
    rows, n_samples = _rows(one, other)
    resampling = Resampling(n_samples, n_resamples, seed)
    resampled = [resampling.means(row) if row.shape[1] > 1 else row.T for row in rows]
    found = _spearman(*(row.mean(axis=1)[np.newaxis] for row in rows))[0]
    spread = _spearman(*np.broadcast_arrays(*resampled))
    known = spread[np.isfinite(spread)]
    low = high = np.nan
    if len(known) and n_samples > 1 and np.isfinite(found):
        low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
        low, high = min(low, found), max(high, found)
    reliable = [_reliability(row, seed) for row in rows]
    named = {
        "rank_correlation": (found, "Spearman's rank correlation of the means over samples"),
        "rank_correlation_low": (low, f"lower end of {100 * level:g} % of the resampled rank correlations"),
        "rank_correlation_high": (high, f"upper end of {100 * level:g} % of the resampled rank correlations"),
        "reliability_of_one": (reliable[0], "rank correlation of the first variable on halves of the samples"),
        "reliability_of_other": (reliable[1], "rank correlation of the second variable on halves of the samples"),
        "n_samples": (n_samples, "number of samples"),
        "n_ranked": (len(rows[0]), "number of lesions, orders or blocks that are ranked"),
    }
    return xr.Dataset(
        {name: xr.DataArray(value, attrs={"long_name": text, "units": "1"}) for name, (value, text) in named.items()},
        attrs={"level": level, "n_resamples": n_resamples, "seed": seed},
    )


def _rows(one: xr.DataArray, other: xr.DataArray) -> tuple[tuple[Numbers, Numbers], int]:
    """Return both as float64 `[ranked, samples]`, one column where there are none, without what is not finite."""
    dims = [[dim for dim in values.dims if dim != SAMPLE] for values in (one, other)]
    if dims[0] != dims[1] or len(dims[0]) != 1:
        raise InputError(
            f"a rank correlation is over one dim that both variables have beside {SAMPLE!r}, and these have "
            f"{', '.join(map(str, dims[0])) or 'none'} and {', '.join(map(str, dims[1])) or 'none'}: average over "
            "others, and rename a dim that is called otherwise"
        )
    try:
        one, other = xr.align(one, other, join="inner")
    except ValueError as error:
        raise InputError(f"the two variables cannot be matched by their labels and sizes: {error}") from error
    if any(values.dtype.kind not in "biuf" for values in (one, other)):
        raise InputError(f"numbers are ranked, not {one.dtype} and {other.dtype}")
    (dim,) = dims[0]
    sizes = {values.sizes[SAMPLE] for values in (one, other) if SAMPLE in values.dims}
    if not sizes or 0 in sizes:
        raise InputError(f"a rank correlation with an interval needs values of samples (dim {SAMPLE!r})")
    rows = [
        np.asarray(values.transpose(dim, SAMPLE, missing_dims="ignore").values, dtype=np.float64).reshape(
            values.sizes[dim], -1
        )
        for values in (one, other)
    ]
    finite = np.isfinite(rows[0]).all(axis=1) & np.isfinite(rows[1]).all(axis=1)
    if finite.sum() < _FEWEST_RANKED:
        raise InputError(
            f"a rank correlation needs {_FEWEST_RANKED} finite values of each variable along {dim!r}, not "
            f"{int(finite.sum())}"
        )
    return (rows[0][finite], rows[1][finite]), sizes.pop()


def _spearman(one: Numbers, other: Numbers) -> Numbers:
    """Return the rank correlation of each row with its partner; NaN where all values of one are equal."""
    ranks = [scipy.stats.rankdata(values, axis=1) for values in (one, other)]
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    norms = [np.sqrt((rank**2).sum(axis=1)) for rank in centred]
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Numbers = (centred[0] * centred[1]).sum(axis=1) / (norms[0] * norms[1])
    return found


def _reliability(rows: Numbers, seed: int) -> float:
    """Return the mean rank correlation of random halves of the samples; NaN for too few of them."""
    n_samples = rows.shape[1]
    if n_samples < _FEWEST_HALVED:
        return float("nan")
    generator = np.random.default_rng(seed)
    half = n_samples // 2
    sides: tuple[list[Numbers], list[Numbers]] = ([], [])
    for _ in range(_N_HALVINGS):
        order = generator.permutation(n_samples)
        for side, chosen in zip(sides, (order[:half], order[half : 2 * half]), strict=True):
            side.append(rows[:, chosen].mean(axis=1))
    found = _spearman(*map(np.stack, sides))
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")
