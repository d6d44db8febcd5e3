"""Numbers of several trainings of one architecture as one: their mean, with an interval over trainings."""

from collections.abc import Iterable, Sequence

import numpy as np
import scipy
import xarray as xr

REPLICATE = "replicate"
SHARED = ("relative_depth", "share_of_blocks", "chance_error")
"""Numbers that all trainings of an architecture share, which have no interval."""
_ENDS = ("_low", "_high")
_SHARES = frozenset({"error", "prediction_changed", "intact_error", "notable_share"})
"""Measures that lie between 0 and 1, and so do the ends of their intervals."""


class LeftOutError(Exception):
    """A study of a kind that is compared cannot be put on the common axis; the text says why."""


def measured_names(names: Iterable[object]) -> list[str]:
    """Return the names that are no end of another one's interval."""
    known = [str(name) for name in names]
    return [name for name in known if not any(name.endswith(end) and name.removesuffix(end) in known for end in _ENDS)]


def over_replicates(each: Sequence[xr.Dataset], level: float) -> xr.Dataset:
    """Return the mean of each number over trainings, with its interval.

    Of one training, intervals stay those over its samples. Of several, they are those of the mean over trainings, by
    Student's t: what other trainings would give on the same samples.

    Args:
        each: for each training the same numbers along the same dims; counts are integers.
        level: level of confidence.

    Raises:
        LeftOutError: if their dims differ.

    Returns:
        A Dataset with `NAME`, `NAME_low` and `NAME_high`, `n_replicates`, and `replicate_NAME` with the value of each
        training along dim `replicate`; the smallest of counts, and the
        texts of all trainings.
    """
    names = [name for name in each[0].data_vars if all(name in one for one in each)]
    try:
        together = xr.concat(
            [one[names] for one in each], xr.Variable(REPLICATE, np.arange(len(each))), data_vars="all",
            coords="minimal", compat="override", join="exact", combine_attrs="override",
        )  # fmt: skip
    except ValueError as error:  # xarray's, where the axes differ
        raise LeftOutError("its trainings have no common axis: run the same study on each") from error
    found = each[0] if len(each) == 1 else _means(each[0][names], together, level)
    numbers = [name for name in measured_names(found.data_vars) if found[name].dtype.kind == "f" and name not in SHARED]
    own = {f"{REPLICATE}_{name}": _of_each(together[name]) for name in numbers}
    count = xr.DataArray(len(each), attrs={"long_name": "number of trainings", "units": "1"})
    return found.assign(own | {"n_replicates": count})


def _means(first: xr.Dataset, together: xr.Dataset, level: float) -> xr.Dataset:
    found: dict[str, xr.DataArray] = {}
    for name in measured_names(first.data_vars):
        values = together[name]
        if name in SHARED:
            found[name] = first[name]
        elif values.dtype.kind == "f":
            found |= _interval(values, level)
        elif values.dtype.kind in "iu":
            found[name] = values.min(REPLICATE).astype(values.dtype)
        elif values.ndim == 1:
            found[name] = xr.DataArray(", ".join(dict.fromkeys(map(str, values.values))))
        else:
            found[name] = first[name]
        found[name].attrs = first[name].attrs
    return xr.Dataset(found, attrs=first.attrs)


def _interval(values: xr.DataArray, level: float) -> dict[str, xr.DataArray]:
    name = str(values.name)
    count = values.notnull().sum(REPLICATE)
    mean, spread = values.mean(REPLICATE), values.std(REPLICATE, ddof=1) / np.sqrt(count)
    reach = spread * scipy.stats.t.ppf((1 + level) / 2, np.where(count > 1, count - 1, np.nan))
    low, high = mean - reach, mean + reach
    if name in _SHARES:
        low, high = low.clip(min=0), high.clip(max=1)
    for end, word in ((low, "lower"), (high, "upper")):
        text = (
            f"{word} end of the {100 * level:g} % interval over trainings of the {values.attrs.get('long_name', name)}"
        )
        end.attrs = {"long_name": text, "units": values.attrs.get("units", "1")}
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _of_each(values: xr.DataArray) -> xr.DataArray:
    text = f"{values.attrs.get('long_name', values.name)}, of each training"
    return values.assign_attrs({"long_name": text, "units": values.attrs.get("units", "1")})
