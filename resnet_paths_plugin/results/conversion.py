"""Results of earlier versions of the schema, with the names of this one."""

import numpy as np
import xarray as xr

from resnet_paths_plugin.results.block_coords import lesion_coords
from resnet_paths_plugin.results.schema import COORDINATES, SCHEMA_VERSION
from resnet_paths_plugin.results.variables import variable_of

_OF_BLOCKS = ("stage", "skip_kind", "branch_type", "group", "module", "depth")
"""Facts of blocks that version 1 called so; they are `block_NAME` since, as a lesion has its own."""
_FACTS = ("block_stage", "block_skip_kind", "block_branch_type")


def converted(ds: xr.Dataset, version: int) -> xr.Dataset:
    """Return a result, or a group of a tree, as this version of the schema has it.

    Args:
        ds: the result as it was read.
        version: the version of the schema that it was written by.
    """
    if version >= SCHEMA_VERSION:
        return ds
    of_blocks = [name for name in _OF_BLOCKS if name in ds and ds[name].dims == ("block",)]
    ds = ds.rename({name: f"block_{name}" for name in of_blocks})
    ds = ds.set_coords([name for name in ds.data_vars if name in COORDINATES])
    needed = {"deleted", "n_deleted_units", *_FACTS}
    if needed <= {*ds.variables} and ds["deleted"].dims == ("lesion", "block"):
        own = lesion_coords(
            ds["deleted"].values.astype(bool),
            np.asarray(ds["n_deleted_units"].values),
            {name: ds[name].values for name in _FACTS},
        )
        ds = ds.assign_coords({name: variable_of(name, entry) for name, entry in own.items()})
    for variable in ds.variables.values():
        if variable.dtype.kind in "OUT" and variable.attrs.get("units") == "1":
            del variable.attrs["units"]
    return ds.assign_attrs(schema_version=SCHEMA_VERSION) if "schema_version" in ds.attrs else ds
