"""Measures of single tasks: functions of a model's scores and of the targets, one number for each sample."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from resnet_paths_plugin.errors import InputError


def squared_error(scores: Tensor, target: Any) -> Tensor:
    """Return the mean squared error of each sample, shape `[B]`.

    Args:
        scores: the predicted values, `[B, *]`.
        target: the true ones, of as many numbers.

    Raises:
        InputError: if the target has other numbers of values.

    Examples:
        >>> rpp.tasks.squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]])).tolist()
        [2.0]
    """
    truth = _tensor(target, scores)
    if truth.numel() != scores.numel() or truth.shape[:1] != scores.shape[:1]:
        raise InputError(
            f"targets of a regression have the shape of the predictions, {tuple(scores.shape)}, not "
            f"{tuple(truth.shape)}"
        )
    return (scores.double() - truth.reshape(scores.shape).double()).square().reshape(len(scores), -1).mean(1)


def mean_iou(scores: Tensor, target: Any) -> Tensor:
    """Return the intersection over union of each sample, mean over the classes that it has or is given, shape `[B]`.

    Args:
        scores: class scores of each pixel, `[B, C, *space]`.
        target: the class of each pixel, `[B, *space]`; 255 and negative numbers are not counted.

    Examples:
        >>> scores = torch.tensor([[[2.0, 2.0, 0.0]], [[0.0, 0.0, 1.0]]]).movedim(0, 1)  # classes 0, 0, 1
        >>> rpp.tasks.mean_iou(scores, torch.tensor([[0, 1, 1]])).tolist()
        [0.5]
    """
    truth = _tensor(target, scores).flatten(1)
    classes = resized(scores, _tensor(target, scores)).argmax(1).flatten(1)
    found = []
    for given, true in zip(classes, truth, strict=True):
        counted = (true >= 0) & (true != 255)
        pairs = given[counted] * scores.shape[1] + true[counted]
        table = torch.bincount(pairs, minlength=scores.shape[1] ** 2).reshape(scores.shape[1], -1).double()
        both = table.diagonal()
        either = table.sum(0) + table.sum(1) - both
        found.append((both / either)[either > 0].mean())
    return torch.stack(found)


def retrieval(gallery: Tensor) -> Callable[[Any, Any], Tensor]:
    """Return a measure of embeddings: whether the nearest one in a gallery, by cosine, is the sample's own.

    Args:
        gallery: embeddings `[N, D]`; the target of a sample is the number of its own.

    Examples:
        >>> found = rpp.tasks.retrieval(torch.eye(3))
        >>> found(torch.tensor([[0.9, 0.1, 0.0]]), torch.tensor([0])).tolist()
        [1.0]
    """
    directions = functional.normalize(gallery.double().flatten(1), dim=1)

    def retrieved(outputs: Any, target: Any) -> Tensor:
        own = functional.normalize(outputs.double().flatten(1), dim=1)
        return ((own @ directions.T.to(own.device)).argmax(1) == _tensor(target, own)).double()

    retrieved.higher_is_better = True  # type: ignore[attr-defined]  # which studies read
    return retrieved


def resized(scores: Tensor, target: Tensor) -> Tensor:
    """Return class scores `[B, C, *space]` on the pixels of a target `[B, *space]`, linearly interpolated."""
    space = target.shape[1:]
    if scores.shape[2:] == space:
        return scores
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}.get(len(space))
    if mode is None or scores.ndim != len(space) + 2:
        raise InputError(
            "targets of a segmentation have the class of each pixel, (B, *space), and have shape "
            f"{tuple(target.shape)} beside scores of shape {tuple(scores.shape)}"
        )
    return functional.interpolate(scores, size=tuple(space), mode=mode, align_corners=False)


def _tensor(target: Any, like: Tensor) -> Tensor:
    if not isinstance(target, Tensor):
        raise InputError(f"this measure needs a target that is a tensor, not {type(target).__name__}")
    return target.to(like.device)


squared_error.higher_is_better = False  # type: ignore[attr-defined]  # which studies read
mean_iou.higher_is_better = True  # type: ignore[attr-defined]  # which studies read
