"""The lesion study: what deleting residual blocks does to the outputs, against plain formulas, copies and Captum."""

import functools
import itertools

import numpy as np
import pytest
import torch
import torchvision
import xarray as xr
from captum.attr import LayerFeatureAblation
from networks import CASES, PreActivation, Transformer, randomised, without
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import (
    InputError,
    NonFiniteOutputWarning,
    NoResidualBlocksError,
    UnknownBlockError,
)

IMAGES = (3, 6, 6)
LABELS = torch.tensor([0, 3, 1, 4, 4, 2, 0])
MEASURES = (
    "target_score", "target_score_drop", "loss", "kl_divergence", "correct", "prediction", "prediction_changed",
)  # fmt: skip


@functools.cache
def network():
    """A network with three blocks `blocks.0` to `blocks.2`, its model, and images."""
    model = randomised(PreActivation()).eval()
    x = torch.randn(7, *IMAGES, generator=torch.Generator().manual_seed(3))
    return rpp.unravel(model, x), model, x


@functools.cache
def transformer():
    model = randomised(Transformer()).eval()
    x = torch.randn(7, *IMAGES, generator=torch.Generator().manual_seed(3))
    return rpp.unravel(model, x), model, x


def study(target=LABELS, **options):
    net, _, x = network()
    return rpp.BlockLesion(net).attribute(x, target, **options)


def deleted_names(result):
    return [frozenset(result["block"].values[row]) for row in result["deleted"].values]


def assert_same_values(one, other, names=None):
    for name in names or one.data_vars:
        xr.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6)


# The measures


def test_every_measure_is_its_plain_formula_on_a_copy_patched_by_hand():
    _, model, x = network()
    result = study()
    rows = torch.arange(7)
    with torch.no_grad():
        intact = model(x)
        assert list(result["lesion"].values) == ["blocks.0", "blocks.1", "blocks.2"]
        for name in result["lesion"].values:
            logits = without(model, f"{name}.branch")(x)
            row = result.sel(lesion=name)
            drop = intact[rows, LABELS] - logits[rows, LABELS]
            expected = {
                "target_score": logits[rows, LABELS],
                "target_score_drop": drop,
                "loss": functional.cross_entropy(logits, LABELS, reduction="none"),
                "kl_divergence": functional.kl_div(logits.log_softmax(1), intact.softmax(1), reduction="none").sum(1),
                "prediction": logits.argmax(1),
                "correct": logits.argmax(1) == LABELS,
                "prediction_changed": logits.argmax(1) != intact.argmax(1),
            }
            assert set(MEASURES) == expected.keys()
            for measure, values in expected.items():
                np.testing.assert_allclose(row[measure], values, rtol=1e-4, atol=1e-6, err_msg=f"{name}: {measure}")
            assert float(row["error"]) == pytest.approx((logits.argmax(1) != LABELS).double().mean().item())
        np.testing.assert_allclose(result["intact_target_score"], intact[rows, LABELS], rtol=1e-5)
        np.testing.assert_allclose(
            result["intact_loss"], functional.cross_entropy(intact, LABELS, reduction="none"), rtol=1e-5
        )
        np.testing.assert_array_equal(result["intact_prediction"], intact.argmax(1))
        np.testing.assert_array_equal(result["intact_correct"], intact.argmax(1) == LABELS)
        assert float(result["intact_error"]) == pytest.approx((intact.argmax(1) != LABELS).double().mean().item())


def test_the_divergence_of_an_intact_network_from_itself_is_zero():
    result = study(lesions=[[]])
    assert list(result["lesion"].values) == ["intact"]
    np.testing.assert_array_equal(result["kl_divergence"], 0)
    np.testing.assert_array_equal(result["target_score_drop"], 0)
    assert not result["prediction_changed"].any()


def test_without_targets_what_needs_them_is_absent():
    result = study(target=None)
    assert set(result.data_vars) == {
        "prediction", "prediction_changed", "kl_divergence", "intact_prediction", "deleted",
    }  # fmt: skip
    assert_same_values(result, study(), ["kl_divergence", "prediction"])


def test_the_measures_that_a_target_gives_do_not_change_the_others():
    assert set(MEASURES) <= set(study().data_vars)


@pytest.mark.parametrize(
    "target",
    [LABELS, LABELS.tolist(), LABELS.numpy(), LABELS.to(torch.int32), [(int(label),) for label in LABELS]],
    ids=["tensor", "list", "array", "int32", "tuples"],
)
def test_targets_are_given_as_captum_takes_them(target):
    result = study(target=target)
    assert_same_values(result, study(), ["target_score", "target_score_drop"])


