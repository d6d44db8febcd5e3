"""Intervals: where a measure lies that a figure draws and a sentence quotes, from the samples that a study holds."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting.style import FloatArray, signed
from resnet_paths_plugin.statistics.bootstrap import bootstrap
from resnet_paths_plugin.statistics.correlation import rank_correlation
from resnet_paths_plugin.statistics.measured import is_right
from resnet_paths_plugin.statistics.summary import summary

LEVEL = 0.95
N_RESAMPLES = 1000
_SOURCES = {"error": "correct"}
_OF_DRAWS = ("draw", "n_deleted", "n_deleted_units", "n_swaps")
"""What tells random draws, and how many they change."""
_ENDS = ("low", "high", "effect_low", "effect_high")


@dataclass(frozen=True, eq=False)
class Intervals:
    """95 % intervals of one measure of a study, for each change, or for each size of random changes.

    Attributes:
        low: lower ends, shape `[m]`; NaN where there is no interval.
        high: upper ends, shape `[m]`.
        effect_low: lower ends of the changed network's measure minus the intact one's, over the same samples; None
            for a measure without an effect.
        effect_high: their upper ends.
        is_score: whether these are score intervals of shares, which do not shrink to a point where nothing changes.
        n_samples: number of samples.
        n_draws: number of random draws of each size, `[m]`; None where each change stands for itself.
    """

    low: FloatArray
    high: FloatArray
    effect_low: FloatArray | None
    effect_high: FloatArray | None
    is_score: bool
    n_samples: int
    n_draws: NDArray[np.int64] | None = None

    def beside_intact(self, intact: float | None) -> tuple[FloatArray, FloatArray, str]:
        """Return the ends to be drawn beside the intact network's line, and what they are of.

        They are of the difference from the intact network, put onto its line, where that is known.
        """
        if intact is None or self.effect_low is None or self.effect_high is None:
            return self.low, self.high, "95 % intervals"
        return intact + self.effect_low, intact + self.effect_high, "95 % intervals of the difference from intact"

    @property
    def counted(self) -> str:
        """How many samples, and draws of each size, in words."""
        samples = f"{self.n_samples} samples" if self.n_samples != 1 else "one sample"
        if self.n_draws is None:
            return samples
        few, many = int(self.n_draws.min()), int(self.n_draws.max())
        return f"{samples}, {few if few == many else f'{few} to {many}'} draws of each size"


@dataclass(frozen=True)
class Correlation:
    """Where the rank correlation of a variable and a measure lies when samples are resampled.

    Attributes:
        value: the correlation of the means over all samples.
        low: lower end of the middle 95 %.
        high: upper end.
        reliability: rank correlation of the measure on halves of the samples with itself; NaN for too few samples.
        n_samples: number of samples.
    """

    value: float
    low: float
    high: float
    reliability: float
    n_samples: int

    @property
    def text(self) -> str:
        """The range, to stand behind the correlation."""
        return f"({signed(self.low)} to {signed(self.high)})"

    @property
    def sentence(self) -> str:
        """The range and what it is worth, as the end of a sentence."""
        agrees = (
            f"; on halves of the samples the measure agrees with itself by {signed(self.reliability)}"
            if np.isfinite(self.reliability)
            else ""
        )
        return (
            f" ({signed(self.low)} to {signed(self.high)} when the {self.n_samples} samples are resampled, which leans "
            f"towards 0{agrees})"
        )


def correlation_of_samples(ds: xr.Dataset, other: str, measure: str, change: str) -> Correlation | None:
    """Return the range of the rank correlation of a variable and a measure; None where there is none.

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
    return _correlation(ds[other], values)


def _correlation(one: xr.DataArray, other: xr.DataArray) -> Correlation | None:
    try:
        found = rank_correlation(one, other, level=LEVEL, n_resamples=N_RESAMPLES)
    except InputError:  # too few orders or blocks, or samples
        return None
    value, low, high = (float(found[f"rank_correlation{end}"]) for end in ("", "_low", "_high"))
    if not np.isfinite([low, high]).all():
        return None
    return Correlation(value, low, high, float(found["reliability_of_other"]), int(found["n_samples"]))


