"""What an HDF5 file declares and keeps outside of itself, found before netCDF-C opens it and follows it there.

It reads links, types, sizes and the layout of values, and no value.
"""

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py

try:
    import fcntl
except ImportError:  # on Windows, where files are locked otherwise
    fcntl = None  # type: ignore[assignment]

from resnet_paths_plugin.errors import FileError
from resnet_paths_plugin.files import limits

_LOCKED = (errno.EACCES, errno.EAGAIN, errno.EPERM)
_NUMBER_OF_DIM = b"_Netcdf4Dimid"
"""Attribute by which netCDF-C numbers the dims of a file."""
_LONGEST_NUMBER = 8
_ADVICE = "expected a file made by save, which holds all that it needs"


def check_contained(path: Path) -> None:
    """Check that all of a file is inside it and as large as it can be there, whatever netCDF-C would do with it.

    That is: links lead to the file's own objects, and to each group once; there are no more of them, and no more
    attributes, than `limits` has; no type, chunk or attribute is larger than a file of this size can fill.

    Raises:
        FileError: if one of these does not hold, or the file is damaged.
    """
    try:
        with h5py.File(path, "r") as file:
            _Walk(path, path.stat().st_size).group(h5py.h5g.open(file.id, b"/"), "/", 0)
    except FileError:
        raise
    except OSError as error:
        raise FileError(not_opened(path, error)) from error
    except Exception as error:  # h5py raises many kinds on a damaged file
        raise FileError(f"{path} is damaged or no netCDF file: expected a file made by save ({error})") from error


def check_unlocked(path: Path) -> None:
    """Check that nobody has a file open to write to it.

    Raises:
        FileError: if somebody has.
    """
    if is_locked(path) and os.access(path, os.R_OK):
        raise FileError(not_opened(path, OSError(errno.EAGAIN, "it is locked")))


def check_inside(path: Path, name: str) -> None:
    """Check that the values of a variable that is stored in one piece lie in its file.

    Raises:
        FileError: if they lie in another.
    """
    with h5py.File(path, "r") as file:
        found = file[name]
        if found.external or found.is_virtual:
            raise FileError(f"{path}: the values of {name!r} lie in another file: {_ADVICE}")


def not_opened(path: Path, error: OSError) -> str:
    """Return what to say of a file that HDF5 did not open: it is damaged, or could not be locked."""
    if not (error.errno in _LOCKED or is_locked(path)) or not os.access(path, os.R_OK):
        return f"{path} is damaged or no netCDF file: expected a file made by save ({error})"
    return (
        f"{path} could not be opened ({error}): it may be open elsewhere, or its file system has no locks, as some "
        "network folders. Close it there, or set the environment variable HDF5_USE_FILE_LOCKING=FALSE"
    )


@dataclass
class _Walk:
    """Looks at every object of a file once.

    Attributes:
        path: the file.
        size: its size in bytes.
        groups: addresses of the groups that have been looked at.
        n_links: how many links there were.
        n_attributes: how many attributes.
    """

    path: Path
    size: int
    groups: set[Any] = field(default_factory=set)
    n_links: int = 0
    n_attributes: int = 0

    def group(self, found: Any, name: str, depth: int) -> None:
        if depth > limits.DEEPEST_GROUPS:
            raise FileError(f"{self.path} has over {limits.DEEPEST_GROUPS} groups inside each other: no result has")
        address = h5py.h5o.get_info(found).addr
        if address in self.groups:
            raise FileError(f"{self.path}: its group {name!r} is another one too, or lies inside itself: {_ADVICE}")
        self.groups.add(address)
        self._attributes(found, name)
        self.n_links = self._counted(self.n_links, found.get_num_objs(), "links", limits.MOST_LINKS)
        for link in list(found):
            self._linked(found, link, f"{name.rstrip('/')}/{_text(link, self.path)}", depth)

    def _linked(self, group: Any, link: bytes, place: str, depth: int) -> None:
        kind = group.links.get_info(link).type
        if kind != h5py.h5l.TYPE_HARD:
            where = "another file" if kind == h5py.h5l.TYPE_EXTERNAL else "elsewhere"
            if kind == h5py.h5l.TYPE_SOFT:
                where = repr(group.links.get_val(link).decode("utf-8", "replace"))
            raise FileError(f"{self.path}: {place!r} is a link to {where}: {_ADVICE}")
        found = h5py.h5o.open(group, link)
        if isinstance(found, h5py.h5g.GroupID):
            self.group(found, place, depth + 1)
        elif isinstance(found, h5py.h5d.DatasetID):
            self._dataset(found, place)

    def _dataset(self, found: Any, name: str) -> None:
        self._attributes(found, name)
        itemsize = self._type_size(found.get_type(), f"variable {name!r}")
        created = found.get_create_plist()
        if created.get_layout() == h5py.h5d.CHUNKED:
            chunk = itemsize
            for length in created.get_chunk():
                chunk *= length
            if chunk > limits.largest(self.size):
                self._refuse(f"a chunk of variable {name!r}", chunk)

    def _attributes(self, owner: Any, name: str) -> None:
        count = h5py.h5a.get_num_attrs(owner)
        self.n_attributes = self._counted(self.n_attributes, count, "attributes", limits.MOST_ATTRIBUTES)
        # By name: HDF5 looks through all others for each that is asked for by its number.
        names: list[bytes] = []
        h5py.h5a.iterate(owner, lambda name, *_: names.append(name))
        for attribute in (h5py.h5a.open(owner, name) for name in names):
            what = f"attribute {_text(attribute.name, self.path)!r} of {name!r}"
            size = self._type_size(attribute.get_type(), what) * attribute.get_space().get_simple_extent_npoints()
            if size > self.size:
                self._refuse(what, size)
            if attribute.name == _NUMBER_OF_DIM and size <= _LONGEST_NUMBER:
                self._number_of_dim(h5py.AttributeManager(h5py.Dataset(owner))[_NUMBER_OF_DIM.decode()], what)

    def _number_of_dim(self, number: Any, what: str) -> None:
        """Refuse a number of a dim that netCDF-C would make a list of that length for, which ends the process."""
        if not 0 <= int(number) <= limits.MOST_LINKS:
            raise FileError(f"{self.path}: {what} is {number}: it is damaged, or not made by save")

    def _counted(self, before: int, more: int, what: str, most: int) -> int:
        if before + more > most:
            raise FileError(f"{self.path} has over {most:,} {what}: no result has")
        return before + more

    def _type_size(self, kind: Any, what: str) -> int:
        size = int(kind.get_size())
        if size > self.size:
            self._refuse(f"the type of {what}", size)
        return size

    def _refuse(self, what: str, size: int) -> None:
        raise FileError(
            f"{self.path}: {what} takes {limits.format_bytes(size)}, and the file has "
            f"{limits.format_bytes(self.size)}: it is damaged, or not made by save"
        )


def _text(name: bytes, path: Path) -> str:
    """Return a name; netCDF leaves a file open that has one that is no UTF-8."""
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is damaged, or not made by save: the name {name!r} in it is no UTF-8") from error


def is_locked(path: Path) -> bool:
    """Whether a lock as HDF5 takes one cannot be had, where there are such locks: HDF5 does not say so itself."""
    unlocked = os.environ.get("HDF5_USE_FILE_LOCKING", "").upper() in {"FALSE", "0", "BEST_EFFORT"}
    if fcntl is None or unlocked or not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # the file system has no locks
        fcntl.flock(file, fcntl.LOCK_UN)
    return False
