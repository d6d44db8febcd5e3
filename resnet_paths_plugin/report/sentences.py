"""One sentence for each figure: what there is to see in it, in this run's numbers.

A sentence claims nothing but what the numbers say, whatever model and measure they are of.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from resnet_paths_plugin import paths
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting import block_axis
from resnet_paths_plugin.plotting.classes import ClassRises
from resnet_paths_plugin.plotting.damage import Damage, damage, default_measure, mean, rank_correlation, worst
from resnet_paths_plugin.plotting.schedules import scales
from resnet_paths_plugin.plotting.style import FloatArray, signed

NAMED = 3
SIZES_SHOWN = 5
SMALL_RISE = 0.01
NOTABLE_CORRELATION = 0.5
_WHAT = {"error": "error", "prediction_changed": "share of changed predictions"}


def single_lesions(ds: xr.Dataset, plain: xr.Dataset | None = None) -> str:
    """Fig. 3: the intact network, the median deletion, the worst ones; beside them a plain network's."""
    effect, lesions = _damage(ds, "lesion"), block_axis.single_lesions(ds, "the report")
    values = effect.values[lesions.chosen]
    names = [
        f"{name} ({_amount(effect, value)}{', projection skip' if projection else ''})"
        for name, value, projection in zip(lesions.names, values, lesions.projection, strict=True)
    ]
    said = f"The {_what(ds, effect)} is {_intact(ds, effect)}"
    if len(values) == 1:
        said += f"{_amount(effect, values[0])} without {lesions.names[0]}, the only {lesions.unit} deleted"
    elif np.ptp(values) == 0:
        said += f"{_amount(effect, values[0])} whichever one of {len(values)} {lesions.unit}s is deleted"
    else:
        said += (
            f"{_amount(effect, np.nanmedian(values))} in the median of {len(values)} deletions of one {lesions.unit}; "
            f"{_extremes(effect, values, names, 'without')}"
        )
        if effect.is_fraction and effect.intact is not None:
            small = int((np.abs(values - effect.intact) < SMALL_RISE).sum())
            said += f"; {small} of {len(values)} deletions change it by less than one percentage point"
    if plain is not None:
        other = damage(plain, "lesion", effect.name, "the report")
        layers = block_axis.single_lesions(plain, "the report")
        median = _amount(other, np.nanmedian(other.values[layers.chosen]))
        said += (
            f". In the plain network it is {_intact(plain, other)}{median} in the median of {len(layers.chosen)} "
            f"deletions of one {layers.unit}"
        )
    return said + "."


def class_lesions(found: ClassRises, names: Sequence[str]) -> str:
    """Heat map by class: where the error rises most, and how often it does at all."""
    pairs = f"{found.rise.size} pairs of class and deleted {found.lesions.unit}"
    if found.rise.max() <= 0:
        return f"In none of {pairs} does the error of the class rise."
    row, column = divmod(int(found.rise.argmax()), found.rise.shape[1])
    equals = int(np.isclose(found.rise, found.rise.max(), rtol=0, atol=1e-12).sum())
    raised = int((found.rise > 0).sum())
    where = f"of class {names[row]} ({found.samples[row]} samples) without {found.lesions.names[column]}"
    return (
        f"The largest rise of a class's error is {100 * found.rise.max():.1f} percentage points, "
        f"{where if equals == 1 else f'in {equals} of {pairs}'}; the error of the class rises in {raised} of {pairs}."
    )


def random_lesions(ds: xr.Dataset, chance: float | None = None) -> str:
    """Fig. 5a: the mean damage at a few numbers of deletions."""
    effect = _damage(ds, "lesion")
    sizes = ds["n_deleted"].values
    numbers = np.unique(sizes)
    shown = numbers[np.unique(np.linspace(0, len(numbers) - 1, SIZES_SHOWN).round().astype(int))]
    told = [f"{_amount(effect, np.nanmean(effect.values[sizes == size]))} with {size}" for size in shown]
    told[0] += f" {'random ' if is_random(ds) else ''}{'block' if shown[0] == 1 else 'blocks'} deleted"
    guess = "" if chance is None else f"; guessing would give {_amount(effect, chance)}"
    return f"The {_what(ds, effect)} is {_intact(ds, effect)}on average {_listed(told)}{guess}."


def is_random(ds: xr.Dataset) -> bool:
    """Whether the sets of blocks were drawn at random, as far as the study's provenance tells."""
    return str(ds.attrs.get("argument_n_deleted", "None")) != "None"


