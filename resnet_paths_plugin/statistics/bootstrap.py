"""Bootstrap intervals for means over samples, and over random draws where a study has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import scipy
import xarray as xr
from numpy.typing import NDArray

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.statistics.measured import SAMPLE, Draws, draws_of, measured, with_samples
from resnet_paths_plugin.statistics.resampling import Resampling

MOST_RESAMPLES = 1_000_000


@dataclass(frozen=True, eq=False)
class Interval:
    """A mean and where it lies.

    Attributes:
        value: the mean, of any shape.
        low: lower end, of the same shape.
        high: upper end, of the same shape.
    """

    value: xr.DataArray
    low: xr.DataArray
    high: xr.DataArray

    def variables(self, name: str, level: float) -> dict[str, xr.DataArray]:
        """Return the three variables of a result: `name`, `name_low` and `name_high`."""
        text = str(self.value.attrs.get("long_name", name.replace("_", " ")))
        ends = {"low": ("lower", self.low), "high": ("upper", self.high)}
        return {name: self.value} | {
            f"{name}_{end}": values.assign_attrs(
                {
                    "long_name": f"{word} end of the {100 * level:g} % interval of the {text}",
                    "units": self.value.attrs.get("units", "1"),
                }
            )
            for end, (word, values) in ends.items()
        }


def bootstrap(
    ds: xr.Dataset,
    names: str | Sequence[str] | None = None,
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """Return means over samples with percentile intervals of the bootstrap.

    Samples are resampled with replacement, the same ones for all changes of the network and all variables, so that
    differences between these are those of pairs (Efron and Tibshirani 1993, ch. 13). Where a study has random draws of
    some sizes, the mean is over the draws of a size as well, and draws are resampled with the samples: the interval is
    wider than one of either alone. Intervals are expanded, as those of few draws or samples are too narrow: by
    `sqrt(m / (m - 1)) * t / z` for m draws, or samples where there are no draws, with the quantiles of Student's and
    the normal distribution (Hesterberg 2015, The American Statistician 69, 371-386). A single draw, a single sample,
    and values that are infinite or missing have no interval (NaN). Samples of which nothing is held are left out.

    Args:
        ds: the result of a study.
        names: variables with dim `sample`, or `"error"`; None takes all measures.
        level: share of the resamples inside the interval.
        n_resamples: number of resamples.
        seed: seed of their choice.

    Returns:
        A Dataset with `NAME`, `NAME_low` and `NAME_high` for each variable: its dims without `sample`, and with the
        size of random draws (`n_deleted`, `n_swaps`) in the place of the study's dim; also `n_samples` and `n_draws`,
        which is 1 where there are none.

    Raises:
        InputError: if there is no such variable, or an option is out of range.

    Examples:
        >>> lesions = rpp.BlockLesion(net).attribute(images, target=labels)
        >>> found = rpp.statistics.bootstrap(lesions, "loss")
        >>> bool((found.loss_low <= found.loss).all() and (found.loss <= found.loss_high).all())
        True
    """
    check_options(level, n_resamples, seed)
    ds = with_samples(ds)
    chosen = measured(ds, None if names is None else [names] if isinstance(names, str) else list(names))
    draws = draws_of(ds)
    intervals = bootstrapped(chosen, draws, level=level, n_resamples=n_resamples, seed=seed)
    return as_dataset(ds, intervals, draws, {"level": level, "n_resamples": n_resamples, "seed": seed})


def bootstrapped(
    chosen: Mapping[str, xr.DataArray], draws: Draws | None, *, level: float, n_resamples: int, seed: int
) -> dict[str, Interval]:
    """Return the interval of each variable's mean over samples, and over draws where it has these."""
    found = {}
    for name, values in chosen.items():
        grouped = draws if draws is not None and draws.dim in values.dims else None
        others = [dim for dim in values.dims if dim != SAMPLE]
        if grouped is not None:
            others = [dim for dim in others if dim != grouped.dim] + [grouped.dim]
        array = values.transpose(*others, SAMPLE)
        shape, n_samples = array.shape[:-1], array.shape[-1]
        rows = np.asarray(array.values, dtype=np.float64).reshape(-1, n_samples)
        members = () if grouped is None else grouped.members
        means = _group_means(rows.mean(axis=1), members).ravel()
        resampled = Resampling(n_samples, n_resamples, seed, members).means(rows)
        ends = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)
        counts = (
            np.array([n_samples]) if grouped is None else np.tile(grouped.counts, means.size // len(grouped.counts))
        )
        ends = means + (ends - means) * _expansion(counts, level)
        if grouped is not None:
            shape = (*shape[:-1], len(grouped.sizes))
        form = _form(values, others, grouped)
        found[name] = Interval(*(form.copy(data=data.reshape(shape)) for data in (means, *ends)))
    return found


def as_dataset(
    ds: xr.Dataset, intervals: Mapping[str, Interval], draws: Draws | None, attrs: Mapping[str, Any]
) -> xr.Dataset:
    """Return intervals as a Dataset, with the numbers of samples and draws."""
    variables: dict[str, xr.DataArray] = {}
    for name, interval in intervals.items():
        variables |= interval.variables(name, float(attrs["level"]))
    n_draws = xr.DataArray(1 if draws is None else draws.counts, dims=() if draws is None else (draws.size,))
    variables["n_samples"] = xr.DataArray(ds.sizes[SAMPLE], attrs={"long_name": "number of samples", "units": "1"})
    variables["n_draws"] = n_draws.assign_attrs({"long_name": "number of random draws", "units": "1"})
    about = {"title": f"Summary of: {ds.attrs['title']}"} if "title" in ds.attrs else {}
    return xr.Dataset(variables, attrs={**ds.attrs, **about, **attrs})


def check_options(level: float, n_resamples: int, seed: int) -> None:
    """Check what all intervals take.

    Raises:
        InputError: if an option is out of range.
    """
    if not isinstance(level, Real) or isinstance(level, bool) or not 0 < level < 1:
        raise InputError(f"level must be between 0 and 1, such as 0.95, not {level!r}")
    if not isinstance(n_resamples, Integral) or isinstance(n_resamples, bool) or not 1 <= n_resamples <= MOST_RESAMPLES:
        raise InputError(f"n_resamples must be between 1 and {MOST_RESAMPLES:,}, not {n_resamples!r}")
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise InputError(f"seed must be an integer from 0 on, not {seed!r}")


def _expansion(counts: NDArray[np.int64], level: float) -> NDArray[np.float64]:
    """Return how many times as wide intervals have to be; NaN for a single draw or sample."""
    quantile = (1 + level) / 2
    freedom = np.where(counts > 1, counts - 1, np.nan)
    wider = scipy.stats.t.ppf(quantile, freedom) / scipy.stats.norm.ppf(quantile)
    found: NDArray[np.float64] = np.sqrt(counts / freedom) * wider
    return found


def _group_means(means: NDArray[np.float64], members: Sequence[NDArray[np.intp]]) -> NDArray[np.float64]:
    """Return the mean over the draws of each size, where the changes are the innermost part of the rows."""
    if not members:
        return means
    changes = means.reshape(-1, sum(map(len, members)))
    return np.stack([changes[:, draws].mean(axis=1) for draws in members], axis=1)


def _form(values: xr.DataArray, dims: Sequence[Any], draws: Draws | None) -> xr.DataArray:
    """Return an array with the dims, coordinates and attributes of a mean, and no values yet."""
    form = values.isel({SAMPLE: 0}, drop=True).transpose(*dims)
    if draws is not None:
        form = form.isel({draws.dim: [int(rows[0]) for rows in draws.members]})
        form = form.drop_vars([name for name, one in form.coords.items() if draws.dim in one.dims])
        form = form.rename({draws.dim: draws.size}).assign_coords({draws.size: draws.sizes})
        form[draws.size].attrs = {"long_name": draws.size.replace("_", " "), "units": "1"}
    attrs = {"long_name": values.attrs.get("long_name", str(values.name)), "units": values.attrs.get("units", "1")}
    return form.astype(np.float64).assign_attrs(attrs)
