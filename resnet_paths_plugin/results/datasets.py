"""The schema of every result: dims, coordinates, attributes, provenance; and its way to a file and back.

It computes nothing and knows no graph: analyzers hand over arrays, readers get a labelled Dataset.
"""

import gc
import os
import re
import unicodedata
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.backends.netCDF4_ import NETCDF4_PYTHON_LOCK

from resnet_paths_plugin.errors import FileError, InputError
from resnet_paths_plugin.files.file_roles import FileRoles
from resnet_paths_plugin.files.file_seals import check_seal, seal
from resnet_paths_plugin.files.input_files import file_name
from resnet_paths_plugin.files.output_files import Mode, replacing, writable_netcdf
from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.process_lock import alone, without_cluster
from resnet_paths_plugin.results.provenance import fits_netcdf, netcdf_safe
from resnet_paths_plugin.results.schema import PER_SAMPLE, QUANTITIES, SCHEMA_VERSION, Quantity

if TYPE_CHECKING:
    import netCDF4

Dims = str | Sequence[str]
Entry = tuple[Dims, npt.ArrayLike] | tuple[Dims, npt.ArrayLike, Mapping[str, object]]
"""A variable as xarray takes it: dims, values and, where the schema does not know it, attributes."""
_STAGE_FLAGS: Mapping[str, object] = {"flag_values": np.int32(-1), "flag_meanings": "not_known"}
_INTACT = "intact_"
_COUNTED_DIMS = ("sample", "position", "path_length")
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
        _check_name(name)
        if _quantity(name) is not None:
            raise InputError(f"{name!r} is a name of the result's own schema: choose another one")


def block_coords(blocks: Sequence[ResidualBlock]) -> dict[str, Entry]:
    """Return the coordinates of dim `block`, shape `[n]` each.

    `block` holds the names, beside it lie the blocks' facts; a `stage` of -1 is not known.
    """
    return {
        "block": ("block", [block.name for block in blocks]),
        "block_index": ("block", [block.index for block in blocks]),
        "stage": ("block", [-1 if block.stage is None else block.stage for block in blocks], _STAGE_FLAGS),
        "skip_kind": ("block", [block.skip_kind for block in blocks]),
        "branch_type": ("block", [block.branch_type for block in blocks]),
        "group": ("block", [block.group for block in blocks]),
        "module": ("block", [block.module for block in blocks]),
        "depth": ("block", [block.depth for block in blocks]),
    }


def build(variables: Mapping[str, Entry], *, coords: Mapping[str, Entry], attrs: Mapping[str, object]) -> xr.Dataset:
    """Make a result of this package's schema, which `save` and `load` give back identical.

    Values get the schema's dtype, `long_name` and `units`; what the schema does not know (a user's measure, a
    plugin's variable) keeps its dtype and takes attributes from its entry. float16 and bfloat16, which netCDF
    does not have, become float32 without loss. Dims `sample`, `position` and `path_length` are counted from 0
    where no coordinate is given.

    Args:
        variables: dims and values by name.
        coords: dims and values of the coordinates by name.
        attrs: global attributes, from `provenance`.

    Raises:
        InputError: a name, a value or a dtype cannot be stored exactly, variables differ in the size of a dim, or one
            that the schema has for all samples together comes with a dim `sample`.
    """
    found = {name: _variable(name, entry) for name, entry in variables.items()}
    for name, variable in found.items():
        if _quantity(name) is not None and "sample" in variable.dims and name.removeprefix(_INTACT) not in PER_SAMPLE:
            raise InputError(
                f"the schema's {name!r} is said of all samples together, and this one has a dim 'sample': "
                "choose another name for a value of each sample"
            )
    labels = {name: _variable(name, entry, "coordinate") for name, entry in coords.items()}
    sizes = _sizes({**found, **labels})
    for dim in _COUNTED_DIMS:
        if dim in sizes and dim not in labels:
            labels[dim] = _variable(dim, (dim, np.arange(sizes[dim])))
    result = xr.Dataset(found, labels, {name: netcdf_safe(value) for name, value in attrs.items()})
    _check_storable(result)
    return result