def reorderings(ds: xr.Dataset) -> str:
    """Fig. 5b: how the damage goes with Kendall's tau."""
    effect = _damage(ds, "reordering")
    tau = ds["kendall_tau"].values
    known = np.isfinite(tau)
    tau, values = tau[known], effect.values[known]
    what = _what(ds, effect)
    said = f"The {what} is {_intact(ds, effect)}"
    if not len(tau):
        return f"{said}not to be told by order: no order has a Kendall's tau."
    if np.ptp(tau) == 0 or np.ptp(values) == 0:
        return f"{said}{_span(effect, values)} over {len(tau)} {'orders' if len(tau) > 1 else 'order'} of the blocks."
    quarter = np.quantile(tau, [0.75, 0.25])
    near, far = np.nanmean(values[tau >= quarter[0]]), np.nanmean(values[tau <= quarter[1]])
    said += (
        f"{_amount(effect, near)} on average over the orders nearest to the intact one (Kendall's tau from "
        f"{_number(quarter[0])}) and {_amount(effect, far)} over those farthest from it (up to {_number(quarter[1])})"
    )
    correlation = rank_correlation(tau, values)
    return said + _told_correlation(correlation, f"of tau and {what} over {len(tau)} orders") + "."


def trainings(ds: xr.Dataset) -> str:
    """Fig. 8: mean damage of each training; with two, for how many blocks the second suffers less."""
    effects = [
        damage(ds.isel(training=index), "lesion", _damage(ds, "lesion").name, "")
        for index in range(ds.sizes["training"])
    ]
    names = [str(name) for name in ds["training"].values]
    told = [
        f"{_amount(effect, effect.values.mean())} after training '{name}'"
        + ("" if effect.intact is None else f" (intact {_amount(effect, effect.intact)})")
        for effect, name in zip(effects, names, strict=True)
    ]
    said = f"The {_what(ds, effects[0])} with one block deleted is, on average over blocks, {_listed(told)}"
    if len(effects) == 2:
        lower = int((effects[1].values < effects[0].values).sum())
        said += f"; it is lower after '{names[1]}' for {lower} of {len(effects[0].values)} blocks"
    return said + "."


def influence(ds: xr.Dataset) -> str:
    """Influence against lesion: which proxy ranks the blocks as their deletions do."""
    known = {
        str(name): float(value)
        for name, value in zip(ds["proxy"].values, ds["rank_correlation"].values, strict=True)
        if np.isfinite(value)
    }
    measure = str(ds["lesion_effect"].attrs.get("measure", ""))
    of_what = f"the rise of {_spoken(measure)} when each is deleted" if measure else "the effect of deleting each"
    if not known:
        return f"No proxy has a rank correlation over blocks with {of_what}."
    ranked = sorted(known, key=lambda name: -abs(known[name]))
    told = [f"{_spoken(name)} ({signed(known[name])} over {_n_compared(ds, name)} blocks)" for name in ranked]
    said = f"Spearman's rank correlation over blocks with {of_what}: {told[0]}"
    return said + (" is the only one." if len(told) == 1 else f" is farthest from 0, {told[-1]} nearest.")


def _n_compared(ds: xr.Dataset, proxy: str) -> int:
    """The number of blocks that have both the proxy and an effect."""
    effect = np.isfinite(ds["lesion_effect"].values)
    return int((effect & np.isfinite(mean(ds[proxy], keep="block"))).sum() if proxy in ds else effect.sum())


def proxies(ds: xr.Dataset) -> str:
    """Every proxy with its correlation, the farthest from 0 first."""
    values = ds["rank_correlation"].values
    order = np.argsort(-np.abs(np.nan_to_num(values)), kind="stable")
    told = [
        f"{_spoken(str(ds['proxy'].values[place]))} {signed(values[place]) if np.isfinite(values[place]) else 'none'}"
        for place in order
    ]
    return f"Spearman's rank correlations: {', '.join(told)}."


