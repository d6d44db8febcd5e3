"""What is derived over samples, computed again from the samples that a result holds; runs no model."""

import warnings

import numpy as np
import numpy.typing as npt
import scipy
import xarray as xr

from resnet_paths_plugin import paths
from resnet_paths_plugin.errors import InputError, StaleResultWarning
from resnet_paths_plugin.results.schema import OVER_SAMPLES, PER_SAMPLE, QUANTITIES

Array = npt.NDArray[np.float64]

FROM_SAMPLES = {
    "error": "correct",
    "intact_error": "intact_correct",
    "perplexity": "loss",
    "intact_perplexity": "intact_loss",
    "rank_correlation": "proxy",
    "effective_length_low": "gradient_norm",
    "effective_length_high": "gradient_norm",
}
"""Variables that are computed again, each with what it is computed from."""

_DRAWS = "path_gradient_norm_draws"
_OF_PATHS = (
    "path_gradient_norm", "path_gradient_norm_stderr", "total_path_gradient", "log10_total_path_gradient",
)  # fmt: skip
"""Means of sampled paths: computed again from the draws of each sample; those of schema 2 are over samples."""
_FEWEST_RANKED = 3
_ENDS = ("effective_length_low", "effective_length_high")


def refreshed(ds: xr.Dataset) -> xr.Dataset:
    """Return a result in which every value describes the samples that it holds.

    After a selection or concatenation along `sample` errors, rank correlations, effective ranges and means of sampled
    paths are computed again, and means and sums over other samples are left out with a `StaleResultWarning`.

    Raises:
        InputError: if the result holds no sample, or is joined from studies that differ.
    """
    if ds.sizes.get("sample", 1) == 0:
        raise InputError("this dataset holds no sample any more: select at least one")
    ds = _with_means_of_paths(_with_perplexities(_with_errors(_with_a_sample_dim(ds))))
    stale = _stale(ds)
    if stale:
        warnings.warn(
            f"{', '.join(stale)}: taken over other samples than those of this dataset, left out. Run the study on "
            "these samples to have theirs",
            StaleResultWarning,
            stacklevel=2,
        )
        ds = ds.drop_vars(stale)
        if "measure" in ds.coords:
            ds = ds.sel(measure=ds["measure"] != "total_path_gradient")
    return _with_correlations(_with_ranges(_shared_once(ds)))


def over_paths(draws: Array, log_counts: Array) -> dict[str, Array]:
    """Return the means of sampled paths, and what all paths of a length come to, by the name of the variable.

    Args:
        draws: norm of each path, mean over samples, float64 `[..., draws]`.
        log_counts: decimal logarithm of the number of paths of each length, float64 `[...]`.
    """
    count = draws.shape[-1]
    mean = draws.mean(axis=-1)
    spread = draws.std(axis=-1, ddof=1) if count > 1 else np.where(np.isneginf(log_counts), 0.0, np.nan)
    with np.errstate(divide="ignore", over="ignore"):
        log_totals = log_counts + np.log10(mean)
        totals = 10.0**log_totals
    return {
        "path_gradient_norm": mean,
        "path_gradient_norm_stderr": spread / np.sqrt(count),
        "total_path_gradient": totals,
        "log10_total_path_gradient": log_totals,
    }


def rank_correlation(one: Array, other: Array) -> float | None:
    """Return Spearman's rank correlation; None where it is not defined: too few finite pairs, or all values equal."""
    finite = np.isfinite(one) & np.isfinite(other)
    one, other = one[finite], other[finite]
    if len(one) < _FEWEST_RANKED or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(scipy.stats.spearmanr(one, other).statistic)


def _schema_name(name: object) -> str:
    return str(name).removeprefix("intact_")


def _is_of_all_samples(values: xr.DataArray) -> bool:
    """Whether a variable is the completeness of blocks' parameters, whose gradients are summed over samples."""
    return values.name == "completeness_error" and "block" in values.dims


def _with_a_sample_dim(ds: xr.Dataset) -> xr.Dataset:
    """Return a result of one sample that was picked by its number with the dimension that it had."""
    if "sample" in ds.dims:
        return ds
    if "sample" not in ds.coords:  # nor the number of the sample, unless what is held are means over samples
        if not any(name in ds and ds[name].dtype == bool for name in ("correct", "intact_correct")):
            return ds
        ds = ds.assign_coords(sample=0)
    one = [ds["sample"].item()]
    per_sample = [name for name in ds.data_vars if _schema_name(name) in PER_SAMPLE]
    names = [name for name in per_sample if not _is_of_all_samples(ds[name])]
    found = {name: ds[name].expand_dims(sample=one, axis=-1) for name in names}
    return ds.drop_vars([*names, "sample"]).assign_coords(sample=one).assign(found)


def _with_errors(ds: xr.Dataset) -> xr.Dataset:
    return ds.assign(
        {
            name: (1 - ds[source].astype(np.float64).mean("sample")).assign_attrs(ds[name].attrs)
            for name, source in FROM_SAMPLES.items()
            if name.endswith("error") and name in ds and source in ds and "sample" in ds[source].dims
        }
    )


