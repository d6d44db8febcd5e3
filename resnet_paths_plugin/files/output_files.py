"""Files that are written: where they go, and how they take their place, whole or not at all.

Every file that this package writes passes through `put`: results, reports, figures, and the units of checkpoints.
"""

import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from resnet_paths_plugin.errors import FileError, InputError
from resnet_paths_plugin.files.file_locks import Lock, lock_folder
from resnet_paths_plugin.files.input_files import file_name, kind_of

Mode = Literal["w", "x"]
"""How an older file is treated: `"w"` replaces it, `"x"` refuses to."""

_CONTENT, _OLDER = "content", "older"
_LEFT = re.compile(r"\.resnet-paths-[0-9a-f]{32}\.tmp")
"""Names of the folders in which files are written until they take their place."""
_LITTLE_SPACE = 2**20
_UNSYNCED = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF}
"""What a file system says that cannot see the entries of a folder through to the disk."""


def writable(path: str | os.PathLike[str], mode: Mode = "w", *, is_ours: Callable[[Path], bool] | None = None) -> Path:
    """Return the place of a file to write, links followed and the current folder put before it.

    Args:
        path: the file, or the folder where `is_ours` is given.
        mode: how an older file is treated.
        is_ours: whether an older folder may be replaced; None where a file is written.

    Raises:
        InputError: if `mode` is neither `"w"` nor `"x"`.
        FileError: if it is a folder, device or the like, is write-protected, exists and is not to be replaced, or its
            folder does not exist or cannot be written to.
    """
    if mode not in {"w", "x"}:
        raise InputError(f'mode must be "w" (an older file is replaced) or "x" (it is not), not {mode!r}')
    path = file_name(path)
    try:
        target = Path(os.path.realpath(path))
        found = target.lstat() if os.path.lexists(target) else None
        has_folder = target.parent.is_dir()
    except (OSError, ValueError) as error:  # a folder that may not be looked into; a name with NUL
        raise FileError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    if not has_folder:
        raise FileError(f"cannot write {path}: the folder {target.parent} does not exist. Create it first")
    if found is not None and is_ours is not None and not (stat.S_ISDIR(found.st_mode) and is_ours(target)):
        raise FileError(
            f"cannot write {path}: only a folder made by save is replaced. Choose another name, or remove it"
        )
    if found is not None and stat.S_ISDIR(found.st_mode) and is_ours is None:
        raise FileError(f"{path} is a folder: give the name of a file in it, such as {path / 'result.nc'}")
    if found is not None and not stat.S_ISREG(found.st_mode) and is_ours is None:
        raise FileError(f"cannot write {path}: it is {kind_of(found)}, and only files are replaced")
    if found is not None and mode == "x":
        raise FileError(f"{path} exists already, and is not to be replaced: choose another name, or remove it")
    if found is not None and not os.access(target, os.W_OK):
        raise FileError(f"cannot write {path}: the file is write-protected. Choose another name")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise FileError(f"cannot write {path}: the folder {target.parent} cannot be written to. Choose another one")
    return target


def writable_netcdf(path: str | os.PathLike[str], mode: Mode = "w") -> Path:
    """Return the place of a netCDF file to write, as `writable` does.

    Raises:
        InputError, FileError: as `writable` does, or if netCDF could not open a file of this name again.
    """
    target = writable(path, mode)
    named = str(target)
    if (os.sep != "\\" and "\\" in named) or named != named.encode("utf-8", "replace").decode():
        raise FileError(
            f"netCDF opens no file whose name, or folder, holds a backslash or bytes that are no UTF-8: {named!r}. "
            "Choose another name"
        )
    return target


@contextmanager
def replacing(path: str | os.PathLike[str], target: Path, mode: Mode = "w") -> Iterator[Path]:
    """Give the path of a new file or folder to write, which takes its place when the block ends without an error.

    It lies in a folder of its own beside its place. What a killed process left of that kind there is removed.

    Args:
        path: the name that messages give to the file.
        target: its place, as `writable` returned it.
        mode: how an older file is treated.

    Raises:
        FileError: if it cannot be written, as on a full disk.
    """
    _remove_left_ones(target.parent)
    room: Path | None = None
    lock: Lock | None = None
    try:
        room, lock = _room(target.parent)
        yield room / _CONTENT
        put(room / _CONTENT, target, mode)
    except FileError:
        raise
    except (OSError, RuntimeError) as error:  # netCDF reports a full disk by a RuntimeError
        raise FileError(f"cannot write {path}: {why(error, target.parent)}") from error
    finally:
        if room is not None:
            _remove(room)
        if lock is not None:
            lock.release()


