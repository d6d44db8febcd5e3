"""The measures that are built in: of one network's scores, and of how they differ from the intact network's.

Adding one takes a function here, its line in `MEASURES` or `CHANGES`, and its meaning in `results/schema.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from captum._utils.common import _select_targets
from torch import Tensor
from torch.nn import functional

from resnet_paths_plugin.execution.batches import Batch

NO_CLASS = -1
"""The prediction where scores name no class: one of them is NaN or plus infinity, or none is finite."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What a network says of some samples.

    Attributes:
        scores: its scores, `[B, classes]`, or of another shape where `is_classes` is False.
        batch: the samples.
        is_classes: whether the scores are those of classes.
        is_picked: whether the target picks one score of each sample.
        values: what was measured of them so far, `[B]` by name, in the order of `MEASURES`.
    """

    scores: Tensor
    batch: Batch
    is_classes: bool
    is_picked: bool
    values: dict[str, Tensor]

    def labels(self) -> Tensor | None:
        """Return the class of each sample, `[B]`; None where targets are no classes."""
        labels = self.batch.labels() if self.is_classes else None
        return None if labels is None else labels.to(self.scores.device)


def prediction(scored: Scored) -> Tensor | None:
    """Return the class with the largest score."""
    if not scored.is_classes:
        return None
    # Minus infinity rules a class out.
    broken = scored.scores.isnan() | (scored.scores == torch.inf)
    names_a_class = ~broken.any(1) & torch.isfinite(scored.scores).any(1)
    return scored.scores.argmax(1).where(names_a_class, NO_CLASS)


def target_score(scored: Scored) -> Tensor | None:
    """Return the score that the target picks."""
    if not scored.is_picked:
        return None
    selected: Tensor = _select_targets(scored.scores, scored.batch.target)
    return selected.flatten()


def loss(scored: Scored) -> Tensor | None:
    """Return the cross-entropy of the label, in nats."""
    labels = scored.labels()
    # float64, so that small losses keep their digits whatever the model computes in
    return None if labels is None else functional.cross_entropy(scored.scores.double(), labels, reduction="none")


def correct(scored: Scored) -> Tensor | None:
    """Return whether the predicted class is the label."""
    labels = scored.labels()
    return None if labels is None else scored.values["prediction"] == labels


def target_score_drop(changed: Scored, intact: Scored) -> Tensor | None:
    """Return how far the target's score is below the intact network's."""
    return intact.values["target_score"] - changed.values["target_score"] if changed.is_picked else None


def prediction_changed(changed: Scored, intact: Scored) -> Tensor | None:
    """Return whether the predicted class is another one."""
    return changed.values["prediction"] != intact.values["prediction"] if changed.is_classes else None


def kl_divergence(changed: Scored, intact: Scored) -> Tensor | None:
    """Return the Kullback-Leibler divergence from the intact output to the changed one, in nats."""
    if not changed.is_classes:
        return None
    log_intact, log_changed = (functional.log_softmax(one.scores.double(), 1) for one in (intact, changed))
    return functional.kl_div(log_changed, log_intact, reduction="none", log_target=True).sum(1)


MEASURES: Mapping[str, Callable[[Scored], Tensor | None]] = {
    "prediction": prediction,
    "target_score": target_score,
    "loss": loss,
    "correct": correct,
}
"""Of one network; each sees what those before it have measured, and returns None where it does not apply."""

CHANGES: Mapping[str, Callable[[Scored, Scored], Tensor | None]] = {
    "target_score_drop": target_score_drop,
    "prediction_changed": prediction_changed,
    "kl_divergence": kl_divergence,
}
"""Of a changed network, beside the intact one."""

NEEDS: Mapping[str, tuple[str, ...]] = {
    "correct": ("prediction",),
    "target_score_drop": ("target_score",),
    "prediction_changed": ("prediction",),
}
"""What a measure reads of those before it."""

HIGHER_IS_BETTER: Mapping[str, bool] = {
    "target_score": True,
    "loss": False,
    "correct": True,
    "target_score_drop": False,
    "prediction_changed": False,
    "kl_divergence": False,
}
"""Whether more of a measure means a better network: the measures whose means over samples say something."""
