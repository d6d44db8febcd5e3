"""The measures that are built in: of one network's scores, and of how they differ from the intact network's.

Adding one takes a function here, its line in `MEASURES` or `CHANGES`, and its meaning in `results/schema.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from captum._utils.common import _select_targets
from torch import Tensor
from torch.nn import functional

from resnet_paths_plugin.execution.batches import Batch
from resnet_paths_plugin.tasks.readout import Positions

NO_CLASS = -1
"""The prediction where scores name no class: one of them is NaN or plus infinity, or none is finite."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What a network says of some samples.

    Attributes:
        scores: its scores, `[B, *]`.
        batch: the samples.
        positions: class scores and labels of each sample's positions; None where the scores are not those of classes.
        is_picked: whether the target picks one score of each sample.
        values: what was measured of them so far, `[B]` by name, in the order of `MEASURES`.
    """

    scores: Tensor
    batch: Batch
    positions: Positions | None
    is_picked: bool
    values: dict[str, Tensor]

    @cached_property
    def classes(self) -> Tensor:
        """The class with the largest score at each position, `[B, P]`, or `NO_CLASS`."""
        assert self.positions is not None  # noqa: S101 - asked for where there are classes
        scores = self.positions.scores
        # Minus infinity rules a class out.
        broken = scores.isnan() | (scores == torch.inf)
        names_a_class = ~broken.any(-1) & torch.isfinite(scores).any(-1)
        return scores.argmax(-1).where(names_a_class, NO_CLASS)


def prediction(scored: Scored) -> Tensor | None:
    """Return the class with the largest score; None where a sample has several positions."""
    return scored.classes[:, 0] if scored.positions is not None and scored.positions.alone else None


def target_score(scored: Scored) -> Tensor | None:
    """Return the score that the target picks; the mean over positions where it has a label for each."""
    if scored.is_picked:
        selected: Tensor = _select_targets(scored.scores, scored.batch.target)
        return selected.flatten()
    where = scored.positions
    if where is None or where.alone or where.labels is None:
        return None
    return where.pooled(where.scores.gather(-1, where.labels[..., None])[..., 0])


def loss(scored: Scored) -> Tensor | None:
    """Return the cross-entropy of the label, in nats; the mean over positions."""
    where = scored.positions
    if where is None or where.labels is None:
        return None
    return where.pooled(_by_sample(_cross_entropy, where, where.scores, where.labels))


def correct(scored: Scored) -> Tensor | None:
    """Return whether the predicted class is the label; the share of positions where it is."""
    where = scored.positions
    return None if where is None or where.labels is None else where.pooled(scored.classes == where.labels)


def target_score_drop(changed: Scored, intact: Scored) -> Tensor | None:
    """Return how far the target's score is below the intact network's."""
    drops = "target_score" in changed.values
    return intact.values["target_score"] - changed.values["target_score"] if drops else None


def prediction_changed(changed: Scored, intact: Scored) -> Tensor | None:
    """Return whether the predicted class is another one; the share of positions where it is."""
    where = changed.positions
    return None if where is None else where.pooled(changed.classes != intact.classes)


def kl_divergence(changed: Scored, intact: Scored) -> Tensor | None:
    """Return the Kullback-Leibler divergence from the intact output to the changed one, in nats; its mean."""
    where, before = changed.positions, intact.positions
    if where is None or before is None:
        return None
    return where.pooled(_by_sample(_divergence, where, where.scores, before.scores))


def cosine_distance(changed: Scored, intact: Scored) -> Tensor | None:
    """Return 1 minus the cosine of the intact embedding and the changed one."""
    if changed.batch.readout.layout != "embedding":
        return None
    one, other = (each.scores.double().flatten(1) for each in (changed, intact))
    return 1 - functional.cosine_similarity(one, other)


def _cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    # float64, so that small losses keep their digits whatever the model computes in
    return functional.cross_entropy(scores.double(), labels, reduction="none")


def _divergence(changed: Tensor, intact: Tensor) -> Tensor:
    log_intact, log_changed = (functional.log_softmax(scores.double(), 1) for scores in (intact, changed))
    return functional.kl_div(log_changed, log_intact, reduction="none", log_target=True).sum(1)


def _by_sample(function: Callable[..., Tensor], where: Positions, *tensors: Tensor) -> Tensor:
    """Return a function's values at each position, `[B, P]`; of many positions one sample at a time, for the memory."""
    if where.alone:
        first = [tensor[:, 0] for tensor in tensors]
        return function(*first)[:, None]
    return torch.stack([function(*parts) for parts in zip(*tensors, strict=True)])


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
    "cosine_distance": cosine_distance,
}
"""Of a changed network, beside the intact one."""

NEEDS: Mapping[str, tuple[str, ...]] = {
    "target_score_drop": ("target_score",),
}
"""What a measure reads of those before it."""

HIGHER_IS_BETTER: Mapping[str, bool] = {
    "target_score": True,
    "loss": False,
    "correct": True,
    "target_score_drop": False,
    "prediction_changed": False,
    "kl_divergence": False,
    "cosine_distance": False,
}
"""Whether more of a measure means a better network: the measures whose means over samples say something."""
