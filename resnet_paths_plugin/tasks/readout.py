"""Readout: how a model's outputs and targets are read: which output is the scores, and what they are scores of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.utils import _pytree as pytree

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.tasks.measures import resized
from resnet_paths_plugin.tasks.task import Task

LOGITS = "logits"
"""Key or attribute that holds the scores where outputs hold several tensors and none was chosen."""

Output = str | int | Callable[[Any], Any]
"""Which of a model's outputs is the scores: a key or attribute, an index, or a function of all of them."""


@dataclass(frozen=True, eq=False)
class Positions:
    """The class scores of a sample's positions: its tokens or pixels, or itself alone.

    Attributes:
        scores: the scores, `[B, P, C]`.
        labels: the class of each, `[B, P]`; None where there is no target.
        counted: which positions count, `[B, P]`; None for all.
        alone: whether each sample is one position.
    """

    scores: Tensor
    labels: Tensor | None
    counted: Tensor | None
    alone: bool

    def pooled(self, values: Tensor) -> Tensor:
        """Return the mean over each sample's counted positions, `[B]`, of `[B, P]`; of one position, its value."""
        if self.alone:
            return values[:, 0]
        values = values.double()
        if self.counted is None:
            return values.mean(1)
        # What is not counted may be infinite.
        return values.where(self.counted, 0).sum(1) / self.counted.sum(1)


@dataclass(frozen=True)
class Readout:
    """How a model's outputs and targets are read.

    Attributes:
        task: what the model is for; None where outputs `[B, classes]` are class scores, and others are not known.
        output: which output is the scores; None for the only tensor, or that called `logits`.
    """

    task: Task | None = None
    output: Output | None = None

    @property
    def layout(self) -> str:
        """What the scores are."""
        return "classes" if self.task is None else self.task.layout

    def scores_of(self, outputs: Any) -> Tensor | None:
        """Return the tensor that holds the scores, from a dict, tuple, list or any other structure; None if unknown.

        Raises:
            InputError: if the output that was chosen is not there, or is no tensor.
        """
        if self.output is not None:
            return self._chosen(outputs)
        if isinstance(outputs, Tensor):
            return outputs
        tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
        named = outputs.get(LOGITS) if isinstance(outputs, Mapping) else getattr(outputs, LOGITS, None)
        return named if isinstance(named, Tensor) else None

    def sizes_of(self, outputs: Any) -> tuple[int, ...] | None:
        """Return the sizes of one sample's scores, which a target has an index for each of; None if there are none."""
        scores = self.scores_of(outputs)
        if scores is None or scores.ndim < 2 or not scores.is_floating_point():
            return None
        # One that an argument's rows decide is a symbol, with the size that it had.
        return tuple(int(size.node.hint if isinstance(size, SymInt) else size) for size in scores.shape[1:])

    def n_classes(self, sizes: tuple[int, ...] | None) -> int | None:
        """Return the number of classes of scores of these sizes; None where they are not those of classes."""
        n_dims = {"classes": (1, 1), "tokens": (2, 2), "pixels": (1, 4)}.get(self.layout)
        if sizes is None or n_dims is None or not n_dims[0] <= len(sizes) <= n_dims[1]:
            return None
        classes = sizes[0] if self.layout == "pixels" else sizes[-1]
        return classes if classes > 1 else None  # a single column is a score of something

    def positions(self, scores: Tensor, target: Tensor | None) -> Positions:
        """Return class scores by position, beside the labels.

        Args:
            scores: the scores of some samples.
            target: the labels of their positions; of one position for each sample, `[B]`; or None.
        """
        if self.layout == "classes":
            labels = None if target is None else target.to(scores.device)[:, None]
            return Positions(scores[:, None], labels, None, alone=True)
        if target is not None and self.layout == "pixels":
            scores = resized(scores, target)
        if self.layout == "pixels":
            scores = scores.movedim(1, -1).flatten(1, -2)
        shift = 0 if self.task is None else self.task.shift
        scores = scores[:, : scores.shape[1] - shift]
        if target is None:
            return Positions(scores, None, None, alone=False)
        labels = target.flatten(1).to(scores.device)[:, shift:]
        counted = self._counts(labels)
        return Positions(scores, labels.where(counted, 0), counted, alone=False)

    def counted(self, target: Tensor) -> Tensor:
        """Return how many labels of each sample count, shape `[B]`."""
        shift = 0 if self.task is None else self.task.shift
        return self._counts(target.flatten(1)[:, shift:]).sum(1)

    def check_labels(self, target: Any, sizes: tuple[int, ...]) -> None:
        """Check a target of tokens or pixels before anything is run.

        Raises:
            InputError: if its shape does not fit the scores, or a sample has no label that counts or one out of range.
        """
        task, n_classes = self.task, self.n_classes(sizes)
        assert task is not None and n_classes is not None  # noqa: S101, PT018 - asked only of these
        pixels = self.layout == "pixels"
        form = f"(B, {', '.join(['*space'] if pixels else [str(sizes[0])])})"
        if not isinstance(target, Tensor) or target.dtype != torch.int64:
            got = target.dtype if isinstance(target, Tensor) else type(target).__name__
            raise InputError(f"targets of {task.name} are integers of shape {form}, not {got}")
        if target.ndim != (len(sizes) if pixels else 2) or (not pixels and target.shape[1] != sizes[0]):
            raise InputError(f"targets of {task.name} have shape {form}, not {tuple(target.shape)}")
        labels = target.flatten(1)[:, task.shift :]
        counted = self._counts(labels)
        if not bool(counted.any(1).all()):
            at = int((~counted.any(1)).nonzero()[0])
            raise InputError(
                f"sample {at} of a batch has no label that counts ({', '.join(map(str, sorted(task.ignored)))} and, "
                f"of {task.name}, the first {task.shift} do not): leave such samples out"
            )
        wrong = labels[counted & ((labels < 0) | (labels >= n_classes))]
        if len(wrong):
            raise InputError(f"label {int(wrong[0])} is out of range: the model has {n_classes} classes")

    def _counts(self, labels: Tensor) -> Tensor:
        ignored = frozenset() if self.task is None else self.task.ignored
        return ~torch.isin(labels, torch.tensor(sorted(ignored), dtype=labels.dtype, device=labels.device))

    def _chosen(self, outputs: Any) -> Tensor:
        chosen = self.output
        if isinstance(outputs, Tensor) and not callable(chosen):
            raise InputError(f"output={chosen!r} chooses among several outputs, and the model returns one tensor")
        try:
            if callable(chosen):
                found = chosen(outputs)
            elif isinstance(chosen, int) or isinstance(outputs, Mapping):
                found = outputs[chosen]
            else:
                found = getattr(outputs, chosen or "")
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            keys = f" of {', '.join(map(repr, outputs))}" if isinstance(outputs, Mapping) else ""
            raise InputError(
                f"output={chosen!r} is not among the model's outputs, a {type(outputs).__name__}{keys}: {error}"
            ) from error
        if not isinstance(found, Tensor):
            raise InputError(f"output={chosen!r} must be a tensor of the model's outputs, not {type(found).__name__}")
        return found
