"""Models side by side: every number against numpy, scipy or statsmodels on the studies that went in."""

import numpy as np
import pytest
import scipy
import synthetic_studies as synthetic
import torch
import xarray as xr
from cifar import images_and_labels, needs_cifar, trained
from networks import Residual, convolution, randomised, without
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError, OmittedStudyWarning, StaleResultWarning
from resnet_paths_plugin.results import datasets
from resnet_paths_plugin.results.block_coords import block_coords


def lesions(n, seed=0, classes=10, **more):
    return synthetic.single_lesions(n, seed, **more).assign_attrs(n_classes=classes)


def single(models, **options):
    return rpp.compare(models, **options)["single_lesions"].to_dataset()


def table(models, **options):
    return rpp.compare(models, **options)["models"].to_dataset()


def interactions(share):
    made = synthetic.blocks(4)
    variables = {
        "single_effect": ("block", np.zeros(4)),
        "interaction": (("block", "other_block"), np.zeros((4, 4))),
        "additive_share": ((), share),
        "additive_share_low": ((), share - 0.1),
        "additive_share_high": ((), share + 0.1),
    }
    coords = {**block_coords(made), "other_block": ("other_block", [block.name for block in made])}
    return datasets.build(variables, coords=coords, attrs=synthetic.attrs())


