"""Results as Zarr folders: how groups are written, and what a folder declares, compared with its files before reading.

`write` compresses nothing and puts the values of an array into one file, with a checksum, so that what a folder takes
in memory is known from the sizes of its files. Needs the extra `zarr`.
"""

import json
import math
import os
import stat
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from resnet_paths_plugin.errors import FileError, InputError
from resnet_paths_plugin.files import limits

SUFFIX = ".zarr"
_METADATA = "zarr.json"
_CHECKSUM_BYTES = 4
_LENGTH_BYTES = 4
"""Bytes before each text that say how long it is."""
_CHARACTER_BYTES = 4
"""numpy gives every text of an array the room of the longest, in UTF-32."""
_CODECS = {"numbers": ["bytes", "crc32c"], "texts": ["vlen-utf8", "crc32c"]}


def is_zarr(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a Zarr folder, by its name."""
    return os.fspath(path).rstrip("/\\").endswith(SUFFIX)


def require_zarr() -> None:
    """Check that zarr is there.

    Raises:
        InputError: if it is not installed.
    """
    try:
        import zarr  # noqa: F401, PLC0415 - an extra, and takes a while
    except ImportError as error:
        raise InputError(
            "a path that ends in .zarr needs the package zarr: pip install 'resnet-paths-plugin[zarr]', or take a path "
            "that ends in .nc"
        ) from error


def write(groups: Mapping[str, xr.Dataset], folder: Path) -> None:
    """Write every group of a result into a new folder.

    Args:
        groups: datasets by the path of their group.
        folder: where nothing is yet.
    """
    from zarr.codecs import Crc32cCodec  # noqa: PLC0415 - as above

    for path, dataset in groups.items():
        stored = _as_stored(dataset)
        # An array is one chunk, whose values are written even where they are all equal to the fill value.
        encoding: dict[str, dict[str, Any]] = {
            str(name): {"compressors": [Crc32cCodec()], "write_empty_chunks": True, "fill_value": _fill(values)}
            | ({"chunks": values.shape} if values.size and values.ndim else {})
            for name, values in stored.variables.items()
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*Zarr.*")
            stored.to_zarr(folder, group=path, mode="a", encoding=encoding, zarr_format=3, consolidated=False)


def read(folder: Path) -> dict[str, xr.Dataset]:
    """Return the datasets of a folder by the path of their group, read into memory; after `check`."""
    found = {}
    for at in sorted(_groups(folder)):
        inside = at.relative_to(folder).as_posix()
        path = "/" if inside == "." else f"/{inside}"
        dataset = xr.open_zarr(
            folder, group=path, chunks=None, consolidated=False, mask_and_scale=False, decode_times=False
        )
        found[path] = _with_texts(dataset.load().drop_encoding(), limits.largest(_size(folder)), folder)
    return found


def check(folder: Path) -> None:
    """Refuse a folder that is not as `write` makes it, or that declares more values than its files hold.

    Raises:
        FileError: something in it is no file or folder, an array is compressed or in pieces, or files are missing.
    """
    entries = 0
    for root, folders, files in os.walk(folder):
        entries += len(folders) + len(files)
        if entries > limits.MOST_LINKS:
            raise FileError(f"{folder} holds over {limits.MOST_LINKS} files and folders: no result does")
        for name in (*folders, *files):
            mode = (Path(root) / name).lstat().st_mode
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise FileError(f"{folder}: {Path(root, name)} is a link or a device: expected a folder made by save")
    for array in _nodes(folder, "array"):
        _check_array(array, folder)
    if not any(True for _ in _groups(folder)):
        raise FileError(f"{folder} is no Zarr folder made by save: it has no group")


def versions(folder: Path) -> list[int]:
    """Return the schema versions that the groups of a folder state."""
    found = [_metadata(group).get("attributes", {}).get("schema_version") for group in _groups(folder)]
    return [version for version in found if isinstance(version, int)]


def _groups(folder: Path) -> Iterator[Path]:
    yield from _nodes(folder, "group")


def _nodes(folder: Path, kind: str) -> Iterator[Path]:
    for file in folder.rglob(_METADATA):
        if _metadata(file.parent).get("node_type") == kind:
            yield file.parent


def _metadata(node: Path) -> dict[str, Any]:
    file = node / _METADATA
    try:
        if file.stat().st_size > limits.SMALL:
            raise FileError(f"{file} is larger than {limits.format_bytes(limits.SMALL)}: no result's is")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{file} is damaged: restore it from a copy or run the study again ({error})") from error
    if not isinstance(found, dict) or found.get("zarr_format") != 3:
        raise FileError(f"{file} is no metadata of Zarr 3: expected a folder made by save")
    return found


def _check_array(array: Path, folder: Path) -> None:
    """Refuse an array that is not in one uncompressed file, or whose file is not as long as its values."""
    found = _metadata(array)
    name = array.relative_to(folder).as_posix()
    try:
        shape = [int(size) for size in found["shape"]]
        chunk = [int(size) for size in found["chunk_grid"]["configuration"]["chunk_shape"]]
        codecs = [codec["name"] for codec in found["codecs"]]
        dtype = found["data_type"]
        is_text = dtype == "string"
        itemsize = _LENGTH_BYTES if is_text else np.dtype(dtype).itemsize
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{folder}: array {name!r} is not as save writes it ({error!r})") from error
    size = math.prod(shape)
    if min(shape, default=0) < 0 or codecs != _CODECS["texts" if is_text else "numbers"] or (size and chunk != shape):
        raise FileError(
            f"{folder}: array {name!r} is compressed, or in pieces, so it may take any amount of memory: expected a "
            "folder made by save"
        )
    stored = array.joinpath("c", *["0"] * len(shape))
    held = stored.stat().st_size - _CHECKSUM_BYTES if stored.is_file() else 0
    if held < size * itemsize or (not is_text and held != size * itemsize):
        raise FileError(
            f"{folder}: array {name!r} declares {size} values of {itemsize} bytes, and its file has "
            f"{limits.format_bytes(max(held, 0))}: it is damaged. Restore it from a copy or run the study again"
        )


def _as_stored(dataset: xr.Dataset) -> xr.Dataset:
    """Return a dataset as Zarr takes it: texts of any length, attributes of plain numbers."""
    found = dataset.drop_encoding().assign_attrs({name: _plain(value) for name, value in dataset.attrs.items()})
    for name, variable in dataset.variables.items():
        values = variable.values.astype(object) if variable.dtype.kind in "OUT" else variable.values
        attrs = {key: _plain(value) for key, value in variable.attrs.items()}
        new = xr.Variable(variable.dims, values, attrs)
        found = found.assign_coords({name: new}) if name in dataset.coords else found.assign({name: new})
    return found


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _fill(values: xr.Variable) -> Any:
    return "" if values.dtype.kind in "OUT" else values.dtype.type(0)


def _with_texts(dataset: xr.Dataset, most: int, folder: Path) -> xr.Dataset:
    """Return a dataset with numpy's texts, and without the fill values that Zarr's arrays have.

    Raises:
        FileError: if texts would take more memory than the folder allows.
    """
    found = dataset
    for name, variable in dataset.variables.items():
        if variable.dtype.kind in "OT":
            texts = [str(text) for text in variable.values.ravel().tolist()]
            if _CHARACTER_BYTES * max(map(len, texts), default=0) * len(texts) > most:
                raise FileError(f"{folder}: the texts of {name!r} would take more memory than its size allows")
            values = np.array(texts, dtype="U").reshape(variable.shape)
            new = xr.Variable(variable.dims, values, variable.attrs)
            found = found.assign_coords({name: new}) if name in dataset.coords else found.assign({name: new})
    for variable in found.variables.values():
        variable.attrs.pop("_FillValue", None)
    return found


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
