"""Alignment: Datasets of several models as one along dim `model`, on an axis that holds all of their places."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_paths_plugin.comparison.replicates import REPLICATE, measured_names
from resnet_paths_plugin.results.schema import QUANTITIES

MODEL = "model"
FACTS = ("block_name", "block_index", "relative_depth", "stage", "skip_kind", "share_of_blocks")
"""What is known of each place of an axis beside measures."""

_NOT_THERE = {"block_index": -1, "stage": -1}
"""Whole numbers that stand where a model has nothing; other ones are counts, of which there are 0."""
_DERIVED = "normalised_effect"


def measures_along(dim: str, ds: xr.Dataset) -> list[str]:
    """Return the names of what a study measures along a dim, without the ends of intervals."""
    return [
        name
        for name in measured_names(ds.data_vars)
        if dim in ds[name].dims
        and ds[name].dtype.kind == "f"
        and name not in (*FACTS, _DERIVED)
        and not name.startswith(f"{REPLICATE}_")
    ]


def without(measures: Iterable[str], ds: xr.Dataset) -> xr.Dataset:
    """Return a study without some measures, their intervals and their values of each training."""
    names = [
        f"{before}{name}{end}" for name in measures for before in ("", f"{REPLICATE}_") for end in ("", "_low", "_high")
    ]
    return ds.drop_vars(names, errors="ignore")


def aligned(each: Mapping[str, xr.Dataset], models: Sequence[str], dim: str | None = None) -> xr.Dataset:
    """Return the Datasets of several models as one.

    Args:
        each: a Dataset for each model that has one.
        models: names along dim `model`, in their order.
        dim: the axis, on which each model has its own places.

    Returns:
        A Dataset along `model` and the axis. Where a model has nothing, numbers are NaN, counts 0, `block_index` and
        `stage` -1, and texts empty. `replicate_NAME` are there where a model has several trainings.
    """
    axes = {} if dim is None else {dim: np.unique(np.concatenate([ds[dim].values for ds in each.values()]))}
    axes[REPLICATE] = np.arange(max(int(ds["n_replicates"]) for ds in each.values()))
    known: dict[str, xr.DataArray] = {}
    for ds in each.values():
        known = {str(name): values for name, values in ds.data_vars.items()} | known
    if len(axes[REPLICATE]) == 1:
        known = {name: values for name, values in known.items() if REPLICATE not in values.dims}
    label = xr.Variable(MODEL, list(models), QUANTITIES[MODEL].attributes)
    found = {
        name: xr.concat([_placed(each.get(model), like, axes) for model in models], label, join="exact")
        for name, like in known.items()
    }
    result = xr.Dataset({name: values.assign_attrs(known[name].attrs) for name, values in found.items()})
    for axis in set(axes) & set(result.coords):
        result[axis].attrs = QUANTITIES[str(axis)].attributes
    return result


def _placed(ds: xr.Dataset | None, like: xr.DataArray, axes: Mapping[str, NDArray[Any]]) -> xr.DataArray:
    """Return a model's values of a variable on the common axes; those of nothing where it has none."""
    name, kind = str(like.name), like.dtype.kind
    nothing = {"f": np.nan, "U": ""}.get(kind, _NOT_THERE.get(name, 0))
    values = ds[name] if ds is not None and name in ds else xr.full_like(like, nothing)
    placed = values.reindex({dim: axes[str(dim)] for dim in values.dims}, fill_value=nothing)
    return placed.astype(str) if kind == "U" else placed.astype(like.dtype)
