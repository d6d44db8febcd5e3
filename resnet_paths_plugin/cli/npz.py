"""Arrays of an npz file, each compared with its own declaration and the file's size before any of it is read.

Reads plain arrays only, as `numpy.savez` writes them; pickled objects could run code.
"""

import io
import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_paths_plugin.errors import FileError
from resnet_paths_plugin.files import limits

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class _Archive(io.FileIO):
    """A file whose directory is not read where it is too long for that of a few arrays.

    `zipfile` reads a directory in one piece, before anything else is known of the file.

    Attributes:
        opening: whether what is read is a directory still.
    """

    opening = True

    def read(self, size: int | None = -1) -> bytes:
        if self.opening and size is not None and size > limits.LARGEST_DIRECTORY:
            raise FileError(
                f"{self.name!s} has a directory of {limits.format_bytes(size)}, more than "
                f"{limits.format_bytes(limits.LARGEST_DIRECTORY)}: an npz file of images has three arrays"
            )
        return super().read(size) or b""


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Read those of the named arrays that are in an npz file; none from a file of a single array.

    Raises:
        FileError: the file is damaged or of another kind, holds something else than plain arrays, or would take more
            memory than `limits` allows a file of its size.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                return {}
        with _Archive(path) as file, zipfile.ZipFile(file) as archive:
            file.opening = False
            return _read(archive, path, names)
    except FileError:
        raise
    except MemoryError as error:
        raise FileError(f"{path} does not fit into the memory that is left") from error
    except Exception as error:  # zipfile, zlib and numpy raise nearly anything on damaged files
        raise FileError(f"{path} is damaged, or no npz file of plain arrays: {error}") from error


def _read(archive: zipfile.ZipFile, path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    present = set(archive.namelist())
    members = {name: archive.getinfo(f"{name}.npy") for name in names if f"{name}.npy" in present}
    for name, member in members.items():
        _check_packing(member, f"{path}: array {name!r}")
    unpacked, size = sum(member.file_size for member in members.values()), path.stat().st_size
    if unpacked > limits.largest(size):
        raise FileError(
            f"{path} is {limits.format_bytes(size)} and declares {limits.format_bytes(unpacked)} of arrays, more than "
            f"{limits.LARGEST_RATIO} times as much: if that is right, save them uncompressed, with numpy.savez"
        )
    for name, member in members.items():
        _check_header(archive, member, f"{path}: array {name!r}")
    arrays = {}
    for name, member in members.items():
        with archive.open(member) as stream:
            arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays


def _check_packing(member: zipfile.ZipInfo, what: str) -> None:
    """Refuse what numpy does not write, and whose unpacking takes more memory than is declared."""
    if member.flag_bits & _ENCRYPTED:
        raise FileError(f"{what} is encrypted: save it with numpy.savez")
    if member.compress_type not in _METHODS:
        raise FileError(f"{what} is packed by a method that numpy does not write: save it with numpy.savez")


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, what: str) -> None:
    """Refuse an array whose header does not declare what the archive holds."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise FileError(f"{what} is of a version that holds no plain array: save it with numpy.savez")
        shape, _, dtype = _HEADERS[version](stream)
        start = stream.tell()
    if dtype.hasobject:
        raise FileError(f"{what} holds pickled objects, which could run code: no npz file of plain arrays")
    values = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or not dtype.itemsize or start + values != member.file_size:
        raise FileError(
            f"{what} is damaged: it declares shape {shape} of {dtype}, which is {limits.format_bytes(values)}, and "
            f"holds {limits.format_bytes(member.file_size - start)}"
        )