def _sizes(variables: Mapping[str, xr.Variable]) -> dict[Hashable, int]:
    """Return the size of each dim, which all variables that have it share."""
    first: dict[Hashable, str] = {}
    for name, variable in variables.items():
        for dim, size in variable.sizes.items():
            other = first.setdefault(dim, name)
            if size != (expected := variables[other].sizes[dim]):
                raise InputError(f"{other!r} has {expected} values along dim {dim!r}, and {name!r} has {size}")
    return {dim: variables[name].sizes[dim] for dim, name in first.items()}


def build_tree(studies: Mapping[str, xr.Dataset]) -> xr.DataTree:
    """Put several studies of one model into one tree, one group each; the root states what they share."""
    if not studies:
        raise InputError("a tree needs at least one study")
    every = [study.attrs for study in studies.values()]
    own = ("title", "summary", "history", "date_created", "argument_")
    attrs = {
        name: value
        for name, value in every[0].items()
        if not name.startswith(own) and all(name in other and other[name] == value for other in every)
    }
    subjects = dict.fromkeys(other.get("model_architecture", other.get("model_class", "a network")) for other in every)
    attrs = {
        "title": f"Studies of {' and '.join(map(str, subjects))}",
        "summary": f"One group for each study: {', '.join(studies)}",
        **attrs,
        "date_created": max(study.get("date_created", "") for study in every),
        "history": "\n".join(filter(None, (study.get("history") for study in every))),
    }
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **studies})


def save(result: xr.Dataset | xr.DataTree, path: str | os.PathLike[str], mode: Mode = "w") -> Path:
    """Write a result to a netCDF file, whole or not at all, and return the file's path.

    An older file of that name is replaced at the very end, and its mode and owner are kept; after an error it is as it
    was. The file carries checksums of each array, and of all that is in it. Any threads may save and load. Nothing is
    compressed: to zlib gradients are noise, 15 times the time for 14 % less.

    Args:
        result: the result.
        path: the file.
        mode: `"x"` refuses to replace an older file.

    Raises:
        InputError: this is no result of this package, or netCDF would change it; it says what.
        FileError: the folder does not exist or cannot be written to, the disk is full, there is something else than a
            file of this name, or the result's values are still to be read from that file.

    Examples:
        >>> lesions = rpp.BlockLesion(net).attribute(images, target=labels)
        >>> rpp.save(lesions, "lesions.nc").name
        'lesions.nc'
    """
    groups = _groups(result)
    if not any("schema_version" in group.attrs for group in groups.values()):
        raise InputError(
            "only results of this package can be saved, and this one has no attribute 'schema_version': "
            "what was computed from a result takes over its attributes by new.assign_attrs(old.attrs)"
        )
    target = writable_netcdf(path, mode)
    check_output(result, path)
    for group in groups.values():
        _check_storable(group)
        _check_kinds(group)
    with replacing(path, target, mode) as temporary:
        _write(groups, temporary)
        seal(temporary)
    return Path(path)


def check_output(result: xr.Dataset | xr.DataTree, path: str | os.PathLike[str]) -> None:
    """Refuse to write to a file from which values of a result are still to be read.

    Raises:
        FileError: if it is such a file.
    """
    roles = FileRoles()
    for group in result.subtree if isinstance(result, xr.DataTree) else [result]:
        source = group.encoding.get("source")
        is_read = all(variable._in_memory for variable in group.variables.values())  # noqa: SLF001 - nothing else tells
        if source is not None and not is_read:
            roles.reads("the file that the result's values are read from when they are used", source)
    roles.writes("the output", path)


