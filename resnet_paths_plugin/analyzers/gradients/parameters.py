"""ParameterStudy: the gradient of each block's parameters by the length of the paths along which it flows."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch

from resnet_paths_plugin.analyzers.gradients.grades import Grading
from resnet_paths_plugin.analyzers.gradients.objectives import Objective
from resnet_paths_plugin.analyzers.gradients.parameter_tasks import (
    KEYS,
    NORMS,
    ORDINARY,
    ROWS,
    SHARES,
    Array,
    ParameterWork,
    measured,
)
from resnet_paths_plugin.analyzers.gradients.study import SHORT_FLOATS_ERROR
from resnet_paths_plugin.analyzers.gradients.walk_study import WalkStudy
from resnet_paths_plugin.analyzers.study import Chunk, StudyResult
from resnet_paths_plugin.engine.parameter_flow import ParameterFlow
from resnet_paths_plugin.errors import IncompleteGradientWarning, InputError
from resnet_paths_plugin.execution import RunOptions, StudyRun
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.results.block_coords import part_coords
from resnet_paths_plugin.results.variables import Entry

_SUMMARY = (
    "The gradient of an objective, summed over samples, at the parameters of each block and of the trunk, by the "
    "number of branches on the paths along which it flows, a block's own branch included."
)


_MOST_SAMPLES = 2**16
"""Samples of a task; a batch rarely has more."""


class ParameterStudy(WalkStudy):
    """Gradients at parameters by path length.

    Args:
        network: the network.
        objective: what is differentiated.
        n_inputs: how many of the network's arguments are inputs.
        grading: how lengths are counted.
        max_length: longest length with a row of its own; None for all.
        per_sample: whether to measure single samples as well.

    Raises:
        InputError: if the network has no floating-point parameters, or the grade has several axes.
    """

    name = "parameters"

    def __init__(
        self,
        network: UnraveledNetwork,
        *,
        objective: Objective,
        n_inputs: int,
        grading: Grading,
        max_length: int | None,
        per_sample: bool,
    ) -> None:
        super().__init__(
            network,
            title=f"Parameter gradients of {network.name} by path length",
            summary=_SUMMARY,
            objective=objective,
            n_inputs=n_inputs,
            max_length=max_length,
            grades=grading.grades,
        )
        self.flow = ParameterFlow(network.program)
        if not self.flow.parameters:
            raise InputError(f"{network.name} has no floating-point parameters: take tap='input' or a block")
        if per_sample and network.frozen_batch not in {None, 1}:
            raise InputError(
                f"per_sample walks one sample at a time, and {network.name} was captured for batches of "
                f"{network.frozen_batch} only: unravel it with a batch of one, or leave per_sample out"
            )
        if len(grading.axes) > 1:
            raise InputError("tap='parameters' counts lengths on one axis: take a grade that has one")
        self._work = ParameterWork(
            objective=objective,
            grades=grading.grades,
            limits=(self.lengths[-1],) if self.cut else None,
            n_lengths=len(self.lengths),
            samples_per_walk=1,
            per_sample=per_sample,
        )

    @property
    def block_coords(self) -> Mapping[str, Entry]:
        """The coordinates of the blocks, and of the parts of the trunk behind them."""
        return part_coords(self.network.blocks, self.flow.parts)

    @property
    def manifest(self) -> Mapping[str, object]:
        """All that a walk depends on."""
        return vars(self._work)

    def sizes(self, samples: int, run: RunOptions | None) -> Mapping[str, int]:  # noqa: ARG002 - the base's signature
        """Return the sizes of tasks: one takes all samples of a batch, as it returns the gradients themselves."""
        return {"samples": self.network.graph.conditions.reached(_MOST_SAMPLES), "samples_per_walk": samples}

    def work(self, run: StudyRun) -> ParameterWork:
        """Return what walks over samples."""
        return replace(self._work, samples_per_walk=run.sizes["samples_per_walk"])

    def results(self, chunks: Iterable[Chunk]) -> Iterator[StudyResult]:
        """Yield one result of all samples, and those of each chunk's single samples."""
        sums = [_Sum() for _ in self.flow.parts]
        n_samples = 0
        warned = False
        for samples, (found,) in chunks:
            n_samples += samples[0].size
            for number, total in enumerate(sums):
                total.add(*(found[f"{name} {number}"] for name in (KEYS, ROWS, ORDINARY)))
            warned = warned or self._warn_of_what_is_missing(sums)
            yield StudyResult(self._variables(sums, found) | {"n_samples": ((), n_samples)}, self.length_coord)

    def _warn_of_what_is_missing(self, sums: "list[_Sum]") -> bool:
        """Warn where the lengths add up to something else than autograd's gradient; say whether it did."""
        errors = np.array([total.error for total in sums])
        limit = max(10 * torch.finfo(self.network.dtype).eps ** 0.5, 1e-5)
        limit = max(limit, SHORT_FLOATS_ERROR if self.network.graph.has_short_floats else 0.0)
        if (errors <= limit).all():
            return False
        part = self.flow.parts[int(np.nan_to_num(errors, nan=np.inf).argmax())]
        warnings.warn(
            f"the gradients of the parameters of {part!r} of {self.network.name} add up to autograd's only within "
            f"{errors.max():.1e} of it, relatively: they may be NaN or infinite, or steep or saturated so that "
            "rounding shows (try model.double()). `completeness_error` has each part's",
            IncompleteGradientWarning,
            stacklevel=2,
        )
        return True

    def _variables(self, sums: "list[_Sum]", found: Mapping[str, Array]) -> dict[str, Entry]:
        each = [measured(total.keys, total.rows, len(self.lengths)) for total in sums]
        norms, shares = np.stack([one for one, *_ in each]), np.stack([one for _, one, _ in each])
        variables: dict[str, Entry] = {
            "parameter_gradient_norm": (("block", "path_length"), norms),
            "parameter_gradient_share": (("block", "path_length"), shares),
            "completeness_error": (("block",), [total.error for total in sums]),
            "n_parameters": (("block",), [total.ordinary.size for total in sums]),
        }
        if self.cut:
            variables["tail_parameter_gradient_norm"] = (("block",), [tail for *_, tail in each])
        else:
            mean = np.where(norms.any(axis=1), shares @ np.arange(len(self.lengths)), np.nan)
            variables["mean_path_length"] = (("block",), mean)
        if f"{NORMS} 0" in found:
            for name, array in (("norm", NORMS), ("share", SHARES)):
                values = np.stack([found[f"{array} {number}"] for number in range(len(sums))])
                variables[f"parameter_gradient_{name}_per_sample"] = (("block", "path_length", "sample"), values)
        return variables


