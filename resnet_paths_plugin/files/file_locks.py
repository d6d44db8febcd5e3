"""Locks on files and folders that say that a process is at work there, and that end with the process.

They are the system's own (`flock`), so that they hold between containers and after any kind of end. Where there are
none, as on Windows and in some network folders, nothing is locked.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from weakref import WeakSet

from resnet_paths_plugin.errors import FileError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

_UNFOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


class Lock:
    """A lock that is held until `release`, or until the process ends."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        _HELD.add(self)

    def release(self) -> None:
        """Let others have it; releasing it twice is harmless."""
        _HELD.discard(self)
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def lock_file(path: Path) -> Lock | None:
    """Lock a file, which is made where it does not exist and left as it is where it does; None where nothing locks.

    Raises:
        BlockingIOError: another holds it, or has just removed it.
        FileError: it is a link, a FIFO or anything else that is no file.
        OSError: it cannot be opened.
    """
    if fcntl is None:
        return None
    _check_kind(path, stat.S_ISREG, "file")
    return _locked(os.open(path, os.O_RDWR | os.O_CREAT | _UNFOLLOWED, 0o666), path)


def lock_folder(path: Path) -> Lock | None:
    """Lock a folder; None where nothing locks.

    Raises:
        BlockingIOError: another holds it, or has just removed it.
        FileError: it is a link, or no folder.
        OSError: it cannot be opened.
    """
    if fcntl is None:
        return None
    _check_kind(path, stat.S_ISDIR, "folder")
    return _locked(os.open(path, os.O_RDONLY | _UNFOLLOWED), path)


def _check_kind(path: Path, is_right: Callable[[int], bool], what: str) -> None:
    """Refuse what is not to be opened: to open a FIFO waits, and a link may lead anywhere."""
    if os.path.lexists(path) and not is_right(path.lstat().st_mode):
        raise FileError(f"{path} is no {what} of this package's making: move it away, or choose another name")


def _locked(handle: int, path: Path) -> Lock | None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_still_there = os.path.samestat(os.fstat(handle), path.lstat())
    except (BlockingIOError, FileNotFoundError) as error:
        os.close(handle)
        raise BlockingIOError from error
    except OSError:  # a file system without locks
        os.close(handle)
        return None
    if not is_still_there:
        os.close(handle)
        raise BlockingIOError
    return Lock(handle)


_HELD: WeakSet[Lock] = WeakSet()


def _let_go() -> None:
    """Close what a fork has inherited, so that a lock ends with the process that took it."""
    for lock in list(_HELD):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
