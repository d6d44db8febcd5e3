"""Intervals of figures and sentences against statsmodels and a bootstrap by hand."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import synthetic_studies as synthetic
from statsmodels.stats.proportion import proportion_confint

from resnet_paths_plugin import plotting
from resnet_paths_plugin.plotting.intervals import intervals_of


@pytest.fixture(autouse=True)
def no_figure_stays():
    yield
    plt.close("all")


def four(samples=200, **more):
    return synthetic.lesion_study([[0], [1], [2], [3]], synthetic.blocks(4, 2), [0.04, 0.1, 0.5, 0.2], samples, **more)


def test_an_error_has_the_score_interval_of_wilson():
    ds = four()
    found = intervals_of(ds, "error", "lesion")
    wrong = (~ds["correct"]).sum("sample").values
    low, high = proportion_confint(wrong, 200, method="wilson")
    np.testing.assert_allclose(found.low, low)
    np.testing.assert_allclose(found.high, high)
    assert (found.sizes, found.n_samples, found.n_draws) == (None, 200, 1)
    assert found.counted == "200 samples"


def test_a_loss_has_the_interval_of_a_bootstrap_by_hand():
    ds = four()
    rng = np.random.default_rng(1)
    picks = rng.integers(0, 200, (4000, 200))
    differences = (ds["loss"] - ds["intact_loss"]).transpose("lesion", "sample").values
    by_hand = np.quantile(differences[:, picks].mean(-1), [0.025, 0.975], axis=1)
    found = intervals_of(ds, "loss", "lesion")
    width = by_hand[1] - by_hand[0]
    assert (np.abs(found.effect_low - by_hand[0]) < 0.1 * width).all()
    assert (np.abs(found.effect_high - by_hand[1]) < 0.1 * width).all()


def test_random_draws_share_one_interval_for_each_size():
    ds = synthetic.lesion_study(
        [[0], [1], [0, 1], [1, 2]], synthetic.blocks(4, 2), [0.1, 0.2, 0.3, 0.5], draw=[0, 1, 0, 1]
    )
    found = intervals_of(ds, "error", "lesion")
    assert found.sizes.tolist() == [1, 2]
    assert (found.low >= 0).all()  # two draws say little, and no share is beyond these
    assert (found.high <= 1).all()
    assert (found.effect_low >= -1).all()
    assert found.counted == "200 samples, 2 draws each"


def test_without_values_of_samples_there_are_none():
    assert intervals_of(four().drop_vars("correct"), "error", "lesion") is None
    assert intervals_of(four().isel(sample=[]), "error", "lesion") is None


def test_bars_of_single_deletions_are_intervals_of_the_difference():
    ds = four()
    ax = plotting.plot_single_lesions(ds)
    (bars,) = [one for one in ax.collections if len(one.get_segments()) == 4]
    found = intervals_of(ds, "error", "lesion")
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends[:, 0], float(ds["intact_error"]) + found.effect_low)
    np.testing.assert_allclose(ends[:, 1], float(ds["intact_error"]) + found.effect_high)
    assert "(200 samples, 95 % intervals)" in ax.get_xlabel()


def test_the_band_of_random_deletions_holds_their_means():
    sets = [[0], [1], [0, 1], [1, 2]]
    ds = synthetic.lesion_study(sets, synthetic.blocks(4, 2), [0.1, 0.2, 0.3, 0.5], draw=[0, 1, 0, 1])
    ax = plotting.plot_random_lesions(ds)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "95 % interval of the mean" in labels
    assert ax.get_xlabel() == "number of deleted blocks (200 samples, 2 draws each)"
    found = intervals_of(ds, "error", "lesion")
    means = ds["error"].groupby(ds["n_deleted"]).mean().values
    assert (found.low < means).all()
    assert (means < found.high).all()