class TestSingleLesions:
    def test_blocks_of_different_number_stand_on_one_axis(self):
        small, large = lesions(4), lesions(9)
        found = single({"small": small, "large": large})
        assert found["error"].dims == ("model", "position")
        assert found["model"].values.tolist() == ["small", "large"]
        np.testing.assert_allclose(found["error"].sel(model="large"), large["error"])
        np.testing.assert_allclose(found["error"].sel(model="small"), [*small["error"].values, *[np.nan] * 5])
        depth = found["relative_depth"].sel(model="small").values
        np.testing.assert_allclose(depth[:4], [1 / 8, 3 / 8, 5 / 8, 7 / 8])
        assert np.isnan(depth[4:]).all()
        assert found["block_name"].sel(model="small").values.tolist() == [*small["block"].values, *[""] * 5]
        for name in ("block_index", "stage"):
            own = small[name if name == "block_index" else f"block_{name}"].values.tolist()
            assert found[name].sel(model="small").values.tolist() == [*own, *[-1] * 5]
        assert found["skip_kind"].sel(model="large").values.tolist() == large["block_skip_kind"].values.tolist()

    def test_blocks_that_were_not_deleted_keep_their_place(self):
        some = lesions(4).isel(lesion=[0, 3])
        found = single({"some": some, "all": lesions(4)})
        assert np.isfinite(found["error"].sel(model="some")).values.tolist() == [True, False, False, True]
        np.testing.assert_allclose(found["relative_depth"].sel(model="some").dropna("position"), [1 / 8, 7 / 8])

    def test_lesions_of_groups_stand_at_the_place_of_the_group(self):
        made = lesions(6)
        groups = np.repeat(["a", "b", "c"], 2)
        whole = made.isel(lesion=[0, 2, 4]).assign_coords(block_group=("block", groups))
        whole["deleted"] = (("lesion", "block"), groups == np.array(["a", "b", "c"])[:, None])
        whole["n_deleted"] = ("lesion", [2, 2, 2])
        whole["n_deleted_units"] = ("lesion", [1, 1, 1])
        found = single({"groups": whole, "blocks": made}).sel(model="groups")
        assert found["block_name"].values[:3].tolist() == ["a", "b", "c"]
        assert found["block_index"].values[:3].tolist() == [0, 2, 4]
        np.testing.assert_allclose(found["relative_depth"][:3], [1 / 6, 1 / 2, 5 / 6])

    def test_errors_have_score_intervals(self):
        ds = lesions(4)
        found = single({"a": ds, "b": lesions(9)}, level=0.9).sel(model="a")
        for row, correct in enumerate(ds["correct"].values):
            low, high = proportion_confint((~correct).sum(), len(correct), alpha=0.1, method="wilson")
            np.testing.assert_allclose([found["error_low"][row], found["error_high"][row]], [low, high])

    def test_the_normalised_effect_is_that_of_its_definition(self):
        ds = lesions(4, classes=5)
        found = single({"a": ds, "b": lesions(9)}).sel(model="a", position=slice(0, 3))
        room = 0.8 - ds["intact_error"].item()
        for end in ("", "_low", "_high"):
            np.testing.assert_allclose(found[f"normalised_effect{end}"], found[f"error_effect{end}"] / room)
        np.testing.assert_allclose(found["normalised_effect"], (ds["error"] - ds["intact_error"]).values / room)
        assert found["chance_error"] == 0.8

    def test_it_is_missing_where_chance_is_not_known_and_where_the_network_is_no_better(self):
        unknown, guessing = lesions(4), lesions(4)
        del unknown.attrs["n_classes"]
        guessing["intact_correct"] = xr.zeros_like(guessing["intact_correct"])
        found = single({"unknown": unknown, "guessing": guessing, "known": lesions(4)})
        known = np.isfinite(found["normalised_effect"]).all("position")
        assert known.values.tolist() == [False, False, True]
        assert np.isfinite(found["chance_error"]).values.tolist() == [False, True, True]
        assert "normalised_effect" not in single({"a": unknown, "b": unknown})

    def test_a_class_subset_shows_its_own_error(self):
        ds = lesions(9)
        some = ds.isel(sample=(ds["label"] == 3).values)
        found = single({"all": ds, "threes": some})
        expected = (~some["correct"].values).mean(axis=1)
        np.testing.assert_allclose(found["error"].sel(model="threes"), expected)
        assert np.abs(expected - ds["error"].values).max() > 0.05
        assert found["intact_error"].sel(model="threes") == (~some["intact_correct"].values).mean()
        assert found["n_samples"].values.tolist() == [200, 20]

    def test_a_measure_of_the_users_own_is_compared(self):
        mine = {"correct_pixels": (("lesion", "sample"), np.random.default_rng(0).random((4, 200)))}
        ds = lesions(4).assign(mine)
        found = single({"a": ds, "b": ds})
        np.testing.assert_allclose(found["correct_pixels"][0], mine["correct_pixels"][1].mean(axis=1))
        assert not {"correct", "intact_correct_low"} & set(found.data_vars)

    def test_other_measures_are_compared_without_labels(self):
        with pytest.warns(OmittedStudyWarning, match="single_lesions: not all models have error, error_effect, loss"):
            tree = rpp.compare({"without": lesions(4, targets=False), "with": lesions(9)})
        found = tree["single_lesions"].to_dataset()
        assert "error" not in found
        assert "prediction_changed" in found
        assert tree["models"].attrs["measure"] == "prediction_changed"
        changed = lesions(9)["prediction_changed"].values.mean()
        np.testing.assert_allclose(tree["models"]["mean_lesion_effect"].sel(model="with"), changed)

    def test_they_are_those_of_a_model_patched_by_hand(self):
        torch.manual_seed(0)
        x, labels = torch.randn(40, 4, 6, 6), torch.arange(40) % 4

        def network(n):
            blocks = (Residual(convolution(4)) for _ in range(n))
            return randomised(nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()), n).eval()

        models = {"two": network(2), "three": network(3)}
        found = single({name: rpp.BlockLesion(model).attribute(x, target=labels) for name, model in models.items()})
        with torch.no_grad():
            for name, model in models.items():
                wrong = [
                    (without(model, f"{i}.branch")(x).argmax(1) != labels).double().mean()
                    for i in range(len(model) - 2)
                ]
                np.testing.assert_allclose(found["error"].sel(model=name).dropna("position"), wrong)
                intact = (model(x).argmax(1) != labels).double().mean()
                np.testing.assert_allclose(found["intact_error"].sel(model=name), intact)


