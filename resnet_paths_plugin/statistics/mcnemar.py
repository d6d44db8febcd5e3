"""McNemar's exact test: whether a change of the network makes more predictions wrong than right."""

import numpy as np
import scipy
import xarray as xr
from numpy.typing import NDArray

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.statistics.measured import SAMPLE, is_right, with_samples


def mcnemar(ds: xr.Dataset) -> xr.Dataset:
    """Return for each change of the network how many predictions it breaks and mends, and the test of their balance.

    Under the hypothesis that both are equally likely, the number broken of all that differ is binomial (McNemar 1947,
    exact and two-sided). Over all changes of the study, p values are corrected by Holm's method (Holm 1979).

    Args:
        ds: the result of a study of changed networks, with labels.

    Returns:
        A Dataset along the study's dim: `n_broken` (right before, wrong after), `n_mended` (wrong before, right after),
        `p_value`, `p_value_holm`, and `n_samples`.

    Raises:
        InputError: if the study has no labels, or holds shares of right predictions for each sample.

    Examples:
        >>> lesions = rpp.BlockLesion(net).attribute(images, target=labels)
        >>> tests = rpp.statistics.mcnemar(lesions)
        >>> bool((tests.p_value_holm >= tests.p_value).all())
        True
    """
    if "correct" not in ds or "intact_correct" not in ds:
        raise InputError(
            "McNemar's test needs to know which predictions are right, before and after: run the study with "
            "target=labels (variables 'correct' and 'intact_correct')"
        )
    ds = with_samples(ds)
    after, before = xr.broadcast(is_right(ds["correct"]), is_right(ds["intact_correct"]))
    if not after.dtype == before.dtype == np.bool_:
        raise InputError(
            "McNemar's test counts predictions that are right or wrong, and 'correct' holds shares or missing values"
        )
    broken, mended = (before & ~after).sum(SAMPLE), (~before & after).sum(SAMPLE)
    p_value = broken.copy(data=_exact(broken.values, mended.values))
    named = {
        "n_broken": (broken, "number of predictions that are right before and wrong after"),
        "n_mended": (mended, "number of predictions that are wrong before and right after"),
        "p_value": (p_value, "p value of McNemar's exact test, two-sided"),
        "p_value_holm": (p_value.copy(data=holm(p_value.values)), "p value after Holm's correction over all changes"),
        "n_samples": (xr.DataArray(ds.sizes[SAMPLE]), "number of samples"),
    }
    return xr.Dataset(
        {name: values.assign_attrs({"long_name": text, "units": "1"}) for name, (values, text) in named.items()}
    )


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p values after Holm's step-down correction, in the order in which they were given."""
    flat = np.asarray(p_values, dtype=np.float64).ravel()
    order = np.argsort(flat, kind="stable")
    corrected = np.empty_like(flat)
    corrected[order] = np.minimum(np.maximum.accumulate(flat[order] * np.arange(len(flat), 0, -1)), 1)
    return corrected.reshape(np.shape(p_values))


def _exact(broken: NDArray[np.int64], mended: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the two-sided p value of a binomial with equal chances; 1 where nothing differs."""
    fewer, all_that_differ = np.minimum(broken, mended), broken + mended
    found: NDArray[np.float64] = np.minimum(2 * scipy.stats.binom.cdf(fewer, all_that_differ, 0.5), 1)
    return found