def schedules(ds: xr.Dataset, family: str) -> str:
    """One family of schedules: its damage, and what is particular to ranges skipped and branches scaled."""
    (chosen,) = np.nonzero(ds["family"].values == family)
    effect = _damage(ds, "schedule")
    values = effect.values[chosen]
    said = f"The {_what(ds, effect)} is {_intact(ds, effect)}"
    if family == "scaled_branches" and "entry_weight" in ds:
        weights = scales(ds, chosen)
        order = np.argsort(weights, kind="stable")
        ends = [f"{_amount(effect, values[place])} at weight {weights[place]:g}" for place in order[[0, -1]]]
        return f"{said}{_listed(ends) if len(order) > 1 else ends[0]} of the scaled branches."
    if len(values) == 1:
        return f"{said}{_amount(effect, values[0])} in the one schedule, {ds['schedule'].values[chosen[0]]}."
    names = [
        f"{name} ({_amount(effect, value)})" for name, value in zip(ds["schedule"].values[chosen], values, strict=True)
    ]
    said += f"{_amount(effect, np.nanmedian(values))} in the median of {len(values)} schedules"
    if np.ptp(values) > 0:
        said += f"; {_extremes(effect, values, names, 'in')}"
    if family == "skipped_ranges" and effect.is_fraction and effect.intact is not None:
        counts = ds["changed"].transpose("schedule", "block").values[chosen].sum(axis=1)
        harmless = np.flatnonzero(values - effect.intact < SMALL_RISE)
        if len(harmless):
            longest = harmless[counts[harmless].argmax()]
            said += (
                f"; the longest range that raises it by less than one percentage point has {counts[longest]} "
                f"{'block' if counts[longest] == 1 else 'blocks'} ({ds['schedule'].values[chosen[longest]]})"
            )
        else:
            said += "; every range raises it by one percentage point or more"
    return said + "."


def gates(ds: xr.Dataset) -> str:
    """How far open the gates are."""
    opened = ds["gate_openness"].mean("sample").dropna("block")
    if not opened.size:
        return "No block has a gate whose openness is known."
    low, high = (opened["block"].values[place] for place in (opened.values.argmin(), opened.values.argmax()))
    said = f"The {opened.size} gates are open to {float(opened.mean()):.2f} on average over blocks and samples"
    return said + (
        "."
        if opened.size == 1
        else f", least at {low} ({float(opened.min()):.2f}) and most at {high} ({float(opened.max()):.2f})."
    )


def path_lengths(ds: xr.Dataset) -> str:
    """Fig. 6: how many paths there are, and which lengths hold the gradient."""
    said = []
    shares = None
    if "log10_path_count" in ds:
        digits = ds["log10_path_count"].values
        # Relative to the largest, since counts of deep networks are beyond the range of floats.
        counts = 10.0 ** (digits - digits.max())
        total = digits.max() + np.log10(counts.sum())
        longest = int(ds["path_length"].values[-1])
        cut = "tail_gradient_norm" in ds
        shares = None if cut else counts / counts.sum()
        told = f"{10**total:.0f}" if total < 6 else f"about {10 ** (total % 1):.1f} x 10^{int(total)}"
        said.append(f"There are {told} paths of {'up to' if cut else 'lengths 0 to'} {longest} {_grade(ds)}")
    for measure, told in (("gradient_norm", "exact"), ("total_path_gradient", "sampled paths")):
        span = _effective_range(ds, measure)
        if span is not None:
            low, high = span
            inside = (ds["path_length"].values >= low) & (ds["path_length"].values <= high)
            share = "" if shares is None else f", which {_share(shares[inside].sum())} of all paths have"
            said.append(f"95 % of the gradient ({told}, summed over lengths) is in lengths {low:g} to {high:g}{share}")
    if not said:
        return "This study holds neither counts of paths nor an effective range."
    return "; ".join(said) + "."


