"""What deleting residual blocks does to the outputs: against plain formulas, copies and Captum."""

import itertools

import numpy as np
import pytest
import torch
import torchvision
from captum.attr import LayerFeatureAblation
from known_networks import CASES
from lesion_studies import LABELS, assert_same_values, network, study, transformer
from networks import randomised, without
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError

MEASURES = (
    "target_score", "target_score_drop", "loss", "kl_divergence", "correct", "prediction", "prediction_changed",
)  # fmt: skip


def deleted_names(result):
    return [frozenset(result["block"].values[row]) for row in result["deleted"].values]


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


@pytest.mark.slow
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
