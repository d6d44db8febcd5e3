"""Per-sample measures of a network's output, and of how it differs from the intact network's."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree

from resnet_paths_plugin.analyzers.outputs import form, measure_line, outputs_of
from resnet_paths_plugin.analyzers.rewiring.built_in import CHANGES, HIGHER_IS_BETTER, MEASURES, NEEDS, Scored
from resnet_paths_plugin.errors import InputError, PluginWarning
from resnet_paths_plugin.execution.batches import Batch, Target, check_target
from resnet_paths_plugin.graph.export import check_dense
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.plugins import manager as plugins
from resnet_paths_plugin.results.variables import check_names
from resnet_paths_plugin.tasks import TASKS, Readout

Measure = Callable[[Any, Target], Tensor]
"""A user's measure: of the model's outputs and the batch's target, one number per sample, shape `[B]`.

It sees some samples at a time, and the target of the same samples, as copies that it may change. It may run a study
of its own, which runs where it runs, without an executor.
"""


def offered_measures(network: UnraveledNetwork) -> dict[str, Measure]:
    """Return the measures that plugins have for a model.

    A measure whose name means something else in a result is left out with a `PluginWarning`.
    """
    known: dict[str, Measure] = {}
    for name, measure in plugins.measures(network.model, network.plugin_manager).items():
        try:
            check_names([name])
        except InputError as error:
            warnings.warn(f"measure {name!r} of a plugin is left out: {error}", PluginWarning, stacklevel=2)
        else:
            known[name] = measure
    return known


class Measures:
    """The measures of one study: built-in ones, those that plugins offer, and the user's own.

    Of outputs of shape `[B, classes]` all are built in, of others the score that a target picks out. What plugins offer
    changes nothing of this; where the user has measures of such other outputs, they alone decide what a target means.

    Args:
        network: the network, whose output shape decides what is built in.
        user: the user's measures by name.
        offered: those of plugins by name; the user's go before them.
        only: the one measure that is wanted; None for all.
        readout: how outputs and targets are read; None takes the network's.

    Attributes:
        user: the user's measures by name.
        offered: those of plugins by name that the user has not.
        n_classes: the number of classes where the scores are a tensor `[B, classes]`, else None.
        has_classes: whether the scores are those of classes, of a sample or of each of its positions.
        needs_intact: whether some measure compares with the intact network's outputs.

    Raises:
        InputError: if a measure cannot be called, or its name means something else in a result.
    """

    def __init__(
        self,
        network: UnraveledNetwork,
        user: Mapping[str, Measure] | None,
        offered: Mapping[str, Measure] | None = None,
        *,
        only: str | None = None,
        readout: Readout | None = None,
    ) -> None:
        self.user = dict(user or {})
        self.offered = {name: measure for name, measure in (offered or {}).items() if name not in self.user}
        check_names(self.user)
        for name, measure in self.user.items():
            if not callable(measure):
                raise InputError(f"measure {name!r} must be callable as (outputs, target) -> [B], not {measure!r}")
        self._wanted = None if only is None else frozenset({only, *NEEDS.get(only, ())})
        self.needs_intact = only is None or only in CHANGES
        self._network = network
        self._readout = readout or network.readout
        self._sizes = self._readout.sizes_of(outputs_of(network))
        n_classes = self._readout.n_classes(self._sizes)
        self.has_classes = n_classes is not None
        self.n_classes = n_classes if self._readout.layout == "classes" else None
        task = self._readout.task
        # Those of the task stand beside the user's, as the built-in ones do.
        self._of_task = {} if task is None else {n: one for n, one in task.measures.items() if n not in self.user}
        check_names(set(self._of_task) - {name for known in TASKS.values() for name in known.measures})

    @property
    def functions(self) -> dict[str, Measure]:
        """The measures that are functions of their own, by name: of the task, of plugins and of the user."""
        return {**self._of_task, **self.offered, **self.user}

    def check(self, batch: Batch) -> None:
        """Check a batch's targets before anything is run.

        Raises:
            InputError: if nothing can be measured, or a target is out of range.
        """
        known = self.has_classes or self.user or self.offered or self._readout.layout == "embedding"
        if not known and self._readout.layout == "values" and self._sizes is not None:
            if batch.target is None:
                raise InputError(f"{self._network.name} predicts values: pass the true ones as the target")
            return
        if not known and not self._picks(batch):
            self.refuse()
        if self._sizes is not None and self._names_an_output(batch):
            check_target(batch, self._sizes)

    def _names_an_output(self, batch: Batch) -> bool:
        """Whether a target has to name outputs: the user's measures may read others, of classes only further ones."""
        if self._readout.layout in {"values", "embedding"}:
            return False
        if self.user:
            return self.has_classes and (batch.names_outputs or batch.has_positions)
        return self.has_classes or not self.offered or self._picks(batch)

    def check_value(self, name: str, batch: Batch) -> None:
        """Check that a batch has a measure whose mean over samples says something.

        Raises:
            InputError: if there is no such measure, or it needs a target or scores of classes that are not there.
        """
        if name in self.functions:
            return
        if name not in HIGHER_IS_BETTER:
            known = [*HIGHER_IS_BETTER, *self.functions]
            raise InputError(
                f"value must be the name of a measure, one of {', '.join(map(repr, known))}, not {name!r}: pass one of "
                "your own as measures={'name': function}"
            )
        of_classes = name not in {"target_score", "target_score_drop", "cosine_distance"}
        if of_classes and not self.has_classes:
            outputs = outputs_of(self._network)
            raise InputError(
                f"value={name!r} is a measure of scores (B, classes), and {self._network.name} returns "
                f"{form(outputs)}: name a measure of your own, such as one of {measure_line(outputs)}"
            )
        if name in {"loss", "correct"} and batch.labels() is None:
            raise InputError(f"value={name!r} needs a target: the class of each sample")
        if name == "cosine_distance":
            if self._readout.layout != "embedding":
                raise InputError("value='cosine_distance' is a measure of embeddings: unravel(model, task='embedding')")
        elif not of_classes and not (self._is_picked(batch) or batch.has_positions):
            raise InputError(f"value={name!r} needs a target, which picks the score of each sample")

    def refuse(self) -> NoReturn:
        """Refuse outputs that have no built-in measure.

        Raises:
            InputError: always.
        """
        outputs = outputs_of(self._network)
        picked = "" if self._sizes is None else f", or a target of {len(self._sizes)} indices, which picks one number"
        raise InputError(
            f"{self._network.name} returns {form(outputs)}, for which no measure is built in: pass "
            "measures={'name': function}, where function(outputs, target) returns one number per sample, shape "
            f"(B,){picked}. For instance {measure_line(outputs)}"
        )

    def _picks(self, batch: Batch) -> bool:
        """Whether a target picks one number of each sample's outputs, or is meant to."""
        if self._sizes is None or batch.target is None or not batch.names_outputs:
            return False
        return len(self._sizes) == 1 or isinstance(batch.target, tuple | list)

    def of(
        self, outputs: Any, batch: Batch, intact: Any = None, reference: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return what is measured of one output: name to values, shape `[B]`.

        Measures of plugins and of the user come last, and each is given copies: what it does to them in place changes
        nothing else.

        Args:
            outputs: the output.
            batch: the samples.
            intact: the intact network's output, where this is another one's.
            reference: what was measured of that.
        """
        scores = self._readout.scores_of(outputs)
        values = {} if scores is None else self._built_in(scores, batch, intact, reference)
        is_read = batch.target is not None and (self._readout.layout == "values" or not batch.names_outputs)
        if scores is not None and is_read:
            for name, measure in self._of_task.items():
                if self._is_wanted(name):
                    values[name] = _checked(name, measure(scores, batch.target), batch.size)
        for name, measure in {**self.offered, **self.user}.items():
            if self._is_wanted(name):
                values[name] = _checked(name, measure(copied(outputs), copied(batch.target)), batch.size)
        return values

    def _built_in(
        self, scores: Tensor, batch: Batch, intact: Any, reference: dict[str, Tensor] | None
    ) -> dict[str, Tensor]:
        scored = self._scored(scores, batch, {})
        for name, measure in MEASURES.items():
            if self._is_wanted(name):
                _keep(scored.values, name, measure(scored))
        if reference is not None:
            before = self._readout.scores_of(intact)
            assert before is not None  # noqa: S101 - scores were found in the outputs that were captured
            beside = self._scored(before, batch, reference)
            for name, change in CHANGES.items():
                if self._is_wanted(name):
                    _keep(scored.values, name, change(scored, beside))
        return scored.values

    def _is_wanted(self, name: str) -> bool:
        return self._wanted is None or name in self._wanted

    def _scored(self, scores: Tensor, batch: Batch, values: dict[str, Tensor]) -> Scored:
        positions = self._readout.positions(scores, batch.labels()) if self.has_classes else None
        return Scored(scores, batch, positions, self._is_picked(batch), values)

    def _is_picked(self, batch: Batch) -> bool:
        """Whether the target picks one score of each sample."""
        if batch.target is None or not batch.names_outputs:
            return False
        return self.n_classes is not None or (not self.user and self._picks(batch))


def higher_is_better(name: str, measure: Measure | None = None) -> bool:
    """Return whether more of a measure means a better network.

    Args:
        name: the measure's name.
        measure: the measure itself, where it is a plugin's or the user's: its attribute `higher_is_better` says it.

    Raises:
        InputError: if it is not known of a measure.

    Examples:
        >>> from resnet_paths_plugin.analyzers.rewiring.measures import higher_is_better
        >>> higher_is_better("correct"), higher_is_better("loss")
        (True, False)
    """
    said = HIGHER_IS_BETTER.get(name) if measure is None else getattr(measure, "higher_is_better", None)
    if not isinstance(said, bool):
        raise InputError(
            f"whether more of {name!r} means a better network is not known, and the effect of a deletion is signed so "
            "that positive means harm: pass higher_is_better=True (as of a score) or False (as of an error), or set it "
            f"as an attribute of the measure, {name}.higher_is_better = True"
        )
    return said


def _keep(values: dict[str, Tensor], name: str, measured: Tensor | None) -> None:
    if measured is not None:
        values[name] = measured


def copied(value: Any) -> Any:
    """Return outputs or a target with tensors and arrays of its own, for a user's function, which may write to them."""

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.clone()
        return leaf.copy() if isinstance(leaf, np.ndarray) else leaf

    return pytree.tree_map(copy, value)


def _checked(name: str, values: Any, size: int) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != (size,):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"measure {name!r} must return a tensor of shape ({size},), one number per sample, not {got}")
    check_dense(values, f"what measure {name!r} returns")
    if values.is_meta:
        raise InputError(f"what measure {name!r} returns is on the meta device, where tensors have no values")
    return values.detach().clone()  # a measure may use its own tensor again
