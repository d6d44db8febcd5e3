"""Temporary folders of what worker processes of this machine read; those of callers that were killed are removed."""

import os
import re
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

from resnet_paths_plugin.errors import FileError


def made() -> Path:
    """Make a temporary folder whose name tells machine and process, and remove those of processes that are gone.

    Raises:
        FileError: if it cannot be made.
    """
    _remove_left_ones()
    try:
        return Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-"))
    except OSError as error:
        raise _not_written(error) from error


def write(path: Path, content: bytes) -> None:
    """Write a file of such a folder.

    Raises:
        FileError: if it cannot be written, as on a full disk.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise _not_written(error) from error


def remove(folder: Path) -> None:
    """Remove such a folder, unless it is that of a process which this one was forked from."""
    if _owner(folder) in {os.getpid(), None} or not _is_alive(_owner(folder) or 0):
        shutil.rmtree(folder, ignore_errors=True)


def _owner(folder: Path) -> int | None:
    """Return the number of the process that made a folder; None where its name tells none."""
    owner = folder.name.removeprefix(_prefix()).partition("-")[0]
    return int(owner) if owner.isdecimal() else None


def _prefix() -> str:
    # The folder of temporary files may be shared by several machines.
    return f"resnet-paths-{re.sub('[^A-Za-z0-9_.]', '_', socket.gethostname())}-"


def _remove_left_ones() -> None:
    """Remove this user's folders whose process is gone; on Windows, where that is not told simply, none."""
    if os.name != "posix":
        return
    with suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{_prefix()}*-*"):
            owner = _owner(folder)
            if owner is not None and folder.lstat().st_uid == os.getuid() and not _is_alive(owner):
                remove(folder)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's
        return True
    return True


def _not_written(error: OSError) -> FileError:
    try:
        folder = tempfile.gettempdir()
    except OSError:
        folder = os.environ.get("TMPDIR", "(none)")
    return FileError(
        f"cannot write the network for worker processes to the folder of temporary files {folder}: "
        f"{error.strerror or error}. Free space there, or name another folder by the environment variable TMPDIR"
    )
