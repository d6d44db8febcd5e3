"""The study that lesions, reorderings and schedules share: run schedules over samples and measure the outputs."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_paths_plugin.analyzers.arguments import positive
from resnet_paths_plugin.analyzers.pass_sizes import schedules_side_by_side
from resnet_paths_plugin.analyzers.rewiring.built_in import NO_CLASS
from resnet_paths_plugin.analyzers.rewiring.conditions import Conditions
from resnet_paths_plugin.analyzers.rewiring.measures import Measure, Measures, offered_measures
from resnet_paths_plugin.analyzers.rewiring.tasks import IS_FINITE, ScheduleWork
from resnet_paths_plugin.analyzers.study import Chunk, Study, StudyResult
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import NonFiniteOutputWarning
from resnet_paths_plugin.execution import Arrays, RunOptions, Samples, StudyRun
from resnet_paths_plugin.execution.batches import Batch, Batches
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.results.variables import Entry

SCHEDULES_PER_TASK = 32
"""Schedules in one task: as many as make the intact pass that each task begins with cheap."""

_SCHEDULES_NAMED = 3

MOST_CLASS_NAMES = 200
"""Longer lists of class names are not stored with a result."""


@dataclass(frozen=True, eq=False, slots=True)
class NamedSchedules:
    """Which schedules a study compares with the intact network, and how they are labelled.

    Attributes:
        dim: name of the study's dimension, such as `"lesion"`.
        labels: one label per schedule.
        schedules: the schedules.
        variables: what else is known of each schedule: dims and values by name.
    """

    dim: str
    labels: Sequence[str]
    schedules: Sequence[Schedule]
    variables: Mapping[str, Entry] = field(default_factory=dict)


class ScheduleStudy(Study):
    """Run every schedule over every batch and measure the outputs, dims `(named.dim, sample)`.

    Args:
        network: the network.
        batches: inputs and targets.
        named: the schedules and their labels.
        title: title of the result.
        summary: what the result holds.
        seed: seed of what is drawn at random; None if nothing is.
        conditions: what the schedules run under; None for deletions that leave nothing, and the model's statistics.
        measures: the user's measures, beside those that plugins have for the model; a name that both have is the
            user's.
        perturbations_per_eval: schedules per forward pass; None chooses.

    Raises:
        InputError: if measures do not fit the network.
    """

    def __init__(
        self,
        network: UnraveledNetwork,
        batches: Batches,
        named: NamedSchedules,
        *,
        title: str,
        summary: str,
        seed: int | None = None,
        conditions: Conditions | None = None,
        measures: Mapping[str, Measure] | None = None,
        perturbations_per_eval: int | None = None,
    ) -> None:
        super().__init__(network, title=title, summary=summary, seed=seed)
        self.name = named.dim
        self.named = named
        self.conditions = conditions or Conditions(network, batches)
        self.measures = Measures(network, measures, offered_measures(network))
        self._first_size = batches.first.size
        self._width = positive("perturbations_per_eval", perturbations_per_eval)
        self._order = network.prefix_order(named.schedules)

    @property
    def attrs(self) -> Mapping[str, object]:
        """What the conditions record; the number of classes, and their names where they are known and not too many."""
        n_classes = self.measures.n_classes
        if n_classes is None:
            return self.conditions.attrs
        names = self.network.description.class_names if self.network.description else None
        listed = names is not None and len(names) == n_classes <= MOST_CLASS_NAMES
        return {**self.conditions.attrs, "n_classes": n_classes} | (
            {"class_names": list(names or ())} if listed else {}
        )

    @property
    def manifest(self) -> Mapping[str, object]:
        """The schedules, and the measures of plugins and of the user."""
        return {
            "schedules": self.named.schedules,
            "measures": self.measures.user,
            "measures of plugins": self.measures.offered,
        }

    def check(self, batch: Batch) -> None:
        """Check a batch's targets.

        Raises:
            InputError: if nothing can be measured, or a target is out of range.
        """
        self.measures.check(batch)

    def sizes(self, samples: int, run: RunOptions | None) -> Mapping[str, int]:
        """Return how many samples and schedules a task has, and how many of these share a batch."""
        width = self._width or schedules_side_by_side(self.network, run, min(samples, self._first_size))
        return {
            "samples": samples,
            "schedules side by side": width,
            # Where schedules share a batch, how many of them decides how numbers are rounded.
            "schedules": max(1, SCHEDULES_PER_TASK // width) * width,
        }

    def chunks(self, batches: Iterable[Batch], size: int) -> Iterator[Samples]:
        """Cut batches into the samples of tasks, each with those whose branches stand in for deleted ones."""
        return self.conditions.chunks(batches, size)

    def work(self, run: StudyRun) -> ScheduleWork:
        """Return what runs the schedules, those that begin alike next to one another."""
        schedules = tuple(self.named.schedules[place] for place in self._order)
        self.conditions.prepare(schedules, run)
        return ScheduleWork(
            schedules,
            run.sizes["schedules"],
            run.sizes["schedules side by side"],
            self.measures.user,
            self.measures.offered,
            self.network.readout,
            self.conditions.substitution,
            self.conditions.statistics,
        )

    def results(self, chunks: Iterable[Chunk]) -> Iterator[StudyResult]:
        """Yield the measures of each chunk of samples, and the error up to there."""
        named, back = self.named, np.argsort(self._order)
        n_samples = 0
        correct: NDArray[Any] | int = 0
        intact_correct: float = 0
        tokens = _TokenLosses()
        warned = False
        not_finite = np.zeros(len(named.schedules), dtype=np.int64)
        for _, groups in chunks:
            values = _merged(groups, back)
            if not values.pop(IS_FINITE) and not warned:
                warned = True
                _warn_not_finite(self.network)
            variables: dict[str, Entry] = {**named.variables, **self.conditions.variables}
            for name, array in values.items():
                variables[name] = ((named.dim, "sample") if array.ndim == 2 else ("sample",), array)
            if "prediction" in values:
                not_finite += (values["prediction"] == NO_CLASS).sum(axis=-1)
            if "correct" in values:
                n_samples += values["correct"].shape[-1]
                correct = correct + values["correct"].sum(axis=-1)
                intact_correct += values["intact_correct"].sum()
                variables["error"] = ((named.dim,), 1 - correct / n_samples)
                variables["intact_error"] = ((), 1 - intact_correct / n_samples)
            task = self.network.readout.task
            if task is not None and task.perplexity and "n_tokens" in values and "loss" in values:
                variables["perplexity"] = (named.dim,), tokens.perplexity("loss", values)
                variables["intact_perplexity"] = (), tokens.perplexity("intact_loss", values)
            yield StudyResult(variables, {named.dim: (named.dim, list(named.labels))})
        if not_finite.any() and not warned:
            _warn_of_schedules(named, not_finite)


class _TokenLosses:
    """Sums of losses over the tokens that were seen so far."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._tokens: dict[str, int] = {}

    def perplexity(self, name: str, values: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """Return exp of the mean loss over tokens, these samples' included."""
        total = (values[name].astype(np.float64) * values["n_tokens"]).sum(axis=-1)
        self._sums[name] = self._sums.get(name, np.zeros_like(total)) + total
        self._tokens[name] = self._tokens.get(name, 0) + int(values["n_tokens"].sum())
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(self._sums[name] / self._tokens[name]))