def path_survival(n: int, deletions: Sequence[int]) -> str:
    """Fig. 7: what is left of short and of long paths."""
    d = deletions[-1]
    left = paths.survival(n, d)
    shown = sorted({min(n, length) for length in (1, max(1, n // 10), max(1, n // 4))})
    told = [f"{_share(left[length])} of the paths of length {length}" for length in shown]
    return f"Deleting {d} of {n} blocks leaves {_listed(told)}."


def path_maps(ds: xr.Dataset) -> str:
    """Maps: which length shown carries most, what is beyond, and whether the parts add up."""
    said = []
    if "gradient_norm" in ds:
        norms = ds["gradient_norm"].mean("sample")
        most = int(norms["path_length"].values[norms.values.argmax()])
        said.append(
            f"of the lengths up to {int(norms['path_length'].values[-1])}, length {most} has the largest gradient "
            f"(mean norm {float(norms.max()):.2g})"
        )
    if "tail_gradient_norm" in ds:
        said.append(f"all longer paths together have one of norm {float(ds['tail_gradient_norm'].mean()):.2g}")
    if "completeness_error" in ds:
        said.append(_completeness(ds))
    told = "; ".join(said) or "the gradients are shown without their norms"
    return f"{told[0].upper()}{told[1:]}."


def completeness(ds: xr.Dataset) -> str | None:
    """Whether the gradients by length add up to the ordinary one; None where the study does not say."""
    if "completeness_error" not in ds:
        return None
    return (
        f"All lengths add up to the ordinary gradient within {float(ds['completeness_error'].max()):.0e} of its norm."
    )


def _completeness(ds: xr.Dataset) -> str:
    largest = float(ds["completeness_error"].max())
    rest = ", with the rest," if "tail_gradient_norm" in ds else ""
    return f"all lengths{rest} add up to the ordinary gradient within {largest:.0e} of its norm"


def percent(fraction: float) -> str:
    """A fraction in percent, with one decimal, or one digit where that would be 0.0."""
    value = 100 * float(fraction)
    return f"{value:.1g} %" if 0 < abs(value) < 0.05 else f"{value:.1f} %"


def _damage(ds: xr.Dataset, change: str) -> Damage:
    effect = damage(ds, change, default_measure(ds, change), "the report")
    if not np.isfinite(effect.values).any():
        raise InputError(f"every value of '{effect.name}' is NaN or infinite: there is nothing to tell")
    return effect


def _what(ds: xr.Dataset, effect: Damage) -> str:
    if effect.name in _WHAT:
        return _WHAT[effect.name]
    values = ds[effect.name]
    text = " ".join(str(values.attrs.get("long_name", _spoken(effect.name))).split())
    unit = str(values.attrs.get("units", "1"))
    return text if unit in {"", "1"} else f"{text} (in {unit})"


def _amount(effect: Damage, value: float) -> str:
    return percent(value) if effect.is_fraction else f"{float(value):.3g}"


def _intact(ds: xr.Dataset, effect: Damage) -> str:
    """What the intact network does, as the beginning of an enumeration; empty where it is not known."""
    if effect.intact is None:
        return ""
    total = ds.sizes.get("sample")
    count = f" ({round(effect.intact * total)} of {total} samples)" if effect.name == "error" and total else ""
    return f"{_amount(effect, effect.intact)}{count} in the intact network and "


def _extremes(effect: Damage, values: FloatArray, names: Sequence[str], preposition: str) -> str:
    """Name the changes that do most: up to three, never an arbitrary few among equals."""
    distance = values if effect.is_fraction or effect.intact is None else np.abs(values - effect.intact)
    superlative = "highest" if effect.is_fraction or effect.intact is None else "farthest from the intact network's"
    named = worst(distance, NAMED)
    if not named:
        equals = distance == np.nanmax(distance)
        return f"it is {superlative}, {_amount(effect, values[equals.argmax()])}, in {int(equals.sum())} of them"
    return f"it is {superlative} {preposition} {_listed([names[place] for place in named])}"


def _span(effect: Damage, values: FloatArray) -> str:
    low, high = _amount(effect, values.min()), _amount(effect, values.max())
    return low if low == high else f"{low} to {high}"


def _told_correlation(correlation: float | None, of_what: str) -> str:
    if correlation is None:
        return ""
    strength = "" if abs(correlation) >= NOTABLE_CORRELATION else "only "
    return f"; Spearman's rank correlation {of_what} is {strength}{signed(correlation)}"


def _effective_range(ds: xr.Dataset, measure: str) -> tuple[float, float] | None:
    if "effective_length_low" not in ds or measure not in ds["measure"].values:
        return None
    low, high = (float(ds[f"effective_length_{end}"].sel(measure=measure)) for end in ("low", "high"))
    return (low, high) if np.isfinite(low) else None


def _grade(ds: xr.Dataset) -> str:
    grade = str(ds.attrs.get("argument_grade", "blocks"))
    return grade if grade in {"blocks", "layers"} else "steps"


def _share(share: float) -> str:
    value = 100 * float(share)
    return f"{value:.1e} %" if 0 < value < 0.001 else f"{value:.2g} %" if value < 10 else f"{value:.0f} %"


def _number(value: float) -> str:
    return f"{float(value):.3g}".replace("-", "\N{MINUS SIGN}")


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
