"""UnitFolder: finished units as files of their own, and what they were made for. Nothing in it is ever unpickled.

Every file is written whole or not at all, and through to the disk; a damaged one is told by its checksum.
"""

import hashlib
import io
import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

from resnet_paths_plugin.analyzers.running.units import Arrays
from resnet_paths_plugin.errors import CheckpointError, FileError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_CALL = "call.json"
_LOCK = "in-use.lock"
CONTENT = "content of "
"""Begins the name of a fact that is a fingerprint, which tells a reader nothing where another fact differs too."""
_SUFFIX = ".unit"
_DATA = "samples"
_CHECKSUM_BYTES = 32

Facts = Mapping[str, str | int | float]


class UnitFolder:
    """A folder of finished units.

    Args:
        path: the folder; made where it does not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: IO[bytes] | None = None

    def open(self, call: Facts) -> None:
        """Make the folder for a call, or check that it was made for the same.

        Raises:
            CheckpointError: if it was made for another call, naming each difference, or is no such folder.
            FileError: if it cannot be written to.
        """
        try:
            self.path.mkdir(exist_ok=True)
            for left in self.path.glob("*.tmp"):  # of a process that was killed
                left.unlink()
            stranger = next((one for one in self.path.iterdir() if one.suffix not in {_SUFFIX, ".json", ".lock"}), None)
        except OSError as error:
            raise FileError(f"cannot write the checkpoint {self.path}: {error.strerror or error}") from error
        if stranger is not None or (
            not (self.path / _CALL).exists() and any(one.name != _LOCK for one in self.path.iterdir())
        ):
            raise CheckpointError(
                f"{self.path} is no checkpoint of a study: it holds {stranger.name if stranger else 'other files'}. "
                "Choose another name, or remove it"
            )
        self._hold()
        self.agree(_CALL, call)

    def close(self) -> None:
        """Let other processes open it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def agree(self, name: str, facts: Facts) -> None:
        """Write what the units are made for, or check that it is the same as before.

        Raises:
            CheckpointError: if it is not, naming each difference.
        """
        recorded = self._recorded(name)
        if recorded is None:
            self._write(name, json.dumps(dict(facts), indent=1).encode())
            return
        other = [fact for fact in dict.fromkeys((*recorded, *facts)) if recorded.get(fact) != facts.get(fact)]
        differences = [
            f"{fact} was {_shown(recorded.get(fact))} and is {_shown(facts.get(fact))} in this call"
            for fact in other
            if not fact.startswith(CONTENT)
        ] or [f"the {fact} is another one in this call" for fact in other]
        if differences:
            raise CheckpointError(
                f"the checkpoint {self.path} was made by another call: {'; '.join(differences)}. Make the same call "
                "to go on from it, name another checkpoint, or remove the folder to begin anew"
            )

    def settled(self, name: str, facts: Facts) -> Facts:
        """Return facts as they were recorded the first time, and record these otherwise."""
        recorded = self._recorded(name)
        if recorded is None:
            self._write(name, json.dumps(dict(facts), indent=1).encode())
        return facts if recorded is None else recorded

    def read(self, name: str, data: str, about: str) -> Arrays | None:
        """Return a unit's results; None if it is not finished, or its file is damaged, so that it is to be done again.

        Args:
            name: name of the unit.
            data: fingerprint of the samples that the unit is about.
            about: the samples in words.

        Raises:
            CheckpointError: if the unit was computed from other samples.
        """
        try:
            stored = (self.path / f"{name}{_SUFFIX}").read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FileError(f"cannot read the checkpoint {self.path}: {error.strerror or error}") from error
        content, checksum = stored[:-_CHECKSUM_BYTES], stored[-_CHECKSUM_BYTES:]
        if hashlib.sha256(content).digest() != checksum:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = dict(arrays)
        if str(found.pop(_DATA)) != data:
            raise CheckpointError(
                f"the checkpoint {self.path} was made from other data: {about} are not what they were. Pass the same "
                "batches in the same order (a DataLoader without shuffling), name another checkpoint, or remove the "
                "folder to begin anew"
            )
        return found

    def write(self, name: str, data: str, arrays: Arrays) -> None:
        """Keep a unit's results.

        Raises:
            FileError: if the disk is full or the folder cannot be written to.
        """
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **{_DATA: np.array(data)}, **arrays)
        self._write(f"{name}{_SUFFIX}", content.getvalue() + hashlib.sha256(content.getvalue()).digest())

    def __len__(self) -> int:
        return sum(1 for _ in self.path.glob(f"*{_SUFFIX}"))

    def remove(self) -> None:
        """Remove the folder with all it holds, what it was made for last."""
        try:
            for one in sorted(self.path.iterdir(), key=lambda one: one.name == _CALL):
                one.unlink()
            self.path.rmdir()
        except OSError as error:
            raise FileError(f"cannot remove the checkpoint {self.path}: {error.strerror or error}") from error

    def _hold(self) -> None:
        """Keep other processes out, where the system has locks that end with the process."""
        if fcntl is None:
            return
        lock = (self.path / _LOCK).open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise CheckpointError(
                f"another process is at work on the checkpoint {self.path}: wait for it, or name another one"
            ) from error
        except OSError:  # a file system without locks
            lock.close()
            return
        self._lock = lock

    def _recorded(self, name: str) -> dict[str, str | int | float] | None:
        try:
            recorded = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.path / name} is damaged ({error}): remove the folder {self.path} to begin anew"
            ) from error
        return dict(recorded)

    def _write(self, name: str, content: bytes) -> None:
        temporary = self.path / f"{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path / name)
            sync_folder(self.path)
        except OSError as error:
            raise FileError(
                f"cannot write the checkpoint {self.path}: {error.strerror or error}. The units that it holds are "
                "kept: the same call goes on from them"
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """See a folder's entries through to the disk, where the system can do that."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _shown(value: object) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
