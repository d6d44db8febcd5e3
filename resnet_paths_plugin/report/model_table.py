"""The table of models side by side as text, for the page and the command line."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from resnet_paths_plugin.plotting.effects import DEFAULT_MEASURES
from resnet_paths_plugin.plotting.figure import has
from resnet_paths_plugin.plotting.wording import number, percent, spoken

_NOTHING = "\N{EN DASH}"
_COUNTS = {"n_blocks": "blocks", "n_samples": "samples", "n_replicates": "trainings"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTable:
    """The models of a comparison, one row each.

    Attributes:
        columns: heads of the columns, the first that of the models' names.
        rows: cells as text.
        note: how to read it.
    """

    columns: list[str]
    rows: list[list[str]]
    note: str


def models_of(result: xr.DataTree | xr.Dataset) -> xr.Dataset | None:
    """Return the table of a comparison; None where the result is none."""
    groups = [result] if isinstance(result, xr.Dataset) else [node.to_dataset(inherit=False) for node in result.subtree]
    return next((ds for ds in groups if is_model_table(ds)), None)


def is_model_table(ds: xr.Dataset) -> bool:
    """Whether a dataset is group `models` of `rpp.compare`."""
    return "model" in ds.coords and has(ds, "n_blocks", "model") and has(ds, "n_replicates", "model")


def model_table(ds: xr.Dataset) -> ModelTable:
    """Return the table of a comparison, without columns in which no model has anything.

    Args:
        ds: group `models` of `rpp.compare`.
    """
    measure = str(ds.attrs.get("measure", "error"))
    tell = percent if measure in DEFAULT_MEASURES else number
    points = f"{100 * float(ds.attrs.get('notable', 0.01)):g}"
    cells = {"model": [str(name) for name in ds["model"].values]}
    if "architecture" in ds:
        cells["architecture"] = [str(text) for text in ds["architecture"].values]
    for name, head in _COUNTS.items():
        if name in ds and (name != "n_replicates" or (ds[name] > 1).any()):
            cells[head] = [str(count) for count in ds[name].values]
    cells |= {
        head: _intervals(ds, name, how)
        for name, head, how in (
            ("intact_error", "intact error", percent),
            ("mean_lesion_effect", f"{spoken(measure)}: mean effect of deleting a block", tell),
            ("mean_normalised_effect", "mean normalised effect", number),
            ("notable_share", f"blocks with an effect above {points} %", percent),
        )
    }
    cells["effective path lengths"] = _ranges(ds)
    cells["additive share"] = _intervals(ds, "additive_share", number)
    kept = {head: column for head, column in cells.items() if set(column) != {_NOTHING}}
    level = float(ds.attrs.get("level", 0.95))
    note = (
        f"In brackets the {100 * level:g} % interval: over samples, or over trainings where a model has several. Of "
        f"blocks with an effect above {points} %, it counts those whose own interval lies above, and those whose "
        "interval reaches above."
    )
    return ModelTable(columns=list(kept), rows=[list(row) for row in zip(*kept.values(), strict=True)], note=note)


def _intervals(ds: xr.Dataset, name: str, tell: Callable[[float], str]) -> list[str]:
    """Return a value of each model with its interval."""
    ends = [_values(ds, f"{name}{end}") for end in ("", "_low", "_high")]
    return [
        _NOTHING
        if not np.isfinite(value)
        else tell(value) + (f" ({tell(low)} to {tell(high)})" if np.isfinite([low, high]).all() else "")
        for value, low, high in zip(*ends, strict=True)
    ]


def _ranges(ds: xr.Dataset) -> list[str]:
    """Return the range of each model, and where its ends lie."""
    both = [_intervals(ds, f"effective_length_{end}", number) for end in ("low", "high")]
    return [f"{low} to {high}" if _NOTHING not in (low, high) else _NOTHING for low, high in zip(*both, strict=True)]


def _values(ds: xr.Dataset, name: str) -> list[float]:
    return [float(value) for value in ds[name].values] if name in ds else [np.nan] * ds.sizes["model"]
