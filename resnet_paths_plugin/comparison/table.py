"""The table of a comparison: what the studies of one training say of its network, one number each."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from resnet_paths_plugin import paths
from resnet_paths_plugin.comparison.profiles import (
    NO_ROOM,
    PATH_LENGTH,
    Intervals,
    chance_error,
    exact_norms,
)
from resnet_paths_plugin.comparison.replicates import LeftOutError
from resnet_paths_plugin.plotting import block_axis
from resnet_paths_plugin.plotting.effects import DEFAULT_MEASURES
from resnet_paths_plugin.results.schema import QUANTITIES
from resnet_paths_plugin.statistics.bootstrap import Interval
from resnet_paths_plugin.statistics.measured import SAMPLE, measured, with_samples
from resnet_paths_plugin.statistics.proportions import Cells, paired_difference
from resnet_paths_plugin.statistics.resampling import Resampling

_CHANGED = ("single_lesions", "random_lesions", "reorderings")
"""Studies that know the intact network's error, the first that is there first."""
_SHARES_OF_SAMPLES = frozenset(DEFAULT_MEASURES)
_RANGE = ("effective_length_low", "effective_length_high")


def table_row(
    studies: Mapping[str, xr.Dataset],
    profiles: Mapping[str, xr.Dataset],
    measure: str | None,
    notable: float,
    intervals: Intervals,
    *,
    alone: bool,
) -> xr.Dataset:
    """Return the numbers of one training, without dims.

    Args:
        studies: its studies by kind.
        profiles: what these say on their common axes, by kind.
        measure: what effects are of; None where the models share no measure of lesions.
        notable: smallest effect of a block that counts, a fraction.
        intervals: how intervals are made.
        alone: whether it is the model's only training, so that intervals are over samples.
    """
    found = _subject(next(iter(studies.values())))
    changed = next((profiles[kind] for kind in _CHANGED if kind in profiles), None)
    if changed is not None:
        names = [name for name in changed.data_vars if str(name).startswith("intact_error")]
        found = found.assign({name: changed[name] for name in [*names, "n_samples"]})
    if "single_lesions" in profiles and measure is not None:
        found = found.assign(_effects(studies["single_lesions"], measure, intervals))
        if measure in _SHARES_OF_SAMPLES:
            found = found.assign(_notable(profiles["single_lesions"], measure, notable))
    if "path_lengths" in studies:
        found = found.assign(_effective_range(studies["path_lengths"], intervals, alone=alone))
    shares = _additive_share(studies.get("interactions"))
    return found.assign({name: studies["interactions"][name].reset_coords(drop=True) for name in shares})


def _subject(ds: xr.Dataset) -> xr.Dataset:
    """Return what the network is."""
    attrs = ds.attrs
    texts = {
        "architecture": attrs.get("model_architecture") or attrs.get("model_class") or "not known",
        "weights_digest": attrs.get("weights_digest", "not known"),
    }
    found = {name: xr.DataArray(str(text), attrs=QUANTITIES[name].attributes) for name, text in texts.items()}
    found["n_blocks"] = xr.DataArray(np.int64(ds.sizes.get("block", 0)), attrs=QUANTITIES["n_blocks"].attributes)
    return xr.Dataset(found)


def _effects(ds: xr.Dataset, measure: str, intervals: Intervals) -> dict[str, xr.DataArray]:
    """Return the mean effect of deleting one block, and where chance is known the normalised one."""
    single = ds.isel(lesion=block_axis.single_lesions(ds, "compare").chosen).drop_vars("draw", errors="ignore")
    values = measured(with_samples(single))
    effect = values[measure].astype(np.float64)
    if f"intact_{measure}" in values:
        effect = effect - values[f"intact_{measure}"].astype(np.float64)
    effect = effect.mean("lesion").reset_coords(drop=True)
    attrs = QUANTITIES["mean_lesion_effect"].attributes | {
        "units": ds[measure].attrs.get("units", "1") if measure in ds else "1"
    }
    found = intervals.of("mean_lesion_effect", effect.rename("mean_lesion_effect").assign_attrs(attrs))
    if measure == "error" and values["error"].dtype == values["intact_error"].dtype == np.bool_:
        found = _not_a_point(found, values["error"], values["intact_error"], intervals.level)
    chance = chance_error(ds)
    if measure == "error" and chance is not None and "intact_error" in values:
        room = chance - float(values["intact_error"].mean())
        found |= _normalised(found, room, intervals.level)
    return found


