"""Temporary folders of what worker processes of this machine read; those of callers that were killed are removed.

A folder is its owner's as long as the owner holds the lock of a file in it: a lock ends with its process, and is seen
from other containers. Folders of other machines that share the place, and of a machine's earlier runs, are left alone.
"""

import os
import re
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from resnet_paths_plugin.errors import FileError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

_LOCK = "in-use.lock"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
"""What Linux calls one run of a machine, in all of its containers."""
_MAKING_S = 600.0
"""Within this time a folder without a lock may be one that is being made."""


class PayloadFolder:
    """A temporary folder that this process holds until `remove`.

    Raises:
        FileError: if it cannot be made.
    """

    def __init__(self) -> None:
        _remove_left_ones()
        self._owner = os.getpid()
        self._lock: int | None = None
        try:
            self.path = Path(tempfile.mkdtemp(prefix=_prefix()))
            self._lock = _locked(self.path / _LOCK, os.O_CREAT | os.O_EXCL)
        except OSError as error:
            raise _not_written(error) from error

    def write(self, name: str, content: bytes) -> Path:
        """Write a file of this folder and return its path.

        Raises:
            FileError: if it cannot be written, as on a full disk.
        """
        path = self.path / name
        try:
            path.write_bytes(content)
        except OSError as error:
            raise _not_written(error) from error
        return path

    def remove(self) -> None:
        """Remove the folder, unless this is a fork of the process that made it."""
        if self._owner != os.getpid():
            return
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(path: Path, flags: int = 0) -> int | None:
    """Return an open file that this process holds the lock of; None where the system has no such locks.

    Raises:
        OSError: if it cannot be opened, or another process holds it.
    """
    if fcntl is None:
        return None
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | flags, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise
    return file


def _prefix() -> str:
    """Return how the names of this machine's folders begin."""
    try:
        machine = _BOOT.read_text().strip()
    except OSError:  # not on Linux
        machine = socket.gethostname()
    return f"resnet-paths-{re.sub('[^A-Za-z0-9_.-]', '_', machine)}-"


def _remove_left_ones() -> None:
    """Remove this user's folders whose owner is gone; on Windows, where finding that out is not simple, none."""
    if fcntl is None:
        return
    with suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
            with suppress(OSError):  # somebody holds it, or it has just gone
                _remove_if_left(folder)


def _remove_if_left(folder: Path) -> None:
    state = folder.lstat()
    if state.st_uid != os.getuid() or not folder.is_dir() or folder.is_symlink():
        return
    try:
        lock = _locked(folder / _LOCK)
    except FileNotFoundError:
        if time.time() - state.st_mtime > _MAKING_S:
            shutil.rmtree(folder, ignore_errors=True)
        return
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def _not_written(error: OSError) -> FileError:
    try:
        folder = tempfile.gettempdir()
    except OSError:
        folder = os.environ.get("TMPDIR", "(none)")
    return FileError(
        f"cannot write the network for worker processes to the folder of temporary files {folder}: "
        f"{error.strerror or error}. Free space there, or name another folder by the environment variable TMPDIR"
    )
