"""The study of a selection: search on some samples, report on others, and say what each network costs."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from resnet_paths_plugin.analyzers.coalitions import searches
from resnet_paths_plugin.analyzers.coalitions.held_out import HeldOut, Holdout
from resnet_paths_plugin.analyzers.coalitions.reported_effects import ReportedEffects
from resnet_paths_plugin.analyzers.coalitions.search_plan import SearchPlan
from resnet_paths_plugin.analyzers.coalitions.searches import Found, Judge, KnownEffects, Step
from resnet_paths_plugin.analyzers.coalitions.selected_costs import SelectedCosts
from resnet_paths_plugin.analyzers.coalitions.selected_variables import SelectedSets, selected_variables
from resnet_paths_plugin.analyzers.coalitions.set_space import Sets, keys, unique
from resnet_paths_plugin.analyzers.coalitions.study import CoalitionStudy
from resnet_paths_plugin.analyzers.coalitions.tasks import VALUE, schedules_of
from resnet_paths_plugin.analyzers.gradients.influence import InfluenceStudy
from resnet_paths_plugin.analyzers.rewiring.conditions import Conditions
from resnet_paths_plugin.analyzers.rewiring.measures import Measure, Measures, higher_is_better, offered_measures
from resnet_paths_plugin.analyzers.rewiring.tasks import Ablation, ScheduleWork
from resnet_paths_plugin.analyzers.study import Chunk, Study, StudyResult
from resnet_paths_plugin.errors import InputError, NonFiniteOutputWarning
from resnet_paths_plugin.execution import RunOptions, Samples, Stage, StudyRun
from resnet_paths_plugin.execution.batches import Batch, Batches
from resnet_paths_plugin.network.stand_ins import Fitted
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.results.variables import Entry

_AT_ONCE = 2048
"""Sets that are measured in one pass over the samples."""

_INFLUENCE_SAMPLES = "samples of influence"
_GRADIENT_PROXIES = frozenset({"branch_descent_cosine", "lesion_estimate"})
_RANDOM_SETS, _EVOLUTION = 3, 4
"""Begin streams of random numbers of their own."""

_SUMMARY = (
    "The sets of blocks of each size whose deletion does least harm, among those that each search measured; random "
    "sets and a ranking by influence beside them. Effects are a measure minus the intact network's, means over "
    "samples, signed so that positive means harm."
)

_TRIES = 20
"""Times that a random set is drawn again that is there already."""


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


@dataclass(eq=False)
class _Searched:
    """What the search has found.

    Attributes:
        found: the sets that were chosen.
        steps: all sets that were measured.
        random_sets: random sets of the same sizes, `[m, units]`.
        random_effects: their mean effects on the samples searched.
        n_samples: samples that were searched on.
    """

    found: list[Found] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    random_sets: Sets = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))
    random_effects: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    n_samples: int = 0


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
        known = {**self._measures.offered, **self._measures.user}
        self._sign = 1.0
        self._first = batches.first
        self._samples = HeldOut(
            batches, holdout, plan.rounds, extra, seed=plan.seed, unit=network.frozen_batch or 1, check=self.check
        )
        self.check(batches.first)
        self._conditions = stand_ins.conditions(network, batches, self._samples, plan.seed)
        if better or (better is None and higher_is_better(self.measure, known.get(self.measure))):
            self._sign = -1.0
        self._base = self._coalitions(np.zeros((1, len(network.blocks)), dtype=bool), "sizes")
        self._influence = None if network.units == "layers" or not isinstance(plan.proxy, str) else self._influences()
        self._n_stages = 0
        self._intact: dict[int, float] = {}
        self._searched = _Searched()
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
        if self._influence is not None:
            sizes[_INFLUENCE_SAMPLES] = min(samples, self._influence.samples_per_pass(run))
        return sizes

    def chunks(self, batches: Iterable[Batch], size: int) -> Iterator[Samples]:  # noqa: ARG002 - the split has them
        """Cut the samples to report on into those of tasks."""
        return self._conditions.chunks(self._samples.reported(), size)

    def work(self, run: StudyRun) -> ScheduleWork:
        """Search, and return what measures the sets that were found."""
        self._device = run.options.device
        self._conditions.prepare(schedules_of(self.plan.blocks(self.plan.space.free[np.newaxis])), run)
        self._searched = self._search(run)
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
        self._warn_of_non_finite(reported.n_odd, len(self._reported), held_out=True)
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

    def _search(self, run: StudyRun) -> _Searched:
        plan, searched = self.plan, _Searched()
        effects = KnownEffects(partial(self._sums, run), plan.rounds)
        methods = dict.fromkeys((*plan.methods, "influence") if self._ranks() else plan.methods)
        for method in methods:
            if method in {"exhaustive", "evolutionary"}:
                searched.found += self._found_alone(method, effects, searched)
                continue
            judge = Judge(method, effects)
            searched.found += self._found(method, judge, run)
            searched.steps += judge.steps
        searched.random_sets = self._random_sets()
        if len(searched.random_sets):
            searched.random_effects = effects(searched.random_sets, plan.rounds)
        searched.n_samples = effects.n_samples(plan.rounds)
        self._warn_of_non_finite(sum(not np.isfinite(step.effect) for step in searched.steps), len(searched.steps))
        return searched

    def _warn_of_non_finite(self, odd: int, count: int, *, held_out: bool = False) -> None:
        if odd:
            where = (
                "on samples held out, under {odd} of {count} sets that are reported: their effects there mean little"
                if held_out
                else "under {odd} of {count} sets that were measured: they count as the worst"
            ).format(odd=odd, count=count)
            warnings.warn(
                f"{self.measure!r} is NaN or infinite {where}. Look at the model's outputs there, or take a bounded "
                "measure",
                NonFiniteOutputWarning,
                stacklevel=2,
            )

    def _ranks(self) -> bool:
        return self._influence is not None or not isinstance(self.plan.proxy, str)

    def _found_alone(self, method: str, effects: KnownEffects, searched: _Searched) -> list[Found]:
        """Return what a search finds that searches for each size anew: what it took is that of the size."""
        plan, found = self.plan, []
        for size in plan.sizes:
            judge = Judge(method, effects)
            if method == "exhaustive":
                found.append(searches.exhaustive(judge, plan.space, size))
            else:
                generator = np.random.default_rng([plan.seed, _EVOLUTION, size])
                found.append(
                    searches.evolutionary(judge, plan.space, size, plan.population, plan.generations, generator)
                )
            searched.steps += judge.steps
        return found

    def _found(self, method: str, judge: Judge, run: StudyRun) -> list[Found]:
        """Return what a search finds that goes from size to size, or ranks the blocks once."""
        plan = self.plan
        if method in {"greedy", "beam"}:
            found = searches.beam(judge, plan.space, plan.sizes, plan.beam_width if method == "beam" else 1)
            return [found[size] for size in plan.sizes]
        return self._by_influence(judge, run)

    def _by_influence(self, judge: Judge, run: StudyRun) -> list[Found]:
        plan = self.plan
        values = self._measured_proxy(run) if isinstance(plan.proxy, str) else plan.proxy
        order = np.argsort(plan.of_units(values), kind="stable").tolist()  # NaN last
        sets = np.stack([plan.space.first(order, size) for size in plan.sizes])
        found = []
        for chosen in sets:
            _, effects = judge.best(chosen[np.newaxis], 1)
            found.append(judge.found(chosen, float(effects[0])))
        return found

    def _influences(self) -> InfluenceStudy:
        first = self._for_influence(self._first)
        return InfluenceStudy(self.network, first, objective="cross_entropy", vector_dim=None, truth=None)

    def _for_influence(self, batch: Batch) -> Batch:
        """Return a batch without its target, where no gradient is wanted."""
        return batch if self.plan.proxy in _GRADIENT_PROXIES else replace(batch, target=None)

    def _measured_proxy(self, run: StudyRun) -> NDArray[np.float64]:
        """Return the proxy of each block, its mean over the samples searched."""
        assert self._influence is not None  # noqa: S101 - or no influence is ranked by
        study = self._influence
        batches = map(self._for_influence, self._samples.all_searched())
        samples = study.chunks(batches, run.sizes[_INFLUENCE_SAMPLES])
        total, count = np.zeros(len(self.network.blocks)), np.zeros(len(self.network.blocks))
        for _, (values,) in run.pieces(Stage("influence", study.work(run)), samples, self._n_searched()):
            if self.plan.proxy not in values:
                raise InputError(
                    f"proxy={self.plan.proxy!r} takes the gradient of the loss: give targets, or take "
                    "proxy='block_influence'"
                )
            found = values[str(self.plan.proxy)]
            total += np.nansum(found, axis=1)
            count += (~np.isnan(found)).sum(axis=1)
        with np.errstate(invalid="ignore"):
            return total / count

    def _n_searched(self) -> int | None:
        sizes = [self._samples.n_searched(part) for part in range(self.plan.rounds)]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def _random_sets(self) -> Sets:
        """Return random sets of each size, each once."""
        plan = self.plan
        generator = np.random.default_rng([plan.seed, _RANDOM_SETS])
        found: dict[bytes, NDArray[np.bool_]] = {}
        for size in plan.sizes:
            for _ in range(plan.n_random):
                for _ in range(_TRIES):
                    drawn = plan.space.random(size, generator)
                    key = keys(drawn[np.newaxis])[0]
                    if key not in found:
                        found[key] = drawn
                        break
        return np.array(list(found.values()), dtype=bool).reshape(-1, len(plan.space.names))

    def _sums(self, run: StudyRun, sets: Sets, part: int) -> tuple[NDArray[np.float64], int]:
        """Return the sum of each set's effect over the samples of a round, and their number."""
        found: list[NDArray[np.float64]] = []
        n_samples = 0
        for start in range(0, len(sets), _AT_ONCE):
            deleted = self.plan.blocks(sets[start : start + _AT_ONCE])
            if part not in self._intact:
                deleted = np.concatenate([np.zeros_like(deleted[:1]), deleted])
            sums, n_samples = self._summed(run, deleted, part)
            if part not in self._intact:
                self._intact[part], sums = float(sums[0]), sums[1:]
            with np.errstate(invalid="ignore"):  # infinity less infinity, which is warned of
                found.append(self._sign * (sums - self._intact[part]))
        return np.concatenate(found), n_samples

    def _summed(self, run: StudyRun, deleted: NDArray[np.bool_], part: int) -> tuple[NDArray[np.float64], int]:
        """Return the sum of the measure over the samples of a round, `[m]`, and their number."""
        self._n_stages += 1
        study = self._coalitions(deleted, f"search {self._n_stages}")
        samples = study.chunks(self._samples.searched(part), run.sizes["samples"])
        chunks = run.pieces(Stage(study.name, study.work(run)), samples, self._samples.n_searched(part))
        sums, n_samples = np.zeros(len(deleted)), 0
        for result in study.results(chunks):
            values = np.asarray(result.variables[VALUE][1], dtype=np.float64)
            sums += values.sum(axis=1)
            n_samples += values.shape[1]
        if not n_samples:
            raise InputError(
                "holdout and halving leave a round of the search without samples: give more samples, or a smaller "
                "holdout or halving"
            )
        return sums, n_samples

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
    if measures.n_classes is not None:
        return "loss" if first.labels() is not None else "kl_divergence"
    known = [*measures.user] or [*measures.offered]
    if len(known) == 1:
        return known[0]
    if not known:
        measures.refuse()
    raise InputError(f"there are several measures: choose one, measure={known[0]!r}, of {', '.join(map(repr, known))}")
