"""Intervals of figures and sentences against statsmodels and a bootstrap by hand."""

import numpy as np
import synthetic_studies as synthetic
from statsmodels.stats.proportion import proportion_confint

from resnet_paths_plugin import plotting
from resnet_paths_plugin.plotting.intervals import intervals_of
from resnet_paths_plugin.plotting.lesions import describe_single_lesions


def four(samples=200, **more):
    return synthetic.lesion_study([[0], [1], [2], [3]], synthetic.blocks(4, 2), [0.04, 0.1, 0.5, 0.2], samples, **more)


def test_an_error_has_the_score_interval_of_wilson():
    ds = four()
    found = intervals_of(ds, "error", "lesion")
    wrong = (~ds["correct"]).sum("sample").values
    low, high = proportion_confint(wrong, 200, method="wilson")
    np.testing.assert_allclose(found.low, low)
    np.testing.assert_allclose(found.high, high)
    assert (found.is_score, found.n_samples, found.n_draws) == (True, 200, None)
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
    found = intervals_of(ds, "error", "lesion", "n_deleted")
    assert found.n_draws.tolist() == [2, 2]
    assert (found.low >= 0).all()  # two draws say little, and no share is beyond these
    assert (found.high <= 1).all()
    assert (found.effect_low >= -1).all()
    assert found.counted == "200 samples, 2 draws of each size"
    alone = intervals_of(ds, "error", "lesion")
    assert (len(alone.low), alone.counted) == (4, "200 samples")


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
    assert "(200 samples, 95 % intervals of the difference from intact)" in ax.get_xlabel()


def test_the_band_of_random_deletions_holds_their_means():
    sets = [[0], [1], [0, 1], [1, 2]]
    ds = synthetic.lesion_study(sets, synthetic.blocks(4, 2), [0.1, 0.2, 0.3, 0.5], draw=[0, 1, 0, 1])
    ax = plotting.plot_random_lesions(ds)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "95 % interval of the mean" in labels
    assert ax.get_xlabel() == "number of deleted blocks (200 samples, 2 draws of each size)"
    found = intervals_of(ds, "error", "lesion", "n_deleted")
    means = ds["error"].groupby(ds["n_deleted"]).mean().values
    assert (found.low < means).all()
    assert (means < found.high).all()


def test_random_deletions_of_one_block_each_have_bars_of_their_own():
    ds = synthetic.lesion_study([[0], [1], [2]], synthetic.blocks(4, 2), [0.1, 0.5, 0.3], draw=[0, 1, 2])
    ax = plotting.plot_single_lesions(ds)
    (bars,) = [one for one in ax.collections if len(one.get_segments()) == 3]
    wrong = (~ds["correct"]).mean("sample").values
    for segment, value in zip(bars.get_segments(), wrong, strict=True):
        assert segment[0, 1] < value < segment[1, 1]
    assert "by their 95 % intervals over 200 samples" in describe_single_lesions(ds)


def test_single_deletions_among_random_sets_have_bars_of_their_own():
    sets, damage = [[0], [1], [0, 1], [1, 2], [0, 1, 2], [1, 2, 3]], [0.04, 0.04, 0.9, 0.9, 0.9, 0.9]
    ds = synthetic.lesion_study(sets, synthetic.blocks(4, 2), damage, draw=[0, 1] * 3)
    ax = plotting.plot_single_lesions(ds)
    (bars,) = [one for one in ax.collections if len(one.get_segments()) == 2]
    assert max(segment[1, 1] for segment in bars.get_segments()) < 0.3


def test_sizes_of_groups_are_not_taken_for_numbers_of_blocks():
    made = synthetic.blocks(4, 2)
    ds = synthetic.lesion_study(
        [[0], [0, 1], [1, 2], [2, 3], [0, 1, 2], [1, 2, 3]], made, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    )
    ds["n_deleted_units"][:] = [1, 1, 2, 2, 3, 3]
    ds["draw"][:] = [0, 1, 0, 1, 0, 1]
    found = intervals_of(ds, "error", "lesion", "n_deleted")
    assert found.n_draws.tolist() == [1, 3, 2]
    assert found.counted == "200 samples, 1 to 3 draws of each size"


def test_equality_is_not_told_where_intervals_may_shrink_to_a_point():
    ds = four()
    missing = ds["correct"].astype(float)
    missing[0, 0] = 0.5
    told = describe_single_lesions(ds.assign(correct=missing))
    assert "less than one percentage point" not in told
    assert "what 200 samples resolve is not known" in told


def test_equality_is_resolved_or_not_where_all_deletions_do_the_same():
    made = synthetic.blocks(4, 2)
    ds = synthetic.lesion_study([[0], [1], [2], [3]], made, [0.04] * 4, 20)
    assert "0 of 4 deletions change it by less than one percentage point, 0 by more, and 4 are not resolved" in (
        describe_single_lesions(ds)
    )
