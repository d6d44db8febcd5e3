"""Words for numbers: what the sentences of all figures share.

A sentence claims nothing but what the numbers say, whatever model and measure they are of.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting.effects import Effect, default_measure, effect_of, worst
from resnet_paths_plugin.plotting.style import FloatArray, signed

NAMED = 3
SMALL_RISE = 0.01
NOTABLE_CORRELATION = 0.5
_WHAT = {"error": "error", "prediction_changed": "share of changed predictions"}


def percent(fraction: float) -> str:
    """A fraction in percent, with one decimal, or one digit where that would be 0.0."""
    value = 100 * float(fraction)
    return f"{value:.1g} %" if 0 < abs(value) < 0.05 else f"{value:.1f} %"


def study_effect(ds: xr.Dataset, change: str) -> Effect:
    """The effect that a report tells of: of the default measure.

    Raises:
        InputError: if no value of it is finite.
    """
    effect = effect_of(ds, change, default_measure(ds, change), "the report")
    if not np.isfinite(effect.values).any():
        raise InputError(f"every value of '{effect.name}' is NaN or infinite: there is nothing to tell")
    return effect


def measure_name(ds: xr.Dataset, effect: Effect) -> str:
    """What the measure is, with its unit."""
    if effect.name in _WHAT:
        return _WHAT[effect.name]
    values = ds[effect.name]
    text = " ".join(str(values.attrs.get("long_name", spoken(effect.name))).split())
    unit = str(values.attrs.get("units", "1"))
    return text if unit in {"", "1"} else f"{text} (in {unit})"


def amount(effect: Effect, value: float) -> str:
    """A value of a measure: fractions in percent."""
    return percent(value) if effect.is_fraction else f"{float(value):.3g}"


def interval_texts(effect: Effect, low: FloatArray, high: FloatArray) -> list[str]:
    """The 95 % interval of each value, to stand behind it; empty where there is none."""
    return [
        f" [{_bare(effect, one)} to {amount(effect, other)}]" if np.isfinite([one, other]).all() else ""
        for one, other in zip(low, high, strict=True)
    ]


def effect_texts(effect: Effect, ends: tuple[float, float, float]) -> str:
    """A difference of a measure with its 95 % interval: of fractions in percentage points, with its sign."""
    scale, unit = (100, " percentage points") if effect.is_fraction else (1, "")
    value, low, high = (f"{scale * one:+.2g}".replace("-", "\N{MINUS SIGN}") for one in ends)
    return f"{value}{unit} [{low} to {high}]"


def _bare(effect: Effect, value: float) -> str:
    return amount(effect, value).removesuffix(" %")


def intact(ds: xr.Dataset, effect: Effect) -> str:
    """What the intact network does, as the beginning of an enumeration; empty where it is not known."""
    if effect.intact is None:
        return ""
    shares = "correct" in ds and ds["correct"].dtype.kind == "f"  # of a sample's tokens or pixels
    total = None if shares else ds.sizes.get("sample")
    count = f" ({round(effect.intact * total)} of {total} samples)" if effect.name == "error" and total else ""
    return f"{amount(effect, effect.intact)}{count} in the intact network and "


def extremes(effect: Effect, values: FloatArray, names: Sequence[str], preposition: str) -> str:
    """Name the changes that do most: up to three, never an arbitrary few among equals."""
    distance = values if effect.is_fraction or effect.intact is None else np.abs(values - effect.intact)
    superlative = "highest" if effect.is_fraction or effect.intact is None else "farthest from the intact network's"
    named = worst(distance, NAMED)
    if not named:
        equals = distance == np.nanmax(distance)
        return f"it is {superlative}, {amount(effect, values[equals.argmax()])}, in {int(equals.sum())} of them"
    return f"it is {superlative} {preposition} {listed([names[place] for place in named])}"


def span(effect: Effect, values: FloatArray) -> str:
    """The smallest and the largest value of a measure."""
    low, high = amount(effect, values.min()), amount(effect, values.max())
    return low if low == high else f"{low} to {high}"


def correlation_of(correlation: float | None, of_what: str) -> str:
    """The end of a sentence that states a rank correlation; empty where there is none."""
    if correlation is None:
        return ""
    strength = "" if abs(correlation) >= NOTABLE_CORRELATION else "only "
    return f"; Spearman's rank correlation {of_what} is {strength}{signed(correlation)}"


def share_of(share: float) -> str:
    """A share in percent, also one that is tiny."""
    value = 100 * float(share)
    return f"{value:.1e} %" if 0 < value < 0.001 else f"{value:.2g} %" if value < 10 else f"{value:.0f} %"


def number(value: float) -> str:
    """A number with three digits."""
    return f"{float(value):.3g}".replace("-", "\N{MINUS SIGN}")


def spoken(name: str) -> str:
    """A variable's name in words."""
    return name.replace("_", " ")


def listed(parts: Sequence[str]) -> str:
    """An enumeration."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
