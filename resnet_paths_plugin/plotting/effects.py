"""Effect: one number for each change of a network, whichever measure its study holds, and how to draw it.

Shared by the figures of lesions, reorderings and schedules; knows none of them.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting import style
from resnet_paths_plugin.plotting.style import FloatArray
from resnet_paths_plugin.results.derived import refreshed
from resnet_paths_plugin.results.schema import COORDINATES

DEFAULT_MEASURES = ("error", "prediction_changed")
"""What is drawn where no measure is named: the first of them that is there, before any other."""

_SHORT_LABELS = {"error": "error", "prediction_changed": "changed predictions", "correct": "correct predictions"}
_NO_MEASURES = COORDINATES | frozenset({
    "deleted", "prediction", "order", "kendall_tau", "kendall_tau_all_blocks", "changed",
})  # fmt: skip


@dataclass(frozen=True)
class Effect:
    """One number for each change of the network, and how to read it.

    Attributes:
        name: the variable.
        values: mean over samples, shape `[changes]`.
        intact: the same for the intact network; None where it is not known or says nothing.
        label: what the number is, with its unit.
        is_fraction: whether it is a share of the samples.
    """

    name: str
    values: FloatArray
    intact: float | None
    label: str
    is_fraction: bool


def measures(dataset: xr.Dataset, change: str) -> list[str]:
    """The variables that say what each change did, by name: not the change itself, and no class."""
    return sorted(
        str(name)
        for name, values in dataset.data_vars.items()
        if change in values.dims and name not in _NO_MEASURES and values.dtype.kind in "biuf"
    )


def default_measure(dataset: xr.Dataset, change: str) -> str | None:
    """The measure that is drawn where none is named: a default one, else the study's first; None without any.

    Studies of outputs that are no class scores hold the user's own measures alone.
    """
    known = measures(dataset, change)
    first = ("loss",) if "perplexity" in known else DEFAULT_MEASURES  # of texts, in nats for each token
    return next((name for name in (*first, *known) if name in known), None)


def effect_of(dataset: xr.Dataset, change: str, measure: str | None, figure: str) -> Effect:
    """What each change did: the named measure, else the default one.

    Args:
        dataset: result of a study of changed networks.
        change: its study dimension, such as `"lesion"`.
        measure: a variable that has that dimension; it is averaged over all others.
        figure: name of the figure, for the error's text.

    Raises:
        InputError: if the measure is not there, or none is named and there is none.
    """
    dataset = refreshed(dataset)
    known = measures(dataset, change)
    name = measure or default_measure(dataset, change)
    if name not in known:
        missing = f"'{measure}'" if measure else "measure"
        raise InputError(
            f"{figure} finds no {missing} along '{change}' in this dataset; "
            f"pass measure= one of: {', '.join(known) or '(it holds no measure at all)'}"
        )
    values = dataset[name]
    is_fraction = name == "error" or values.dtype == np.bool_
    intact = dataset.get(f"intact_{name}")
    return Effect(
        name=name,
        values=mean(values, keep=change),
        intact=None if intact is None else float(mean(intact)),
        label=style.wrapped(label(values, is_fraction=is_fraction)),
        is_fraction=is_fraction,
    )


def mean(values: xr.DataArray, keep: Hashable | None = None) -> FloatArray:
    """The mean over all dimensions but one."""
    others = [dim for dim in values.dims if dim != keep]
    return np.asarray(values.astype(np.float64).mean(others).values, dtype=np.float64)


def label(values: xr.DataArray, *, is_fraction: bool = False) -> str:
    """What a variable is, with its unit where it has one; fractions are shown in percent."""
    name = str(values.name)
    text = _SHORT_LABELS.get(name) or str(values.attrs.get("long_name", name.replace("_", " ")))
    unit = "%" if is_fraction else str(values.attrs.get("units", "1"))
    return style.plain(text if unit in {"", "1"} else f"{text} ({unit})")


def worst(values: FloatArray, most: int) -> list[int]:
    """The places of the largest values, largest first: at most so many, and never an arbitrary few among equals."""
    (known,) = np.nonzero(np.isfinite(values))
    order = known[np.argsort(-values[known], kind="stable")]
    ranked = values[order]
    counts = [count for count in range(1, min(most, len(ranked) - 1) + 1) if ranked[count - 1] > ranked[count]]
    return [int(place) for place in order[: max(counts, default=0)]]


def mark_levels(
    ax: Axes, effect: Effect, chance: float | None, *, color: str | None = None, label: str | None = None
) -> None:
    """Draw the lines that the effect is to be compared with; a level that is there already gets no second entry."""
    if effect.intact is not None:
        text = "intact network" if label is None else f"{style.plain(label)}, intact"
        entry, own = style.once(ax, text), color or style.BLACK
        ax.axhline(effect.intact, color=own, linestyle="--", linewidth=1.2, label=entry)
    if chance is not None:
        ax.axhline(chance, color=style.GREY, linestyle=":", linewidth=1.2, label=style.once(ax, "chance"))


def finish(ax: Axes, effect: Effect) -> None:
    """Label the y axis and put the legend where it covers nothing."""
    ax.set_ylabel(effect.label)
    if effect.is_fraction:
        style.percent_axis(ax)
    style.legend_above(ax)
