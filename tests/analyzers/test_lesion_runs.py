"""The lesion study in batches, dtypes and files; bad input is refused."""

import numpy as np
import pytest
import torch
from known_networks import CASES
from lesion_studies import IMAGES, LABELS, assert_same_values, network, study, transformer
from networks import PreActivation, randomised, without
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError, NonFiniteOutputWarning, NoResidualBlocksError, UnknownBlockError

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
        ("cat", "target='cat' names a key of batches that are dicts"),
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
