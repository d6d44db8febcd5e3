"""Files that are read: what is no file is refused before it is opened, since to open a FIFO waits for others."""

import os
import stat
from pathlib import Path

from resnet_paths_plugin.errors import FileError, InputError

KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a FIFO",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISLNK: "a link that leads in a circle",
}
"""What something is that is no file, in words."""

_UNFOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def file_name(path: str | os.PathLike[str]) -> Path:
    """Return the path that a caller gave.

    Raises:
        InputError: if it is no path.
    """
    try:
        return Path(os.fsdecode(path))
    except TypeError as error:
        raise InputError(f"expected the name of a file, a text or a Path, not {path!r}") from error


def check_file(path: Path, expected: str) -> None:
    """Check that a path leads to a file, without opening it.

    Args:
        path: the path.
        expected: what it should be, for the message.

    Raises:
        FileError: if there is nothing, or a folder, FIFO, device or the like.
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise FileError(f"{path} is missing: expected {expected}") from error
    except (OSError, ValueError) as error:  # a folder that may not be looked into; a name with NUL
        raise FileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise FileError(f"{path} is {kind_of(found)}: expected {expected}")


def read_file(path: Path) -> bytes:
    """Return the content of a file, which is not reached through a link.

    Raises:
        FileError: if it is a link, FIFO or anything else that is no file; it is not opened then.
        OSError: if it is not there, or cannot be read.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        kind = "a link" if stat.S_ISLNK(found.st_mode) else kind_of(found)
        raise FileError(f"{path} is {kind}: expected a file of this package's making")
    with os.fdopen(os.open(path, os.O_RDONLY | _UNFOLLOWED), "rb") as file:
        return file.read()


def kind_of(found: os.stat_result) -> str:
    """Return what something is that is no file, in words."""
    return next((kind for is_one, kind in KINDS.items() if is_one(found.st_mode)), "no file")
