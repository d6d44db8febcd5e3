"""TaskFolder: finished tasks as files of their own, and what they were made for. Nothing in it is ever unpickled.

Every file is written whole or not at all, and through to the disk; a checksum shows a damaged one.
"""

import glob
import hashlib
import io
import json
import os
import re
import stat
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np

from resnet_paths_plugin.errors import CheckpointError, FileError
from resnet_paths_plugin.execution.tasks import Arrays
from resnet_paths_plugin.files.file_locks import Lock, lock_file
from resnet_paths_plugin.files.input_files import read_file
from resnet_paths_plugin.files.output_files import put, why, writable_netcdf

CALL = "call.json"
"""Name of the file that says what a folder was made for."""
SIZES = "tasks.json"
"""Name of the file that says how large tasks are."""
WORK = ".work.json"
"""Ends the name of a file that says what is done in a stage."""
RESULT = "result.tmp"
"""Name of the file in which a result may grow."""
CONTENT = "content of "
"""Begins the name of a fact that is a fingerprint, which tells a reader nothing where another fact differs too."""
_LOCK = "in-use.lock"
_SUFFIX = ".task"
_TASK = re.compile(rf".+-\d{{8,}}{re.escape(_SUFFIX)}")
_TEMPORARY = re.compile(rf"[0-9a-f]{{32}}\.tmp|{re.escape(RESULT)}")
_DATA = "samples"
_WORK = "work"
_PLACE = "place"
"""Names the study and the task that a task's file holds results of, so that it is in no other's place."""
_ARRAY = "array "
"""Begins the names of results in a task's file, so that they may be called anything."""
_CHECKSUM_BYTES = 32

Facts = Mapping[str, str | int | float]