class TestReplicates:
    def test_a_number_is_the_mean_over_trainings_with_students_interval(self):
        each = [lesions(4, seed) for seed in range(5)]
        found = single({"five": each, "one": lesions(4, 7)}, level=0.9)
        errors = np.array([ds["error"].values for ds in each])
        own = found.sel(model="five")
        np.testing.assert_allclose(own["error"], errors.mean(axis=0))
        low, high = DescrStatsW(errors).tconfint_mean(alpha=0.1)
        np.testing.assert_allclose(own["error_low"], np.maximum(low, 0))
        np.testing.assert_allclose(own["error_high"], np.minimum(high, 1))
        np.testing.assert_allclose(own["replicate_error"], errors)
        assert found["replicate_error"].dims == ("model", "replicate", "position")
        one = found["replicate_error"].sel(model="one")
        np.testing.assert_allclose(one[0], lesions(4, 7)["error"])
        assert one[1:].isnull().all()
        assert found["n_replicates"].values.tolist() == [5, 1]

    def test_the_table_is_over_trainings_too(self):
        each = [lesions(4, seed).assign_attrs(weights_digest=f"sha256:{seed}") for seed in range(4)]
        found = table({"four": each}).sel(model="four")
        assert found["weights_digest"].item() == "sha256:0, sha256:1, sha256:2, sha256:3"
        assert found["architecture"].item() == "dict"
        effects = [(ds["error"] - ds["intact_error"]).mean().item() for ds in each]
        low, high = scipy.stats.t.interval(0.95, 3, np.mean(effects), scipy.stats.sem(effects))
        names = ("mean_lesion_effect", "mean_lesion_effect_low", "mean_lesion_effect_high")
        np.testing.assert_allclose([found[name] for name in names], [np.mean(effects), low, high])
        assert found["n_samples"] == 200

    def test_one_training_has_no_dim_of_them(self):
        assert "replicate" not in single({"a": lesions(4), "b": [lesions(9)]}).dims

    def test_trainings_of_different_blocks_are_refused(self):
        with pytest.raises(InputError, match=r"model 'a' are of different blocks.* Give each model a name"):
            rpp.compare({"a": [lesions(4), lesions(5)]})

    def test_a_study_that_one_training_lacks_is_left_out(self):
        whole = {"single_lesions": lesions(4), "random_lesions": synthetic.random_lesions(4)}
        some = {"single_lesions": lesions(4)}
        trees = [datasets.build_tree(studies) for studies in (whole, some)]
        with pytest.warns(OmittedStudyWarning, match="random_lesions: only 'b' has them"):
            tree = rpp.compare({"a": trees, "b": trees[0]})
        assert set(tree.children) == {"models", "single_lesions"}

    def test_trainings_with_other_lesions_are_left_out(self):
        with pytest.warns(OmittedStudyWarning, match="single_lesions of 'a': its trainings have no common axis"):
            tree = rpp.compare({
                "a": [lesions(4), lesions(4).isel(lesion=[0, 1])], "b": lesions(4), "c": lesions(5),
            })  # fmt: skip
        assert tree["single_lesions"]["error"].sel(model="a").isnull().all()


