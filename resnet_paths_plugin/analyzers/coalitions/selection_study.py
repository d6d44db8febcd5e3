"""The study of a selection: search on some samples, report on others, and say what each network costs."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from resnet_paths_plugin.analyzers.coalitions.held_out import HeldOut, Holdout
from resnet_paths_plugin.analyzers.coalitions.influence_ranking import InfluenceRanking
from resnet_paths_plugin.analyzers.coalitions.reported_effects import ReportedEffects
from resnet_paths_plugin.analyzers.coalitions.search_plan import SearchPlan
from resnet_paths_plugin.analyzers.coalitions.selected_costs import SelectedCosts
from resnet_paths_plugin.analyzers.coalitions.selected_variables import SelectedSets, selected_variables
from resnet_paths_plugin.analyzers.coalitions.selection_search import Searched, SelectionSearch
from resnet_paths_plugin.analyzers.coalitions.set_space import Sets, keys, unique
from resnet_paths_plugin.analyzers.coalitions.study import CoalitionStudy
from resnet_paths_plugin.analyzers.coalitions.tasks import schedules_of
from resnet_paths_plugin.analyzers.rewiring.conditions import Conditions
from resnet_paths_plugin.analyzers.rewiring.measures import Measure, Measures, higher_is_better, offered_measures
from resnet_paths_plugin.analyzers.rewiring.tasks import Ablation, ScheduleWork
from resnet_paths_plugin.analyzers.study import Chunk, Study, StudyResult
from resnet_paths_plugin.errors import InputError, NonFiniteOutputWarning
from resnet_paths_plugin.execution import RunOptions, Samples, StudyRun
from resnet_paths_plugin.execution.batches import Batch, Batches
from resnet_paths_plugin.network.stand_ins import Fitted
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.results.variables import Entry

_SUMMARY = (
    "The sets of blocks of each size whose deletion does least harm, among those that each search measured; random "
    "sets and a ranking by influence beside them. Effects are a measure minus the intact network's, means over "
    "samples, signed so that positive means harm."
)

_NAMED = 3
"""Sets left out that a warning names."""


@dataclass(frozen=True, slots=True, eq=False)
class StandInOptions:
    """What stands in for deleted branches.

    Attributes:
        ablation: the kind of it.
        reference: data that means and linear maps are fitted on; None takes the samples searched.
        ridge: the ridge parameter of linear maps; None for the default.
    """

    ablation: Ablation
    reference: Any
    ridge: float | None

    def conditions(self, network: UnraveledNetwork, batches: Batches, samples: HeldOut, seed: int) -> Conditions:
        """Return what holds for all sets; nothing in it was fitted on samples held out."""
        reference = self.reference
        if reference is None and self.ablation in get_args(Fitted):
            reference = samples.inputs_searched()
        return Conditions(network, batches, self.ablation, "frozen", reference, seed, self.ridge)


class SelectionStudy(Study):
    """Search for the sets whose deletion does least harm, and measure them on samples held out.

    Args:
        network: the network.
        batches: inputs and targets.
        plan: what is searched for, and how.
        holdout: which samples are held out.
        measure: the measure; None takes the loss where there are labels, else the divergence from the intact outputs.
        measures: the user's measures.
        better: whether more of the measure is better; None knows it of the measure.
        stand_ins: what stands in for deleted branches.
        extra: further arguments of the model.

    Raises:
        InputError: if an option does not fit the network or the samples.
    """

    name = "held out"

    def __init__(
        self,
        network: UnraveledNetwork,
        batches: Batches,
        plan: SearchPlan,
        *,
        holdout: Holdout,
        measure: str | None,
        measures: Mapping[str, Measure] | None,
        better: bool | None,
        stand_ins: StandInOptions,
        extra: Any,
    ) -> None:
        super().__init__(
            network,
            title=f"Selection of blocks of {network.name}",
            summary=_SUMMARY,
            seed=plan.seed,
        )
        self.plan = plan
        self._measures = Measures(network, measures, offered_measures(network))
        self.measure = measure or _default_measure(self._measures, batches.first)
        self._sign = 1.0
        self._first = batches.first
        self._samples = HeldOut(
            batches, holdout, plan.rounds, extra, seed=plan.seed, unit=network.frozen_batch or 1, check=self.check
        )
        self.check(batches.first)
        self._conditions = stand_ins.conditions(network, batches, self._samples, plan.seed)
        if better or (better is None and higher_is_better(self.measure, self._measures.functions.get(self.measure))):
            self._sign = -1.0
        self._base = self._coalitions(np.zeros((1, len(network.blocks)), dtype=bool), "sizes")
        has_ranking = network.units != "layers" or not isinstance(plan.proxy, str)
        self._ranking = InfluenceRanking(network, plan, self._samples, batches.first) if has_ranking else None
        self._searched = Searched()
        self._reported: Sets = np.zeros((0, len(plan.space.names)), dtype=bool)
        self._device: Any = None

    @property
    def manifest(self) -> Mapping[str, object]:
        """The measures of plugins and of the user, and the proxy where it is given."""
        return {
            "measures": self._measures.user,
            "measures of plugins": self._measures.offered,
            "proxy": self.plan.proxy,
            "measure": self.measure,
        }

    @property
    def attrs(self) -> Mapping[str, object]:
        """The measure that the effects are of, and the ridge parameter of linear maps."""
        return {"measure": self.measure, **self._conditions.attrs}

    def check(self, batch: Batch) -> None:
        """Check a batch's targets.

        Raises:
            InputError: if the measure needs others, or a target is out of range.
        """
        self._measures.check(batch)
        self._measures.check_value(self.measure, batch)

    def sizes(self, samples: int, run: RunOptions | None) -> Mapping[str, int]:
        """Return how many samples and sets a task has."""
        sizes = dict(self._base.sizes(samples, run))
        return sizes | dict(self._ranking.sizes(samples, run)) if self._ranking else sizes

    def chunks(self, batches: Iterable[Batch], size: int) -> Iterator[Samples]:  # noqa: ARG002 - the split has them
        """Cut the samples to report on into those of tasks."""
        return self._conditions.chunks(self._samples.reported(), size)

    def work(self, run: StudyRun) -> ScheduleWork:
        """Search, and return what measures the sets that were found."""
        self._device = run.options.device
        self._conditions.prepare(schedules_of(self.plan.blocks(self.plan.space.free[np.newaxis])), run)
        search = SelectionSearch(self.plan, self._samples, self._sign, self._coalitions, self._ranking)
        self._searched = search.run(run)
        self._warn_of_left_out()
        chosen = [one.chosen for one in self._searched.found]
        self._reported = unique(np.concatenate([np.stack(chosen), self._searched.random_sets]))
        schedules = tuple(schedules_of(self.plan.blocks(self._reported)))
        order = self.network.prefix_order(schedules)
        self._reported = self._reported[order]
        return ScheduleWork(
            tuple(schedules[place] for place in order),
            run.sizes["schedules"],
            run.sizes["schedules side by side"],
            self._measures.user,
            self._measures.offered,
            self.network.readout,
            self._conditions.substitution,
            None,
        )

    def results(self, chunks: Iterable[Chunk]) -> Iterator[StudyResult]:
        """Yield the sets with their effects on the samples held out, and their costs."""
        reported = ReportedEffects(self.measure, self._sign, len(self._reported))
        for samples, groups in chunks:
            reported.add(samples[0].size, groups)
        if self._samples.is_held_out and not reported.n_samples:
            raise InputError(
                "holdout leaves no sample to report on: give more samples, a larger share, or holdout=None"
            )
        if reported.n_odd:
            self._warn(
                f"on samples held out, under {reported.n_odd} of {len(self._reported)} sets that are reported: their "
                "effects there mean little"
            )
        plan, searched = self.plan, self._searched
        costs = SelectedCosts(self.network, plan, self._first, self._conditions.substitution, self._device)
        chosen = np.stack([one.chosen for one in searched.found])
        places = {key: place for place, key in enumerate(keys(self._reported))}
        variables = selected_variables(
            plan,
            searched.found,
            searched.steps,
            SelectedSets(searched.random_sets, searched.random_effects),
            at=lambda sets: np.array([places[key] for key in keys(sets)], dtype=np.intp),
            reported=reported.variables() if reported.n_samples else {},
            costs=costs.variables(unique(np.concatenate([chosen, searched.random_sets]))),
        )
        measured = {"measure": self.measure, "units": self._units()}
        described: dict[str, Entry] = {
            name: (entry[0], entry[1], measured) if "effect" in name else entry for name, entry in variables.items()
        }
        described |= self._conditions.variables
        described["n_searched_samples"] = ((), searched.n_samples)
        described["n_held_out_samples"] = ((), reported.n_samples)
        labels = ["+".join(np.array(plan.space.names)[one.chosen]) for one in searched.found]
        yield StudyResult(described, {"selection": ("selection", labels)})

    def _units(self) -> str:
        return "nat" if self.measure in {"loss", "kl_divergence"} else "1"

    def _warn_of_left_out(self) -> None:
        """Warn of sets that could not be chosen, and of searches that found none of a size."""
        searched, space = self._searched, self.plan.space
        if not searched.left_out:
            return
        measured, left_out = (
            unique(np.stack([step.chosen for step in steps])) for steps in (searched.steps, searched.left_out)
        )
        names = ["+".join(np.array(space.names)[one]) for one in left_out[:_NAMED]]
        more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        missing = [f"k={size} by {method!r}" for method, size in searched.missing(self.plan.sizes)]
        none = f". There is no set for {', '.join(missing)}" if missing else ""
        self._warn(
            f"under {len(left_out)} of {len(measured)} sets that were measured, which are left out "
            f"({', '.join(names)}{more}){none}"
        )

    def _warn(self, where: str) -> None:
        warnings.warn(
            f"{self.measure!r} is NaN or infinite {where}. Look at the model's outputs there, or take a bounded "
            "measure",
            NonFiniteOutputWarning,
            stacklevel=2,
        )

    def _coalitions(self, deleted: NDArray[np.bool_], name: str) -> CoalitionStudy:
        return CoalitionStudy(
            self.network,
            deleted,
            self.measure,
            self._measures,
            self._conditions,
            first_size=self._first.size,
            name=name,
        )


def _default_measure(measures: Measures, first: Batch) -> str:
    """Return the loss where there are labels, else the divergence; of other outputs the one measure that there is."""
    if measures.has_classes:
        return "loss" if first.labels() is not None else "kl_divergence"
    known = [*measures.user] or [*measures.offered]
    if len(known) == 1:
        return known[0]
    if not known:
        measures.refuse()
    raise InputError(f"there are several measures: choose one, measure={known[0]!r}, of {', '.join(map(repr, known))}")
