"""ReportedEffects: the effects of sets on the samples held out, added up as they come."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ReportedEffects:
    """The effects of sets on the samples held out, added up as they come.

    Args:
        measure: the measure.
        sign: 1 where more of it means harm, -1 where less does.
        n_sets: the number of sets.
    """

    def __init__(self, measure: str, sign: float, n_sets: int) -> None:
        self._measure, self._sign = measure, sign
        self.n_samples = 0
        self._total, self._squares = np.zeros(n_sets), np.zeros(n_sets)
        self._correct: NDArray[np.float64] | None = None
        self._intact_correct = 0.0

    def add(self, n_samples: int, groups: Iterable[Mapping[str, NDArray[Any]]]) -> None:
        """Add some samples."""
        parts = list(groups)
        values = np.concatenate([part[self._measure] for part in parts]).astype(np.float64)
        intact = parts[0].get(f"intact_{self._measure}")
        self.n_samples += n_samples
        with np.errstate(invalid="ignore"):  # infinity less infinity, of which the study warns
            effect = self._sign * (values - (0.0 if intact is None else intact.astype(np.float64)))
            self._total += effect.sum(axis=1)
            self._squares += (effect**2).sum(axis=1)
        if "correct" in parts[0]:
            correct = np.concatenate([part["correct"] for part in parts]).sum(axis=1).astype(np.float64)
            self._correct = correct if self._correct is None else self._correct + correct
            self._intact_correct += float(parts[0]["intact_correct"].sum())

    @property
    def n_odd(self) -> int:
        """The number of sets whose effect is NaN or infinite."""
        return int((~np.isfinite(self._total)).sum())

    def variables(self) -> dict[str, NDArray[np.float64]]:
        """Return what is reported of each set; what is of the intact network begins with `intact_`."""
        mean = self._total / self.n_samples
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = np.maximum(self._squares / self.n_samples - mean**2, 0.0) / np.float64(self.n_samples - 1)
        found = {"held_out_effect": mean, "held_out_effect_stderr": np.sqrt(spread)}
        if self._correct is not None:
            found["held_out_error"] = 1 - self._correct / self.n_samples
            found["intact_held_out_error"] = np.asarray(1 - self._intact_correct / self.n_samples)
        return found
