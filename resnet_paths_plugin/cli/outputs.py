"""The files that a command writes: their names, and whether they can be written."""

import os
import re
import uuid
from pathlib import Path

from torch import nn

from resnet_paths_plugin import report
from resnet_paths_plugin.description import ModelDescription
from resnet_paths_plugin.errors import FileError

_DPI = 150


def default_output(model: nn.Module, description: ModelDescription | None) -> Path:
    """Return the file that is written where none is named: in the current folder, named after the model."""
    name = description.architecture if description else type(model).__name__
    return Path(re.sub(r"[^\w.+-]+", "-", name) + ".nc")


def report_path(output: Path) -> Path:
    """Return the page that belongs to a file."""
    return output.with_suffix(".html")


def figure_path(output: Path, figure: str) -> Path:
    """Return the picture that belongs to a file."""
    return output.with_name(f"{output.stem}-{figure}.png")


def check_writable(output: Path) -> None:
    """Check that the file and its figures can be written, before the long run.

    Raises:
        FileError: if they cannot.
    """
    folder = output.parent
    if not folder.is_dir():
        raise FileError(f"the output folder {folder} does not exist: create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FileError(f"the output folder {folder} cannot be written to: choose another one")
    for path in (output, report_path(output)):
        if path.is_dir():
            raise FileError(f"{path} is a folder: give the name of a file, such as {path / 'result.nc'}")
        if path.exists() and not os.access(path, os.W_OK):
            raise FileError(f"{path} is write-protected: choose another name")


def save_figure(figure: report.ReportFigure, path: Path) -> Path:
    """Write a figure whole or not at all.

    Raises:
        FileError: if it cannot be written.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(figure.png(_DPI))
        temporary.replace(path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
