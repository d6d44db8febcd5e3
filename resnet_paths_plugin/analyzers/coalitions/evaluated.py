"""Coalitions that have been evaluated, with a value for each sample; each is kept once, in memory and in a folder."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from resnet_paths_plugin.errors import CheckpointError
from resnet_paths_plugin.execution import TaskFolder

Coalitions = NDArray[np.bool_]
"""Which players are in each coalition, `[m, players]`."""

_FILE = "evaluated"
_COALITIONS = "coalitions"
_VALUES = "values"


class Evaluated:
    """The values of coalitions, found by their players.

    Args:
        n_players: the number of players.
    """

    def __init__(self, n_players: int) -> None:
        self._n_players = n_players
        self._places: dict[bytes, int] = {}
        self._values: list[NDArray[np.generic]] = []  # of one coalition each, `[B]`
        self._means: list[float] = []
        self._n_files = 0

    def __len__(self) -> int:
        return len(self._places)

    def missing(self, coalitions: Coalitions) -> Coalitions:
        """Return the coalitions that have no value yet, each once."""
        keys = _keys(coalitions)
        first = {key: row for row, key in reversed(list(enumerate(keys))) if key not in self._places}
        return coalitions[sorted(first.values())]

    def add(self, coalitions: Coalitions, values: NDArray[np.generic]) -> None:
        """Keep the values `[m, B]` of coalitions."""
        means = values.mean(axis=1, dtype=np.float64).tolist()
        for key, row, mean in zip(_keys(coalitions), values, means, strict=True):
            if key not in self._places:
                self._places[key] = len(self._values)
                self._values.append(row)
                self._means.append(mean)

    def means(self, coalitions: Coalitions) -> NDArray[np.float64]:
        """Return the mean over samples of each coalition, `[m]`."""
        return np.array([self._means[self._places[key]] for key in _keys(coalitions)], dtype=np.float64)

    def per_sample(self, coalitions: Coalitions) -> NDArray[np.float64]:
        """Return the values of each coalition, `[m, B]`."""
        return np.stack([self._values[self._places[key]] for key in _keys(coalitions)]).astype(np.float64)

    def read(self, folder: TaskFolder, data: str) -> None:
        """Take over what a folder keeps and was not read yet.

        Args:
            folder: the folder, which is open.
            data: fingerprint of the samples.

        Raises:
            CheckpointError: if it was evaluated on other samples, or is not of this package's making.
        """
        while (found := folder.read(_name(self._n_files), data, "all samples")) is not None:
            try:
                packed, values = found[_COALITIONS], found[_VALUES]
                coalitions = np.unpackbits(packed, axis=1, count=self._n_players).astype(bool)
                self.add(coalitions, values)
            except (KeyError, ValueError, TypeError) as error:
                raise CheckpointError(
                    f"{folder.path} holds coalitions that cannot be read ({error}): remove the folder to start over"
                ) from error
            self._n_files += 1

    def write(self, folder: TaskFolder, data: str, coalitions: Coalitions, values: NDArray[np.generic]) -> None:
        """Keep the values of coalitions in a folder too.

        Raises:
            FileError: if the disk is full or the folder cannot be written to.
        """
        arrays = {_COALITIONS: np.packbits(coalitions, axis=1), _VALUES: values}
        folder.write(_name(self._n_files), data, arrays)
        self._n_files += 1


def digest(coalitions: Coalitions) -> str:
    """Return a name for a set of coalitions in this order."""
    return hashlib.sha256(b"".join(_keys(coalitions))).hexdigest()[:16]


def _keys(coalitions: Coalitions) -> list[bytes]:
    return [row.tobytes() for row in np.packbits(coalitions, axis=1)]


def _name(number: int) -> str:
    return f"{_FILE}-{number:08d}"