class TestSizes:
    @pytest.mark.parametrize(("kind", "size"), [("random_lesions", "n_deleted"), ("reorderings", "n_swaps")])
    def test_draws_of_a_size_are_averaged_on_an_axis_of_all_sizes(self, kind, size):
        make = getattr(synthetic, kind)
        options = {"sizes": [1, 3]} if kind == "random_lesions" else {"swaps": (1, 3)}
        one, other = make(9), make(9, **options)
        found = rpp.compare({"one": one, "other": other})[kind].to_dataset()
        for name, ds in (("one", one), ("other", other)):
            sizes = np.unique(ds[size])
            means = [ds["error"].values[ds[size].values == one].mean() for one in sizes]
            np.testing.assert_allclose(found["error"].sel(model=name).dropna(size), means)
            assert found["error"].sel(model=name).dropna(size)[size].values.tolist() == sizes.tolist()
            assert (found["error_low"] <= found["error"]).sel(model=name).sum() == len(means)
        counts = found["n_draws"].sel(model="other").values
        assert set(counts[found["error"].sel(model="other").isnull().values]) == {0}

    def test_sizes_are_also_shares_of_the_networks_blocks(self):
        found = rpp.compare({"a": synthetic.random_lesions(4), "b": synthetic.random_lesions(8)})
        share = found["random_lesions"]["share_of_blocks"].sel(n_deleted=2)
        np.testing.assert_allclose(share, [2 / 4, 2 / 8])

    def test_one_draw_of_each_size_has_no_interval_over_draws(self):
        one = synthetic.random_lesions(6, draws=1)
        found = rpp.compare({"a": one, "b": one})["random_lesions"].to_dataset()
        np.testing.assert_allclose(found["error"].sel(model="a"), one["error"])
        assert (found["n_draws"] == 1).all()

    def test_sets_that_were_given_are_left_out(self):
        made = synthetic.blocks(5)
        given = synthetic.lesion_study([[0, 1], [1, 2]], made, [0.2, 0.3])
        with pytest.raises(InputError, match=r"share a study.*'a' has random_lesions.* given one by one"):
            rpp.compare({"a": given, "b": given})


class TestPathLengths:
    def test_shares_add_to_one_and_are_those_of_each_samples_norms(self):
        short, long = synthetic.path_lengths(5), synthetic.path_lengths(9)
        found = rpp.compare({"short": short, "long": long}, n_resamples=50)["path_lengths"].to_dataset()
        norms = short["gradient_norm"].values
        share = found["gradient_norm_share"].sel(model="short")
        np.testing.assert_allclose(share.values[:6], (norms / norms.sum(axis=0)).mean(axis=1))
        assert share[6:].isnull().all()
        np.testing.assert_allclose(found["gradient_norm_share"].sum("path_length"), 1)
        np.testing.assert_allclose(found["share_of_blocks"].sel(model="short").values[:6], np.arange(6) / 5)

    def test_the_table_has_the_effective_range_with_an_interval(self):
        rng = np.random.default_rng(0)
        norms = rng.gamma(0.5, size=(12, 8))
        ds = synthetic.path_lengths(11, 8).assign(gradient_norm=(("path_length", "sample"), norms))
        found = table({"a": ds, "b": ds}, n_resamples=400).sel(model="a")

        def shortest(values):
            """Return the ends of the shortest interval with 95 % of the total, by trying all of them."""
            fitting = [
                (high - low, -values[low : high + 1].sum(), low, high)
                for low in range(12)
                for high in range(low, 12)
                if values[low : high + 1].sum() >= 0.95 * values.sum()
            ]
            return min(fitting)[2:]

        ends = [found[f"effective_length_{end}"].item() for end in ("low", "high")]
        assert ends == list(shortest(norms.mean(axis=1)))
        drawn = [shortest(norms[:, rng.integers(0, 8, 8)].mean(axis=1)) for _ in range(400)]
        for place, name in enumerate(("effective_length_low", "effective_length_high")):
            expected = np.quantile(drawn, [0.025, 0.975], axis=0)[:, place]
            np.testing.assert_allclose([found[f"{name}_low"], found[f"{name}_high"]], expected, atol=1)

    @pytest.mark.parametrize(("change", "message"), [
        (lambda ds: ds.assign(tail_gradient_norm=("sample", np.ones(4))), "max_length cuts off its long paths"),
        (lambda ds: ds.drop_vars("gradient_norm"), "no exact gradient by one path length"),
        (lambda ds: ds.assign(gradient_norm=ds["gradient_norm"] * 0), "gradients are zero"),
    ])  # fmt: skip
    def test_what_holds_no_whole_gradient_is_left_out(self, change, message):
        others = {"b": synthetic.path_lengths(5), "c": synthetic.path_lengths(6)}
        with pytest.warns(OmittedStudyWarning, match=f"path_lengths of 'a': .*{message}.*path_lengths: 'a' has none"):
            tree = rpp.compare({"a": change(synthetic.path_lengths(4)), **others}, n_resamples=20)
        assert tree["path_lengths"]["gradient_norm_share"].sel(model="a").isnull().all()

    def test_studies_in_different_units_are_named(self):
        other = synthetic.path_lengths(5).assign_attrs(argument_grade="layers")
        with pytest.warns(OmittedStudyWarning, match=r"path_lengths: studies differ in grade \(blocks, layers\)"):
            rpp.compare({"a": synthetic.path_lengths(5), "b": other}, n_resamples=20)


