"""Intervals: where a measure lies that a figure draws and a sentence quotes, from the samples that a study holds."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting.style import FloatArray, signed
from resnet_paths_plugin.statistics.correlation import rank_correlation
from resnet_paths_plugin.statistics.summary import summary

LEVEL = 0.95
N_RESAMPLES = 1000
_SOURCES = {"error": "correct"}
_BESIDE = ("draw", "n_deleted", "n_deleted_units", "n_swaps")
"""What tells random draws, where a dataset made by hand has it as a variable."""


@dataclass(frozen=True, eq=False)
class Intervals:
    """95 % intervals of one measure of a study, for each change, or each size of random changes.

    Attributes:
        low: lower ends, shape `[m]`; NaN where there is no interval.
        high: upper ends, shape `[m]`.
        effect_low: lower ends of the changed network's measure minus the intact one's, over the same samples; None
            for a measure without an effect.
        effect_high: their upper ends.
        sizes: the sizes of random changes, ascending; None where each change stands for itself.
        n_samples: number of samples.
        n_draws: the most draws of one size; 1 where there are none.
    """

    low: FloatArray
    high: FloatArray
    effect_low: FloatArray | None
    effect_high: FloatArray | None
    sizes: NDArray[np.int64] | None
    n_samples: int
    n_draws: int

    def beside_intact(self, intact: float | None) -> tuple[FloatArray, FloatArray]:
        """Return the ends to be drawn beside the intact network's line: those of the difference from it, if known."""
        if intact is None or self.effect_low is None or self.effect_high is None:
            return self.low, self.high
        return intact + self.effect_low, intact + self.effect_high

    @property
    def counted(self) -> str:
        """How many samples, and draws of each size, in words."""
        samples = f"{self.n_samples} samples" if self.n_samples != 1 else "one sample"
        return f"{samples}, {self.n_draws} draws each" if self.n_draws > 1 else samples


@dataclass(frozen=True)
class Correlation:
    """The 95 % interval over samples of a rank correlation.

    Attributes:
        low: lower end.
        high: upper end.
        n_samples: number of samples.
    """

    low: float
    high: float
    n_samples: int

    @property
    def text(self) -> str:
        """The interval, to stand behind the correlation."""
        return f"[{signed(self.low)} to {signed(self.high)}]"


def correlation_of_samples(ds: xr.Dataset, other: str, measure: str, change: str) -> Correlation | None:
    """Return the interval of the rank correlation of a variable and a measure; None where there is none.

    Args:
        ds: result of a study of changed networks.
        other: a variable along the study's dim.
        measure: the measure, such as `"error"`.
        change: the study's dim.
    """
    source = _SOURCES.get(measure, measure)
    if source not in ds or set(ds[source].dims) != {change, "sample"}:
        return None
    values = 1 - ds[source].astype(np.float64) if source != measure else ds[source]
    try:
        found = rank_correlation(ds[other], values, level=LEVEL, n_resamples=N_RESAMPLES)
    except InputError:  # too few orders, or samples
        return None
    low, high = float(found["rank_correlation_low"]), float(found["rank_correlation_high"])
    return Correlation(low, high, int(found["n_samples"])) if np.isfinite([low, high]).all() else None


def intervals_of(ds: xr.Dataset, measure: str, change: str) -> Intervals | None:
    """Return the intervals of a measure; None where the study does not hold it for each sample.

    Args:
        ds: result of a study of changed networks.
        measure: the variable, such as `"error"`.
        change: the study's dim, such as `"lesion"`.
    """
    source = _SOURCES.get(measure, measure)
    if source not in ds or set(ds[source].dims) != {change, "sample"}:
        return None
    names = [name for name in (source, f"intact_{source}", *_BESIDE) if name in ds]
    try:
        found = summary(ds[names], level=LEVEL, n_resamples=N_RESAMPLES)
    except InputError:  # all of it is missing, or there are no samples
        return None
    (dim,) = found[measure].dims
    effect = f"{measure}_effect"
    return Intervals(
        low=found[f"{measure}_low"].values,
        high=found[f"{measure}_high"].values,
        effect_low=found[f"{effect}_low"].values if effect in found else None,
        effect_high=found[f"{effect}_high"].values if effect in found else None,
        sizes=None if dim == change else found[dim].values,
        n_samples=int(found["n_samples"]),
        n_draws=int(found["n_draws"].max()),
    )
