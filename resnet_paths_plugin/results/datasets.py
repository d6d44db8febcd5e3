"""The schema of every result: dims, coordinates, attributes, provenance; and its way to a file and back.

It computes nothing and knows no graph: analyzers hand over arrays, readers get a labelled Dataset.
"""

import gc
import os
import warnings
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from xarray.backends.netCDF4_ import NETCDF4_PYTHON_LOCK

from resnet_paths_plugin.errors import FileError, InputError
from resnet_paths_plugin.files.file_roles import FileRoles
from resnet_paths_plugin.files.file_seals import check_seal, seal
from resnet_paths_plugin.files.input_files import file_name
from resnet_paths_plugin.files.output_files import Mode, replacing, writable, writable_netcdf
from resnet_paths_plugin.process_lock import alone, without_cluster
from resnet_paths_plugin.results import zarr_folders
from resnet_paths_plugin.results.conversion import converted
from resnet_paths_plugin.results.provenance import netcdf_safe
from resnet_paths_plugin.results.schema import COORDINATES, OVER_SAMPLES, SCHEMA_VERSION
from resnet_paths_plugin.results.variables import (
    Entry,
    check_kinds,
    check_name,
    check_storable,
    variable_of,
)

if TYPE_CHECKING:
    import netCDF4

_COUNTED_DIMS = ("sample", "position", "path_length")


def build(variables: Mapping[str, Entry], *, coords: Mapping[str, Entry], attrs: Mapping[str, object]) -> xr.Dataset:
    """Make a result of this package's schema, which `save` and `load` give back identical.

    Values get the schema's dtype, `long_name` and `units`; what the schema does not know (a user's measure, a
    plugin's variable) keeps its dtype and takes attributes from its entry. float16 and bfloat16, which netCDF
    does not have, become float32 without loss. Dims `sample`, `position` and `path_length` are counted from 0
    where no coordinate is given. What the schema has as a coordinate is one, wherever it is given.

    Args:
        variables: dims and values by name.
        coords: dims and values of the coordinates by name.
        attrs: global attributes, from `provenance`.

    Raises:
        InputError: a name, a value or a dtype cannot be stored exactly, variables differ in the size of a dim, or a
            mean over samples comes with a dim `sample`.
    """
    found = {name: variable_of(name, entry) for name, entry in variables.items()}
    for name in OVER_SAMPLES:
        if name in found and "sample" in found[name].dims:
            raise InputError(
                f"the schema's {name!r} is a mean over samples, and this one has a dim 'sample': choose another name "
                "for a value of each sample"
            )
    labels = {name: variable_of(name, entry, "coordinate") for name, entry in coords.items()}
    sizes = _sizes({**found, **labels})
    for dim in _COUNTED_DIMS:
        if dim in sizes and dim not in labels:
            labels[dim] = variable_of(dim, (dim, np.arange(sizes[dim])))
    result = xr.Dataset(found, labels, {name: netcdf_safe(value) for name, value in attrs.items()})
    check_storable(result)
    return result.set_coords(COORDINATES & found.keys())


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

    A path that ends in `.zarr` becomes a folder of Zarr 3 (extra `zarr`), with checksums of each array. What it holds
    is the same; the order of groups and variables is that of their names.

    Args:
        result: the result.
        path: the file, or the folder.
        mode: `"x"` refuses to replace an older file.

    Raises:
        InputError: this is no result of this package, or netCDF would change it, and it says what; zarr is needed and
            not installed.
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
    as_zarr = zarr_folders.is_zarr(file_name(path))
    if as_zarr:
        zarr_folders.require_zarr()
    target = writable(path, mode, is_ours=_is_result) if as_zarr else writable_netcdf(path, mode)
    check_output(result, path)
    for group in groups.values():
        check_storable(group)
        check_kinds(group)
    with replacing(path, target, mode) as temporary:
        if as_zarr:
            zarr_folders.write(groups, temporary)
        else:
            _write(groups, temporary)
            seal(temporary)
    return Path(path)


def _is_result(folder: Path) -> bool:
    """Whether a folder is a Zarr folder of this package, which another one may replace."""
    try:
        zarr_folders.check(folder)
        return bool(zarr_folders.versions(folder))
    except FileError:
        return False


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

    A path that ends in `.zarr` is a folder (extra `zarr`). The groups and attributes of a file are read by netCDF-C,
    which a malicious file can make allocate any amount of memory: call
    `resnet_paths_plugin.results.file_checks.check_opening` first, as the command line does.

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
    if zarr_folders.is_zarr(path) and path.is_dir():
        return _loaded_folder(path)
    file_checks.check_signature(path)
    hdf5_checks.check_unlocked(path)
    check_seal(path)
    hdf5_checks.check_contained(path)
    with alone():  # netCDF-C is not made for several threads, and xarray's lock holds for what it reads itself
        return _loaded(path)


def _loaded_folder(path: Path) -> xr.Dataset | xr.DataTree:
    """Read a Zarr folder into memory."""
    zarr_folders.require_zarr()
    zarr_folders.check(path)
    newest = _newest(zarr_folders.versions(path), path)
    try:
        return _result(zarr_folders.read(path), newest)
    except FileError:
        raise
    except MemoryError as error:
        raise FileError(f"{path} does not fit into the memory that is left ({error})") from error
    except Exception as error:  # many kinds, of damaged values and metadata
        raise FileError(f"{path} is damaged: restore it from a copy or run the study again ({error})") from error


def _result(groups: dict[str, xr.Dataset], newest: int) -> xr.Dataset | xr.DataTree:
    """Return the groups of a file as this version of the schema has them."""
    own = int(groups["/"].attrs.get("schema_version", newest))
    groups = {at: converted(group, int(group.attrs.get("schema_version", own))) for at, group in groups.items()}
    for group in groups.values():
        check_kinds(group)
    return groups["/"] if len(groups) == 1 else xr.DataTree.from_dict(groups)


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
                newest = _schema_version(file, path)
                file_checks.check_declared(file, path)
            result = _result(_read(file), newest)
        except FileError:
            raise
        except MemoryError as error:
            raise FileError(f"{path} does not fit into the memory that is left ({error})") from error
        except Exception as error:  # so do netCDF4 and xarray on values and attributes
            raise FileError(f"{path} is damaged: restore it from a copy or run the study again ({error})") from error
    return result


def _groups(result: xr.Dataset | xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the datasets of a result by the path of their groups, seen from its root."""
    if isinstance(result, xr.Dataset):
        return {"/": result}
    if not isinstance(result, xr.DataTree):
        raise InputError(f"expected a Dataset or a DataTree, not {type(result).__qualname__}")
    if not result.children:
        raise InputError("this DataTree has no groups: save its .to_dataset() instead")
    for name in chain.from_iterable(node.children for node in result.subtree):
        check_name(name)
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


def _schema_version(file: "netCDF4.Dataset", path: Path) -> int:
    """Return the newest version of the schema in a file; refuse a file of another origin, or of a newer schema."""
    versions = [getattr(group, "schema_version", None) for group in (file, *file.groups.values())]
    return _newest([int(version) for version in versions if isinstance(version, np.integer)], path)


def _newest(known: Sequence[int], path: Path) -> int:
    if not known:
        raise FileError(
            f"{path} is whole, but not one made by save (no schema_version): open it with xarray.open_dataset"
        )
    if max(known) > SCHEMA_VERSION:
        raise FileError(
            f"{path} has schema version {max(known)}, this version of resnet-paths-plugin reads up to "
            f"{SCHEMA_VERSION}: upgrade the package"
        )
    return max(known)


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
