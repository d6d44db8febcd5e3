"""The schema: every variable of a result is documented, and values that a file would change are refused."""

import numpy as np
import pytest
import torch
from made_results import make_attrs, make_lesion

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.results import datasets, schema
from resnet_paths_plugin.results.block_coords import block_coords
from resnet_paths_plugin.results.variables import check_names


def test_every_variable_of_the_design_is_known_with_its_dtype_and_units():
    def dtype(names, expected):
        return dict.fromkeys(names.split(), np.dtype(expected))

    expected = (
        dtype("target_score target_score_drop loss kl_divergence gradient input", "f4")
        | dtype("correct prediction_changed deleted changed constant_added", "?")
        | dtype("prediction n_deleted n_deleted_units draw order n_swaps block_index stage position path_length", "i4")
        | dtype("label entry entry_schedule entry_place entry_branch n_changed", "i4")
        | dtype("sample n_draws n_samples", "i8")
        | dtype("error kendall_tau kendall_tau_all_blocks gradient_norm completeness_error path_count", "f8")
        | dtype("log10_path_count path_gradient_norm path_gradient_norm_stderr total_path_gradient", "f8")
        | dtype("log10_total_path_gradient path_gradient_rms tail_gradient_norm", "f8")
        | dtype("effective_length_low effective_length_high", "f8")
        | dtype("branch_to_source_norm source_sum_cosine block_influence angular_distance", "f8")
        | dtype("branch_descent_cosine lesion_estimate gate_openness lesion_effect", "f8")
        | dtype("rank_correlation entry_weight lesion_effect_by_sample path_gradient_norm_draws", "f8")
        | dtype("lesion reordering schedule block block_skip_kind block_branch_type block_group block_module", "U")
        | dtype("skip_kind branch_type measure", "U")
        | dtype("block_stage block_depth", "i4")
        | dtype("relative_depth gradient_share contribution direct indirect stem remainder participation", "f8")
        | dtype("directional_derivative parameter_gradient_norm parameter_gradient_share mean_path_length", "f8")
        | dtype("parameter_gradient_norm_per_sample parameter_gradient_share_per_sample", "f8")
        | dtype("tail_parameter_gradient_norm", "f8")
        | dtype("contribution_map", "f4")
        | dtype("n_parameters n_tokens", "i8")
        | dtype("perplexity squared_error mean_iou cosine_distance", "f8")
        | dtype("family proxy training sample_name", "U")
        | dtype("explained_variance searched_effect held_out_effect held_out_effect_stderr held_out_error", "f8")
        | dtype("random_searched_effect random_held_out_effect random_held_out_effect_stderr", "f8")
        | dtype("random_held_out_error latency random_latency search_cost step_effect", "f8")
        | dtype("shapley_value shapley_stderr shapley_value_per_sample shapley_interaction", "f8")
        | dtype("shapley_interaction_stderr efficiency_error single_effect pair_effect interaction", "f8")
        | dtype("interaction_per_sample set_effect additive_effect additive_share", "f8")
        | dtype("additive_share_low additive_share_high", "f8")
        | dtype("parameters multiply_adds random_parameters random_multiply_adds n_tried step_n_samples", "i8")
        | dtype("n_searched_samples n_held_out_samples n_coalitions n_orders", "i8")
        | dtype("random_n_deleted random_n_deleted_units", "i4")
        | dtype("linear_added random_deleted step_deleted step_left_out", "?")
        | dtype("selection method step_method other_block", "U")
        | dtype("model architecture weights_digest block_name", "U")
        | dtype("replicate n_replicates n_blocks", "i8")
        | dtype("relative_depth share_of_blocks chance_error normalised_effect mean_lesion_effect", "f8")
        | dtype("mean_normalised_effect notable_share gradient_norm_share", "f8")
    )
    stored = {name: np.dtype(quantity.dtype) for name, quantity in schema.QUANTITIES.items()}
    assert stored == expected
    units = {name: quantity.units for name, quantity in schema.QUANTITIES.items()}
    assert {name for name, unit in units.items() if unit == "nat"} == {"loss", "kl_divergence"}
    assert {name for name, unit in units.items() if unit == "s"} == {"latency", "random_latency"}
    assert set(units.values()) == {"1", "nat", "s"}


def test_every_variable_of_a_result_has_a_long_name_and_units():
    result = make_lesion()
    assert len(result.variables) == 9 + 10  # nine measured, eight of the blocks, lesion and sample
    for name, variable in result.variables.items():
        assert len(variable.attrs["long_name"]) > 4, name
        is_text = variable.dtype.kind == "U"
        assert variable.attrs.get("units") == (None if is_text else "nat" if "loss" in name else "1"), name


def test_values_get_the_dtype_of_the_schema():
    result = make_lesion()
    assert result["prediction"].dtype == np.int32
    assert result["intact_loss"].dtype == np.float32
    assert result["sample"].dtype == np.int64
    assert result["sharpness"].dtype == np.float64


def test_a_mean_over_samples_has_no_dim_of_samples():
    for name in ("interaction", "path_gradient_norm"):
        with pytest.raises(InputError, match=f"the schema's '{name}' is a mean over samples"):
            make_lesion(**{name: ("sample", np.zeros(3))})


def test_a_quantity_of_the_intact_network_is_named_so():
    result = make_lesion()
    assert result["intact_loss"].attrs["long_name"] == result["loss"].attrs["long_name"] + ", intact network"


