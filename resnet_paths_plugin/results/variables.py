"""Variables: one array with the schema's dtype and attributes, and what a file would not give back as it is."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import xarray as xr

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.results.provenance import fits_netcdf, netcdf_safe
from resnet_paths_plugin.results.schema import QUANTITIES, Quantity

Dims = str | Sequence[str]
Entry = tuple[Dims, npt.ArrayLike] | tuple[Dims, npt.ArrayLike, Mapping[str, object]]
"""A variable as xarray takes it: dims, values and, where the schema does not know it, attributes."""
INTACT = "intact_"
"""Begins the names of what is measured of the intact network."""
_NAME = re.compile(r"\w[\w.+@-]*")
# xarray and HDF5 use these themselves; written by hand they vanish or break the file.
_RESERVED_GLOBALS = frozenset({"coordinates", "CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST"})
_RESERVED = _RESERVED_GLOBALS | {"dtype"}
_LONGEST_NAME = 256


def check_names(names: Iterable[str]) -> None:
    """Refuse names that cannot become new variables of a result, such as those of a user's own measures.

    To be called before a long run, since `build` comes after it.

    Raises:
        InputError: a name is one of the schema's own, or netCDF would refuse or change it.
    """
    for name in names:
        check_name(name)
        if quantity_of(name) is not None:
            raise InputError(f"{name!r} is a name of the result's own schema: choose another one")


def quantity_of(name: str) -> Quantity | None:
    """Return the schema's entry of a name; `intact_` before it means that of the intact network."""
    known = QUANTITIES.get(name)
    of_changed = QUANTITIES.get(name.removeprefix(INTACT))
    if known is None and of_changed is not None:
        return Quantity(f"{of_changed.long_name}, intact network", of_changed.dtype, of_changed.units)
    return known


def variable_of(name: str, entry: Entry, kind: str = "measure") -> xr.Variable:
    """Return one variable with the schema's dtype and attributes."""
    dims, raw, *own = entry
    quantity = quantity_of(name)
    try:
        array = np.asarray(raw)
        values = _storable(array) if quantity is None else _cast(array, quantity.dtype)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor on a GPU, in bfloat16 or with a gradient
        raise InputError(f"variable {name!r} cannot be stored: {error}") from error
    attrs: dict[str, object] = {"long_name": f"{kind} '{name}'", "units": "1"}
    if quantity is not None:
        attrs = dict(quantity.attributes)
    elif values.dtype.kind == "U":
        del attrs["units"]
    attrs |= dict(chain.from_iterable(mapping.items() for mapping in own))
    try:
        return xr.Variable(dims, values, {key: netcdf_safe(value) for key, value in attrs.items()})
    except ValueError as error:  # another number of dims than its values have
        raise InputError(f"variable {name!r} has shape {values.shape} and dims {dims!r}: {error}") from error


def check_storable(result: xr.Dataset) -> None:
    """Refuse what a file would not give back unchanged: names, attributes and dtypes."""
    for name in chain(result.variables, result.dims):
        check_name(name)
    for name, variable in result.variables.items():
        _check_attributes(variable.attrs, f"variable {name!r}", _RESERVED)
        values = variable.to_numpy()
        try:
            stored = _storable(values).dtype
        except InputError as error:
            raise InputError(f"variable {name!r} cannot be stored: {error}") from error
        if stored.kind != "U" and stored != values.dtype:
            raise InputError(f"variable {name!r}: netCDF has no {values.dtype}, use .astype({stored.name!r})")
    _check_attributes(result.attrs, "the result", _RESERVED_GLOBALS)


def check_kinds(result: xr.Dataset) -> None:
    """Refuse numbers under a name that the schema has for texts, and the reverse."""
    for name, variable in result.variables.items():
        quantity = quantity_of(str(name))
        is_text = variable.dtype.kind in "OSTU"
        if quantity is not None and is_text != (quantity.dtype is np.str_):
            kinds = ("texts", "numbers") if is_text else ("numbers", "texts")
            raise InputError(f"variable {name!r} holds {kinds[0]}, and the schema has {kinds[1]} under this name")


def check_name(name: object) -> None:
    """Refuse a name of a variable, dim or attribute that netCDF or xarray would refuse or change."""
    if not (
        isinstance(name, str)
        and _NAME.fullmatch(name)
        and unicodedata.is_normalized("NFC", name)
        and len(name.encode()) <= _LONGEST_NAME
    ):
        raise InputError(
            f"{name!r} cannot be a name in a netCDF file: expected a letter, digit or '_', then also any "
            "of '.+@-' (no spaces, no '/'), in Unicode's composed form, at most 256 bytes"
        )


def _cast(values: npt.NDArray[np.generic], dtype: type[np.generic]) -> npt.NDArray[np.generic]:
    """Bring values to the schema's dtype: floats are rounded, everything else must stay what it is."""
    if values.size == 0:
        return np.empty(values.shape, dtype)
    if values.dtype.kind == "O" and all(isinstance(value, int) for value in values.ravel().tolist()):
        # Counts of paths outgrow int64; by way of text, those beyond float64 become inf instead of an error.
        values = np.array([float(str(value)) for value in values.ravel().tolist()]).reshape(values.shape)
    values = _storable(values)
    if dtype is np.bool_ and values.dtype.kind == "f":
        return values.astype(np.float64)  # of a sample with several positions: the share of them
    if (values.dtype.kind == "U") != (dtype is np.str_):
        raise InputError(f"expected {dtype.__name__} values, not {values.dtype}")
    if dtype is np.str_:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        stored = values.astype(dtype)
    if not issubclass(dtype, np.floating) and not np.array_equal(stored, values):
        raise InputError(f"its {values.dtype} values do not fit {dtype.__name__}")
    return stored


def _storable(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return values in a dtype that netCDF gives back exactly, or refuse them."""
    if values.dtype.name in ("float16", "bfloat16"):
        return values.astype(np.float32)
    if values.dtype.kind in "OUT":
        texts = values.ravel().tolist()
        if not all(isinstance(text, str) for text in texts):
            raise InputError("its values are objects that are not all text; missing text cannot be stored")
        if any(netcdf_safe(text) != text for text in texts):
            raise InputError("its text holds NUL or half a surrogate pair")
        return np.array(texts, dtype="U").reshape(values.shape)
    if values.dtype.kind == "b" or fits_netcdf(values.dtype):
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    raise InputError(f"netCDF has no exact counterpart of dtype {values.dtype}")


def _check_attributes(attrs: Mapping[str, object], owner: str, reserved: frozenset[str]) -> None:
    """Refuse attributes that a file would drop, change or choke on."""
    for name, value in attrs.items():
        check_name(name)
        if name.startswith("_") or name in reserved:
            raise InputError(f"attribute {name!r} of {owner}: the file format uses this name itself")
        safe = netcdf_safe(value)
        if not isinstance(value, type(safe)) or str(safe) != str(value):
            raise InputError(f"attribute {name!r} of {owner} would change in a file: store {safe!r} instead")
