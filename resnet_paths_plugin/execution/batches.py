"""Inputs and targets as analyzers take them, in batches and in chunks that suit the cache."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from itertools import chain
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from resnet_paths_plugin.engine.transfer import moved
from resnet_paths_plugin.errors import InputError, NonFiniteInputWarning
from resnet_paths_plugin.execution.named_batches import texts
from resnet_paths_plugin.graph.export import batch_size, check_dense
from resnet_paths_plugin.graph.keywords import call_arguments, packed, split
from resnet_paths_plugin.graph.tracing import outside_inference_mode
from resnet_paths_plugin.network.batch_items import all_tensors, inputs_and_target, is_one_batch
from resnet_paths_plugin.tasks import Readout

Target = Any
"""As in Captum: None, an int, a tuple, a tensor of B integers, or a list of B ints or tuples.

For measures and objectives of the user's own also anything else that has a part for each sample: a tensor with first
dimension B (a map of classes, a flow), a dict or tuple of such tensors, or a list of B things (the boxes of an image).
"""


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Some samples: the arguments of one call of the model, and their targets.

    Attributes:
        args: positional arguments; tensors with first dimension `B` are per sample.
        target: an int or tuple for all samples, a tensor `[B]` of integers, a list of B tuples, or None; or what the
            user's own measures make something of.
        size: `B`.
        whole: positions of the tensors among the arguments, flattened, that have `B` rows by chance: all samples
            read all of them.
        readout: how outputs and the target are read.
    """

    args: tuple[Any, ...]
    target: Target
    size: int
    whole: frozenset[int] = frozenset()
    readout: Readout = field(default_factory=Readout)

    def chunks(self, size: int) -> Iterator["Batch"]:
        """Cut the batch into pieces of at most `size` samples."""
        for start in range(0, self.size, size):
            piece = slice(start, min(start + size, self.size))
            args = self._cut(lambda leaf: leaf[piece])  # noqa: B023 - used at once
            target = self._part(lambda values: values[piece])  # noqa: B023 - used at once
            yield replace(self, args=args, target=target, size=piece.stop - piece.start)

    def even_size(self, most: int) -> int:
        """Return the size of pieces of at most `most` samples that are as equal as can be."""
        pieces = -(-self.size // most)
        return -(-self.size // pieces)

    def take(self, samples: Tensor) -> "Batch":
        """Return a batch of some samples, in the order of their indices."""
        index = samples.tolist()
        args = self._cut(lambda leaf: leaf[samples.to(leaf.device)])
        target = self._part(
            lambda values: (
                values[samples.to(values.device)] if isinstance(values, Tensor) else [values[at] for at in index]
            )
        )
        return replace(self, args=args, target=target, size=len(index))

    def to(self, device: torch.device) -> "Batch":
        """Move the tensors to a device."""
        args = pytree.tree_map(lambda leaf: moved(leaf, device) if isinstance(leaf, Tensor) else leaf, self.args)
        target = pytree.tree_map(lambda leaf: moved(leaf, device) if isinstance(leaf, Tensor) else leaf, self.target)
        return replace(self, args=args, target=target)

    def copied(self) -> "Batch":
        """Return the batch with tensors of its own, that hold these samples and no others."""
        args = pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, self.args)
        target = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, self.target)
        return replace(self, args=args, target=target)

    @property
    def has_positions(self) -> bool:
        """Whether the target is the class of each position of a sample, of its tokens or pixels."""
        is_tensor = isinstance(self.target, Tensor)
        return is_tensor and self.target.ndim > 1 and self.readout.layout in {"tokens", "pixels"}

    @property
    def names_outputs(self) -> bool:
        """Whether the target is one of Captum's: it names outputs by index, or nothing."""
        target = self.target
        if isinstance(target, Tensor):
            return target.ndim == 1 and target.dtype == torch.int64
        if isinstance(target, tuple | list):
            return all(isinstance(index, Integral) for index in pytree.tree_leaves(target))
        return target is None or isinstance(target, int)

    def labels(self) -> Tensor | None:
        """Return the target as one class per sample, `[B]` int64, or for each of its positions; None if it is none."""
        if self.readout.layout in {"tokens", "pixels"}:
            return self.target if self.has_positions else None
        if not self.names_outputs or self.target is None:
            return None
        if isinstance(self.target, Tensor):
            return self.target
        each = self.target if isinstance(self.target, list) else [self.target] * self.size
        indices = [one if isinstance(one, tuple) else (one,) for one in each]
        return torch.tensor(indices).flatten() if all(len(index) == 1 for index in indices) else None

    def _part(self, of: Callable[[Any], Any]) -> Target:
        """Return the target of some samples, which `of` takes out of a list or a tensor."""
        if isinstance(self.target, list):
            return of(self.target)
        return pytree.tree_map(lambda leaf: of(leaf) if self._per_sample(leaf) else leaf, self.target)

    def _cut(self, part: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
        """Return the arguments of some samples, which `part` takes out of a tensor."""
        leaves, spec = pytree.tree_flatten(self.args)
        cut = [
            part(leaf) if self._per_sample(leaf) and at not in self.whole else leaf for at, leaf in enumerate(leaves)
        ]
        args: tuple[Any, ...] = pytree.tree_unflatten(cut, spec)
        return args

    def _per_sample(self, leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == self.size


class Batches:
    """The batches of one `attribute` call, the first one looked at ahead of time.

    Attributes:
        first: the first batch.
        n_inputs: how many of the model's arguments are inputs; the others are additional ones.
        n_samples: how many samples there are in all, as far as is known beforehand.
        sample_names: a name for each sample, where the iterable has them (see `NamedBatches`); else None.
        class_names: names of the classes that targets count, likewise.

    Args:
        inputs: a tensor, a tuple of tensors (several inputs of one batch), a dict of arguments by name, `(args,
            kwargs)`, a dict with the keys `inputs` and `target`, or an iterable of dicts or of `(inputs, target)`.
        target: the target of a single batch; the key of a dict that holds it, or a function of the batch; None with an
            iterable of `(inputs, target)`.
        additional_forward_args: further arguments of the model, after the inputs; a dict of those by name.
    """

    def __init__(self, inputs: Any, target: Target, additional_forward_args: Any) -> None:
        self._given = (inputs, target, additional_forward_args)
        self._extra = () if additional_forward_args is None else _as_call(additional_forward_args)
        selector = target if isinstance(target, str) or callable(target) else None
        if isinstance(inputs, np.ndarray):
            raise InputError("inputs is a NumPy array: convert it with torch.from_numpy")
        if is_one_batch(inputs):
            pair = (inputs, target)
            if callable(target):
                pair = (inputs, target(inputs))
            elif selector is not None or (target is None and isinstance(inputs, Mapping)):
                pair = inputs_and_target(inputs, selector)
            batches: Iterator[Batch] = iter([self._batch(*pair)])
        elif isinstance(inputs, Iterable) and not isinstance(inputs, str | bytes):
            named = selector is not None
            if target is not None and not named and isinstance(inputs, list) and all_tensors(tuple(inputs)):
                raise InputError(
                    "inputs is a list of tensors, which is read as batches, and a target was given: pass several "
                    "inputs of one batch as a tuple of tensors, or batches as (inputs, target) pairs without target"
                )
            if target is not None and not named:
                raise InputError(
                    "with an iterable of batches the targets come from it: leave target out, name the key that holds "
                    "them (target='labels'), or pass a function of the batch"
                )
            batches = (self._batch(*inputs_and_target(item, selector)) for item in inputs)
        else:
            raise InputError(
                "inputs must be a tensor, a tuple of tensors, a dict of arguments by name, or an iterable of (inputs, "
                f"target) batches such as a DataLoader, not {type(inputs).__name__}"
            )
        first = next(batches, None)
        if first is None:
            raise InputError("the iterable of batches is empty: nothing to study (is a one-shot iterator used up?)")
        self.first = first
        self.sample_names = texts(getattr(inputs, "sample_names", None), "sample_names")
        self.class_names = texts(getattr(inputs, "class_names", None), "class_names")
        self.n_inputs = len(pytree.tree_leaves(first.args)) - len(pytree.tree_leaves(self._extra))
        self.n_samples: int | None = first.size if is_one_batch(inputs) else _count(inputs)
        self._rest = batches
        self._whole: frozenset[int] = frozenset()
        self._arranged: Callable[[tuple[Any, ...]], tuple[Any, ...]] = lambda args: args
        self._readout = Readout()
        self._warned: set[type[Warning]] = set()  # shared with those of `again`

    def __iter__(self) -> Iterator[Batch]:
        for batch in chain([self.first], self._rest):
            self._warn_of_non_finite(batch)
            yield self._fitted(batch)

    def _warn_of_non_finite(self, batch: Batch) -> None:
        """Warn once of inputs with NaN or infinity; further arguments, such as masks, may well have it."""
        if NonFiniteInputWarning in self._warned:
            return
        odd = sum(_non_finite(leaf) for leaf in pytree.tree_leaves(batch.args)[: self.n_inputs])
        if odd:
            self._warned.add(NonFiniteInputWarning)
            warnings.warn(
                f"inputs hold NaN or infinity ({odd} numbers in the first batch that has such): scores and gradients "
                "of their samples mean little. Look at how the inputs were prepared",
                NonFiniteInputWarning,
                stacklevel=2,
            )

    def fit(self, arranged: Callable[[tuple[Any, ...]], tuple[Any, ...]], readout: Readout) -> None:
        """Bring the arguments of all batches into the form that a network was captured with.

        Args:
            arranged: does so with the arguments of a call.
            readout: how the network's outputs and the targets are read.

        Raises:
            InputError: if the first batch has other arguments.
        """
        self._arranged, self._readout = arranged, readout
        self.first = self._fitted(self.first)

    def _fitted(self, batch: Batch) -> Batch:
        return replace(batch, args=self._arranged(batch.args), whole=self._whole, readout=self._readout)

    def keep_whole(self, positions: Iterable[int]) -> None:
        """Cut no rows off some arguments, given by their positions among the flattened ones."""
        self._whole = frozenset(positions)
        self.first = replace(self.first, whole=self._whole)

    @property
    def additional(self) -> list[int]:
        """Positions of the tensors among the additional arguments, flattened, that have as many rows as samples."""
        leaves = pytree.tree_leaves(self.first.args)
        return [
            at
            for at, leaf in enumerate(leaves)
            if at >= self.n_inputs and isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == self.first.size
        ]

    def again(self, reference: Any = None) -> "Batches":
        """Return the batches once more, or those of a reference instead, with the same further arguments.

        The targets of a reference are not looked at.
        """
        inputs, target, extra = self._given
        if reference is None:
            found = Batches(inputs, target, extra)
            found._warned = self._warned
        elif is_one_batch(reference):
            found = Batches([_without(reference, target)] if isinstance(reference, Mapping) else reference, None, extra)
        else:
            found = Batches(((inputs_and_target(_without(item, target))[0], None) for item in reference), None, extra)
        found.fit(self._arranged, self._readout)
        found.keep_whole(self._whole)
        return found

    def check_again(self, reference: Any = None) -> None:
        """Check, without reading anything, that `again` gives batches any number of times.

        Raises:
            InputError: if they come from an iterator, which can be read once only, or if a reference would be paired
                with further arguments that belong to the samples of the inputs.
        """
        source, name = (self._given[0], "inputs") if reference is None else (reference, "reference")
        if isinstance(source, Iterator):
            raise InputError(
                f"this takes several passes over the {name}, and a one-shot iterator allows one: pass a list of "
                f"batches or a DataLoader{'' if reference is not None else ', or give a reference'}"
            )
        if reference is not None and not self._whole.issuperset(self.additional):
            raise InputError(
                "additional_forward_args hold a value for each sample of the inputs, and a reference has other "
                "samples: pass them as further inputs instead, inputs=(x, more) and reference=(other_x, other_more)"
            )

    def _batch(self, inputs: Any, target: Target) -> Batch:
        args = outside_inference_mode(_with_extra(call_arguments(inputs), self._extra))
        size = batch_size(args)
        for leaf in pytree.tree_leaves(target):
            check_dense(leaf, "the target")
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in pytree.tree_leaves((args, target))):
            raise InputError(
                "inputs or targets are on the meta device, where tensors have no values, and a study needs some: pass "
                "tensors of another device"
            )
        return Batch(args, _normalised(target, size), size)


def _without(item: Any, target: Target) -> Any:
    """Return a batch without the key that holds its target, where one is named."""
    if not isinstance(item, Mapping) or not isinstance(target, str):
        return item
    return {name: value for name, value in item.items() if name != target}


def _as_call(extra: Any) -> tuple[Any, ...]:
    return call_arguments(extra if isinstance(extra, tuple | Mapping) else (extra,))


def _with_extra(args: tuple[Any, ...], extra: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of a call with additional ones behind them."""
    positional, keywords = split(extra)
    if positional and split(args)[1]:
        raise InputError(
            "inputs are arguments by name and additional_forward_args are by position: pass these by name as well, "
            "additional_forward_args={'name': value}, or within inputs"
        )
    return packed((*args, *positional), keywords)


def check_target(batch: Batch, sizes: Sequence[int]) -> None:
    """Check that every target of a batch names one number of each sample's outputs, which have these sizes.

    Raises:
        InputError: if a target names no output, is out of range, or has another number of indices than the outputs.
    """
    if batch.has_positions:
        batch.readout.check_labels(batch.target, tuple(sizes))
        return
    if not batch.names_outputs:
        raise InputError(
            f"{_misread(batch.target)}; anything else needs measures (or an objective) of your own that read it"
        )
    if batch.target is None:
        return
    for one in batch.target if isinstance(batch.target, list | Tensor) else [batch.target]:
        index = one if isinstance(one, tuple) else (int(one),)
        if len(index) != len(sizes):
            raise InputError(f"target {one!r} must be {_indices(len(sizes))} after the batch")
        if not all(0 <= place < size for place, size in zip(index, sizes, strict=True)):
            expected = f"{sizes[0]} outputs, 0..{sizes[0] - 1}" if len(sizes) == 1 else f"outputs of shape {(*sizes,)}"
            given = index[0] if len(index) == 1 else index
            raise InputError(f"target {given} is out of range: the model has {expected}")


def _indices(count: int) -> str:
    if count == 1:
        return "one index: the model's outputs have one dimension"
    return f"a tuple of {count} indices: the model's outputs have {count} dimensions"


def _count(inputs: Any) -> int | None:
    """Return the number of samples of a DataLoader over a dataset of known size; None where it is not known."""
    dataset = getattr(inputs, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) else None


def _non_finite(leaf: Any) -> int:
    """Return how many of a tensor's numbers are NaN or infinite; 0 where it has none that can be looked at."""
    if not isinstance(leaf, Tensor) or leaf.is_meta or leaf.is_nested or leaf.layout != torch.strided:
        return 0
    if not (leaf.is_floating_point() or leaf.is_complex()):
        return 0
    return int((~torch.isfinite(leaf.detach())).sum())


def _normalised(target: Target, size: int) -> Target:
    if target is None or (isinstance(target, int) and not isinstance(target, bool)):
        return target
    if isinstance(target, dict | tuple):
        return _with_parts(target, size) if any(map(_is_structure, pytree.tree_leaves(target))) else target
    if isinstance(target, list) and target and _is_structure(target[0]):
        return _of_length(target, size)
    try:
        labels = torch.as_tensor(target).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "target must be None, an int, a tuple, B integers or a list of B tuples, or for measures of your own a "
            "tensor with first dimension B, a dict of such tensors or a list of B things, not "
            f"{type(target).__name__} ({error})"
        ) from error
    counts = not (labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool)
    if not counts and labels.ndim == 0:
        raise InputError(_misread(labels))
    labels = labels.to(torch.int64) if counts else labels
    if counts and labels.numel() == 1:
        if size == 1:
            return labels if labels.ndim > 1 else labels.reshape(1)
        return int(labels)
    return _of_length(labels, size)


def _is_structure(part: object) -> bool:
    return isinstance(part, Tensor | tuple | list | dict)


def _with_parts(target: Target, size: int) -> Target:
    """Return a structure of tensors after checking that each has a part for every sample."""
    for leaf in pytree.tree_leaves(target):
        shape = tuple(leaf.shape) if isinstance(leaf, Tensor) else None
        if not shape or shape[0] != size:
            what = f"a tensor of shape {shape}" if shape is not None else type(leaf).__name__
            raise InputError(
                f"target holds {what} and the batch has {size} samples: a {type(target).__name__} of tensors needs "
                "the samples along the first dimension of each"
            )
    return target


def _misread(target: Target) -> str:
    """Say why a target names no outputs."""
    if isinstance(target, Tensor) and (target.is_floating_point() or target.dtype is torch.bool or target.is_complex()):
        return f"target must hold integers (indices of outputs), not {target.dtype}"
    shape = f"has shape {tuple(target.shape)}" if isinstance(target, Tensor) else f"is a {type(target).__name__}"
    return f"target {shape}, and the model's outputs take one index for each sample"


def _of_length(target: Any, size: int) -> Any:
    shape = tuple(target.shape) if isinstance(target, Tensor) else (len(target),)
    if shape[0] != size:
        raise InputError(f"target has shape {shape} and the batch has {size} samples: pass one target per sample")
    return target