def put(temporary: Path, target: Path, mode: Mode = "w") -> None:
    """Give a finished file its place, all of it on the disk: an older file's mode and owner stay as they are.

    A folder takes the place of an older one in two steps. A process that is killed between them leaves the older one
    beside its place, in a folder whose name begins with `.resnet-paths-`.

    Where the system does not let this user give a file to its owner, it becomes this user's.

    Args:
        temporary: the file, of the same file system as its place.
        target: its place, where nothing or a file is.
        mode: how an older file is treated.

    Raises:
        FileError: if something else than a file is there, or one that is not to be replaced.
        OSError: if the disk is full, or the place cannot be written to.
    """
    if temporary.is_dir():
        _put_folder(temporary, target, mode)
    elif mode == "x":
        _flush(temporary)
        _put_new(temporary, target)
    else:
        with suppress(FileNotFoundError):
            found = target.lstat()
            if not stat.S_ISREG(found.st_mode):
                raise FileError(f"cannot write {target}: it is {kind_of(found)}, and only files are replaced")
            _take_over(temporary, found)
        _flush(temporary)
        temporary.replace(target)
    sync_folder(target.parent)


def sync_folder(path: Path) -> None:
    """See a folder's entries through to the disk, where the system can do that."""
    if os.name != "posix":
        return
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _UNSYNCED:
            raise


def why(error: BaseException, folder: Path) -> str:
    """Return why something could not be written to a folder; a full disk is called so whoever reports it."""
    reason = getattr(error, "strerror", None) or str(error)
    full = os.strerror(errno.ENOSPC)
    if full not in reason:
        with suppress(OSError):
            if shutil.disk_usage(folder).free < _LITTLE_SPACE:
                return f"{full} ({reason})"
    return reason


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _put_folder(temporary: Path, target: Path, mode: Mode) -> None:
    for file in temporary.rglob("*"):
        if file.is_file():
            _flush(file)
    older = temporary.with_name(_OLDER)
    try:
        target.mkdir()  # which fails where something has come in between
    except FileExistsError as error:
        if mode == "x" or not target.is_dir():
            raise FileError(
                f"{target} exists by now, and is not to be replaced: choose another name, or remove it"
            ) from error
        target.replace(older)
    try:
        temporary.replace(target)
    except OSError:
        if older.is_dir():
            older.replace(target)
        raise
    shutil.rmtree(older, ignore_errors=True)


def _put_new(temporary: Path, target: Path) -> None:
    try:
        try:
            os.link(temporary, target)  # which fails where a file has come in between
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if os.path.lexists(target):
                raise FileExistsError from None
            temporary.replace(target)
    except FileExistsError as error:
        raise FileError(
            f"{target} exists by now, and is not to be replaced: choose another name, or remove it"
        ) from error
    temporary.unlink(missing_ok=True)


def _take_over(path: Path, older: os.stat_result) -> None:
    """Give a file the owner and mode of the one that it replaces."""
    if hasattr(os, "chown"):
        own = path.stat()
        for owner, group in ((older.st_uid, older.st_gid), (-1, older.st_gid)):
            if (own.st_uid, own.st_gid) == (older.st_uid, older.st_gid):
                break
            with suppress(PermissionError):
                os.chown(path, owner, group)
                break
    with suppress(PermissionError):
        path.chmod(stat.S_IMODE(older.st_mode))


def _room(folder: Path) -> tuple[Path, Lock | None]:
    """Make a folder for one file, and lock it, so that the next run does not take it for one that was left."""
    while True:
        room = folder / f".resnet-paths-{uuid.uuid4().hex}.tmp"
        room.mkdir()
        try:
            return room, lock_folder(room)
        except (BlockingIOError, FileNotFoundError):  # another process has just taken it for one that was left
            _remove(room)


def _remove_left_ones(folder: Path) -> None:
    """Remove the folders that killed processes have left beside a file; where nothing locks, they stay."""
    with suppress(OSError):
        for left in [one for one in os.scandir(folder) if _LEFT.fullmatch(one.name)]:
            with suppress(OSError, FileError):
                if lock := lock_folder(Path(left.path)):
                    _remove(Path(left.path))
                    lock.release()


def _remove(room: Path) -> None:
    """Remove such a folder; what is not ours in it stays."""
    with suppress(OSError):
        if (room / _CONTENT).is_dir():
            shutil.rmtree(room / _CONTENT)
        (room / _CONTENT).unlink(missing_ok=True)
        room.rmdir()
