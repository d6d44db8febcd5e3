"""Measured: the per-sample measures of a study, and which of its changes are random draws of one size."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_paths_plugin.errors import InputError

SAMPLE = "sample"
_SIZES = ("n_deleted", "n_deleted_units", "n_swaps")
"""Sizes of random changes, in the order in which they are looked for."""
_KINDS = "bf"
"""Kinds of dtype of measures; integers are classes and counts."""


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
    for size in _SIZES:
        if size not in ds or ds[size].dims != (dim,):
            continue
        values = np.asarray(ds[size].values)
        sizes = np.unique(values)
        members = tuple(np.flatnonzero(values == one) for one in sizes)
        if all(len(np.unique(draw.values[rows])) == len(rows) for rows in members):
            return Draws(dim, size, sizes, members)
    return None


def measured(ds: xr.Dataset, names: str | list[str] | tuple[str, ...] | None = None) -> dict[str, xr.DataArray]:
    """Return measures by name, with a value for each sample: those that are named, or all.

    `error` is computed from `correct`: 1 where a prediction is wrong. Numbers alone are measures; a map for each
    sample, such as a gradient at the input, is none.

    Raises:
        InputError: if there is no such measure.
    """
    found = {
        str(name): values
        for name, values in ds.data_vars.items()
        if SAMPLE in values.dims and values.dtype.kind in _KINDS and str(name) != "gradient"
    }
    for prefix in ("", "intact_"):
        right = found.get(f"{prefix}correct")
        if right is not None:
            wrong = ~right.astype(bool)
            wrong.attrs = {"long_name": f"{prefix.replace('_', ' ')}error: share of wrong predictions", "units": "1"}
            found[f"{prefix}error"] = wrong
    if names is None:
        if not found:
            raise InputError(f"this dataset holds no measure with a value for each sample (dim {SAMPLE!r})")
        return found
    asked = [names] if isinstance(names, str) else list(names)
    missing = [name for name in asked if name not in found]
    if missing:
        raise InputError(
            f"{', '.join(map(repr, missing))} has no value for each sample in this dataset; measures that have are "
            f"{', '.join(sorted(found)) or '(none)'}"
        )
    return {name: found[name] for name in asked}
