"""What a netCDF file declares, compared with its size before a value is read.

`save` compresses nothing and writes every value, so an honest file is at least as large as what it declares.

What netCDF-C and HDF5 do themselves, and cannot be asked about from here, is beyond these checks:

* Attributes are read whole. Texts in an attribute may all point to one long text, and then take any amount of memory.
* Variables and attributes of some types that netCDF lacks are left out and not mentioned.

`check_opening` finds the first in a process whose memory is limited; it needs Linux. Links out of the file and in
circles, and values in other files, are found before by `hdf5_checks`.
"""

import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np

from resnet_paths_plugin.errors import FileError
from resnet_paths_plugin.files import limits
from resnet_paths_plugin.files.input_files import check_file
from resnet_paths_plugin.results.hdf5_checks import check_contained, check_inside
from resnet_paths_plugin.results.zarr_folders import is_zarr

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_REFERENCE_BYTES = 16  # HDF5 stores a text as its length and its place in a heap
_OPENING = """
import os, resource, sys
import netCDF4

path, memory, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open("/proc/self/statm") as file:
    memory += int(file.read().split()[0]) * resource.getpagesize()
for limited, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
    _, hard = resource.getrlimit(limited)
    resource.setrlimit(limited, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
held = []
with netCDF4.Dataset(path) as file:
    groups = [file]
    for group in groups:
        groups += group.groups.values()
        for owner in (group, *group.variables.values()):
            held += [owner.getncattr(name) for name in owner.ncattrs()]
"""
_CHARACTER_BYTES = 4  # numpy gives every text of an array the room of the longest, in UTF-32


def check_signature(path: Path) -> None:
    """Refuse a file that is no HDF5 file, and so none of `save`, before netCDF-C tries its other formats on it.

    Raises:
        FileError: it begins in another way, cannot be read, or is no file.
    """
    check_file(path, "a file made by save")
    try:
        with path.open("rb") as stream:
            start = stream.read(len(_SIGNATURE))
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    if start.startswith(b"CDF"):
        raise FileError(
            f"{path} is a netCDF-3 file: expected a file made by save, which is netCDF-4 (HDF5). Of a result, "
            "result.to_netcdf(path, engine='netcdf4') writes one"
        )
    if start != _SIGNATURE:
        raise FileError(f"{path} is damaged or no netCDF file: expected a file made by save, which is netCDF-4 (HDF5)")


