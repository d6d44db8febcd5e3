"""InfluenceRanking: the units of a selection, ranked by what predicts the effect of deleting them."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from resnet_paths_plugin.analyzers.coalitions.held_out import HeldOut
from resnet_paths_plugin.analyzers.coalitions.search_plan import SearchPlan
from resnet_paths_plugin.analyzers.gradients.influence import InfluenceStudy
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution import RunOptions, Stage, StudyRun
from resnet_paths_plugin.execution.batches import Batch
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

_SAMPLES = "samples of influence"
_GRADIENT_PROXIES = frozenset({"branch_descent_cosine", "lesion_estimate"})


class InfluenceRanking:
    """Ranks units by a proxy: one that is measured on the samples searched, or one that the user gave.

    Args:
        network: the network.
        plan: the plan, with the proxy.
        samples: the samples to search on.
        first: the first batch.
    """

    def __init__(self, network: UnraveledNetwork, plan: SearchPlan, samples: HeldOut, first: Batch) -> None:
        self._plan, self._samples, self._n_blocks = plan, samples, len(network.blocks)
        self._study = None
        if isinstance(plan.proxy, str):
            batch = self._with_target_if_needed(first)
            self._study = InfluenceStudy(network, batch, objective="cross_entropy", vector_dim=None, truth=None)

    def sizes(self, samples: int, run: RunOptions | None) -> Mapping[str, int]:
        """Return how many samples a task that measures the proxy has; nothing where the proxy is given."""
        return {} if self._study is None else {_SAMPLES: min(samples, self._study.samples_per_pass(run))}

    def order(self, run: StudyRun) -> list[int]:
        """Return the units from the least proxy up; those without a value come last."""
        values = self._plan.proxy if self._study is None else self._measured(self._study, run)
        order: list[int] = np.argsort(self._plan.of_units(np.asarray(values)), kind="stable").tolist()  # NaN last
        return order

    def _measured(self, study: InfluenceStudy, run: StudyRun) -> NDArray[np.float64]:
        """Return the proxy of each block, its mean over the samples searched."""
        batches = map(self._with_target_if_needed, self._samples.all_searched())
        samples = study.chunks(batches, run.sizes[_SAMPLES])
        total, count = np.zeros(self._n_blocks), np.zeros(self._n_blocks)
        for _, (values,) in run.pieces(Stage("influence", study.work(run)), samples, self._samples.n_all_searched()):
            if self._plan.proxy not in values:
                raise InputError(
                    f"proxy={self._plan.proxy!r} takes the gradient of the loss: give targets, or take "
                    "proxy='block_influence'"
                )
            found = values[str(self._plan.proxy)]
            total += np.nansum(found, axis=1)
            count += (~np.isnan(found)).sum(axis=1)
        with np.errstate(invalid="ignore"):
            return total / count

    def _with_target_if_needed(self, batch: Batch) -> Batch:
        """Return a batch without its target, where no gradient is wanted."""
        return batch if self._plan.proxy in _GRADIENT_PROXIES else replace(batch, target=None)