@pytest.mark.parametrize("target", [2, torch.tensor(2), (2,)], ids=["int", "tensor", "tuple"])
def test_one_target_counts_for_all_samples(target):
    result = study(target=target)
    assert_same_values(result, study(target=torch.full((7,), 2)), ["target_score", "target_score_drop"])


def test_a_users_measures_stand_beside_the_built_in_ones():
    def margin(outputs, target):
        return outputs[torch.arange(len(outputs)), target] - outputs.mean(1)

    _, model, x = network()
    result = study(measures={"margin": margin})
    with torch.no_grad():
        expected = margin(without(model, "blocks.1.branch")(x), LABELS)
        np.testing.assert_allclose(result["margin"].sel(lesion="blocks.1"), expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(result["intact_margin"], margin(model(x), LABELS), rtol=1e-4, atol=1e-6)
    assert set(MEASURES) <= set(result.data_vars)


def test_outputs_of_another_form_need_a_measure():
    case = CASES["feature pyramid"]
    model, (x,) = case.model(), case.inputs()
    analyzer = rpp.BlockLesion(model)
    with pytest.raises(InputError, match=r"for which no measure is built in: pass measures"):
        analyzer.attribute(x)

    def energy(outputs, _):
        return outputs["coarse"].square().sum((1, 2, 3))

    result = analyzer.attribute(x, measures={"energy": energy})
    for known in case.blocks:
        expected = energy(without(model, known.path)(x), None).detach()
        np.testing.assert_allclose(result["energy"].sel(lesion=known.name), expected, rtol=1e-4)
    np.testing.assert_allclose(result["intact_energy"], energy(model(x), None).detach(), rtol=1e-4)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (
            lambda outputs, _: outputs,
            r"must return a tensor of shape \(7,\), one number per sample, not \(7, 5\)",
        ),
        (lambda outputs, _: 1.0, "not float"),
        ("loss", "must be callable"),
    ],
)
def test_a_measure_of_another_form_is_refused(measure, message):
    with pytest.raises(InputError, match=message):
        study(measures={"mine": measure})


@pytest.mark.parametrize("name", ["loss", "deleted", "intact_error", "sample"])
def test_a_measure_does_not_take_a_name_of_the_schema(name):
    with pytest.raises(InputError, match=f"'{name}' is a name of the result's own schema"):
        study(measures={name: lambda outputs, _: outputs.sum(1)})


# Which blocks are deleted


def test_every_block_is_deleted_once_by_default():
    result = study()
    np.testing.assert_array_equal(result["deleted"], np.eye(3, dtype=bool))
    np.testing.assert_array_equal(result["n_deleted"], 1)


def test_lesions_are_sets_of_blocks_by_name_index_or_object():
    net, _, _ = network()
    result = study(lesions=["blocks.1", [2, "blocks.0"], net.blocks[2], [1, 1], np.int64(0), range(3)])
    assert list(result["lesion"].values) == [
        "blocks.1", "blocks.0+blocks.2", "blocks.2", "blocks.1", "blocks.0", "blocks.0+blocks.1+blocks.2",
    ]  # fmt: skip
    assert list(result["n_deleted"].values) == [1, 2, 1, 1, 1, 3]
    assert deleted_names(result)[1] == {"blocks.0", "blocks.2"}
    assert_same_values(result.isel(lesion=0, drop=True), study().isel(lesion=1, drop=True), MEASURES)


def test_random_lesions_have_the_sizes_and_draws_asked_for():
    result = study(n_deleted=range(4), draws=5)
    np.testing.assert_array_equal(result["n_deleted"], np.repeat(range(4), 5))
    np.testing.assert_array_equal(result["draw"], np.tile(range(5), 4))
    np.testing.assert_array_equal(result["deleted"].sum("block"), result["n_deleted"])
    assert len({frozenset(names) for names in deleted_names(result)[5:10]}) > 1


def test_a_random_lesion_has_the_measures_of_the_same_set_named():
    result = study(n_deleted=2, draws=4)
    named = study(lesions=[sorted(names) for names in deleted_names(result)])
    assert list(named["lesion"].values) == list(result["lesion"].values)
    for name in MEASURES:
        np.testing.assert_allclose(result[name], named[name], rtol=1e-5, atol=1e-6)


