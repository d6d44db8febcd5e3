"""Results of earlier versions of the schema, with the names of this one."""

import warnings

import numpy as np
import xarray as xr

from resnet_paths_plugin.results.arguments import PREFIX, read_literal
from resnet_paths_plugin.results.block_coords import lesion_coords
from resnet_paths_plugin.results.provenance import argument_attribute, netcdf_safe
from resnet_paths_plugin.results.schema import COORDINATES, SCHEMA_VERSION
from resnet_paths_plugin.results.variables import variable_of

_FACTS_OF_BLOCKS = 2
"""Version since which facts of blocks are called so."""
_TYPED_ARGUMENTS = 3
"""Version since which arguments are numbers, text or JSON, and a study that draws nothing has no seed."""
_OF_BLOCKS = ("stage", "skip_kind", "branch_type", "group", "module", "depth")
"""Facts of blocks that version 1 called so; they are `block_NAME` since, as a lesion has its own."""
_FACTS = ("block_stage", "block_skip_kind", "block_branch_type")
_NEW = ("relative_depth", *(f"block_{name}" for name in _OF_BLOCKS))
"""Names that version 1 left to measures of the user's own."""


def converted(ds: xr.Dataset, version: int) -> xr.Dataset:
    """Return a result, or a group of a tree, as this version of the schema has it.

    Args:
        ds: the result as it was read.
        version: the version of the schema that it was written by.
    """
    if version >= SCHEMA_VERSION:
        return ds
    if version < _TYPED_ARGUMENTS:
        ds = ds.assign_attrs({name: _typed(str(name), value) for name, value in ds.attrs.items()})
        if ds.attrs.get("seed") == "None":
            del ds.attrs["seed"]
    if version < _FACTS_OF_BLOCKS:
        ds = _with_new_names(ds)
    return ds.assign_attrs(schema_version=SCHEMA_VERSION) if "schema_version" in ds.attrs else ds


def _typed(name: str, value: object) -> object:
    """Return an attribute; where it is an argument, or names, in Python's notation, as one of this version."""
    if not (name.startswith(PREFIX) or name == "class_names") or not isinstance(value, str):
        return value
    found = read_literal(value)
    return argument_attribute(value) if found is value else netcdf_safe(found)


def _with_new_names(ds: xr.Dataset) -> xr.Dataset:
    """Return a result of version 1 with the names of version 2."""
    taken = [name for name in ds.data_vars if name in _NEW]
    if taken:
        warnings.warn(
            f"measures that this version has other variables for are called measure_NAME: {', '.join(map(str, taken))}",
            stacklevel=2,
        )
        ds = ds.rename({name: f"measure_{name}" for name in taken})
    ds = ds.rename({name: f"block_{name}" for name in _OF_BLOCKS if name in ds})
    ds = ds.set_coords([name for name in ds.data_vars if name in COORDINATES])
    if {"lesion", "deleted", "n_deleted_units", *_FACTS} <= {*ds.variables} and "block" in ds["deleted"].dims:
        ds = _with_lesion_coords(ds)
    for variable in ds.variables.values():
        if variable.dtype.kind in "OUT" and variable.attrs.get("units") == "1":
            del variable.attrs["units"]
    return ds


def _with_lesion_coords(ds: xr.Dataset) -> xr.Dataset:
    """Return a study of lesions, or one lesion of it, with what a lesion has from its block."""
    is_one = "lesion" not in ds["deleted"].dims
    deleted = ds["deleted"].expand_dims("lesion") if is_one else ds["deleted"]
    own = lesion_coords(
        deleted.transpose("lesion", "block").values.astype(bool),
        np.atleast_1d(ds["n_deleted_units"].values),
        {name: ds[name].values for name in _FACTS},
    )
    found = {name: variable_of(name, entry) for name, entry in own.items()}
    return ds.assign_coords({name: values.isel(lesion=0) if is_one else values for name, values in found.items()})
