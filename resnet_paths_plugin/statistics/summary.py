"""Summary: each measure of a study as one number with an interval."""

import numpy as np
import xarray as xr

from resnet_paths_plugin.statistics.bootstrap import Interval, as_dataset, bootstrapped, check_options
from resnet_paths_plugin.statistics.measured import SAMPLE, draws_of, measured
from resnet_paths_plugin.statistics.proportions import paired_difference, wilson

_EFFECTS = ("error", "loss")
"""Measures whose effect is the changed network's minus the intact one's: positive means harm."""


def summary(ds: xr.Dataset, *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> xr.Dataset:
    """Return each measure of a study as its mean over samples, with an interval.

    Everything is computed from the samples that the dataset holds. Shares of samples, such as `error`, have Wilson's
    score interval, and their effects the paired score interval of Newcombe; all else, and whatever is averaged over
    random draws, has a bootstrap interval (see `bootstrap`). That a difference is not resolved does not show equality.

    Args:
        ds: the result of a study.
        level: level of confidence.
        n_resamples: number of bootstrap resamples.
        seed: seed of their choice.

    Returns:
        A Dataset with `NAME`, `NAME_low` and `NAME_high` for each measure, `error` and `intact_error` included where
        there are labels, and for `error` and `loss` also `NAME_effect`: the changed network's minus the intact one's on
        the same samples, so that positive means harm. Dims are the study's without `sample`; random draws are averaged
        by their size, along `n_deleted` or `n_swaps`. Also `n_samples` and `n_draws`.

    Raises:
        InputError: if no measure has a value for each sample, or an option is out of range.

    Examples:
        >>> lesions = rpp.BlockLesion(net).attribute(images, target=labels)
        >>> table = lesions.resnet_paths.summary(level=0.9)
        >>> table.error.sizes["lesion"], "error_effect_low" in table
        (6, True)
    """
    check_options(level, n_resamples, seed)
    draws = draws_of(ds)
    chosen = measured(ds)
    effects = {
        f"{name}_effect": _difference(chosen[name], chosen[f"intact_{name}"], name)
        for name in _EFFECTS
        if name in chosen and f"intact_{name}" in chosen
    }
    shares = {
        name: _share(values, level)
        for name, values in chosen.items()
        if values.dtype == np.bool_ and not (draws is not None and draws.dim in values.dims)
    }
    if "error_effect" in effects and "error" in shares:
        shares["error_effect"] = _paired_share(effects["error_effect"], chosen, level)
    others = {name: values for name, values in {**chosen, **effects}.items() if name not in shares}
    intervals = bootstrapped(others, draws, level=level, n_resamples=n_resamples, seed=seed)
    ordered = {name: {**shares, **intervals}[name] for name in (*chosen, *effects)}
    return as_dataset(ds, ordered, draws, {"level": level, "n_resamples": n_resamples, "seed": seed})


def _difference(changed: xr.DataArray, intact: xr.DataArray, name: str) -> xr.DataArray:
    found = changed.astype(np.float64) - intact.astype(np.float64)
    unit = changed.attrs.get("units", "1")
    found.attrs = {"long_name": f"{name}, the changed network's minus the intact one's", "units": unit}
    return found


def _share(values: xr.DataArray, level: float) -> Interval:
    n = values.sizes[SAMPLE]
    share = values.mean(SAMPLE).assign_attrs(values.attrs)
    low, high = wilson(np.asarray(values.sum(SAMPLE).values), n, level)
    return Interval(share, share.copy(data=low), share.copy(data=high))


def _paired_share(difference: xr.DataArray, chosen: dict[str, xr.DataArray], level: float) -> Interval:
    changed, intact = xr.broadcast(chosen["error"], chosen["intact_error"])
    changed, intact = (one.transpose(..., SAMPLE) for one in (changed, intact))
    low, high = paired_difference(changed.values, intact.values, level)
    value = difference.mean(SAMPLE).transpose(*changed.dims[:-1]).assign_attrs(difference.attrs)
    return Interval(value, value.copy(data=low), value.copy(data=high))
