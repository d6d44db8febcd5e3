"""Seals: a checksum of all of a file at its end, where netCDF and HDF5 pass it over.

It covers texts, names and attributes, which HDF5's own checksums leave out, and is looked at before HDF5 opens a file.
What writes the file anew (xarray, nccopy) or changes it in place (netCDF4, h5py) drops it. It tells damage and no harm:
who changes a file on purpose may seal it again.
"""

import hashlib
import os
from pathlib import Path
from typing import IO

from resnet_paths_plugin.errors import FileError

_MARK = b"\nresnet-paths: SHA-256 of all before: "
_DIGEST_BYTES = 32
SIZE = len(_MARK) + _DIGEST_BYTES
"""Bytes of a seal."""
_BEGINS = _MARK[:12]
_AT_ONCE = 2**20


def seal(path: Path) -> None:
    """Put the checksum of a file at its end."""
    with path.open("rb+") as file:
        digest = _digest(file, path.stat().st_size)
        file.seek(0, os.SEEK_END)
        file.write(_MARK + digest)


def is_sealed(path: Path) -> bool:
    """Whether a file ends in a seal, or in what is left of one, right or wrong."""
    return _BEGINS in _end(path)


def check_seal(path: Path) -> None:
    """Compare a file with its seal, if it has one.

    Raises:
        FileError: if it is not what was sealed, its seal is damaged or cut, or it cannot be read.
    """
    try:
        end = _end(path)
        if _BEGINS not in end:
            return
        with path.open("rb") as file:
            if end == _MARK + _digest(file, path.stat().st_size - SIZE):
                return
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    raise FileError(
        f"{path} is damaged: restore it from a copy or run the study again (it is not what was saved, by its checksum)"
    )


def _end(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(SIZE, path.stat().st_size), os.SEEK_END)
        return file.read()


def _digest(file: IO[bytes], size: int) -> bytes:
    """Return the checksum of the next bytes of a file."""
    digest = hashlib.sha256()
    while size > 0 and (piece := file.read(min(size, _AT_ONCE))):
        digest.update(piece)
        size -= len(piece)
    return digest.digest()