def load(path: str | os.PathLike[str]) -> xr.Dataset | xr.DataTree:
    """Read a result of this package into memory: a Dataset or a DataTree, whichever was saved.

    Its groups and attributes are read by netCDF-C, which a malicious file can make allocate any amount of memory:
    call `resnet_paths_plugin.results.file_checks.check_opening` first, as the command line does.

    Raises:
        InputError: this is no path.
        FileError: the file is missing, damaged, no netCDF, not of this package, of a newer schema, or would take more
            memory than a result of its size does.

    Examples:
        >>> lesions = rpp.BlockLesion(net).attribute(images, target=labels)
        >>> rpp.load(rpp.save(lesions, "lesions.nc")).identical(lesions)
        True
    """
    # They and netCDF4 take a while, and analyzers need none of them.
    from resnet_paths_plugin.results import file_checks, hdf5_checks  # noqa: PLC0415

    path = file_name(path)
    file_checks.check_signature(path)
    hdf5_checks.check_unlocked(path)
    check_seal(path)
    hdf5_checks.check_contained(path)
    with alone():  # netCDF-C is not made for several threads, and xarray's lock holds for what it reads itself
        return _loaded(path)


def _loaded(path: Path) -> xr.Dataset | xr.DataTree:
    """Read a file into memory; within `alone`."""
    import netCDF4  # noqa: PLC0415 - as in `load`

    from resnet_paths_plugin.results import file_checks, hdf5_checks  # noqa: PLC0415 - as in `load`

    try:
        with NETCDF4_PYTHON_LOCK, warnings.catch_warnings():
            # So netCDF4 says that it leaves out what it cannot read.
            warnings.filterwarnings("error", ".*unsupported", UserWarning)
            file = netCDF4.Dataset(os.path.realpath(path))
    except OSError as error:
        raise FileError(hdf5_checks.not_opened(path, error)) from error
    except Exception as error:  # netCDF4 raises many kinds, RecursionError and UnicodeDecodeError among them
        gc.collect()  # or netCDF4 keeps the file open, and HDF5 finds what it was when it is mended
        raise FileError(f"{path} is damaged or no netCDF file: expected a file made by save ({error})") from error
    with file:
        try:
            with NETCDF4_PYTHON_LOCK:
                _check_schema(file, path)
                file_checks.check_declared(file, path)
            groups = _read(file)
            for group in groups.values():
                _check_kinds(group)
            result = groups["/"] if len(groups) == 1 else xr.DataTree.from_dict(groups)
        except FileError:
            raise
        except MemoryError as error:
            raise FileError(f"{path} does not fit into the memory that is left ({error})") from error
        except Exception as error:  # so do netCDF4 and xarray on values and attributes
            raise FileError(f"{path} is damaged: restore it from a copy or run the study again ({error})") from error
    return result


def _quantity(name: str) -> Quantity | None:
    """Return the schema's entry of a name; `intact_` before it means that of the intact network."""
    known = QUANTITIES.get(name)
    of_changed = QUANTITIES.get(name.removeprefix(_INTACT))
    if known is None and of_changed is not None:
        return Quantity(f"{of_changed.long_name}, intact network", of_changed.dtype, of_changed.units)
    return known


def _variable(name: str, entry: Entry, kind: str = "measure") -> xr.Variable:
    """Return one variable with the schema's dtype and attributes."""
    dims, raw, *own = entry
    quantity = _quantity(name)
    try:
        array = np.asarray(raw)
        values = _storable(array) if quantity is None else _cast(array, quantity.dtype)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor on a GPU, in bfloat16 or with a gradient
        raise InputError(f"variable {name!r} cannot be stored: {error}") from error
    attrs: dict[str, object] = {"long_name": f"{kind} '{name}'", "units": "1"}
    if quantity is not None:
        attrs = dict(quantity.attributes)
    attrs |= dict(chain.from_iterable(mapping.items() for mapping in own))
    try:
        return xr.Variable(dims, values, {key: netcdf_safe(value) for key, value in attrs.items()})
    except ValueError as error:  # another number of dims than its values have
        raise InputError(f"variable {name!r} has shape {values.shape} and dims {dims!r}: {error}") from error


def _cast(values: npt.NDArray[np.generic], dtype: type[np.generic]) -> npt.NDArray[np.generic]:
    """Bring values to the schema's dtype: floats are rounded, everything else must stay what it is."""
    if values.size == 0:
        return np.empty(values.shape, dtype)
    if values.dtype.kind == "O" and all(isinstance(value, int) for value in values.ravel().tolist()):
        # Counts of paths outgrow int64; by way of text, those beyond float64 become inf instead of an error.
        values = np.array([float(str(value)) for value in values.ravel().tolist()]).reshape(values.shape)
    values = _storable(values)
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