class TestTable:
    def test_the_mean_effect_has_the_interval_of_its_samples(self):
        ds = lesions(6)
        found = table({"a": ds, "b": lesions(4)}).sel(model="a")
        effect = (ds["intact_correct"].astype(float) - ds["correct"].astype(float)).mean("lesion").values
        assert found["mean_lesion_effect"] == pytest.approx(effect.mean())
        expected = scipy.stats.bootstrap((effect,), np.mean, method="percentile", rng=1).confidence_interval
        np.testing.assert_allclose(found["mean_lesion_effect_low"], expected.low, atol=0.01)
        np.testing.assert_allclose(found["mean_lesion_effect_high"], expected.high, atol=0.01)
        room = 0.9 - ds["intact_error"].item()
        assert found["mean_normalised_effect"] == pytest.approx(effect.mean() / room)
        assert found["mean_normalised_effect_high"] == pytest.approx(found["mean_lesion_effect_high"].item() / room)

    def test_no_changed_prediction_leaves_an_interval(self):
        ds = lesions(4)
        ds["correct"] = ds["intact_correct"].broadcast_like(ds["correct"]).transpose("lesion", "sample")
        found = table({"a": ds, "b": lesions(4)}).sel(model="a")
        assert found["mean_lesion_effect"] == 0
        assert -0.05 < found["mean_lesion_effect_low"] < 0 < found["mean_lesion_effect_high"] < 0.05

    @pytest.mark.parametrize("notable", [0.015, 0.1])
    def test_notable_blocks_are_counted_by_their_effects_and_their_intervals(self, notable):
        ds = lesions(9)
        found = table({"a": ds, "b": lesions(4)}, notable=notable).sel(model="a")
        summary = ds.resnet_paths.summary()
        assert found["notable_share"] == ((ds["error"] - ds["intact_error"]) > notable).values.mean()
        assert found["notable_share_low"] == (summary["error_effect_low"] > notable).values.mean()
        assert found["notable_share_high"] == (summary["error_effect_high"] > notable).values.mean()
        assert 0 < found["notable_share_low"] < found["notable_share_high"]

    def test_it_names_the_network_and_its_intact_error(self):
        ds = lesions(4).assign_attrs(model_architecture="toy4", weights_digest="sha256:7")
        found = table({"a": ds, "b": lesions(9)}).sel(model="a")
        assert found["architecture"].item() == "toy4"
        assert found["weights_digest"].item() == "sha256:7"
        assert (found["n_blocks"], found["n_samples"]) == (4, 200)
        low, high = proportion_confint(round(200 * ds["intact_error"].item()), 200, method="wilson")
        names = ("intact_error", "intact_error_low", "intact_error_high")
        np.testing.assert_allclose([found[name] for name in names], [ds["intact_error"], low, high])

    def test_the_additive_share_is_that_of_the_interactions(self):
        trees = {
            name: datasets.build_tree({"single_lesions": lesions(4), "interactions": interactions(share)})
            for name, share in (("a", 0.5), ("b", 0.7))
        }
        found = table(trees | {"c": lesions(4)})
        np.testing.assert_allclose(found["additive_share"], [0.5, 0.7, np.nan])
        np.testing.assert_allclose(found["additive_share_low"], [0.4, 0.6, np.nan])
        np.testing.assert_allclose(found["additive_share_high"], [0.6, 0.8, np.nan])
        assert list(rpp.compare({"a": interactions(0.5), "b": interactions(0.1)}).children) == ["models"]


