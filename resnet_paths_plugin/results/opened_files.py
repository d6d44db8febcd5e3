"""Results whose values are read from their file when they are used, and from no other file that takes its place."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import xarray as xr
from xarray.backends.netCDF4_ import NETCDF4_PYTHON_LOCK

from resnet_paths_plugin.errors import FileError

if TYPE_CHECKING:
    import netCDF4


def opened(path: Path) -> xr.Dataset:
    """Return a result of one group from its file: what `load` gives, but values are read when they are used.

    They are read from this file and no other: once it has been replaced, values that are not read yet are refused.
    """
    found = path.stat()
    identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    manager = xr.backends.CachingFileManager(  # type: ignore[type-var]  # as xarray itself does
        _same_file, str(path), mode="r", kwargs={"identity": identity}, lock=NETCDF4_PYTHON_LOCK
    )
    store = xr.backends.NetCDF4DataStore(manager)  # type: ignore[no-untyped-call]  # xarray's
    result = xr.open_dataset(store, mask_and_scale=False, decode_times=False).drop_encoding()
    result.encoding["source"] = str(path)
    return result


def _same_file(path: str, mode: Literal["r"], identity: tuple[int, ...]) -> "netCDF4.Dataset":
    """Open a file, and refuse another one that has taken its place."""
    import netCDF4  # noqa: PLC0415 - takes a while

    try:
        found = os.stat(path)  # noqa: PTH116 - as it is given
        if (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) == identity:
            return netCDF4.Dataset(path, mode)
    except FileNotFoundError as error:
        raise FileError(f"{path} is missing, from which the values of a result are read when they are used") from error
    raise FileError(
        f"{path} is another file than the one that the values of this result are in: it was replaced or changed since. "
        "Open the result again with load, or read all of it with .load() before its file is replaced"
    )