def check_opening(path: Path) -> None:
    """Open a file and read its attributes in a process of its own, whose memory and time are limited.

    Without Linux, which can limit memory, nothing is checked.

    Raises:
        FileError: they take more than a file of this size may, or the file is damaged.
    """
    if sys.platform != "linux" or (is_zarr(path) and path.is_dir()):  # a folder is checked when it is loaded
        return
    check_signature(path)
    check_contained(path)
    memory = limits.largest(path.stat().st_size)
    try:
        ended = subprocess.run(  # noqa: S603 - this very interpreter
            [sys.executable, "-P", "-c", _OPENING, path.resolve(), str(memory), str(limits.LONGEST_OPENING)],
            capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL,
            timeout=limits.LONGEST_WAIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        reasons = [f"it was still at it after {limits.LONGEST_WAIT} s"]
    else:
        if ended.returncode == 0:
            return
        reasons = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        if ended.returncode < 0:
            reasons = [signal.Signals(-ended.returncode).name]
    raise FileError(
        f"{path} is damaged, or not made by save: opening it and reading its attributes did not succeed within "
        f"{limits.format_bytes(memory)} of memory and {limits.LONGEST_OPENING} s "
        f"({reasons[-1] if reasons else 'no reason given'}). Restore it from a copy or run the study again"
    )


def check_declared(file: netCDF4.Dataset, path: Path) -> None:
    """Refuse a file whose groups or variables are not stored as `save` stores them, or are larger than the file.

    Texts are read for it, a few at a time, since only they themselves tell how long they are.

    Raises:
        FileError: a variable is compressed, lies outside the file, is of a type of the file's own, or too large.
    """
    size = path.stat().st_size
    declared = 0
    texts = _TextRoom(path, size)
    for name, variable in _variables(file, path):
        _check_storage(variable, name, path)
        declared += _stored_bytes(variable)
        if declared > size:
            raise FileError(
                f"{path}: up to variable {name!r} it declares {limits.format_bytes(declared)} of values and has "
                f"{limits.format_bytes(size)}: it is damaged, or compressed by a filter that netCDF does not "
                "name. Restore it from a copy or run the study again"
            )
        if variable.dtype is str:
            texts.check(variable, name)


def _variables(group: netCDF4.Dataset, path: Path, depth: int = 0) -> Iterator[tuple[str, "netCDF4.Variable[Any]"]]:
    """Every variable below a group, with the path to it."""
    if depth > limits.DEEPEST_GROUPS:
        raise FileError(f"{path} has over {limits.DEEPEST_GROUPS} groups inside each other: no result has")
    if group.cmptypes or group.vltypes or group.enumtypes:
        raise FileError(f"{path} defines types of its own in group {group.path!r}: expected a file made by save")
    for name, variable in group.variables.items():
        yield f"{group.path.rstrip('/')}/{name}", variable
    for child in group.groups.values():
        yield from _variables(child, path, depth + 1)


def _check_storage(variable: "netCDF4.Variable[Any]", name: str, path: Path) -> None:
    """Refuse values that are compressed, whose size is not known, and values that may lie in another file."""
    if variable.dtype is not str and variable.dtype.kind not in "iufS":
        raise FileError(f"{path}: variable {name!r} holds {variable.dtype}: expected numbers or text, as made by save")
    # netCDF-C takes numbers that it does not know, such as float16, for texts, and would follow them as pointers to
    # these. Numbers have an order of their bytes and texts have none.
    if variable.dtype is str and variable.endian() != "native":
        raise FileError(
            f"{path}: variable {name!r} holds numbers of a kind that netCDF does not have: it is damaged, or not made "
            "by save. Store them as float32 or float64"
        )
    filters = variable.filters() or {}
    used = [kind for kind in ("zlib", "szip", "zstd", "bzip2", "blosc") if filters.get(kind)]
    if used:
        raise FileError(
            f"{path}: variable {name!r} is compressed ({', '.join(used)}), so it may take any amount of memory: "
            "results are saved uncompressed; `nccopy -d 0` undoes what you compressed yourself"
        )

    # HDF5 lets values in one piece, and virtual ones, lie in other files; those in chunks are in this one.
    if variable.ndim and not isinstance(variable.chunking(), list):
        check_inside(path, name)


def _stored_bytes(variable: "netCDF4.Variable[Any]") -> int:
    """Bytes that the values take in the file: whole chunks, of which the last ones are not full."""
    itemsize = _REFERENCE_BYTES if variable.dtype is str else int(variable.dtype.itemsize)
    chunks: Any = variable.chunking() if variable.ndim else []
    if not isinstance(chunks, list):  # in one piece
        chunks = variable.shape
    whole = [-(-length // chunk) * chunk if chunk else 0 for length, chunk in zip(variable.shape, chunks, strict=True)]
    return itemsize * math.prod(whole)


class _TextRoom:
    """What the texts of a file take together: read for it, and refused where they are more than the file allows.

    Args:
        path: the file.
        size: its size in bytes.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._stored = self._taken = 0

    def check(self, variable: "netCDF4.Variable[Any]", name: str) -> None:
        """Count in the texts of one more variable.

        Raises:
            FileError: if they take more than is left.
        """
        longest = 0
        for text in _texts(variable, self._size):
            self._stored += len(text.encode("utf-8", "surrogatepass"))
            longest = max(longest, len(text))
            # Many entries may point to one text, so that a small file holds more than there is memory.
            taken = self._taken + _CHARACTER_BYTES * longest * variable.size
            if self._stored > self._size or taken > limits.largest(self._size):
                raise FileError(
                    f"{self._path}: the texts up to variable {name!r} would take more memory than a file of "
                    f"{limits.format_bytes(self._size)} may: it is damaged, or not made by save"
                )
        self._taken += _CHARACTER_BYTES * longest * variable.size


def _texts(variable: "netCDF4.Variable[Any]", size: int) -> Iterator[str]:
    """The texts of a variable; as many at once as a file may take in memory if each is as long as the file."""
    if not variable.ndim:
        yield str(variable[...])
        return
    at_once = limits.largest(size) // size
    for row in np.ndindex(variable.shape[:-1]):
        for start in range(0, variable.shape[-1], at_once):
            yield from map(str, np.ravel(variable[(*row, slice(start, start + at_once))]))
