"""Where the numbers of a figure by path length lie: over samples for exact gradients, over draws for sampled paths."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from resnet_paths_plugin import paths
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting.intervals import LEVEL, N_RESAMPLES
from resnet_paths_plugin.plotting.style import FloatArray
from resnet_paths_plugin.statistics.bootstrap import bootstrap
from resnet_paths_plugin.statistics.resampling import Resampling
from resnet_paths_plugin.statistics.sampled_paths import sampled_paths

_TAIL = (1 - LEVEL) / 2


@dataclass(frozen=True, eq=False)
class LengthBand:
    """95 % intervals of a value of each path length.

    Attributes:
        low: lower ends, shape `[lengths]`; NaN where there is none.
        high: upper ends.
    """

    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, eq=False)
class ExactShares:
    """What the samples of a study say of the exact gradient by length.

    Attributes:
        share: intervals of the share of each length in the sum of the norms' means.
        range_low: lower and upper end of the interval of the effective range's shorter end; NaN where not known.
        range_high: the same of its longer end.
    """

    share: LengthBand
    range_low: tuple[float, float]
    range_high: tuple[float, float]


def exact_shares(ds: xr.Dataset) -> ExactShares | None:
    """Return where the shares of exact norms lie when samples are resampled; None for one sample, or none of them."""
    if "gradient_norm" not in ds or set(ds["gradient_norm"].dims) != {"path_length", "sample"}:
        return None
    norms = ds["gradient_norm"].transpose("path_length", "sample").values.astype(np.float64)
    if norms.shape[1] < 2 or not np.isfinite(norms).all() or not norms.any():
        return None
    means = Resampling(norms.shape[1], N_RESAMPLES, 0).means(norms)
    means = means[means.sum(axis=1) > 0]
    low, high = np.quantile(means / means.sum(axis=1, keepdims=True), [_TAIL, 1 - _TAIL], axis=0)
    ranges = np.quantile([paths.effective_range(mean) for mean in means], [_TAIL, 1 - _TAIL], axis=0)
    ends = [(float(one), float(other)) for one, other in ranges.T]
    if "tail_gradient_norm" in ds:
        ends = [(np.nan, np.nan)] * 2
    return ExactShares(LengthBand(low, high), *ends)


def gradient_shares(ds: xr.Dataset) -> tuple[FloatArray, LengthBand] | None:
    """Return the mean share of each length in the gradient along itself, `m_k`, with intervals over samples."""
    if "gradient_share" not in ds or set(ds["gradient_share"].dims) != {"path_length", "sample"}:
        return None
    found = bootstrap(ds, "gradient_share", n_resamples=N_RESAMPLES)
    mean, low, high = (found[f"gradient_share{end}"].values for end in ("", "_low", "_high"))
    return mean, LengthBand(low, high)


@dataclass(frozen=True, eq=False)
class SampledPaths:
    """What the draws of a study say of single paths.

    Attributes:
        norm: intervals of the mean norm of one path of each length.
        share: intervals of the share of each length's paths in the total of all.
        heaviest: largest share that a single draw has in the total of all lengths.
        heaviest_length: its length.
        n_draws: number of draws of each length.
    """

    norm: LengthBand
    share: LengthBand
    heaviest: float
    heaviest_length: int
    n_draws: int


def of_sampled_paths(ds: xr.Dataset) -> SampledPaths | None:
    """Return where numbers of sampled paths lie when draws are resampled; None where the study keeps no draws."""
    try:
        found = sampled_paths(ds, level=LEVEL, n_resamples=N_RESAMPLES)
    except InputError:
        return None
    norm, share = (
        LengthBand(found[f"{name}_low"].values, found[f"{name}_high"].values)
        for name in ("path_gradient_norm", "total_share")
    )
    heaviest = np.nan_to_num(found["heaviest_total_share"].values)
    place = int(heaviest.argmax())
    return SampledPaths(
        norm=norm,
        share=share,
        heaviest=float(heaviest[place]),
        heaviest_length=int(found["path_length"].values[place]),
        n_draws=int(found["n_draws"]),
    )
