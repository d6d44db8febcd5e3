"""Per-sample measures of a network's output, and of how it differs from the intact network's."""

from collections.abc import Callable, Mapping
from typing import Any

from captum._utils.common import _select_targets
from torch import Tensor
from torch.nn import functional

from resnet_paths_plugin.analyzers.batches import Batch, Target, check_target
from resnet_paths_plugin.analyzers.outputs import form, measure_line, outputs_of
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.network import UnraveledNetwork

Measure = Callable[[Any, Target], Tensor]
"""A user's measure: of the model's outputs and the batch's target, one number per sample, shape `[B]`.

It sees some samples at a time, and the target of the same samples.
"""


class Measures:
    """The measures of one study: built-in ones for outputs of shape `[B, classes]`, and the user's own.

    Args:
        network: the network, whose output shape decides what is built in.
        user: the user's measures by name.

    Raises:
        InputError: if nothing can be measured.
    """

    def __init__(self, network: UnraveledNetwork, user: Mapping[str, Measure] | None) -> None:
        self.user = dict(user or {})
        for name, measure in self.user.items():
            if not callable(measure):
                raise InputError(f"measure {name!r} must be callable as (outputs, target) -> [B], not {measure!r}")
        self.n_classes = _classes(network)
        if self.n_classes is None and not self.user:
            outputs = outputs_of(network)
            raise InputError(
                f"{network.name} returns {form(outputs)}, for which no measure is built in: pass "
                "measures={'name': function}, where function(outputs, target) returns one number per sample, shape "
                f"(B,). For instance {measure_line(outputs)}"
            )

    def check(self, batch: Batch) -> None:
        """Check a batch's targets before anything is run.

        Raises:
            InputError: if a target is out of range.
        """
        if self.n_classes is not None and (batch.names_outputs or not self.user):
            check_target(batch, self.n_classes)

    def of(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Return what is measured of one output: name to values, shape `[B]`."""
        values: dict[str, Tensor] = {}
        if self.n_classes is not None:
            values["prediction"] = outputs.argmax(1)
            if batch.target is not None and batch.names_outputs:
                values["target_score"] = _select_targets(outputs, batch.target).flatten()
            labels = batch.labels()
            if labels is not None:
                labels = labels.to(outputs.device)
                # float64, so that small losses keep their digits whatever the model computes in
                values["loss"] = functional.cross_entropy(outputs.double(), labels, reduction="none")
                values["correct"] = values["prediction"] == labels
        for name, measure in self.user.items():
            values[name] = _checked(name, measure(outputs, batch.target), batch.size)
        return values

    def against(self, outputs: Any, values: dict[str, Tensor], intact: Any, reference: dict[str, Tensor]) -> None:
        """Add to `values` how an output differs from the intact network's."""
        if self.n_classes is None:
            return
        values["prediction_changed"] = values["prediction"] != reference["prediction"]
        log_intact, log_changed = (functional.log_softmax(logits.double(), 1) for logits in (intact, outputs))
        values["kl_divergence"] = functional.kl_div(log_changed, log_intact, reduction="none", log_target=True).sum(1)
        if "target_score" in values:
            values["target_score_drop"] = reference["target_score"] - values["target_score"]


def _classes(network: UnraveledNetwork) -> int | None:
    """Return the number of classes where the output is one tensor `[B, classes]`."""
    leaves = [getattr(leaf, "meta", {}).get("val") for leaf in network.graph.outputs]
    if len(leaves) == 1 and isinstance(leaves[0], Tensor) and leaves[0].ndim == 2:
        # A single column is a score of something, and no distribution over classes.
        return int(leaves[0].shape[1]) if leaves[0].shape[1] > 1 else None
    return None


def _checked(name: str, values: Any, size: int) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != (size,):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"measure {name!r} must return a tensor of shape ({size},), one number per sample, not {got}")
    return values.detach()