def _merged(groups: Sequence[Arrays], back: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
    """Return the results of all groups together, with the schedules in the order of the study."""
    return {
        name: np.concatenate([group[name] for group in groups])[back] if array.ndim == 2 else array
        for name, array in groups[0].items()
    }


def _warn_of_schedules(named: NamedSchedules, not_finite: NDArray[np.int64]) -> None:
    """Warn of the samples on which changed networks return no finite scores."""
    places = np.argsort(-not_finite, kind="stable")[: np.count_nonzero(not_finite)]
    shown = ", ".join(f"{named.labels[place]!r} ({not_finite[place]} samples)" for place in places[:_SCHEDULES_NAMED])
    more = f" and {len(places) - _SCHEDULES_NAMED} more" if len(places) > _SCHEDULES_NAMED else ""
    warnings.warn(
        f"outputs are NaN or infinite under {named.dim} {shown}{more}: they count as wrong, with prediction {NO_CLASS}",
        NonFiniteOutputWarning,
        stacklevel=2,
    )


def _warn_not_finite(network: UnraveledNetwork) -> None:
    warnings.warn(
        f"the intact {network.name} returns NaN or infinity: check its weights and inputs; measures of such "
        "outputs mean little",
        NonFiniteOutputWarning,
        stacklevel=2,
    )