def correlations_of_proxies(ds: xr.Dataset) -> dict[str, Correlation]:
    """Return the ranges of the rank correlations of proxies and the effects of deletions, by proxy, where known.

    It takes the effects on each sample, of as many samples as the proxies have: these are resampled together.

    Args:
        ds: result of `BlockInfluence` with lesion results.
    """
    name = "lesion_effect_by_sample"
    if name not in ds or ds[name].sizes.get("lesion_sample") != ds.sizes.get("sample"):
        return {}
    effect = ds[name].rename(lesion_sample="sample").assign_coords(sample=ds["sample"])
    stored = dict(zip(ds["proxy"].values.tolist(), ds["rank_correlation"].values.tolist(), strict=True))
    found = {}
    for proxy in [one for one in stored if one in ds and set(ds[one].dims) == {"block", "sample"}]:
        one = _correlation(ds[proxy], effect)
        # With values missing for some samples it would be the range of another correlation.
        if one is not None and np.isclose(one.value, stored[proxy], rtol=0, atol=1e-9):
            found[proxy] = one
    return found


def mean_effect(ds: xr.Dataset, measure: str, change: str) -> tuple[float, float, float] | None:
    """Return the mean over changes of a measure minus the intact network's, and its 95 % interval over samples.

    None where the study does not hold both for each sample, or resampling the samples changes nothing.

    Args:
        ds: result of a study of changed networks, those changes alone that count.
        measure: the variable, such as `"error"`.
        change: the study's dim.
    """
    source = _SOURCES.get(measure, measure)
    own, intact = ds.get(source), ds.get(f"intact_{source}")
    if own is None or set(own.dims) != {change, "sample"} or intact is None or intact.dims != ("sample",):
        return None
    sign = -1 if source != measure else 1
    effect = sign * (own.astype(np.float64).mean(change) - intact.astype(np.float64))
    if not np.isfinite(effect.values).all() or effect.sizes["sample"] < 2:
        return None
    found = bootstrap(xr.Dataset({"effect": effect.reset_coords(drop=True)}), "effect", n_resamples=N_RESAMPLES)
    value, low, high = (float(found[f"effect{end}"]) for end in ("", "_low", "_high"))
    return (value, low, high) if low < high else None


def intervals_of(ds: xr.Dataset, measure: str, change: str, size: str | None = None) -> Intervals | None:
    """Return the intervals of a measure; None where the study does not hold it for each sample, or no end is finite.

    Args:
        ds: result of a study of changed networks.
        measure: the variable, such as `"error"`.
        change: the study's dim, such as `"lesion"`.
        size: the size of random changes, such as `"n_deleted"`, over whose draws is averaged, in the order of the
            sizes; None for one interval of each change.
    """
    source = _SOURCES.get(measure, measure)
    if source not in ds or set(ds[source].dims) != {change, "sample"}:
        return None
    names = [name for name in (source, f"intact_{source}", *(("draw", size) if size else ())) if name in ds]
    one = ds[names].drop_vars([name for name in _OF_DRAWS if name not in names], errors="ignore")
    try:
        found = summary(one, level=LEVEL, n_resamples=N_RESAMPLES)
    except InputError:  # all of it is missing, or there are no samples
        return None
    (dim,) = found[measure].dims
    if size is not None and dim != size:
        return None
    ends = {end: found[name].values for end in _ENDS if (name := f"{measure}_{end}") in found}
    if measure in _SOURCES:  # a bootstrap of few draws reaches beyond what a share can be
        ends = {end: values.clip(-1 if end.startswith("effect") else 0, 1) for end, values in ends.items()}
    if not np.isfinite(ends["low"]).any():
        return None
    return Intervals(
        low=ends["low"],
        high=ends["high"],
        effect_low=ends.get("effect_low"),
        effect_high=ends.get("effect_high"),
        is_score=is_right(ds[source]).dtype == np.bool_,
        n_samples=int(found["n_samples"]),
        n_draws=None if size is None else np.asarray(found["n_draws"].values),
    )
