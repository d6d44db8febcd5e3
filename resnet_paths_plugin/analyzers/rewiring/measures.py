"""Per-sample measures of a network's output, and of how it differs from the intact network's."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree

from resnet_paths_plugin.analyzers.outputs import form, measure_line, outputs_of
from resnet_paths_plugin.analyzers.rewiring.built_in import CHANGES, HIGHER_IS_BETTER, MEASURES, NEEDS, Scored
from resnet_paths_plugin.analyzers.scores import scores_of, sizes_of
from resnet_paths_plugin.errors import InputError, PluginWarning
from resnet_paths_plugin.execution.batches import Batch, Target, check_target
from resnet_paths_plugin.graph.export import check_dense
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.plugins import manager as plugins
from resnet_paths_plugin.results.variables import check_names

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

    Attributes:
        user: the user's measures by name.
        offered: those of plugins by name that the user has not.
        n_classes: the number of classes where the scores are a tensor `[B, classes]`, else None.
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
        self._sizes = sizes_of(outputs_of(network))
        # A single column is a score of something, and no distribution over classes.
        classes = self._sizes is not None and len(self._sizes) == 1 and self._sizes[0] > 1
        self.n_classes = self._sizes[0] if classes and self._sizes is not None else None

    def check(self, batch: Batch) -> None:
        """Check a batch's targets before anything is run.

        Raises:
            InputError: if nothing can be measured, or a target is out of range.
        """
        if self.n_classes is None and not self.user and not self.offered and not self._picks(batch):
            self.refuse()
        if self._sizes is not None and self._names_an_output(batch):
            check_target(batch, self._sizes)

    def _names_an_output(self, batch: Batch) -> bool:
        """Whether a target has to name outputs: the user's measures may read others, of classes only further ones."""
        is_classes = self.n_classes is not None
        if self.user:
            return is_classes and batch.names_outputs
        return is_classes or not self.offered or self._picks(batch)

    def check_value(self, name: str, batch: Batch) -> None:
        """Check that a batch has a measure whose mean over samples says something.

        Raises:
            InputError: if there is no such measure, or it needs a target or scores of classes that are not there.
        """
        if name in self.user or name in self.offered:
            return
        if name not in HIGHER_IS_BETTER:
            known = [*HIGHER_IS_BETTER, *self.offered, *self.user]
            raise InputError(
                f"value must be the name of a measure, one of {', '.join(map(repr, known))}, not {name!r}: pass one of "
                "your own as measures={'name': function}"
            )
        of_classes = name not in {"target_score", "target_score_drop"}
        if of_classes and self.n_classes is None:
            outputs = outputs_of(self._network)
            raise InputError(
                f"value={name!r} is a measure of scores (B, classes), and {self._network.name} returns "
                f"{form(outputs)}: name a measure of your own, such as one of {measure_line(outputs)}"
            )
        scored = self._scored(Tensor(), batch, {})
        if name in {"loss", "correct"} and scored.labels() is None:
            raise InputError(f"value={name!r} needs a target: the class of each sample")
        if not of_classes and not scored.is_picked:
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
        scores = scores_of(outputs)
        values = {} if scores is None else self._built_in(scores, batch, intact, reference)
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
            beside = self._scored(_scores(intact), batch, reference)
            for name, change in CHANGES.items():
                if self._is_wanted(name):
                    _keep(scored.values, name, change(scored, beside))
        return scored.values

    def _is_wanted(self, name: str) -> bool:
        return self._wanted is None or name in self._wanted

    def _scored(self, scores: Tensor, batch: Batch, values: dict[str, Tensor]) -> Scored:
        is_classes = self.n_classes is not None
        is_picked = (is_classes and batch.target is not None and batch.names_outputs) or (
            not self.user and self._picks(batch)
        )
        return Scored(scores, batch, is_classes, is_picked, values)


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


def _scores(outputs: Any) -> Tensor:
    """Return the scores of outputs that are known to hold them."""
    scores = scores_of(outputs)
    assert scores is not None  # noqa: S101 - they were found in the outputs that were captured
    return scores


def _checked(name: str, values: Any, size: int) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != (size,):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"measure {name!r} must return a tensor of shape ({size},), one number per sample, not {got}")
    check_dense(values, f"what measure {name!r} returns")
    if values.is_meta:
        raise InputError(f"what measure {name!r} returns is on the meta device, where tensors have no values")
    return values.detach().clone()  # a measure may use its own tensor again