def test_a_users_measure_is_named_after_itself_unless_the_entry_says_more():
    entry = ("sample", [1.0], {"long_name": "time", "units": "seconds"})
    result = datasets.build({"mine": ("sample", [1.0]), "runtime": entry}, coords={}, attrs=make_attrs())
    assert result["mine"].attrs == {"long_name": "measure 'mine'", "units": "1"}
    assert result["runtime"].attrs == {"long_name": "time", "units": "seconds"}


def test_block_coords_lay_the_facts_beside_the_names():
    result = make_lesion()
    assert result["block"].values.tolist() == ["layer1.0", "schicht/ü.0"]
    assert result["block_index"].values.tolist() == [0, 1]
    assert result["block_skip_kind"].values.tolist() == ["identity"] * 2
    assert result["block_branch_type"].values.tolist() == ["convolution"] * 2
    assert result["block_group"].values.tolist() == result["block_module"].values.tolist() == ["layer1"] * 2
    assert result["block_depth"].values.tolist() == [2, 2]
    assert all(result[name].dims == ("block",) for name in block_coords([]))


def test_a_stage_that_is_not_known_is_a_documented_flag():
    stage = make_lesion()["block_stage"]
    assert stage.values.tolist() == [0, -1]
    assert stage.attrs["flag_values"] == -1
    assert stage.attrs["flag_meanings"] == "not_known"


@pytest.mark.parametrize("dim", ["sample", "position", "path_length"])
def test_counted_dims_are_numbered_from_zero_unless_given(dim):
    entries = {"mine": (dim, [1.0, 2.0, 3.0])}
    assert datasets.build(entries, coords={}, attrs={})[dim].values.tolist() == [0, 1, 2]
    assert datasets.build(entries, coords={dim: (dim, [5, 6, 7])}, attrs={})[dim].values.tolist() == [5, 6, 7]


def test_counts_of_paths_may_have_any_size():
    counts = [1, 2**53, 3**100, 10**400]
    stored = datasets.build({"path_count": ("path_length", counts)}, coords={}, attrs={})["path_count"]
    assert stored.values.tolist() == [1.0, 2.0**53, float(3**100), np.inf]


def test_float64_beyond_float32_becomes_infinite_without_a_warning():
    result = datasets.build({"loss": ("sample", [1e300])}, coords={}, attrs={})
    assert result["loss"].values.tolist() == [np.inf]


def test_half_precision_is_widened_without_loss():
    halves = np.array([0.1, -65504, np.nan], np.float16)
    stored = datasets.build({"mine": ("sample", halves)}, coords={}, attrs={})["mine"].values
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored.astype(np.float16), halves)


REFUSED_VALUES = {
    "complex": ("mine", [1j], "complex128"),
    "time": ("mine", np.array(["2020-01-01"], "M8[ns]"), "datetime64"),
    "bytes": ("mine", [b"x"], "S1"),
    "long double": ("mine", np.array([1], np.longdouble), "dtype"),
    "missing text": ("mine", np.array(["a", None], object), "missing text"),
    "NUL": ("mine", ["a\0b"], "NUL"),
    "surrogate": ("mine", ["\ud800"], "surrogate"),
    "text for numbers": ("loss", ["a"], "expected float32 values"),
    "numbers for text": ("lesion", [1], "expected str_ values"),
    "fraction for count": ("n_deleted", [1.5], "do not fit int32"),
    "too large a count": ("n_deleted", [2**31], "do not fit int32"),
    "NaN for a count": ("n_deleted", [np.nan], "do not fit int32"),
    "number for a flag": ("correct", [2], "do not fit bool"),
    "ragged": ("mine", [[1], [1, 2]], "inhomogeneous"),
    "tensor of bfloat16": ("mine", torch.ones(1, dtype=torch.bfloat16), "BFloat16"),
}


@pytest.mark.parametrize("case", REFUSED_VALUES)
def test_values_that_a_file_would_change_are_refused_by_the_name_of_their_variable(case):
    name, values, message = REFUSED_VALUES[case]
    with pytest.raises(InputError, match=message) as error:
        datasets.build({name: ("q", values)}, coords={}, attrs={})
    assert repr(name) in str(error.value)


BAD_NAMES = ["a/b", "", " a", "a ", "a b", "+a", "a\nb", "e\u0301", "\u212b", "a\0", "x" * 257, "\ud800"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_a_file_would_refuse_or_change_are_refused(name):
    with pytest.raises(InputError, match="cannot be a name"):
        check_names([name])
    with pytest.raises(InputError, match="cannot be a name"):
        datasets.build({name: ("sample", [1.0])}, coords={}, attrs={})
    with pytest.raises(InputError, match="cannot be a name"):
        datasets.build({"mine": (name, [1.0])}, coords={}, attrs={})
    with pytest.raises(InputError, match="cannot be a name"):
        datasets.build({}, coords={}, attrs={name: "x"})


@pytest.mark.parametrize("name", ["loss", "sample", "intact_loss"])
def test_a_users_measure_cannot_take_a_name_of_the_schema(name):
    check_names(["top5", "größe", "p.95", "x" * 256])
    with pytest.raises(InputError, match="schema"):
        check_names([name])


@pytest.mark.parametrize("name", ["coordinates", "CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_NCProperties"])
def test_attribute_names_of_the_file_format_are_refused(name):
    with pytest.raises(InputError, match="file format"):
        datasets.build({}, coords={}, attrs={name: "x"})
    with pytest.raises(InputError, match="file format"):
        datasets.build({"mine": ("sample", [1.0], {name: "x"})}, coords={}, attrs={})