def test_a_seed_makes_random_lesions_again_and_another_one_others():
    first, again, other = (study(n_deleted=[1, 2], draws=10, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first["deleted"], again["deleted"])
    assert (first["deleted"].values != other["deleted"].values).any()
    assert first.attrs["seed"] == 1


def test_random_lesions_leave_the_global_generators_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    study(n_deleted=1, draws=3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002


def test_groups_are_deleted_as_one():
    net, model, x = transformer()
    result = rpp.BlockLesion(net).attribute(x, LABELS, level="group")
    assert list(result["lesion"].values) == ["layers.0", "layers.1"]
    assert deleted_names(result)[1] == {"layers.1.attn", "layers.1.mlp"}
    with torch.no_grad():
        expected = without(model, "layers.1.attn", "layers.1.mlp")(x)[torch.arange(7), LABELS]
    np.testing.assert_allclose(result["target_score"].sel(lesion="layers.1"), expected, rtol=1e-4, atol=1e-5)


def test_a_group_is_named_by_itself_or_by_one_of_its_blocks():
    net, _, x = transformer()
    by_group, by_block = (
        rpp.BlockLesion(net).attribute(x, LABELS, level="group", lesions=lesions)
        for lesions in (
            ["layers.1", ["layers.0", "layers.1"]],
            ["layers.1.mlp", [net.blocks[0], "layers.1.attn"]],
        )
    )
    for name in ("deleted", "target_score"):
        np.testing.assert_array_equal(by_group[name], by_block[name])
    assert list(by_group["n_deleted"].values) == [2, 4]


def test_random_lesions_of_groups_count_groups():
    net, _, x = transformer()
    result = rpp.BlockLesion(net).attribute(x, level="group", n_deleted=[0, 1, 2], draws=2)
    assert list(result["n_deleted"].values) == [0, 0, 2, 2, 4, 4]
    with pytest.raises(InputError, match="between 0 and 2"):
        rpp.BlockLesion(net).attribute(x, level="group", n_deleted=3)


# Batches


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_results_do_not_depend_on_the_internal_batch_size(size):
    assert_same_values(study(internal_batch_size=size), study())


@pytest.mark.parametrize("width", [2, 3, 10])
@pytest.mark.parametrize("size", [None, 3])
def test_results_do_not_depend_on_lesions_per_evaluation(width, size):
    options = {"n_deleted": range(4), "draws": 3}
    assert_same_values(study(perturbations_per_eval=width, internal_batch_size=size, **options), study(**options))


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_a_loader_is_streamed_as_one_batch(batch_size):
    net, model, x = network()
    loader = DataLoader(TensorDataset(x, LABELS), batch_size=batch_size)
    assert_same_values(rpp.BlockLesion(net).attribute(loader), study())
    assert_same_values(rpp.BlockLesion(model).attribute(loader), study())


def test_a_one_shot_iterator_is_read_once_and_lazily():
    net, _, x = network()
    read = []

    def batches():
        for start in (0, 4):
            read.append(start)
            yield x[start : start + 4], LABELS[start : start + 4]

    assert_same_values(rpp.BlockLesion(net).attribute(batches()), study())
    assert read == [0, 4]


def test_a_loader_without_targets_is_streamed_too():
    net, _, x = network()
    for loader in (DataLoader(x, batch_size=3), DataLoader(TensorDataset(x), batch_size=3)):
        assert_same_values(rpp.BlockLesion(net).attribute(loader), study(target=None))


def test_several_inputs_of_one_batch_are_a_tuple():
    case = CASES["two inputs"]
    model, inputs = case.model(), case.inputs()
    result = rpp.BlockLesion(model).attribute(inputs, torch.tensor([0, 1, 2]))
    with torch.no_grad():
        expected = without(model, "block.branch")(*inputs)[range(3), range(3)]
    np.testing.assert_allclose(result["target_score"].sel(lesion="block"), expected, rtol=1e-4, atol=1e-6)
    left, right = inputs
    same = rpp.BlockLesion(model).attribute(left, torch.tensor([0, 1, 2]), right)
    assert_same_values(same, result)


def test_two_inputs_of_a_loader_are_nested():
    case = CASES["two inputs"]
    model, (left, right) = case.model(), case.inputs()
    target = torch.tensor([0, 1, 2])
    result = rpp.BlockLesion(model).attribute(
        [((left[:2], right[:2]), target[:2]), ([left[2:], right[2:]], target[2:])]
    )
    assert_same_values(result, rpp.BlockLesion(model).attribute((left, right), target))


def test_a_model_is_captured_once():
    calls = []

    class Counting(PreActivation):
        def forward(self, x):
            calls.append("capture" if torch.compiler.is_exporting() else "check")
            return super().forward(x)

    analyzer = rpp.BlockLesion(randomised(Counting()))
    for _ in range(2):
        analyzer.attribute(torch.randn(3, *IMAGES), 0)
    assert calls == ["capture", "check", "check", "check"]  # one sample at the capture, one check a study


def test_training_flags_of_the_model_do_not_change_the_result():
    _, _, x = network()
    model = randomised(PreActivation()).train()
    assert_same_values(rpp.BlockLesion(model).attribute(x, LABELS), study())


def test_a_bfloat16_model_is_measured_in_float():
    model = randomised(PreActivation()).eval().to(torch.bfloat16)
    result = rpp.BlockLesion(model).attribute(torch.randn(4, *IMAGES).to(torch.bfloat16), 1)
    assert result["loss"].dtype == result["target_score"].dtype == np.float32
    assert np.isfinite(result["loss"]).all()


# Real architectures


def ablations_by_captum(model, layer, x):
    """Return the logits with the whole output of a layer set to zero, shape `[B, classes]`."""

    def scores(image):
        return model(image)

    method = LayerFeatureAblation(scores, layer)
    with torch.no_grad():
        shape = []
        handle = layer.register_forward_hook(lambda *arguments: shape.append(arguments[2].shape))
        intact = model(x)
        handle.remove()
        mask = torch.zeros(1, *shape[0][1:], dtype=torch.long)
        drops = [
            method.attribute(x, target=target, layer_baselines=0, layer_mask=mask).flatten(1)[:, 0]
            for target in range(2)
        ]
    return intact[:, :2] - torch.stack(drops, 1)


def resnet18():
    model = torchvision.models.resnet18(num_classes=7)
    paths = {f"layer{i}.{j}": f"layer{i}.{j}.bn2" for i in (1, 2, 3, 4) for j in (0, 1)}
    return model, (3, 40, 40), paths


def vit_b_16():
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=7
    )
    layers = [f"encoder.layers.encoder_layer_{i}" for i in range(3)]
    parts = itertools.product(layers, (("self_attention", "dropout"), ("mlp", "mlp")))
    return model, (3, 32, 32), {f"{layer}.{name}": f"{layer}.{path}" for layer, (name, path) in parts}


def convnext_tiny():
    model = torchvision.models.convnext_tiny(num_classes=7)
    depths = {1: 3, 3: 3, 5: 9, 7: 3}
    paths = {f"features.{i}.{j}": f"features.{i}.{j}.stochastic_depth" for i, n in depths.items() for j in range(n)}
    return model, (3, 32, 32), paths


@pytest.mark.parametrize("architecture", [resnet18, vit_b_16, convnext_tiny])
def test_lesions_of_real_architectures_equal_zeroing_by_hand_and_captums_ablation(architecture):
    model, shape, paths = architecture()
    model = randomised(model).eval().double()
    x = torch.randn(2, *shape, dtype=torch.float64)
    net = rpp.unravel(model, x)
    assert [block.name for block in net.blocks] == list(paths)
    with torch.no_grad():
        intact = model(x)
        for name in list(paths)[:: max(1, len(paths) // 4)]:
            deleted = net.lesioned(name)(x)
            torch.testing.assert_close(deleted, without(model, paths[name])(x), rtol=1e-10, atol=1e-10)
            ablated = ablations_by_captum(model, model.get_submodule(paths[name]), x)
            torch.testing.assert_close(deleted[:, :2], ablated, rtol=1e-9, atol=1e-9)
            assert not torch.allclose(deleted, intact, rtol=1e-6)


# The result


def test_the_result_has_the_schemas_dims_dtypes_and_coordinates():
    result = study(n_deleted=[1, 2], draws=2)
    assert dict(result.sizes) == {"lesion": 4, "sample": 7, "block": 3}
    expected = {
        "target_score": np.float32, "target_score_drop": np.float32, "loss": np.float32, "kl_divergence": np.float32,
        "correct": np.bool_, "prediction": np.int32, "prediction_changed": np.bool_,
    }  # fmt: skip
    for name, dtype in expected.items():
        assert result[name].dims == ("lesion", "sample")
        assert result[name].dtype == dtype
        if name not in {"target_score_drop", "kl_divergence", "prediction_changed"}:
            assert result[f"intact_{name}"].dims == ("sample",)
            assert result[f"intact_{name}"].dtype == dtype
    assert result["error"].dims == ("lesion",)
    assert result["error"].dtype == result["intact_error"].dtype == np.float64
    assert result["intact_error"].dims == ()
    assert result["deleted"].dims == ("lesion", "block")
    assert result["deleted"].dtype == np.bool_
    assert result["n_deleted"].dims == result["draw"].dims == ("lesion",)
    for name in ("block_index", "block_stage", "block_skip_kind", "block_branch_type", "block_group"):
        assert result.coords[name].dims == ("block",)
    np.testing.assert_array_equal(result["sample"], range(7))


def test_the_result_tells_where_it_comes_from():
    net, _, _ = network()
    result = study(internal_batch_size=3)
    attrs = result.attrs
    assert attrs["weights_digest"] == net.weights_digest()
    for word in ("PreActivation", "networks"):
        assert word in attrs["model_class"]
    for name in ("title", "summary", "history", "references", "date_created", "schema_version"):
        assert attrs[name]
    assert "internal_batch_size" in str(attrs)
    for variable in result.variables.values():
        assert variable.attrs["long_name"]


@pytest.mark.parametrize("options", [{}, {"target": None}, {"n_deleted": [1, 2], "draws": 2}, {"target": 1}])
def test_a_saved_result_is_loaded_identical(options, tmp_path):
    result = study(**options)
    path = rpp.save(result, tmp_path / "lesions.nc")
    assert rpp.load(path).identical(result)


def test_a_saved_result_of_groups_and_own_measures_is_loaded_identical(tmp_path):
    net, _, x = transformer()
    result = rpp.BlockLesion(net).attribute(
        x, [(1,)] * 7, level="group", measures={"spread": lambda outputs, _: outputs.std(1)}
    )
    assert rpp.load(rpp.save(result, tmp_path / "lesions.nc")).identical(result)


def test_progress_is_shown_where_asked(capsys):
    study()
    assert capsys.readouterr().err == ""
    study(show_progress=True)
    assert "lesion" in capsys.readouterr().err


# Bad input, each with its own error


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (5, "target 5 is out of range: the model has 5 outputs, 0..4"),
        (-1, "target -1 is out of range"),
        (torch.tensor([0, 1, 2, 3, 4, 5, 0]), "target 5 is out of range"),
        ((7,), "target 7 is out of range"),
        ([(0,)] * 6 + [(9,)], "target 9 is out of range"),
        ((0, 1), "must be one index"),
        ([(0, 0)] * 7, "must be one index"),
        (torch.zeros(6, dtype=torch.long), r"target has shape \(6,\) and the batch has 7 samples"),
        ([0, 1, 2], r"target has shape \(3,\) and the batch has 7 samples"),
        ([(0,)] * 3, r"target has shape \(3,\) and the batch has 7 samples"),
        (torch.zeros(7, 5, dtype=torch.long), r"target has shape \(7, 5\)"),
        (torch.zeros(7), "must hold integers.* not torch.float32"),
        (1.0, "must hold integers"),
        (True, "must hold integers"),
        ("cat", "target must be None, an int"),
    ],
)
def test_a_bad_target_is_refused(target, message):
    with pytest.raises(InputError, match=message):
        study(target=target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lesions": []}, "no lesion to run"),
        ({"n_deleted": []}, "no lesion to run"),
        ({"n_deleted": 4}, "n_deleted must be between 0 and 3, the number of units, not 4"),
        ({"n_deleted": [1, -1]}, "not -1"),
        ({"n_deleted": 1.5}, "n_deleted"),
        ({"n_deleted": 1, "draws": 0}, "draws must be a positive integer, not 0"),
        ({"n_deleted": 1, "lesions": [0]}, "not both"),
        ({"level": "stage"}, "level must be 'block' or 'group', not 'stage'"),
        ({"internal_batch_size": 0}, "internal_batch_size must be a positive integer"),
        ({"perturbations_per_eval": -1}, "perturbations_per_eval must be a positive integer"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        study(**options)


def test_unknown_blocks_and_groups_are_refused_with_near_names():
    with pytest.raises(UnknownBlockError, match=r"Did you mean 'blocks\.1'"):
        study(lesions=["blocks.0", ["block.1"]])
    with pytest.raises(UnknownBlockError, match="has no block 3"):
        study(lesions=[3])
    net, _, x = transformer()
    with pytest.raises(UnknownBlockError, match=r"layers\.1"):
        rpp.BlockLesion(net).attribute(x, level="group", lesions=["layer.1"])
    with pytest.raises(UnknownBlockError, match="groups are given by name or by a block of them"):
        rpp.BlockLesion(net).attribute(x, level="group", lesions=[1])


@pytest.mark.parametrize("lesions", ["blocks.0", 3])
def test_one_block_that_is_no_list_is_refused_with_the_way_to_write_it(lesions):
    with pytest.raises(InputError, match=r"such as \["):
        study(lesions=lesions)


def test_a_model_without_blocks_is_refused():
    case = CASES["plain"]
    with pytest.raises(NoResidualBlocksError, match="Plain has no residual blocks"):
        rpp.BlockLesion(case.model()).attribute(case.inputs(), 0)


@pytest.mark.parametrize("empty", [[], DataLoader([]), iter([]), torch.zeros(0, *IMAGES), ()])
def test_empty_inputs_are_refused(empty):
    net, _, _ = network()
    with pytest.raises(InputError, match=r"empty|at least one"):
        rpp.BlockLesion(net).attribute(empty)


def test_a_used_up_iterator_is_refused():
    net, _, x = network()
    batches = iter([(x, LABELS)])
    rpp.BlockLesion(net).attribute(batches)
    with pytest.raises(InputError, match="used up"):
        rpp.BlockLesion(net).attribute(batches)


@pytest.mark.parametrize("wrong", [3, "images", None, {"x": 1}, [torch.zeros(2, 3), "label", 3]])
def test_inputs_of_another_kind_are_refused(wrong):
    net, _, _ = network()
    with pytest.raises(InputError):
        rpp.BlockLesion(net).attribute(wrong)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(7, 3, 6, 5), r"has shape \(7, 3, 6, 5\)"),
        (torch.zeros(7, *IMAGES, dtype=torch.uint8), "is torch.uint8"),
    ],
)
def test_inputs_of_another_form_are_refused(x, message):
    net, _, _ = network()
    with pytest.raises(InputError, match=message):
        rpp.BlockLesion(net).attribute(x, LABELS)