def _with_perplexities(ds: xr.Dataset) -> xr.Dataset:
    """Return the result with exp of the mean loss over the tokens of its own samples."""
    found: dict[str, xr.DataArray] = {}
    for name, source in FROM_SAMPLES.items():
        if name.endswith("perplexity") and {name, source, "n_tokens"} <= set(ds.data_vars):
            tokens = ds["n_tokens"]
            losses = (ds[source].astype(np.float64) * tokens).sum("sample") / tokens.sum("sample")
            found[name] = losses.copy(data=np.exp(losses.values)).assign_attrs(ds[name].attrs)
    return ds.assign(found)


def _with_means_of_paths(ds: xr.Dataset) -> xr.Dataset:
    """Return the result with the means of its sampled paths over its own samples, where these are kept."""
    if not _keeps_paths(ds) or not {"log10_path_count", "n_samples"} <= set(ds.data_vars) or _is_whole(ds):
        return ds
    counts = ds["log10_path_count"]
    counts = counts.isel(sample=0, drop=True) if "sample" in counts.dims else counts
    means = ds[_DRAWS].mean("sample").transpose(*counts.dims, "draw")
    found = over_paths(means.values.astype(np.float64), counts.values.astype(np.float64))
    own = {name: (counts.dims, values, ds[name].attrs) for name, values in found.items() if name in ds}
    return ds.assign(own).assign(n_samples=xr.DataArray(ds.sizes["sample"], attrs=ds["n_samples"].attrs))


def _keeps_paths(ds: xr.Dataset) -> bool:
    return _DRAWS in ds and {"draw", "sample"} <= set(ds[_DRAWS].dims)


def _stale(ds: xr.Dataset) -> list[str]:
    """Return what is taken over samples that are not the samples of the result, and cannot be computed again."""
    held = [name for name in OVER_SAMPLES if name in ds and not (name in _OF_PATHS and _keeps_paths(ds))]
    held += [str(name) for name in ds.data_vars if _is_of_all_samples(ds[name])]
    held += [name for name, source in FROM_SAMPLES.items() if name in ds and source not in ds.variables]
    return [] if "sample" not in ds.dims or _is_whole(ds) else held


def _is_whole(ds: xr.Dataset) -> bool:
    """Whether a result holds the samples of its study, as far as their numbers tell."""
    size = ds.sizes["sample"]
    whole = "n_samples" not in ds or bool((ds["n_samples"] == size).all())
    return whole and ("sample" not in ds.coords or np.array_equal(ds["sample"].values, np.arange(size)))


def _shared_once(ds: xr.Dataset) -> xr.Dataset:
    """Return a result in which what all samples share has no dimension `sample`, as `xarray.concat` gives it."""
    found: dict[str, xr.DataArray] = {}
    for name, values in ds.data_vars.items():
        known = _schema_name(name) in QUANTITIES and _schema_name(name) not in PER_SAMPLE
        if not known or "sample" not in values.dims:
            continue
        first = values.isel(sample=0, drop=True)
        same = bool(values.variable.broadcast_equals(first.variable))  # type: ignore[no-untyped-call]  # xarray's
        if not (same or name in FROM_SAMPLES or name == "n_samples"):
            raise InputError(
                f"the results that were joined along 'sample' differ in {name!r}, which is said of all samples "
                "together: join results of one study, or run it once on all samples"
            )
        found[str(name)] = first
    return ds.assign(found)


def _with_ranges(ds: xr.Dataset) -> xr.Dataset:
    """Return the result with the effective ranges of what it has of each sample."""
    if not {*_ENDS} <= set(ds.data_vars) or "measure" not in ds.coords:
        return ds
    for measure in ("gradient_norm", "gradient_share", "total_path_gradient"):
        if measure == "total_path_gradient" and _keeps_paths(ds) and "log10_total_path_gradient" in ds:
            bounds = paths.effective_range(ds["log10_total_path_gradient"].values, log10=True)
        elif measure in ds and set(ds[measure].dims) == {"path_length", "sample"}:
            bounds = paths.effective_range(ds[measure].mean("sample").values, signed=measure == "gradient_share")
        else:
            continue
        own = ds["measure"] == measure
        ds = ds.assign(
            {
                end: ds[end].where(~own, bound).assign_attrs(ds[end].attrs)
                for end, bound in zip(_ENDS, bounds, strict=True)
            }
        )
    return ds


def _with_correlations(ds: xr.Dataset) -> xr.Dataset:
    """Return the result with the rank correlations of its own blocks and samples with the effects of deletions."""
    if not {"rank_correlation", "lesion_effect"} <= set(ds.data_vars) or "proxy" not in ds.coords:
        return ds
    effect = ds["lesion_effect"]
    found = ds["rank_correlation"].values.astype(np.float64)
    for at, name in enumerate(ds["proxy"].values):
        if name in ds and set(ds[name].dims) == {"block", "sample"} and effect.dims == ("block",):
            own = rank_correlation(ds[name].mean("sample").values, effect.values)
            found[at] = np.nan if own is None else own
    return ds.assign(rank_correlation=ds["rank_correlation"].copy(data=found))
