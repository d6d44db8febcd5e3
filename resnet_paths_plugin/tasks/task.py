"""Task: what a model is for, which says what its outputs and targets are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.tasks.measures import mean_iou, squared_error

Layout = Literal["classes", "tokens", "pixels", "values", "embedding"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model is for.

    Attributes:
        name: its name in results.
        layout: what the scores are: `"classes"`, `[B, classes]`; those of each token, `"tokens"`, `[B, T, classes]`;
            of each pixel, `"pixels"`, `[B, classes, *space]`; `"values"`, the target's own shape; or an `"embedding"`,
            `[B, *]`. Targets of tokens are `[B, T]`, those of pixels `[B, *space]`, both integers.
        shift: of tokens, how many positions a score lies before the label that it is for: 1 for the next token.
        ignored: labels that are not counted.
        perplexity: whether exp of the mean loss over labels is reported.
        measures: measures of this task besides those of its layout, by name: functions of the scores and the target
            of some samples that return one number for each, shape `[B]`. An attribute `higher_is_better` says whether
            more of one means a better network.

    Examples:
        >>> rpp.tasks.TASKS["next_token"].shift
        1
        >>> rpp.tasks.Task(name="heights", layout="values", measures={"squared_error": rpp.tasks.squared_error}).layout
        'values'
    """

    name: str
    layout: Layout
    shift: int = 0
    ignored: frozenset[int] = frozenset({-100})
    perplexity: bool = False
    measures: Mapping[str, Callable[[Tensor, Any], Tensor]] = field(default_factory=dict)


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task(name="classification", layout="classes"),
            Task(name="next_token", layout="tokens", shift=1, perplexity=True),
            Task(name="masked_tokens", layout="tokens", perplexity=True),
            Task(name="token_classification", layout="tokens"),
            Task(name="sequence_to_sequence", layout="tokens", perplexity=True),
            # 255 is no class in the labels of PASCAL VOC and of Cityscapes.
            Task(name="segmentation", layout="pixels", ignored=frozenset({-100, 255}), measures={"mean_iou": mean_iou}),
            Task(name="regression", layout="values", measures={"squared_error": squared_error}),
            Task(name="embedding", layout="embedding"),
        )
    }
)
"""The tasks that are known by name."""


def task_of(task: "Task | str | None") -> Task | None:
    """Return a task by its name, or as it is.

    Raises:
        InputError: if no task has this name.

    Examples:
        >>> rpp.tasks.task_of("segmentation").layout
        'pixels'
    """
    if isinstance(task, Task | None):
        return task
    if task not in TASKS:
        raise InputError(f"task must be one of {', '.join(map(repr, TASKS))}, or a rpp.tasks.Task, not {task!r}")
    return TASKS[task]
