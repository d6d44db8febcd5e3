"""What a task of a study of influence does with some samples: one forward pass, and one backward."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnet_paths_plugin.analyzers.gradients.objectives import Objective, output_gradients, per_sample
from resnet_paths_plugin.engine.activations import ActivationEngine, BlockActivation, IntactRun
from resnet_paths_plugin.engine.backward import bank_dtype
from resnet_paths_plugin.engine.program import Values
from resnet_paths_plugin.execution import Arrays, Samples
from resnet_paths_plugin.execution.batches import Batch
from resnet_paths_plugin.network.model_pass import Tap, tensors_of
from resnet_paths_plugin.network.own_pass import Compared, Found
from resnet_paths_plugin.network.unraveled import UnraveledNetwork


@dataclass(frozen=True, eq=False)
class InfluenceWork:
    """Compare source, branch and sum of every block, and the branch with the gradient at the sum.

    Attributes:
        objective: what is differentiated; what needs its gradient is absent for samples without the labels that
            `"cross_entropy"` needs.
        vector_dim: the dimension of one sample's value that makes a vector; None for all of the value.
    """

    objective: Objective
    vector_dim: int | None

    @property
    def n_groups(self) -> int:
        """All blocks share one pass."""
        return 1

    def on(self, network: UnraveledNetwork) -> "_InfluenceJob":
        """Return what measures the blocks of a network."""
        return _InfluenceJob(self, network)


def differentiated(objective: Objective, samples: Samples) -> Objective | None:
    """Return the objective, where the samples have what it needs."""
    return None if objective == "cross_entropy" and samples[0].target is None else objective


class _InfluenceJob:
    def __init__(self, work: InfluenceWork, network: UnraveledNetwork) -> None:
        self._work, self._network = work, network
        self._engine = ActivationEngine(network.program)

    def __call__(self, _: int, samples: Samples) -> Arrays:
        """Return the variables of some samples by name, shape `[n, B]`; NaN where nothing is known."""
        (chunk,) = samples
        kept: Arrays | None = self._network.check.take(self._work, (chunk.args, chunk.target))
        return self.run(chunk, ())[0] if kept is None else kept

    def run(self, chunk: Batch, tracked: Iterable[Tap]) -> tuple[Arrays, IntactRun, dict[Tap, Tensor]]:
        """Return the variables of some samples, the run, and the gradients at arguments and parameters.

        Args:
            chunk: the samples.
            tracked: those arguments and parameters.
        """
        network, vector_dim = self._network, self._work.vector_dim
        objective = differentiated(self._work.objective, (chunk,))
        names = ["branch_to_source_norm", "source_sum_cosine", "block_influence", "angular_distance"]
        names += ["branch_descent_cosine", "lesion_estimate"] if objective is not None else []
        names += ["gate_openness"] if any(block.gate is not None for block in network.blocks) else []
        found = {name: np.full((len(network.blocks), chunk.size), np.nan) for name in names}
        branches: dict[int, Tensor] = {}

        def measure(state: BlockActivation) -> None:
            for name, values in _of_state(state, vector_dim).items():
                found[name][state.block.index] = values.cpu().numpy()
            if objective is not None:
                branches[state.block.index] = state.branch

        inputs, parameters = network.inputs(chunk.args), network.program.parameters()
        places = {tap: found_at for tap in tracked if (found_at := self._places(tap, parameters))}
        every = [at for found_at in places.values() for at in found_at]
        inputs |= {at: inputs[at].detach().requires_grad_() for at in every if at in inputs}
        run = self._engine.run(inputs, parameters, measure, differentiable=objective is not None, tracked=every)
        if objective is not None:
            outputs = network.graph.unflatten(run.outputs)
            leaves = output_gradients(objective, outputs, chunk, bank_dtype(network.dtype))
            for index, gradient in run.gradients(leaves).items():
                for name, values in _of_gradient(branches[index], gradient, vector_dim).items():
                    found[name][index] = values.cpu().numpy()
        # A tied parameter is one tensor at all its positions, each of which has all of its gradient.
        return found, run, {tap: run.tracked[found_at[0]] for tap, found_at in places.items()}

    def _places(self, tap: Tap, parameters: Values) -> list[int]:
        """Return the positions of an argument or a parameter: none that is not read, several of a tied one."""
        if isinstance(tap, int):
            return [self._network.program.inputs[tap]]
        return [at for at, value in parameters.items() if value is tap]


@dataclass(frozen=True, eq=False)
class InfluenceOnFirstSamples:
    """A study of influence on its first samples: its gradients, taken on to the arguments, against the model's."""

    work: InfluenceWork
    network: UnraveledNetwork
    chunk: Batch

    @property
    def key(self) -> object:
        """The work that the results are of."""
        return self.work

    @property
    def given(self) -> Any:
        """What the results depend on."""
        return self.chunk.args, self.chunk.target

    def objective(self, outputs: Any) -> Tensor:
        """Return the study's own objective, summed over samples."""
        return per_sample(self.work.objective, outputs, self.chunk).sum()

    def against(self, theirs: Mapping[Tap, Tensor]) -> Found:
        """Run it."""
        arrays, run, ours = self.work.on(self.network).run(self.chunk, theirs)
        outputs = [leaf.detach() for leaf in tensors_of(self.network.graph.unflatten(run.outputs))]
        return Found(outputs, [Compared(gradient, theirs[tap], tap) for tap, gradient in ours.items()], lambda: arrays)


