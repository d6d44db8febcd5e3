"""The files that a command writes: their names, and whether they can be written without loss of others."""

import glob
import hashlib
import re
from pathlib import Path

from torch import nn

from resnet_paths_plugin.errors import FileError
from resnet_paths_plugin.files.file_roles import FileRoles
from resnet_paths_plugin.files.output_files import Mode, replacing, writable, writable_netcdf
from resnet_paths_plugin.plugins.model_description import ModelDescription

_SUFFIX = ".nc"
_LONGEST_NAME = 255
"""Bytes of a file's name, as most file systems have it."""
_LONGEST_OUTPUT = 200
"""Bytes of the name of a result's file, so that there is room for those of its figures."""
_LONGEST_DEFAULT = 100


def default_output(model: nn.Module, description: ModelDescription | None) -> Path:
    """Return the name of the file that is written where none is named: that of the model."""
    name = description.architecture if description else type(model).__name__
    name = re.sub(r"[^\w.+-]+", "-", name).lstrip("-.") or "model"
    return Path(f"{_first_bytes(name, _LONGEST_DEFAULT)}.nc")


def report_path(output: Path) -> Path:
    """Return the page that belongs to a file."""
    return output.with_suffix(".html")


def partial_path(output: Path) -> Path:
    """Return the folder that keeps what is finished until a file is written."""
    return output.with_name(f"{output.name}.partial")


def figure_path(output: Path, figure: str, suffix: str = "png") -> Path:
    """Return the picture that belongs to a file."""
    name = f"{output.stem}-{figure}"
    if len(f"{name}.{suffix}".encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
        mark = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        name = f"{_first_bytes(name, _LONGEST_NAME - len(f'-{mark}.{suffix}'))}-{mark}"
    return output.with_name(f"{name}.{suffix}")


def check_outputs(output: Path, roles: FileRoles, mode: Mode, suffix: str = "png") -> None:
    """Check before the long run that a result, report and figures can be written, and take the place of no input.

    Args:
        output: the result's file.
        roles: what the command reads; what it writes is added.
        mode: how older files are treated.
        suffix: that of the figures.

    Raises:
        FileError: if they cannot, or do.
    """
    if len(output.name.encode("utf-8", "surrogateescape")) > _LONGEST_OUTPUT:
        raise FileError(f"the name {output.name} is too long: choose one of at most {_LONGEST_OUTPUT} bytes")
    writable_netcdf(output, mode)
    roles.writes("the result", output)
    writable(report_path(output), mode)
    roles.writes("the report", report_path(output))
    roles.writes("the folder of finished tasks", partial_path(output))
    # What the figures will be called is known after the run only.
    for figure in sorted(output.parent.glob(f"{glob.escape(output.stem)}-*.{suffix}")):
        writable(figure, mode)
        roles.writes("a figure", figure)
    if output.suffix.lower() != _SUFFIX:
        raise FileError(f"--output {output} is no name of a netCDF file: give one that ends in {_SUFFIX}")


def save_picture(picture: bytes, path: Path, mode: Mode) -> Path:
    """Write a picture whole or not at all.

    Raises:
        FileError: if it cannot be written.
    """
    target = writable(path, mode)
    with replacing(path, target, mode) as temporary:
        temporary.write_bytes(picture)
    return path


def _first_bytes(text: str, count: int) -> str:
    return text.encode("utf-8", "surrogateescape")[:count].decode("utf-8", "ignore")
