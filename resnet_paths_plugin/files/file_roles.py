"""The files and folders that one call reads and writes: what it writes may be nothing else that it uses.

It compares places, before anything runs, and opens nothing.
"""

import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from resnet_paths_plugin.errors import FileError


@dataclass(frozen=True)
class _Role:
    """What a call does with a file or folder.

    Attributes:
        what: what it is, for messages, such as "--images".
        path: its name as it was given.
        place: where it is, links followed.
        is_written: whether it is written.
    """

    what: str
    path: Path
    place: Path
    is_written: bool


class FileRoles:
    """Collects the files and folders of a call, and refuses an output that is an input or another output.

    Files are the same by their names, through links, by hard links, or where a file system takes two names for one.
    What lies inside a folder has the folder's role too.

    Args:
        inputs: the files and folders that are read, by what they are; None for what is not given.
    """

    def __init__(self, inputs: Mapping[str, str | os.PathLike[str] | None] | None = None) -> None:
        self._roles: list[_Role] = []
        for what, path in (inputs or {}).items():
            if path is not None:
                self.reads(what, path)

    def reads(self, what: str, path: str | os.PathLike[str]) -> None:
        """Take in what is read.

        Raises:
            FileError: if it is written too.
        """
        self._add(_Role(what, Path(path), Path(os.path.realpath(path)), is_written=False))

    def writes(self, what: str, path: str | os.PathLike[str]) -> None:
        """Take in what is written.

        Raises:
            FileError: if it is read too, or written as something else.
        """
        self._add(_Role(what, Path(path), Path(os.path.realpath(path)), is_written=True))

    def _add(self, role: _Role) -> None:
        for other in self._roles:
            written, used = (role, other) if role.is_written else (other, role)
            if not written.is_written:
                continue
            if _are_same(written.place, used.place, both_new=used.is_written):
                use = "is also written" if used.is_written else "is also read"
                raise FileError(
                    f"{written.path} would be written ({written.what}) and {use} ({used.what}: {used.path}): choose "
                    "another name"
                )
            for outer, inner in ((written, used), (used, written)):
                if _holds(outer.place, inner.place):
                    raise FileError(
                        f"{inner.path} ({inner.what}) lies inside {outer.path} ({outer.what}): choose another folder"
                    )
        self._roles.append(role)


def _are_same(one: Path, other: Path, *, both_new: bool) -> bool:
    if one == other:
        return True
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        # What does not exist yet is compared as by file systems that know no capitals and compose accents.
        return both_new and _folded(one) == _folded(other)


def _holds(folder: Path, path: Path) -> bool:
    if folder in path.parents:
        return True
    try:
        found = folder.stat()
        return folder.is_dir() and any(os.path.samestat(found, one.stat()) for one in path.parents if one.exists())
    except (OSError, ValueError):
        return False


def _folded(path: Path) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", str(path)).casefold())