def _of_state(state: BlockActivation, vector_dim: int | None) -> dict[str, Tensor]:
    """Return what a block's values tell, shape `[B]` each, float64."""
    # The skip of an identity is the source in the layout of the sum.
    source = state.skip if state.block.skip_kind == "identity" else state.source
    branch, total = _vectors(state.branch, vector_dim), _vectors(state.sum, vector_dim)
    found: dict[str, Tensor] = {}
    if source is not None and _positions(source, vector_dim) == _positions(state.sum, vector_dim):
        norm = _norm(_vectors(source, vector_dim))
        ratio = _norm(branch) / norm
        found["branch_to_source_norm"] = ratio.where(norm > 0, torch.nan).nanmean(1)
    if source is not None and source.shape == state.sum.shape:
        cosine = _cosine(_vectors(source, vector_dim), total)
        found["source_sum_cosine"] = cosine.nanmean(1)
        found["block_influence"] = (1 - cosine).nanmean(1)
        found["angular_distance"] = (cosine.arccos() / math.pi).nanmean(1)
    if state.gate is not None:
        found["gate_openness"] = state.gate.double().flatten(1).mean(1)
    return found


def _of_gradient(branch: Tensor, gradient: Tensor, vector_dim: int | None) -> dict[str, Tensor]:
    """Return what a branch and the gradient at its sum tell, shape `[B]` each, float64."""
    cosine = _cosine(_vectors(branch, vector_dim), -_vectors(gradient, vector_dim))
    estimate = -(gradient.double() * branch.double()).flatten(1).sum(1)
    return {"branch_descent_cosine": cosine.nanmean(1), "lesion_estimate": estimate}


def _vectors(values: Tensor, vector_dim: int | None) -> Tensor:
    """Return the vectors that are compared, `[B, positions, features]` float64, of values `[B, *]`."""
    values = values.double()
    if vector_dim is None:
        return values.reshape(len(values), 1, -1)
    last = values.movedim(_dim(values, vector_dim), -1)
    return last.reshape(len(values), -1, last.shape[-1])


def _positions(values: Tensor, vector_dim: int | None) -> tuple[int, ...] | None:
    """Return the sizes of the dimensions over which vectors are averaged; None where there is no such vector."""
    if vector_dim is None:
        return ()
    if not -values.ndim < vector_dim < values.ndim - 1:
        return None
    dim = _dim(values, vector_dim)
    return tuple(size for at, size in enumerate(values.shape) if at not in {0, dim})


def _dim(values: Tensor, vector_dim: int) -> int:
    return vector_dim + 1 if vector_dim >= 0 else vector_dim + values.ndim


def _norm(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return norms


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """Return the cosines of vectors, `[B, positions]`; NaN where one of them is zero."""
    product = (one * other).sum(-1)
    return (product / _norm(one) / _norm(other)).clamp(-1, 1)
