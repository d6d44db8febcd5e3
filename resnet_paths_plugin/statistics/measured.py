"""Measured: the per-sample measures of a study, and which of its changes are random draws of one size."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_paths_plugin.errors import InputError

SAMPLE = "sample"
_SIZES = ("n_deleted", "n_swaps")
"""Sizes of random changes."""
_UNITS = "n_deleted_units"
"""The size where groups of blocks are deleted."""
_NO_MEASURES = frozenset({"prediction", "intact_prediction", "label", "gradient", "input"})
"""Variables with a value for each sample whose mean says nothing, or that are maps."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Changes that are random draws of some sizes.

    Attributes:
        dim: the study's dimension, such as `"lesion"`.
        size: the variable that holds the size of each, such as `"n_deleted"`.
        sizes: the sizes, ascending, `[groups]`.
        members: for each size the positions of its draws.
    """

    dim: str
    size: str
    sizes: NDArray[np.int64]
    members: tuple[NDArray[np.intp], ...]

    @property
    def counts(self) -> NDArray[np.int64]:
        """The number of draws of each size."""
        return np.array([len(rows) for rows in self.members], dtype=np.int64)


def draws_of(ds: xr.Dataset) -> Draws | None:
    """Return the random draws of a study; None where its changes were given, or each size was drawn once."""
    draw = ds.get("draw")
    if draw is None or draw.ndim != 1 or not (draw > 0).any():
        return None
    dim = str(draw.dims[0])
    size = next((name for name in _SIZES if name in ds and ds[name].dims == (dim,)), None)
    if size is None:
        return None
    if _UNITS in ds and not np.array_equal(ds[_UNITS].values, ds[size].values):
        size = _UNITS
    values = np.asarray(ds[size].values)
    sizes = np.unique(values)
    return Draws(dim, size, sizes, tuple(np.flatnonzero(values == one) for one in sizes))


def with_samples(ds: xr.Dataset) -> xr.Dataset:
    """Return a study without the samples of which it holds no measure, as `where` leaves them.

    Raises:
        InputError: if it holds none.
    """
    names = [name for name in _per_sample(ds) if ds[name].dtype.kind in "fO"]
    if ds.sizes.get(SAMPLE) == 0:
        raise InputError(f"this dataset holds no sample (dim {SAMPLE!r}): select at least one")
    if not names or len(names) < len(_per_sample(ds)):
        return ds
    kept = ds.dropna(SAMPLE, how="all", subset=names)
    if not kept.sizes[SAMPLE]:
        raise InputError("all measures of this dataset are missing (NaN): select samples that it holds")
    return kept


def is_right(values: xr.DataArray) -> xr.DataArray:
    """Return whether predictions are right as bool; shares of a sample's parts, and missing ones, as float64."""
    numbers = values.astype(np.float64)
    return values.astype(bool) if bool(numbers.isin([0, 1]).all()) else numbers


def measured(ds: xr.Dataset, names: list[str] | None = None) -> dict[str, xr.DataArray]:
    """Return measures by name, with a value for each sample: those that are named, or all.

    `error` is computed from `correct`: 1 where a prediction is wrong.

    Raises:
        InputError: if there is no such measure.
    """
    found = {name: ds[name] for name in _per_sample(ds)}
    for prefix in ("", "intact_"):
        if f"{prefix}correct" in found:
            right = found[f"{prefix}correct"] = is_right(found[f"{prefix}correct"]).assign_attrs(
                found[f"{prefix}correct"].attrs
            )
            wrong = ~right if right.dtype == np.bool_ else 1 - right
            wrong.attrs = {"long_name": f"{prefix.replace('_', ' ')}error: share of wrong predictions", "units": "1"}
            found[f"{prefix}error"] = wrong
    if names is None:
        if not found:
            raise InputError(f"this dataset holds no measure with a value for each sample (dim {SAMPLE!r})")
        return found
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"{', '.join(map(repr, missing))} is no measure with a value for each sample in this dataset; these are: "
            f"{', '.join(sorted(found)) or '(none)'}"
        )
    return {name: found[name] for name in names}


def _per_sample(ds: xr.Dataset) -> list[str]:
    return [
        str(name)
        for name, values in ds.data_vars.items()
        if SAMPLE in values.dims and str(name) not in _NO_MEASURES and values.dtype.kind in "biufO"
    ]