class TestResult:
    def test_a_file_holds_the_same(self, tmp_path):
        with pytest.warns(OmittedStudyWarning):
            tree = rpp.compare({"a": synthetic.tree(4), "b": [synthetic.tree(9), synthetic.tree(9)]}, n_resamples=50)
        assert list(tree.children) == ["models", "single_lesions", "random_lesions", "reorderings", "path_lengths"]
        assert rpp.load(rpp.save(tree, tmp_path / "both.nc")).identical(tree)
        for node in tree.children.values():
            for name, values in node.variables.items():
                assert values.attrs["long_name"], name
                assert ("units" in values.attrs) == (values.dtype.kind != "U"), name

    def test_every_number_has_an_interval(self):
        with pytest.warns(OmittedStudyWarning):
            tree = rpp.compare({"a": synthetic.tree(4), "b": synthetic.tree(9)}, n_resamples=50)
        for group in tree.children.values():
            numbers = {name for name, values in group.data_vars.items() if values.dtype.kind == "f"} - {"chance_error"}
            ends = {f"{name}{end}" for name in numbers for end in ("_low", "_high")}
            alone = [name for name in numbers if not {f"{name}_low", f"{name}_high"} <= numbers and name not in ends]
            assert not alone, group.name

    def test_files_and_results_give_the_same(self, tmp_path):
        one, other = lesions(4), datasets.build_tree({"single_lesions": lesions(9)})
        file = rpp.save(one, tmp_path / "one.nc")
        found = rpp.compare({"one": file, "other": str(rpp.save(other, tmp_path / "other.nc"))})
        xr.testing.assert_equal(found["single_lesions"].to_dataset(), single({"one": one, "other": lesions(9)}))

    def test_what_went_in_is_not_changed(self):
        ds = lesions(4)
        before = ds.copy(deep=True)
        rpp.compare({"a": ds, "b": lesions(9)})
        xr.testing.assert_identical(ds, before)

    def test_other_kinds_and_plain_networks_are_named_and_left_out(self):
        with pytest.warns(OmittedStudyWarning, match="of model 'a' these are not compared: .*plain_single_lesions"):
            tree = rpp.compare({"a": synthetic.tree(4), "b": lesions(9)}, n_resamples=50)
        assert tree["models"]["n_blocks"].values.tolist() == [4, 9]
        found = tree["single_lesions"]["error"].sel(model="a").values
        np.testing.assert_allclose(found[:4], synthetic.single_lesions(4)["error"])

    def test_stale_means_are_left_out(self):
        whole = interactions(0.5).assign(n_samples=8)
        ds = whole.assign(interaction_per_sample=(("block", "other_block", "sample"), np.zeros((4, 4, 8))))
        trees = [datasets.build_tree({"single_lesions": lesions(4), "interactions": ds})] * 2
        some = xr.DataTree.from_dict({
            "single_lesions": lesions(4), "interactions": ds.isel(sample=[0, 1]),
        })  # fmt: skip
        with pytest.warns(StaleResultWarning, match="additive_share"):
            found = rpp.compare({"whole": trees[0], "some": some})
        assert np.isfinite(found["models"]["additive_share"]).values.tolist() == [True, False]

    @pytest.mark.parametrize(("models", "message"), [
        ([lesions(4)], "expected a mapping from names to results, not list"),
        ({}, "expected results of two models or more, got 0"),
        ({"a": lesions(4)}, "expected results of two models or more, got 1"),
        ({"a": lesions(4), "": lesions(4)}, "a model's name must be a text, not ''"),
        ({"a": lesions(4), 2: lesions(4)}, "a model's name must be a text, not 2"),
        ({"a": lesions(4), "b": []}, "model 'b': expected a Dataset, a DataTree, a file, or a sequence"),
        ({"a": lesions(4), "b": 3}, "model 'b': expected a Dataset, a DataTree, a file, or a sequence"),
        ({"a": lesions(4), "b": [3]}, "model 'b': expected a Dataset, a DataTree or a file, not int"),
        ({"a": lesions(4), "b": synthetic.influence(4)}, "model 'b' has no study that can be compared"),
        ({"a": lesions(4), "b": synthetic.path_lengths(4)}, "'a' has single_lesions; 'b' has path_lengths"),
    ])  # fmt: skip
    def test_what_cannot_be_compared_is_refused(self, models, message):
        with pytest.raises(InputError, match=message):
            rpp.compare(models)

    @pytest.mark.parametrize(("options", "message"), [
        ({"level": 1}, "level must be between 0 and 1"),
        ({"notable": -0.1}, "notable must be a fraction"),
        ({"notable": True}, "notable must be a fraction"),
        ({"n_resamples": 0}, "n_resamples must be between"),
    ])  # fmt: skip
    def test_options_out_of_range_are_refused(self, options, message):
        with pytest.raises(InputError, match=message):
            rpp.compare({"a": lesions(4), "b": lesions(9)}, **options)

    def test_models_that_share_no_measure_are_refused_with_theirs(self):
        mine, yours = (
            lesions(4)[["deleted", "n_deleted", "n_deleted_units"]].assign(
                {name: (("lesion", "sample"), np.ones((4, 3)))}
            )
            for name in ("mine", "yours")
        )
        with pytest.raises(InputError, match=r"no measure \('a' has mine; 'b' has yours\)"):
            rpp.compare({"a": mine, "b": yours})

    def test_an_earlier_comparison_is_no_study(self):
        with pytest.raises(InputError, match="model 'b' has no study"):
            rpp.compare({"a": lesions(4), "b": rpp.compare({"a": lesions(4), "b": lesions(9)})})


