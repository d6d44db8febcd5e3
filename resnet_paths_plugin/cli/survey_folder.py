"""SurveyFolder: the results of many models in one folder, with the settings that all of them were made with."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resnet_paths_plugin.cli import models
from resnet_paths_plugin.cli.images import LabelledImages
from resnet_paths_plugin.cli.outputs import partial_path
from resnet_paths_plugin.errors import CheckpointError, FileError
from resnet_paths_plugin.files.file_locks import lock_folder
from resnet_paths_plugin.files.input_files import read_file
from resnet_paths_plugin.files.output_files import replacing, why, writable
from resnet_paths_plugin.results import datasets

MANIFEST = "survey.json"
"""Name of the file that holds the settings, and which models are done."""
_LONGEST = 120

Settings = Mapping[str, str | int | float | bool | None]
"""What all models of a survey have in common, by what it is called on the command line."""


class SurveyFolder:
    """A folder with a file for each model that is done, and the settings of all of them.

    Args:
        path: the folder.
        settings: the settings of this run, which are to be those of the earlier ones.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self._settings = dict(settings)
        self._done: dict[str, str] = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder where it does not exist, check it, and keep other processes out of it meanwhile.

        Raises:
            CheckpointError: if its survey has other settings, another process is at work there, or it holds something
                else.
            FileError: if it cannot be made or read.
        """
        try:
            self.path.mkdir(exist_ok=True)
            lock = lock_folder(self.path)
        except BlockingIOError as error:
            raise CheckpointError(
                f"another process is at work on the survey {self.path}: wait for it, or name another --output"
            ) from error
        except FileError:
            raise
        except FileExistsError as error:
            raise FileError(f"{self.path} is a file: give --output the name of a folder") from error
        except OSError as error:
            raise FileError(f"cannot make the folder {self.path}: {why(error, self.path.parent)}") from error
        try:
            self._begin()
            yield
        finally:
            if lock is not None:
                lock.release()

    def output(self, spec: str) -> Path:
        """Return the file of a model's result, whose name differs from that of every other model."""
        plain = re.sub(r"[^\w.+-]", "-", spec)
        if plain.count("-") > 1 or len(plain.encode()) > _LONGEST or plain != plain.casefold() or not plain.isascii():
            plain = (
                f"{plain.encode()[:_LONGEST].decode(errors='ignore')}-{hashlib.sha256(spec.encode()).hexdigest()[:8]}"
            )
        return self.path / f"{plain}.nc"

    def has(self, spec: str) -> bool:
        """Whether a model is done, with the code that it has now, and its file can be read."""
        if self._done.get(spec) != code_of(spec):
            return False
        try:
            datasets.load(self.output(spec)).close()
        except FileError:
            return False
        return True

    def has_begun(self, spec: str) -> bool:
        """Whether some of a model's studies were begun."""
        return partial_path(self.output(spec)).is_dir()

    def finish(self, spec: str) -> None:
        """Note that a model is done: its file is complete."""
        self._done[spec] = code_of(spec)
        self._write()

    def _begin(self) -> None:
        manifest = self._manifest()
        if manifest is None:
            self._check_empty()
            self._write()
            return
        recorded, self._done = manifest
        differences = [
            f"{name} was {_shown(recorded.get(name))} and is {_shown(self._settings.get(name))}"
            for name in dict.fromkeys((*recorded, *self._settings))
            if recorded.get(name) != self._settings.get(name)
        ]
        if differences and not self._done and not self._holds_results():
            self._write()  # nothing depends on the settings yet
        elif differences:
            raise CheckpointError(
                f"the survey {self.path} was made with other settings: {'; '.join(differences)}. Give the same to go "
                "on with it, name another --output, or remove the folder to start over"
            )

    def _manifest(self) -> tuple[dict[str, Any], dict[str, str]] | None:
        """Return the settings and models of the earlier runs; None where there were none."""
        path = self.path / MANIFEST
        try:
            found = json.loads(read_file(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(str(error)) from error
        settings, done = (found.get(name) if isinstance(found, dict) else None for name in ("settings", "models"))
        if not isinstance(settings, dict) or not isinstance(done, dict):
            raise self._damaged("it holds no settings and models")
        return settings, {str(spec): str(code) for spec, code in done.items()}

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path / MANIFEST} is damaged, or of another making ({reason}): remove the folder to start over, or "
            "name another --output"
        )

    def _holds_results(self) -> bool:
        """Whether some model's studies were begun."""
        return any(one.name != MANIFEST and not one.name.startswith(".resnet-paths-") for one in self.path.iterdir())

    def _check_empty(self) -> None:
        held = next((one.name for one in self.path.iterdir() if not one.name.startswith(".resnet-paths-")), None)
        if held is not None:
            raise CheckpointError(
                f"{self.path} is no folder of a survey: it holds {held}. Give --output the name of a new folder, or of "
                "an earlier survey"
            )

    def _write(self) -> None:
        path = self.path / MANIFEST
        content = {"settings": self._settings, "models": self._done}
        with replacing(path, writable(path)) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def digest_of(images: LabelledImages) -> str:
    """Return what images, their labels and classes are known by; reads each image once."""
    digest = hashlib.sha256(repr((images.classes, images.labels.tolist())).encode())
    for index in range(len(images)):
        image = images.image(index)
        digest.update(repr(image.shape).encode())
        digest.update(image.tobytes())
    return digest.hexdigest()[:16]


def code_of(spec: str) -> str:
    """Return what the code of `module:callable` is known by, its module's and packages' files; for others nothing."""
    files = models.files_of(spec)
    try:
        return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16] if files else ""
    except OSError as error:
        raise FileError(f"the code of {spec} cannot be read: {error}") from error


def _shown(value: object) -> str:
    return "not given" if value is None else str(value)