def _not_a_point(
    found: Mapping[str, xr.DataArray], changed: xr.DataArray, intact: xr.DataArray, level: float
) -> dict[str, xr.DataArray]:
    """Return the mean effect with a score interval where resampling gives none, as where no prediction changes."""
    value, low, high = found.values()
    if not bool(low == high):
        return dict(found)
    one, other = (part.transpose("lesion", SAMPLE).values for part in xr.broadcast(changed, intact))
    every = Cells.of(one, other)
    both, broken, mended = (part.mean(keepdims=True) for part in (every.both, every.only_one, every.only_other))
    means = Cells(both, broken, mended, every.n)
    ends = [old.copy(data=end.item()) for old, end in zip((low, high), paired_difference(means, level), strict=True)]
    return dict(zip(found, (value, *ends), strict=True))


def _notable(profile: xr.Dataset, measure: str, notable: float) -> dict[str, xr.DataArray]:
    """Return the share of blocks whose deletion has a notable effect."""
    name = "error_effect" if measure == "error" else measure
    points = f"{100 * notable:g} percentage point{'' if notable == 0.01 else 's'}"
    texts = {
        "": f"share of blocks whose deletion has an effect above {points} on the {measure}",
        "_low": f"share of blocks the lower end of whose effect's interval is above {points}",
        "_high": f"share of blocks the upper end of whose effect's interval is above {points}",
    }
    return {
        f"notable_share{end}": (profile[f"{name}{end}"] > notable)
        .where(profile[f"{name}{end}"].notnull())
        .astype(np.float64)
        .mean("position", skipna=False)
        .assign_attrs({"long_name": text, "units": "1"})
        for end, text in texts.items()
    }


def _normalised(found: Mapping[str, xr.DataArray], room: float, level: float) -> dict[str, xr.DataArray]:
    name = "mean_normalised_effect"
    ends = [found[f"mean_lesion_effect{end}"] / (room if room > NO_ROOM else np.nan) for end in ("", "_low", "_high")]
    ends[0].attrs = QUANTITIES[name].attributes
    return Interval(*ends).variables(name, level)


def _effective_range(ds: xr.Dataset, intervals: Intervals, *, alone: bool) -> dict[str, xr.DataArray]:
    """Return the shortest range of path lengths that holds 95 % of the gradient's norms; none where it is not known."""
    try:
        norms = exact_norms(ds).transpose(PATH_LENGTH, SAMPLE).values
    except LeftOutError:
        return {}
    bounds = paths.effective_range(norms.mean(axis=1))
    ends = np.full((2, 2), np.nan)
    if alone and norms.shape[1] > 1 and np.isfinite(bounds).all():
        means = Resampling(norms.shape[1], intervals.n_resamples, intervals.seed).means(norms)
        ranges = [paths.effective_range(mean) for mean in means]
        ends = np.quantile(ranges, [(1 - intervals.level) / 2, (1 + intervals.level) / 2], axis=0)
    found: dict[str, xr.DataArray] = {}
    for place, name in enumerate(_RANGE):
        value, low, high = (xr.DataArray(float(one)) for one in (bounds[place], *ends[:, place]))
        value.attrs = QUANTITIES[name].attributes
        found |= Interval(value, low, high).variables(name, intervals.level)
    return found


def _additive_share(ds: xr.Dataset | None) -> list[str]:
    return [] if ds is None else [name for name in map(str, ds.data_vars) if name.startswith("additive_share")]