@needs_cifar
@pytest.mark.slow
def test_two_trained_networks_and_a_class_of_their_images():
    images, labels = images_and_labels()
    images, labels = images[:100], labels[:100]
    studies = {f"resnet{depth}": rpp.BlockLesion(trained(depth)).attribute(images, labels) for depth in (20, 56)}
    found = rpp.compare(studies)
    assert found["models"]["n_blocks"].values.tolist() == [9, 27]
    with torch.no_grad():
        wrong = [(trained(depth)(images).argmax(1) != labels).double().mean() for depth in (20, 56)]
    np.testing.assert_allclose(found["models"]["intact_error"], wrong)
    effects = found["models"]["mean_normalised_effect"]
    assert effects.sel(model="resnet20") > 3 * effects.sel(model="resnet56") > 0
    ships = {name: ds.isel(sample=(ds["label"] == 8).values) for name, ds in studies.items()}
    own = [(ds["prediction"] != 8).mean("sample") for ds in ships.values()]
    errors = rpp.compare(ships)["single_lesions"]["error"]
    for name, expected in zip(ships, own, strict=True):
        np.testing.assert_allclose(errors.sel(model=name).dropna("position"), expected)


@pytest.mark.slow
def test_three_architectures_of_timm():
    import timm

    names = ("test_resnet", "test_vit", "test_convnext")
    torch.manual_seed(0)
    models = {name: timm.create_model(name, num_classes=10).eval() for name in names}
    inputs = {name: torch.randn(2, *model.default_cfg["input_size"]) for name, model in models.items()}
    networks = {name: rpp.unravel(model, inputs[name]) for name, model in models.items()}
    studies = {name: rpp.BlockLesion(network).attribute(inputs[name]) for name, network in networks.items()}
    found = rpp.compare(studies)
    counts = [len(network.blocks) for network in networks.values()]
    assert found["models"]["n_blocks"].values.tolist() == counts
    assert found["single_lesions"]["kl_divergence"].notnull().sum("position").values.tolist() == counts
    assert found["models"].attrs["measure"] == "prediction_changed"