class TaskFolder:
    """A folder of finished tasks.

    Args:
        path: the folder; made where it does not exist.
        nested: whether the tasks are in folders like this one inside it.
    """

    def __init__(self, path: str | os.PathLike[str], *, nested: bool = False) -> None:
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 - follows no link
        self._nested = nested
        self._lock: Lock | None = None
        self._study = ""

    @classmethod
    def beside(cls, result: str | os.PathLike[str]) -> Self:
        """Return the folder for the tasks of a netCDF file that is to be written.

        Raises:
            FileError: if the file cannot be written.
        """
        return cls(f"{writable_netcdf(result)}.partial")

    def open(self, call: Facts) -> None:
        """Make the folder for a call, or check that it was made for the same, and hold it.

        Raises:
            CheckpointError: if it was made for another call, naming each difference, or as `hold` does.
            FileError: if it cannot be written to.
        """
        self.hold()
        try:
            self.agree(CALL, call)
        except BaseException:
            self.close()
            raise

    def hold(self) -> None:
        """Make the folder where it does not exist, and keep other processes out of it until `close`.

        Raises:
            CheckpointError: if it is no such folder, or another process holds it.
            FileError: if it cannot be written to.
        """
        try:
            self._check_no_link()
            self.path.mkdir(exist_ok=True)
            foreign = self._foreign_file()
        except FileError:
            raise
        except FileExistsError as error:
            raise FileError(
                f"{self.path} is a file, where finished tasks are to be kept in a folder of this name: move it away, "
                "or choose another name"
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        if foreign is not None:
            raise CheckpointError(
                f"{self.path} is no checkpoint of a study: it holds {foreign.relative_to(self.path)}. Choose another "
                "name, or move what it holds elsewhere"
            )
        self._take_lock()
        try:
            for left in self.path.iterdir():
                if _TEMPORARY.fullmatch(left.name):  # of a process that was killed
                    left.unlink()
        except OSError as error:
            self.close()
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Let other processes open it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def was_opened(self) -> bool:
        """Whether it is there and some process has held it."""
        return any((self.path / name).exists() for name in (CALL, _LOCK))

    def agree(self, name: str, facts: Facts) -> None:
        """Write what the tasks are made for, or check that it is the same as before.

        Raises:
            CheckpointError: if it is not, naming each difference.
        """
        recorded = self._recorded(name)
        if name == CALL:
            self._study = _study(facts)
        if recorded is None:
            self.record(name, facts)
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
                "to go on from it, name another checkpoint, or remove the folder to start over"
            )

    def record(self, name: str, facts: Facts) -> None:
        """Write what the tasks are made for, whatever was written before."""
        if name == CALL:
            self._study = _study(facts)
        self._write(name, json.dumps({"study": self._study, "facts": dict(facts)}, indent=1).encode())

    def settled(self, name: str, sizes: Mapping[str, int]) -> dict[str, int]:
        """Return sizes as they were recorded the first time, and record these otherwise.

        Raises:
            CheckpointError: if what is recorded is no such sizes.
        """
        recorded = self._recorded(name)
        if recorded is None:
            self.record(name, sizes)
            return dict(sizes)
        found = {size: value for size, value in recorded.items() if type(value) is int and value > 0}
        if found.keys() != sizes.keys():
            raise self._damaged(name, f"it should hold {', '.join(sizes)}, each at least 1")
        return found

    def read(self, name: str, data: str, about: str, work: str = "") -> Arrays | None:
        """Return a task's results; None if it is to be done (again).

        It is if it is not finished, if its file is damaged, or if it was made by other work, as another task or in
        another study.

        Args:
            name: name of the task.
            data: fingerprint of the samples that the task is about.
            about: the samples in words.
            work: fingerprint of what is done with them.

        Raises:
            CheckpointError: if the task was computed from other samples, or its file is not of this package's making.
        """
        path = self.path / f"{name}{_SUFFIX}"
        try:
            stored = read_file(path)
        except FileNotFoundError:
            return None
        except FileError:
            raise
        except OSError as error:
            raise FileError(f"cannot read the checkpoint {self.path}: {error.strerror or error}") from error
        content, checksum = stored[:-_CHECKSUM_BYTES], stored[-_CHECKSUM_BYTES:]
        if hashlib.sha256(content).digest() != checksum:
            return None
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                found = dict(arrays)
            of, by, place = (str(found.pop(name)) for name in (_DATA, _WORK, _PLACE))
        except MemoryError:
            raise
        except Exception as error:  # there is no end to what numpy and zipfile raise
            raise self._damaged(path.name, str(error)) from error
        if by != work or place != self._place(name):
            return None
        if of != data:
            raise CheckpointError(
                f"the checkpoint {self.path} was made from other data: {about} are not what they were. Pass the same "
                "batches in the same order (a DataLoader without shuffling), name another checkpoint, or remove the "
                "folder to start over"
            )
        return {name.removeprefix(_ARRAY): array for name, array in found.items()}

    def write(self, name: str, data: str, arrays: Arrays, work: str = "") -> None:
        """Keep a task's results; any thread may.

        Raises:
            FileError: if the disk is full or the folder cannot be written to.
        """
        content = io.BytesIO()
        named = {f"{_ARRAY}{name}": array for name, array in arrays.items()}
        made = {_DATA: np.array(data), _WORK: np.array(work), _PLACE: np.array(self._place(name))}
        np.savez(content, allow_pickle=False, **made, **named)
        self._write(f"{name}{_SUFFIX}", content.getvalue() + hashlib.sha256(content.getvalue()).digest())

    def forget(self, stage: str) -> None:
        """Remove the tasks of a stage, whose results are kept elsewhere by now.

        Raises:
            FileError: if they cannot be removed.
        """
        try:
            for one in self.path.glob(f"{glob.escape(stage)}-*{_SUFFIX}"):
                one.unlink()
            (self.path / f"{stage}{WORK}").unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def __len__(self) -> int:
        found = self.path.glob(f"*/*{_SUFFIX}" if self._nested else f"*{_SUFFIX}")
        return sum(1 for path in found if _is_ours(path))

    def _place(self, name: str) -> str:
        return f"{self._study} {name}"

    def remove(self) -> None:
        """Remove the folder and release it; where others have put something there, their things stay in it.

        Tasks go first and what they were made for last, so that a kill in between leaves nothing that misleads.

        Raises:
            FileError: if it cannot be removed.
        """
        try:
            if self.path.exists():
                found = list(self.path.iterdir())
                ours = sorted((one for one in found if _is_ours(one)), key=_place_in_removal)
                if len(ours) < len(found):
                    ours = [one for one in ours if one.suffix == _SUFFIX]
                for one in ours:
                    one.unlink()
                with suppress(OSError):  # unless others have something there, a process that holds it now included
                    self.path.rmdir()
        except OSError as error:
            raise FileError(f"cannot remove the checkpoint {self.path}: {error.strerror or error}") from error
        finally:
            self.close()

    def _check_no_link(self) -> None:
        if self.path.is_symlink():
            raise FileError(
                f"{self.path} is a link, where finished tasks are to be kept in a folder of this name: move it away, "
                "or choose another name"
            )

    def _foreign_file(self) -> Path | None:
        """Return something in it that no such folder holds, if there is any."""
        begun = (self.path / CALL).exists()
        for one in self.path.iterdir():
            if self._nested and begun and one.is_dir() and not one.is_symlink():
                inner = TaskFolder(one)._foreign_file()  # noqa: SLF001 - another of this class
                if inner is not None:
                    return inner
            elif not _is_ours(one) or not (begun or one.name == _LOCK or _TEMPORARY.fullmatch(one.name)):
                return one
        return None

    def _take_lock(self) -> None:
        """Keep other processes out, where the system has locks that end with the process."""
        try:
            self._lock = lock_file(self.path / _LOCK)
        except BlockingIOError as error:
            raise self._in_use() from error
        except FileError:
            raise
        except OSError as error:
            raise self._unwritable(error) from error

    def _recorded(self, name: str) -> dict[str, str | int | float] | None:
        try:
            recorded = json.loads(read_file(self.path / name))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(name, str(error)) from error
        if not isinstance(recorded, dict) or not isinstance(facts := recorded.get("facts"), dict):
            raise self._damaged(name, f"it holds a {type(recorded).__name__} without facts")
        study = _study(facts) if name == CALL else self._study
        if recorded.get("study") != study:
            raise self._damaged(name, "it was changed, or belongs to another study")
        return facts

    def _write(self, name: str, content: bytes) -> None:
        temporary = self.path / f"{uuid.uuid4().hex}.tmp"
        try:
            temporary.write_bytes(content)
            put(temporary, self.path / name)
        except FileError:
            raise
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> FileError:
        return FileError(
            f"cannot write the checkpoint {self.path}: {why(error, self.path)}. Fix this and repeat the call, or "
            "choose another place"
        )

    def _in_use(self) -> CheckpointError:
        return CheckpointError(
            f"another process is at work on the checkpoint {self.path}: wait for it, or name another one"
        )

    def _damaged(self, name: str, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path / name} is damaged, or not of this package's making ({why}): remove the folder {self.path} "
            "to start over"
        )


def _is_ours(path: Path) -> bool:
    """Whether it is a file, and has a name that files of such a folder have."""
    is_named_so = (
        path.name in {CALL, SIZES, _LOCK}
        or path.name.endswith(WORK)
        or any(names.fullmatch(path.name) for names in (_TASK, _TEMPORARY))
    )
    return is_named_so and stat.S_ISREG(path.lstat().st_mode)


def _study(facts: Facts) -> str:
    """Return a digest of a call, which all files of its folder hold."""
    return hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()


def _place_in_removal(path: Path) -> int:
    """Return when a file goes: tasks before what they were made for, and the lock when nothing else is left."""
    if path.name in {CALL, _LOCK}:
        return 3 if path.name == _LOCK else 2
    return int(path.suffix == ".json")


def _shown(value: object) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