class _Sum:
    """The gradients at the parameters of one part, summed over chunks.

    Attributes:
        keys: length of each row; -1 for all longer ones.
        rows: the gradients, `[R, P]`.
        ordinary: autograd's, `[P]`.
    """

    def __init__(self) -> None:
        self.keys, self.rows, self.ordinary = np.zeros(0, dtype=np.int64), np.zeros((0, 0)), np.zeros(0)

    def add(self, keys: Array, rows: Array, ordinary: Array) -> None:
        """Add those of a chunk."""
        if not self.ordinary.size:
            self.keys, self.rows, self.ordinary = keys.astype(np.int64), rows, ordinary
            return
        union = np.union1d(self.keys, keys.astype(np.int64))
        whole = np.zeros((len(union), len(ordinary)), dtype=rows.dtype)
        for some, values in ((self.keys, self.rows), (keys, rows)):
            whole[np.searchsorted(union, some)] += values
        self.keys, self.rows, self.ordinary = union, whole, self.ordinary + ordinary

    @property
    def error(self) -> float:
        """The difference of the sum over lengths and autograd's gradient, relative to the latter's norm."""
        missing = np.linalg.norm(self.rows.sum(axis=0) - self.ordinary) if self.ordinary.size else 0.0
        size = np.linalg.norm(self.ordinary)
        return 0.0 if missing == size == 0 else float(missing / size) if size else np.inf
