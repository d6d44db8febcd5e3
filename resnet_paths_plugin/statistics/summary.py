"""Summary: each measure of a study as one number with an interval."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_paths_plugin.statistics.bootstrap import Interval, as_dataset, bootstrapped, check_options
from resnet_paths_plugin.statistics.measured import SAMPLE, Draws, draws_of, measured, with_samples
from resnet_paths_plugin.statistics.proportions import Cells, paired_difference, wilson

Numbers = NDArray[np.float64]

_EFFECTS = ("error", "loss")
"""Measures whose effect is the changed network's minus the intact one's: positive means harm."""


def summary(ds: xr.Dataset, *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> xr.Dataset:
    """Return each measure of a study as its mean over samples, with an interval.

    Everything is computed from the samples that the dataset holds. Shares of samples, such as `error`, have Wilson's
    score interval, and the effect on the error the paired score interval of Newcombe, neither of which shrinks to a
    point where no sample differs; all else has a bootstrap interval (see `bootstrap`). Averaged over random draws, a
    share has the wider of both. That a difference is not resolved does not show equality.

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
    ds = with_samples(ds)
    draws, chosen = draws_of(ds), measured(ds)
    effects = {
        f"{name}_effect": _difference(chosen[name], chosen[f"intact_{name}"], name)
        for name in _EFFECTS
        if name in chosen and f"intact_{name}" in chosen
    }
    intervals = bootstrapped({**chosen, **effects}, draws, level=level, n_resamples=n_resamples, seed=seed)
    for name, values in chosen.items():
        if values.dtype == np.bool_:
            scores = wilson(_counts(values, draws), values.sizes[SAMPLE], level)
            intervals[name] = _with_scores(intervals[name], scores, draws, values, lowest=0)
    if "error_effect" in effects and chosen["error"].dtype == chosen["intact_error"].dtype == np.bool_:
        scores = paired_difference(_cells(chosen["error"], chosen["intact_error"], draws), level)
        intervals["error_effect"] = _with_scores(intervals["error_effect"], scores, draws, chosen["error"], lowest=-1)
    return as_dataset(ds, intervals, draws, {"level": level, "n_resamples": n_resamples, "seed": seed})


def _difference(changed: xr.DataArray, intact: xr.DataArray, name: str) -> xr.DataArray:
    found = changed.astype(np.float64) - intact.astype(np.float64)
    unit = changed.attrs.get("units", "1")
    found.attrs = {"long_name": f"{name}, the changed network's minus the intact one's", "units": unit}
    return found


def _counts(values: xr.DataArray, draws: Draws | None) -> Numbers:
    """Return how many samples count, as the mean over draws where there are some."""
    return _over_draws(np.asarray(values.sum(SAMPLE).values, dtype=np.float64), values, draws)


def _cells(changed: xr.DataArray, intact: xr.DataArray, draws: Draws | None) -> Cells:
    one, other = (part.transpose(..., SAMPLE).values for part in xr.broadcast(changed, intact))
    cells = Cells.of(one, other)
    both, only_one, only_other = (
        _over_draws(part, changed, draws) for part in (cells.both, cells.only_one, cells.only_other)
    )
    return Cells(both, only_one, only_other, cells.n)


def _over_draws(counts: Numbers, values: xr.DataArray, draws: Draws | None) -> Numbers:
    if draws is None or draws.dim not in values.dims:
        return counts
    axis = [dim for dim in values.dims if dim != SAMPLE].index(draws.dim)
    return np.stack([counts.take(rows, axis).mean(axis) for rows in draws.members], axis=-1)


def _with_scores(
    interval: Interval, scores: tuple[Numbers, Numbers], draws: Draws | None, values: xr.DataArray, *, lowest: int
) -> Interval:
    """Return the score interval, or where there are draws what either it or the bootstrap interval holds, up to 1."""
    low, high = (end.copy(data=score) for end, score in zip((interval.low, interval.high), scores, strict=True))
    if draws is not None and draws.dim in values.dims:
        # NaN where a single draw has none
        low = low.copy(data=np.minimum(low.values, interval.low.values).clip(min=lowest))
        high = high.copy(data=np.maximum(high.values, interval.high.values).clip(max=1))
    return Interval(interval.value, low, high)
