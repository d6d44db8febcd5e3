"""What one study says on axes that models share: the place of a block, the size of a change, the length of a path."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

from resnet_paths_plugin.comparison.replicates import LeftOutError
from resnet_paths_plugin.plotting import block_axis
from resnet_paths_plugin.results.schema import QUANTITIES
from resnet_paths_plugin.statistics import summary
from resnet_paths_plugin.statistics.bootstrap import Interval, bootstrapped
from resnet_paths_plugin.statistics.measured import SAMPLE, draws_of, with_samples

PATH_LENGTH = "path_length"
NO_ROOM = 1e-9
"""Difference from the error of guessing that is rounding: there no effect can be normalised."""


@dataclass(frozen=True)
class Intervals:
    """How intervals over samples are made, as `statistics.summary` takes it.

    Attributes:
        level: level of confidence.
        n_resamples: number of bootstrap resamples.
        seed: seed of their choice.
    """

    level: float
    n_resamples: int
    seed: int

    def summary(self, ds: xr.Dataset) -> xr.Dataset:
        """Return each measure of a study with its interval, but for `correct`, which `error` says too."""
        found = summary(ds, level=self.level, n_resamples=self.n_resamples, seed=self.seed)
        right = [f"{network}correct{end}" for network in ("", "intact_") for end in ("", "_low", "_high")]
        return found.drop_vars(right, errors="ignore")

    def of(self, name: str, values: xr.DataArray) -> dict[str, xr.DataArray]:
        """Return the mean of a variable over samples, with the ends of its interval."""
        (interval,) = bootstrapped(
            {name: values}, None, level=self.level, n_resamples=self.n_resamples, seed=self.seed
        ).values()
        return interval.variables(name, self.level)


def chance_error(ds: xr.Dataset) -> float | None:
    """Return the error of guessing among the model's classes; None where their number is not known."""
    n_classes = ds.attrs.get("n_classes")
    return 1 - 1 / int(n_classes) if isinstance(n_classes, int | np.integer) and n_classes > 1 else None


def lesion_profile(ds: xr.Dataset, intervals: Intervals) -> xr.Dataset:
    """Return what deleting each block does, along `position`, with the facts of the block that stands there."""
    lesions = block_axis.single_lesions(ds, "compare")
    single = ds.isel(lesion=lesions.chosen).drop_vars("draw", errors="ignore")
    found = intervals.summary(single).rename({"lesion": "position"})
    found = found.drop_vars([name for name in found.coords if name != "position"]).drop_vars("n_draws")
    found = found.assign_coords(position=("position", lesions.position.astype(np.int32)))
    block = single["deleted"].transpose("lesion", "block").values.argmax(axis=1)
    skip = ds["block_skip_kind"].values[block] if "block_skip_kind" in ds.coords else np.full(len(block), "")
    facts = {
        "block_name": lesions.names,
        "block_index": block.astype(np.int32),
        "relative_depth": (lesions.position + 0.5) / lesions.n_places,
        "stage": np.where(np.isnan(lesions.stage), -1, lesions.stage).astype(np.int32),
        "skip_kind": skip.astype(str),
    }
    return _with_normalised(_with_facts(found, "position", **facts), ds)


def size_profile(ds: xr.Dataset, intervals: Intervals) -> xr.Dataset:
    """Return what random lesions, or reorderings, do, along their size: `n_deleted` or `n_swaps`."""
    dim = "lesion" if "lesion" in ds.dims else "reordering"
    size = "n_deleted" if dim == "lesion" else "n_swaps"
    draws = draws_of(ds)
    values = ds[size].values
    if draws is None and (len(np.unique(values)) < len(values) or (values < 0).any()):
        raise LeftOutError("its changes were given one by one, and not drawn at random by their size")
    found = intervals.summary(ds)
    counted = draws.size if draws else size
    if draws is None:
        found = found.assign_coords({size: (dim, values)}).swap_dims({dim: size})
        found = found.assign(n_draws=(size, np.ones(len(values), dtype=np.int64), found["n_draws"].attrs))
    elif draws.size != size:
        found = found.rename({draws.size: size})
    found = found.drop_vars([name for name in found.coords if name != size]).sortby(size)
    found[size].attrs = QUANTITIES[size].attributes
    if dim == "lesion":
        total = len(np.unique(ds["block_group"].values)) if counted != size else ds.sizes["block"]
        found = _with_facts(found, size, share_of_blocks=found[size].values / total)
    return _with_normalised(found, ds)


def length_profile(ds: xr.Dataset, intervals: Intervals) -> xr.Dataset:
    """Return the share of each path length in the norms of the gradients of all lengths, along `path_length`."""
    norms = exact_norms(ds)
    total = norms.sum(PATH_LENGTH)
    share = (norms / total.where(total > 0)).dropna(SAMPLE, how="all")
    if not share.sizes[SAMPLE]:
        raise LeftOutError("its gradients are zero, or not finite, for every sample")
    share = share.drop_vars([name for name in share.coords if name not in (PATH_LENGTH, SAMPLE)])
    name = "gradient_norm_share"
    found = xr.Dataset(intervals.of(name, share.rename(name).assign_attrs(QUANTITIES[name].attributes)))
    longest = max(1, int(ds[PATH_LENGTH].values.max()))
    found = _with_facts(found, PATH_LENGTH, share_of_blocks=ds[PATH_LENGTH].values / longest)
    found["n_samples"] = xr.DataArray(share.sizes[SAMPLE], attrs=QUANTITIES["n_samples"].attributes)
    return found.assign_attrs(ds.attrs)


def exact_norms(ds: xr.Dataset) -> xr.DataArray:
    """Return the gradient's norm by path length and sample.

    Raises:
        LeftOutError: if the study has none for all lengths of one grade.
    """
    if "gradient_norm" not in ds or set(ds["gradient_norm"].dims) != {PATH_LENGTH, SAMPLE}:
        raise LeftOutError("it has no exact gradient by one path length (estimator 'exact', one grade)")
    if "tail_gradient_norm" in ds:
        raise LeftOutError("max_length cuts off its long paths")
    return with_samples(ds)["gradient_norm"].astype(np.float64)


def _with_facts(found: xr.Dataset, dim: str, **facts: npt.ArrayLike) -> xr.Dataset:
    """Return a profile with what is known of each place of its axis."""
    return found.assign(
        {name: (dim, np.asarray(values), QUANTITIES[name].attributes) for name, values in facts.items()}
    )


def _with_normalised(found: xr.Dataset, ds: xr.Dataset) -> xr.Dataset:
    """Return the profile with the effect on the error as a share of what guessing would add to it."""
    chance = chance_error(ds)
    if chance is None or "error_effect" not in found or "intact_error" not in found:
        return found
    room = chance - found["intact_error"]
    room = room.where(room > NO_ROOM)
    names = ("normalised_effect", "normalised_effect_low", "normalised_effect_high")
    value, low, high = (found[name.replace("normalised", "error")] / room for name in names)
    value.attrs = QUANTITIES["normalised_effect"].attributes
    level = float(found.attrs["level"])
    found["chance_error"] = xr.DataArray(chance, attrs=QUANTITIES["chance_error"].attributes)
    return found.assign(Interval(value, low, high).variables("normalised_effect", level))


PROFILES: Mapping[str, tuple[str, Callable[[xr.Dataset, Intervals], xr.Dataset]]] = {
    "single_lesions": ("position", lesion_profile),
    "random_lesions": ("n_deleted", size_profile),
    "reorderings": ("n_swaps", size_profile),
    "path_lengths": (PATH_LENGTH, length_profile),
}
"""The common axis of each kind of study, and what puts a study on it."""
