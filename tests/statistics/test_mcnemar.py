"""McNemar's test and Holm's correction against scipy and figures computed by hand."""

import numpy as np
import pytest
import scipy
import xarray as xr
from statsmodels.stats import contingency_tables, multitest
from synthetic_studies import single_lesions

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.statistics.mcnemar import holm


def test_each_change_has_its_exact_test():
    ds = single_lesions()
    found = rpp.statistics.mcnemar(ds)
    for row, after in enumerate(ds.correct.values):
        broken = int((ds.intact_correct.values & ~after).sum())
        mended = int((~ds.intact_correct.values & after).sum())
        assert (found.n_broken[row], found.n_mended[row]) == (broken, mended)
        differ = broken + mended
        expected = scipy.stats.binomtest(broken, differ).pvalue if differ else 1.0
        np.testing.assert_allclose(found.p_value[row], expected, rtol=1e-10)


def test_holms_correction_is_that_of_the_definition():
    given = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(holm(given), [0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_both_agree_with_statsmodels():
    ds = single_lesions()
    found = rpp.statistics.mcnemar(ds)
    for row in range(ds.sizes["lesion"]):
        table = [[0, int(found.n_broken[row])], [int(found.n_mended[row]), 0]]
        np.testing.assert_allclose(found.p_value[row], contingency_tables.mcnemar(table, exact=True).pvalue)
    np.testing.assert_allclose(found.p_value_holm, multitest.multipletests(found.p_value, method="holm")[1])


def test_a_change_that_changes_nothing_is_not_significant():
    right = np.array([True, False, True])
    ds = xr.Dataset({"correct": (("lesion", "sample"), right[None]), "intact_correct": ("sample", right)})
    assert rpp.statistics.mcnemar(ds).p_value_holm.item() == 1


def test_a_study_without_labels_is_refused():
    with pytest.raises(InputError, match="target=labels"):
        rpp.statistics.mcnemar(single_lesions().drop_vars("correct"))