def _check_name(name: object) -> None:
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


def _check_storable(result: xr.Dataset) -> None:
    """Refuse what a file would not give back unchanged: names, attributes and dtypes."""
    for name in chain(result.variables, result.dims):
        _check_name(name)
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


def _check_kinds(result: xr.Dataset) -> None:
    """Refuse numbers under a name that the schema has for texts, and the reverse."""
    for name, variable in result.variables.items():
        quantity = _quantity(str(name))
        is_text = variable.dtype.kind in "OSTU"
        if quantity is not None and is_text != (quantity.dtype is np.str_):
            kinds = ("texts", "numbers") if is_text else ("numbers", "texts")
            raise InputError(f"variable {name!r} holds {kinds[0]}, and the schema has {kinds[1]} under this name")


def _check_attributes(attrs: Mapping[str, object], owner: str, reserved: frozenset[str]) -> None:
    """Refuse attributes that a file would drop, change or choke on."""
    for name, value in attrs.items():
        _check_name(name)
        if name.startswith("_") or name in reserved:
            raise InputError(f"attribute {name!r} of {owner}: the file format uses this name itself")
        safe = netcdf_safe(value)
        if not isinstance(value, type(safe)) or str(safe) != str(value):
            raise InputError(f"attribute {name!r} of {owner} would change in a file: store {safe!r} instead")


def _groups(result: xr.Dataset | xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the datasets of a result by the path of their groups, seen from its root."""
    if isinstance(result, xr.Dataset):
        return {"/": result}
    if not isinstance(result, xr.DataTree):
        raise InputError(f"expected a Dataset or a DataTree, not {type(result).__qualname__}")
    if not result.children:
        raise InputError("this DataTree has no groups: save its .to_dataset() instead")
    for name in chain.from_iterable(node.children for node in result.subtree):
        _check_name(name)
    groups = {path: node.to_dataset(inherit=False) for path, node in result.subtree_with_keys}
    return {"/" if path == "." else f"/{path}": group for path, group in groups.items()}


def _write(groups: Mapping[str, xr.Dataset], path: Path) -> None:
    """Write every group."""
    # All groups in one go: netCDF forgets the order of the attributes of groups that are added to a file.
    encoding = {
        # Without a word on it xarray would declare NaN to mean "missing".
        group: {name: {"_FillValue": None, "fletcher32": True} for name in dataset.variables}
        for group, dataset in groups.items()
    }
    with without_cluster():
        xr.DataTree.from_dict(groups).to_netcdf(path, engine="netcdf4", encoding=encoding)


def _check_schema(file: "netCDF4.Dataset", path: Path) -> None:
    """Refuse a file that is not of this package, or of a schema newer than this one."""
    versions = [getattr(group, "schema_version", None) for group in (file, *file.groups.values())]
    known = [int(version) for version in versions if isinstance(version, np.integer)]
    if not known:
        raise FileError(
            f"{path} is a netCDF file, but not one made by save (no schema_version): open it with xarray.open_dataset"
        )
    if max(known) > SCHEMA_VERSION:
        raise FileError(
            f"{path} has schema version {max(known)}, this version of resnet-paths-plugin reads up to "
            f"{SCHEMA_VERSION}: upgrade the package"
        )


def _unfilled(result: xr.Dataset) -> xr.Dataset:
    """Return a result without the fill values of NaN that xarray declares for what it writes: they change no value."""
    for variable in result.variables.values():
        fill = variable.attrs.get("_FillValue")
        if isinstance(fill, np.floating) and np.isnan(fill):
            del variable.attrs["_FillValue"]
    return result


def _read(group: "netCDF4.Dataset") -> dict[str, xr.Dataset]:
    """Read a group and those below it into memory, by path, taking every value as it is."""
    store = xr.backends.NetCDF4DataStore(group)  # type: ignore[no-untyped-call]  # xarray's
    dataset = xr.open_dataset(store, mask_and_scale=False, decode_times=False)
    found = {group.path: _unfilled(dataset.load().drop_encoding())}
    for child in group.groups.values():
        found |= _read(child)
    return found