def test_a_loader_with_targets_takes_no_others():
    net, _, x = network()
    with pytest.raises(InputError, match="leave target out"):
        rpp.BlockLesion(net).attribute([(x, LABELS)], LABELS)


def test_batches_with_and_without_targets_are_not_mixed():
    net, _, x = network()
    with pytest.raises(InputError, match="give all batches targets, or none"):
        rpp.BlockLesion(net).attribute([(x, LABELS), (x, None)])


def test_a_bad_target_in_a_later_batch_is_refused():
    net, _, x = network()
    with pytest.raises(InputError, match="target 7 is out of range"):
        rpp.BlockLesion(net).attribute([(x, LABELS), (x, LABELS + 4)])


def test_weights_that_are_not_numbers_are_warned_of():
    model = randomised(PreActivation()).eval()
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with pytest.warns(NonFiniteOutputWarning, match="the intact PreActivation returns NaN or infinity"):
        result = rpp.BlockLesion(model).attribute(torch.randn(3, *IMAGES), 0)
    assert np.isnan(result["loss"]).all()


def test_outputs_that_only_a_lesion_makes_infinite_count_as_wrong():
    class Inverse(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(4, 4)
            self.branch = nn.Linear(4, 4)

        def forward(self, x):
            zero = functional.relu(-self.stem(x).abs())
            return 1 / (zero + self.branch(zero))

    with pytest.warns(NonFiniteOutputWarning, match=r"under lesion 'branch' \(3 samples\)"):
        result = rpp.BlockLesion(randomised(Inverse())).attribute(torch.randn(3, 4), 0)
    assert (result["prediction"] == -1).all()
    assert not result["correct"].any()
    assert np.isfinite(result["intact_target_score"]).all()
    assert np.isinf(result["target_score"]).all()


def test_several_kinds_of_bad_input_change_nothing():
    net, model, x = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(x)
    for arguments in ({"target": 77}, {"target": 0, "n_deleted": 9}, {"target": 0, "lesions": ["?"]}):
        with pytest.raises(rpp.ResnetPathsError):
            rpp.BlockLesion(net).attribute(x, **arguments)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(net(x), expected)
