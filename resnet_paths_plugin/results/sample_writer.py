"""Results joined along dim `sample`, block by block: in memory, or in a netCDF file that grows.

The blocks are results of some samples each; what a reader gets is the same either way.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_paths_plugin.errors import FileError, InputError
from resnet_paths_plugin.files.file_seals import seal
from resnet_paths_plugin.files.output_files import put, why
from resnet_paths_plugin.process_lock import without_cluster

DIM = "sample"

_CHUNK_BYTES = 2**20
"""Size that a variable's chunk in a file should have."""
_MOST_SAMPLES = 1024
_TEXT = "OTU"
"""Kinds of dtypes that hold text, whose size may differ."""


class SamplesInMemory:
    """Blocks that are joined at the end."""

    def __init__(self) -> None:
        self._blocks: list[xr.Dataset] = []

    def add(self, block: xr.Dataset) -> None:
        """Take the results of the next samples.

        Raises:
            InputError: if they have other variables than those before, or of another dtype.
        """
        if self._blocks:
            _check_alike(self._blocks[-1], block)
            # Only what lies along samples is read again.
            self._blocks[-1] = self._blocks[-1][_along_samples(self._blocks[-1])]
        self._blocks.append(block)

    @property
    def n_samples(self) -> int:
        """How many samples have been taken."""
        return sum(block.sizes.get(DIM, 0) for block in self._blocks)

    def result(self) -> xr.Dataset:
        """Return all samples, numbered from 0; variables without dim `sample` are those of the last block."""
        last = self._blocks[-1]
        if len(self._blocks) == 1:
            return last
        joined: dict[Any, xr.Variable] = {}
        for name, variable in last.variables.items():
            values = variable
            if DIM in variable.dims:
                parts = [block.variables[name].values for block in self._blocks]
                values = xr.Variable(variable.dims, np.concatenate(parts, variable.dims.index(DIM)), variable.attrs)
            if name == DIM:
                values = xr.Variable(DIM, np.arange(values.size, dtype=values.dtype), variable.attrs)
            joined[name] = values
        coords = {name: joined.pop(name) for name in last.coords}
        return xr.Dataset(joined, coords, last.attrs)


class SampleFile:
    """A netCDF file with an unlimited dim `sample`, which is given its name when it is complete.

    Args:
        path: where it grows; of the same file system as its final place.
        n_samples: how many samples there will be, where this is known; chunks of the file are no larger.
    """

    def __init__(self, path: Path, n_samples: int | None = None) -> None:
        self._path = path
        self._most_samples = _MOST_SAMPLES if n_samples is None else min(max(n_samples, 1), _MOST_SAMPLES)
        self._file: Any = None
        self._last: xr.Dataset | None = None
        self._n_samples = 0

    def add(self, block: xr.Dataset) -> None:
        """Append the results of the next samples.

        Raises:
            InputError: if they have other variables than those before, or of another dtype.
            FileError: if the disk is full.
        """
        try:
            if self._last is None:
                _create(block, self._path, self._most_samples)
                import netCDF4  # noqa: PLC0415 - takes a while

                self._file = netCDF4.Dataset(self._path, "a")
                self._file.set_auto_maskandscale(False)
            else:
                _check_alike(self._last, block)
                for name in _along_samples(block):
                    variable = block.variables[name]
                    values = variable.values + self._n_samples if name == DIM else variable.values
                    samples = slice(self._n_samples, self._n_samples + block.sizes[DIM])
                    place = tuple(samples if dim == DIM else slice(None) for dim in variable.dims)
                    self._file[name][place] = _raw(values)
        except (OSError, RuntimeError) as error:  # netCDF reports a full disk by a RuntimeError
            raise self._failed(error) from error
        self._n_samples += block.sizes.get(DIM, 0)
        self._last = block

    def finish(self, target: Path) -> None:
        """Write what was known only at the end, see all of it through to the disk, and move it to its place.

        Raises:
            FileError: if the disk is full, or the place cannot be written to.
        """
        assert self._last is not None  # noqa: S101 - a study has at least one sample
        try:
            for name, variable in self._last.variables.items():
                if DIM not in variable.dims and variable.dtype.kind != "U":
                    self._file[name][...] = _raw(variable.values)
            self._close()
            seal(self._path)
            put(self._path, target)
        except (OSError, RuntimeError) as error:
            raise self._failed(error) from error

    def discard(self) -> None:
        """Close and remove the file, unless it has its place."""
        with suppress(OSError, RuntimeError):
            self._close()
        self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file is not None and self._file.isopen():
            self._file.close()

    def _failed(self, error: Exception) -> FileError:
        reason = why(error, self._path.parent)
        return FileError(f"cannot write the result: {reason}. Fix this and repeat the call")


def _create(block: xr.Dataset, path: Path, most_samples: int) -> None:
    encoding: dict[str, dict[str, Any]] = {}
    for name, variable in block.variables.items():
        # Without a word on it xarray would declare NaN to mean "missing".
        encoding[str(name)] = {"_FillValue": None, "fletcher32": True}
        if DIM in variable.dims:
            per_sample = max(1, variable.dtype.itemsize * variable.size // block.sizes[DIM])
            samples = int(np.clip(_CHUNK_BYTES // per_sample, 1, most_samples))
            encoding[str(name)]["chunksizes"] = tuple(samples if d == DIM else n for d, n in variable.sizes.items())
    # As a tree, so that attributes are in the order that `save` gives them.
    with without_cluster():
        xr.DataTree.from_dict({"/": block}).to_netcdf(
            path, engine="netcdf4", encoding={"/": encoding}, unlimited_dims={"/": {DIM} & set(block.sizes)}
        )


def _along_samples(block: xr.Dataset) -> list[Any]:
    return [name for name, variable in block.variables.items() if DIM in variable.dims]


def _check_alike(one: xr.Dataset, other: xr.Dataset) -> None:
    names = [set(_along_samples(block)) for block in (one, other)]
    if names[0] != names[1]:
        raise InputError("some batches have targets and others have none: give all batches targets, or none")
    for name in _along_samples(one):
        dtypes = [block.variables[name].dtype for block in (one, other)]
        if dtypes[0] != dtypes[1] and not all(dtype.kind in _TEXT for dtype in dtypes):
            raise InputError(
                f"{name!r} is {dtypes[0]} for some samples and {dtypes[1]} for others: it must have the same dtype for "
                "all, which is that of its measure's values or of the targets"
            )


def _raw(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind == "U":
        return values.astype(object)
    return values.astype(np.int8) if values.dtype.kind == "b" else values
