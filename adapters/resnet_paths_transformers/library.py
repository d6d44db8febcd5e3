"""The library: imported when it is asked for, the classes that it has, and what each of them is for."""

import importlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import nn

NAME = "transformers"

# What the library's tables of classes are called, in the order in which a model for trying is looked for, and the task
# of their classes. A class that several tables have is for the first of these tasks.
_TASKS = (
    ("SEQ_TO_SEQ_CAUSAL_LM", "sequence_to_sequence"),
    ("SPEECH_SEQ_2_SEQ", "sequence_to_sequence"),
    ("MASKED_LM", "masked_tokens"),
    ("CAUSAL_LM", "next_token"),
    ("IMAGE_TEXT_TO_TEXT", "next_token"),
    ("IMAGE_CLASSIFICATION", "classification"),
    ("SEMANTIC_SEGMENTATION", "segmentation"),
    ("DEPTH_ESTIMATION", "regression"),
    ("AUDIO_CLASSIFICATION", "classification"),
    ("VIDEO_CLASSIFICATION", "classification"),
    ("TIME_SERIES_CLASSIFICATION", "classification"),
    ("TIME_SERIES_REGRESSION", "regression"),
    ("SEQUENCE_CLASSIFICATION", "classification"),
    ("TOKEN_CLASSIFICATION", "token_classification"),
)
_BASE = "MODEL_MAPPING_NAMES"


def is_installed() -> bool:
    """Whether the library is installed; it is not imported."""
    try:
        return importlib.util.find_spec(NAME) is not None
    except (ImportError, ValueError):
        return False


@cache
def library() -> Any:
    """Return the library, imported."""
    return importlib.import_module(NAME)


@cache
def base_class() -> type[nn.Module]:
    """Return the class that all of the library's models extend."""
    found: type[nn.Module] = library().PreTrainedModel
    return found


def is_model(module: nn.Module) -> bool:
    """Whether a module is one of the library's models, or extends one; imports nothing for others."""
    own = any(one.__module__.partition(".")[0] == NAME for one in type(module).__mro__)
    return own and isinstance(module, base_class())


@cache
def architectures() -> dict[str, str]:
    """Return the name of the configuration of each architecture, such as `gpt2: GPT2Config`, in the library's order."""
    return dict(importlib.import_module(f"{NAME}.models.auto.configuration_auto").CONFIG_MAPPING_NAMES)


def table(name: str) -> dict[str, tuple[str, ...]]:
    """Return a table of the library: the classes of each architecture."""
    tables = importlib.import_module(f"{NAME}.models.auto.modeling_auto")
    found = getattr(tables, name, {})
    return {key: (value,) if isinstance(value, str) else tuple(value) for key, value in found.items()}


def task_tables() -> Iterator[tuple[dict[str, tuple[str, ...]], str]]:
    """Yield the tables that have a task, with it."""
    for name, task in _TASKS:
        yield table(f"MODEL_FOR_{name}_MAPPING_NAMES"), task


def class_for(architecture: str) -> str | None:
    """Return the class of an architecture that has the first head of the order above; None where it has no class."""
    for classes, _ in task_tables():
        if architecture in classes:
            return classes[architecture][0]
    return next(iter(table(_BASE).get(architecture, ())), None)


@cache
def task_of(class_name: str) -> str | None:
    """Return what a class is for by its name; None for a head without a task, such as that of a detector."""
    for classes, task in task_tables():
        if any(class_name in names for names in classes.values()):
            return task
    return "embedding" if any(class_name in names for names in table(_BASE).values()) else None


def known_task(model: Any) -> str | None:
    """Return what a model is for, by the first of its classes that the library's tables have."""
    own = (one.__name__ for one in type(model).__mro__ if one.__module__.partition(".")[0] == NAME)
    task = next((task for name in own if (task := task_of(name))), None)
    config = model.config
    if task == "next_token" and getattr(config, "is_encoder_decoder", False):
        return "sequence_to_sequence"
    if task == "classification" and _is_regression(config):
        return "regression"
    return task


def _is_regression(config: Any) -> bool:
    return getattr(config, "problem_type", None) == "regression" or getattr(config, "num_labels", None) == 1
