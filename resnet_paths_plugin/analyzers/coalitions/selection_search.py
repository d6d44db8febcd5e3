"""SelectionSearch: the searches of a selection, run over the samples to search on. Reports nothing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import NDArray

from resnet_paths_plugin.analyzers.coalitions import searches
from resnet_paths_plugin.analyzers.coalitions.held_out import HeldOut
from resnet_paths_plugin.analyzers.coalitions.influence_ranking import InfluenceRanking
from resnet_paths_plugin.analyzers.coalitions.search_plan import SearchPlan
from resnet_paths_plugin.analyzers.coalitions.searches import Found, Judge, KnownEffects, Step
from resnet_paths_plugin.analyzers.coalitions.set_space import Sets, keys
from resnet_paths_plugin.analyzers.coalitions.study import CoalitionStudy
from resnet_paths_plugin.analyzers.coalitions.tasks import VALUE
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import Stage, StudyRun

_AT_ONCE = 2048
"""Sets that are measured in one pass over the samples."""

_RANDOM_SETS, _EVOLUTION = 3, 4
"""Begin streams of random numbers of their own."""

_TRIES = 20
"""Times that a random set is drawn again that is there already."""

Coalitions = Callable[[NDArray[np.bool_], str], CoalitionStudy]
"""Returns the study that measures the network without blocks, `[m, blocks]`, by the name of a stage."""


@dataclass(eq=False)
class Searched:
    """What the searches have found.

    Attributes:
        found: the sets that were chosen.
        steps: all sets that were measured.
        methods: the searches that were run.
        random_sets: random sets of the same sizes, `[m, units]`.
        random_effects: their mean effects on the samples searched.
        n_samples: samples that were searched on.
    """

    found: list[Found] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    random_sets: Sets = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))
    random_effects: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    n_samples: int = 0

    @property
    def left_out(self) -> list[Step]:
        """The sets that could not be chosen, as their effect is NaN or infinite."""
        return [step for step in self.steps if not np.isfinite(step.effect)]

    def missing(self, sizes: Sequence[int]) -> list[tuple[str, int]]:
        """Return the searches and sizes of which no set was chosen."""
        there = {(one.method, int(one.chosen.sum())) for one in self.found}
        return [one for one in product(self.methods, sizes) if one not in there]


class SelectionSearch:
    """Searches for sets by their effect on the samples to search on, each set measured once on a sample.

    Args:
        plan: the plan.
        samples: the samples.
        sign: 1 where more of the measure means harm, -1 where less does.
        coalitions: makes the studies that measure sets.
        ranking: the ranking by influence; None for none.
    """

    def __init__(
        self,
        plan: SearchPlan,
        samples: HeldOut,
        sign: float,
        coalitions: Coalitions,
        ranking: InfluenceRanking | None,
    ) -> None:
        self._plan, self._samples, self._sign = plan, samples, sign
        self._coalitions, self._ranking = coalitions, ranking
        self._intact: dict[int, float] = {}
        self._n_stages = 0

    def run(self, run: StudyRun) -> Searched:
        """Run all searches of the plan, and measure random sets beside them.

        Raises:
            InputError: if a round of the search has no samples, or no set that was measured has a finite effect.
        """
        plan, searched = self._plan, Searched()
        effects = KnownEffects(partial(self._sums, run), plan.rounds)
        for method in dict.fromkeys((*plan.methods, "influence") if self._ranking else plan.methods):
            searched.methods.append(method)
            for judge, found in self._found(method, effects, run):
                searched.found += found
                searched.steps += judge.steps
        if not searched.found:
            raise InputError(self._why_none(len(searched.steps)))
        searched.random_sets = self._random_sets()
        if len(searched.random_sets):
            searched.random_effects = effects(searched.random_sets, plan.rounds)
        searched.n_samples = effects.n_samples(plan.rounds)
        return searched

    def _found(self, method: str, effects: KnownEffects, run: StudyRun) -> Iterator[tuple[Judge, list[Found]]]:
        """Yield what a search finds, with the judge of it: one for each size where sizes are searched one by one."""
        plan = self._plan
        if method in {"exhaustive", "evolutionary"}:
            for size in plan.sizes:
                judge = Judge(method, effects)
                yield judge, self._found_alone(judge, size)
            return
        judge = Judge(method, effects)
        if method == "influence" and self._ranking is not None:
            yield judge, self._by_influence(judge, self._ranking.order(run))
        else:
            found = searches.beam(judge, plan.space, plan.sizes, plan.beam_width if method == "beam" else 1)
            yield judge, [found[size] for size in plan.sizes if size in found]

    def _found_alone(self, judge: Judge, size: int) -> list[Found]:
        plan = self._plan
        if judge.method == "exhaustive":
            return searches.exhaustive(judge, plan.space, size)
        generator = np.random.default_rng([plan.seed, _EVOLUTION, size])
        return searches.evolutionary(judge, plan.space, size, plan.population, plan.generations, generator)

    def _by_influence(self, judge: Judge, order: list[int]) -> list[Found]:
        found: list[Found] = []
        for size in self._plan.sizes:
            found += judge.found(*judge.best(self._plan.space.first(order, size)[np.newaxis], 1))
        return found

    def _why_none(self, n_measured: int) -> str:
        if not np.isfinite(list(self._intact.values())).all():
            return (
                "the measure is NaN or infinite for the intact network on the samples searched, so that no set of "
                "blocks has an effect. Look at the model's outputs there, or take a bounded measure"
            )
        return (
            f"the measure is NaN or infinite without each of the {n_measured} sets of blocks that were measured, so "
            "that none of them can be chosen. Look at the model's outputs there, or take a bounded measure"
        )

    def _random_sets(self) -> Sets:
        """Return random sets of each size, each once."""
        plan = self._plan
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
            deleted = self._plan.blocks(sets[start : start + _AT_ONCE])
            if part not in self._intact:
                deleted = np.concatenate([np.zeros_like(deleted[:1]), deleted])
            sums, n_samples = self._summed(run, deleted, part)
            if part not in self._intact:
                self._intact[part], sums = float(sums[0]), sums[1:]
            with np.errstate(invalid="ignore"):  # infinity less infinity, which is left out
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
