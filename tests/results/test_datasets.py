"""Results are documented, and what is saved comes back identical or not at all.

The oracles are the netCDF4 library, reading the file itself, and xarray's own `assert_identical`.
"""

import functools
import os
import pickle
import string
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import netCDF4
import numpy as np
import pytest
import synthetic_studies
import torch
import xarray as xr
from hypothesis import given
from searching import examples

from resnet_paths_plugin.errors import FileError, InputError
from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.plugins.model_description import ModelDescription
from resnet_paths_plugin.results import datasets, provenance, schema
from resnet_paths_plugin.results.block_coords import block_coords
from resnet_paths_plugin.results.variables import check_names


def make_block(index, name="layer1.0", stage=0):
    return ResidualBlock(
        index=index,
        name=name,
        module="layer1",
        group="layer1",
        skip_kind="identity",
        branch_type="convolution",
        stage=stage,
        depth=2,
        source_shape=(16, 8, 8),
        sum_shape=(16, 8, 8),
        source="x",
        skip="x",
        branch="f",
        sum="y",
    )


def make_attrs(**changes):
    given = {
        "title": "Lesions of resnet18",
        "summary": "Every block deleted once.",
        "analyzer": "BlockLesion",
        "model_class": torch.nn.Sequential,
        "description": ModelDescription(library="timm", library_version="1.0", architecture="resnet18"),
        "weights_digest": "sha256:00ff",
        "plugins": ["timm 1.0", "torchvision 0.29"],
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "seed": 0,
        "arguments": {"lesions": None, "n_deleted": range(1, 21), "draws": 1},
    }
    return provenance.provenance(**{**given, **changes})


def make_lesion(**changes):
    blocks = [make_block(0, "layer1.0"), make_block(1, "schicht/ü.0", stage=None)]
    entries = {
        "loss": (("lesion", "sample"), np.array([[0.5, np.nan, np.inf], [1, 2, 3]], np.float32)),
        "correct": (("lesion", "sample"), np.array([[True, False, True], [False, False, False]])),
        "prediction": (("lesion", "sample"), np.array([[1, 2, 3], [4, 5, 6]])),
        "error": ("lesion", np.array([1 / 3, 1.0])),
        "deleted": (("lesion", "block"), np.eye(2, dtype=bool)),
        "n_deleted": ("lesion", [1, 1]),
        "intact_loss": ("sample", np.zeros(3)),
        "intact_error": ((), 0.0),
        "sharpness": (("lesion", "sample"), np.ones((2, 3))),
    }
    coords = {**block_coords(blocks), "lesion": ("lesion", ["layer1.0", "layer1.0+schicht/ü.0"])}
    return datasets.build({**entries, **changes}, coords=coords, attrs=make_attrs())


def round_trip(result, folder):
    return datasets.load(datasets.save(result, folder / "result.nc"))


def assert_same_types(one, other):
    for name, variable in one.variables.items():
        kinds = variable.dtype.kind, other.variables[name].dtype.kind
        assert kinds == ("U", "U") or variable.dtype == other.variables[name].dtype, name


# --- the schema


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
        | dtype("relative_depth", "f8")
        | dtype("family proxy training", "U")
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


# --- provenance


def test_provenance_says_what_when_and_with_what():
    attrs = make_attrs()
    assert attrs["title"] == "Lesions of resnet18"
    assert attrs["schema_version"] == schema.SCHEMA_VERSION
    assert "1605.06431" in attrs["references"]
    created = datetime.strptime(attrs["date_created"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - created).total_seconds()) < 60
    assert attrs["history"].startswith(attrs["date_created"] + " BlockLesion.attribute")
    assert attrs["model_class"] == "torch.nn.modules.container.Sequential"
    assert (attrs["model_library"], attrs["model_library_version"]) == ("timm", "1.0")
    assert attrs["model_architecture"] == "resnet18"
    assert attrs["weights_digest"] == "sha256:00ff"
    assert attrs["plugins"] == "timm 1.0, torchvision 0.29"
    assert (attrs["device"], attrs["dtype"], attrs["seed"]) == ("cpu", "torch.float32", 0)
    assert attrs["torch_version"].split("+")[0] == torch.__version__.split("+")[0]
    assert attrs["xarray_version"] == xr.__version__
    assert {"python_version", "captum_version", "timm_version", "torchvision_version"} < set(attrs)
    assert (attrs["argument_lesions"], attrs["argument_n_deleted"]) == ("None", "range(1, 21)")


def test_provenance_of_an_unknown_model_leaves_its_identity_out():
    attrs = make_attrs(description=None, plugins=[], seed=None)
    assert not any(name.startswith(("model_library", "model_architecture")) for name in attrs)
    assert (attrs["plugins"], attrs["seed"]) == ("none", "None")


def test_a_package_that_is_missing_is_said_to_be_missing(monkeypatch):
    def absent(name):
        raise provenance.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(provenance.metadata, "version", absent)
    assert make_attrs()["timm_version"] == "not installed"


@dataclass(frozen=True)
class Options:
    device: str
    lesions: tuple[int, ...]


class Colour(IntEnum):
    RED = 3


class Loader:
    def __iter__(self):
        raise AssertionError("a loader must not be read")


def measure(outputs, _target):
    return outputs


HERE = measure.__module__
SAFE = {
    # what netCDF refuses or changes, and what it becomes
    "none": (None, "None"),
    "true": (True, "True"),
    "numpy flag": (np.bool_(False), "False"),
    "tuple": ((1, 2), "(1, 2)"),
    "single tuple": ((1,), "(1,)"),
    "list of one": (["a"], "['a']"),
    "list of two": (["a", "b"], "['a', 'b']"),
    "lists": ([["a"], ["b", "c"]], "[['a'], ['b', 'c']]"),
    "empty": ([], "[]"),
    "empty tuple": ((), "()"),
    "mapping": ({"a": [1, None]}, "{'a': [1, None]}"),
    "set": ({"b", "a", "c"}, "{'a', 'b', 'c'}"),
    "empty set": (set(), "set()"),
    "range": (range(1, 8), "range(1, 8)"),
    "huge": (2**63, "9223372036854775808"),
    "bytes": (b"x", "b'x'"),
    "complex": (1 + 2j, "(1+2j)"),
    "path": (Path("a/b.nc"), "a/b.nc"),
    "date": (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
    "array": (np.zeros((2, 3), np.float32), "ndarray of shape (2, 3), dtype float32"),
    "tensor": (torch.zeros(2), "Tensor of shape (2,), dtype torch.float32"),
    "list of tensors": ([torch.zeros(2)], "[Tensor of shape (2,), dtype torch.float32]"),
    "function": (measure, f"{HERE}.measure"),
    "built-in": (len, "len"),
    "class of arrays": (np.float32, "numpy.float32"),
    "method": (Options.__eq__, f"{HERE}.Options.__eq__"),
    "partial": (functools.partial(measure, 1, _target="a"), f"partial({HERE}.measure, 1, _target='a')"),
    "options": (Options("cpu", (1,)), "Options(device='cpu', lesions=(1,))"),
    "blocks": ([make_block(0, "layer1.0")], "['layer1.0']"),
    "loader": (Loader(), f"{HERE}.Loader"),
    "model": (torch.nn.Sequential(torch.nn.ReLU()), "torch.nn.modules.container.Sequential"),
    "device": (torch.device("cpu"), "device(type='cpu')"),
    "dtype": (torch.bfloat16, "torch.bfloat16"),
    "numbers of numpy in a list": ([np.float64(1.5), np.int32(2)], "[1.5, 2]"),
    "long double": (np.longdouble(2), "'2.0'"),
    "time of numpy": (np.datetime64("2020-01-01T00:00:00", "ns"), "'2020-01-01T00:00:00.000000000'"),
    "text with an address": (["meet at 0x7f"], "['meet at 0x7f']"),
    "NUL": ("a\0b", r"a\x00b"),
    "surrogate": ("\ud800", r"\ud800"),
    # what it keeps
    "text": ("größe\n", "größe\n"),
    "empty text": ("", ""),
    "integer": (-(2**63), -(2**63)),
    "named integer": (Colour.RED, 3),
    "float": (0.1, 0.1),
    "infinite": (float("-inf"), float("-inf")),
    "half": (np.float16(0.5), 0.5),
    "numpy integer": (np.int32(-1), np.int32(-1)),
    "numpy unsigned": (np.uint64(2**64 - 1), np.uint64(2**64 - 1)),
    "numpy float": (np.float32(0.1), np.float32(0.1)),
}


@pytest.mark.parametrize("case", SAFE)
def test_attributes_become_what_netcdf_keeps(case, tmp_path):
    value, expected = SAFE[case]
    safe = provenance.netcdf_safe(value)
    assert type(safe) is type(expected)
    assert safe == expected
    with netCDF4.Dataset(tmp_path / "oracle.nc", "w") as file:
        file.setncattr("value", safe)
    with netCDF4.Dataset(tmp_path / "oracle.nc") as file:
        assert file.getncattr("value") == expected


def test_nan_stays_nan():
    assert np.isnan(provenance.netcdf_safe(float("nan")))


def test_long_arguments_are_cut_and_say_so():
    safe = provenance.netcdf_safe(list(range(100_000)))
    assert len(safe) < 10_100
    assert safe.endswith(f"({len(str(list(range(100_000))))} characters in all)")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(plain.filter(lambda value: not isinstance(value, str)))
def test_arguments_are_written_as_python_writes_them(value):
    assert str(provenance.netcdf_safe(value)) == repr(value)


# --- files


def test_a_result_comes_back_identical(tmp_path):
    result = make_lesion()
    loaded = round_trip(result, tmp_path)
    xr.testing.assert_identical(loaded, result)
    assert_same_types(loaded, result)
    assert list(loaded.attrs) == list(result.attrs)


def test_the_file_is_what_netcdf_shows_of_it(tmp_path):
    result = make_lesion()
    with netCDF4.Dataset(datasets.save(result, tmp_path / "result.nc")) as file:
        file.set_auto_mask(False)
        assert file.data_model == "NETCDF4"
        assert file.ncattrs() == list(result.attrs)
        assert file["correct"].dtype == np.int8
        assert file["correct"][:].tolist() == [[1, 0, 1], [0, 0, 0]]
        np.testing.assert_array_equal(file["loss"][:], result["loss"].values)
        assert file["block"][:].tolist() == ["layer1.0", "schicht/ü.0"]
        assert file["loss"].filters()["fletcher32"]
        for name in result.variables:
            is_text = file[name].dtype is str
            assert file[name].ncattrs()[:2] == (["long_name"] if is_text else ["long_name", "units"]), name
            assert "_FillValue" not in file[name].ncattrs(), name


def test_a_tree_has_one_group_for_each_study_and_comes_back_identical(tmp_path):
    studies = {"lesion": make_lesion(), "lesion_again": make_lesion().isel(sample=slice(2))}
    studies["lesion_again"].attrs |= {"seed": 1, "date_created": "2999-01-01T00:00:00Z"}
    tree = datasets.build_tree(studies)
    loaded = round_trip(tree, tmp_path)
    assert isinstance(loaded, xr.DataTree)
    xr.testing.assert_identical(loaded, tree)
    with netCDF4.Dataset(tmp_path / "result.nc") as file:
        assert list(file.groups) == ["lesion", "lesion_again"]
        assert file.groups["lesion_again"].ncattrs() == list(studies["lesion_again"].attrs)
        assert len(file.groups["lesion_again"].dimensions["sample"]) == 2


def test_the_root_of_a_tree_states_what_the_studies_share():
    one, other = make_lesion(), make_lesion()
    other.attrs |= {"seed": 1, "date_created": "2999-01-01T00:00:00Z", "history": "later"}
    root = datasets.build_tree({"one": one, "other": other}).attrs
    assert root["title"] == "Studies of resnet18"
    assert "one, other" in root["summary"]
    assert root["weights_digest"] == "sha256:00ff"
    assert root["schema_version"] == schema.SCHEMA_VERSION
    assert root["date_created"] == "2999-01-01T00:00:00Z"
    assert root["history"] == one.attrs["history"] + "\nlater"
    assert "seed" not in root
    assert not any(name.startswith("argument_") for name in root)


def test_a_tree_needs_a_study():
    with pytest.raises(InputError, match="at least one study"):
        datasets.build_tree({})


def test_a_tree_that_hands_down_coordinates_comes_back_identical(tmp_path):
    root = xr.Dataset(coords={"block": ["a", "b"]}, attrs=make_attrs())
    tree = xr.DataTree.from_dict({"/": root, "/x/y": xr.Dataset({"mine": ("block", [1.0, 2.0])})})
    xr.testing.assert_identical(round_trip(tree, tmp_path), tree)


def test_a_loaded_result_is_in_memory_and_its_file_closed(tmp_path):
    result = make_lesion()
    loaded = round_trip(result, tmp_path)
    (tmp_path / "result.nc").unlink()
    xr.testing.assert_identical(loaded, result)
    opened = [os.path.realpath(number) for number in Path("/proc/self/fd").iterdir()]
    assert str(tmp_path / "result.nc") not in " ".join(opened)


def test_a_changed_copy_of_a_loaded_result_can_be_saved_again(tmp_path):
    part = round_trip(make_lesion(), tmp_path).isel(sample=[0], lesion=slice(0, 0))
    xr.testing.assert_identical(round_trip(part, tmp_path), part)


def test_how_a_file_was_encoded_is_no_part_of_a_result(tmp_path):
    result = make_lesion()
    result["error"].encoding = {"dtype": "int16", "scale_factor": 0.5}
    result.encoding = {"unlimited_dims": {"dim_since_averaged_away"}}
    loaded = round_trip(result, tmp_path)
    xr.testing.assert_identical(loaded, result)
    assert loaded["error"].encoding == loaded.encoding == {}


def test_units_of_time_are_not_decoded(tmp_path):
    units = {"runtime": "seconds", "begin": "days since 2000-01-01"}
    entries = {name: ("sample", [1, 2], {"units": unit}) for name, unit in units.items()}
    result = datasets.build(entries, coords={}, attrs=make_attrs())
    loaded = round_trip(result, tmp_path)
    xr.testing.assert_identical(loaded, result)
    assert loaded["runtime"].dtype == np.int64


def test_attributes_that_others_use_for_packed_values_do_not_change_values(tmp_path):
    packing = {"scale_factor": 2.0, "add_offset": 1.0, "missing_value": 1.0}
    result = datasets.build({"mine": ("sample", [1.0, 2.0], packing)}, coords={}, attrs=make_attrs())
    loaded = round_trip(result, tmp_path)
    assert loaded["mine"].values.tolist() == [1.0, 2.0]
    xr.testing.assert_identical(loaded, result)


letters = st.text("abzé中_" + string.digits, min_size=1, max_size=6)
names = st.builds("{}{}".format, letters, st.text("a.+@-_9ß", max_size=4))
labels = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
arrays = st.one_of(
    npst.arrays(dtype, (3, 2)) for dtype in ("?", "i1", "u2", "i4", "i8", "u8", "f2", "f4", "f8", ">f4", ">i8")
) | npst.arrays("U", (3, 2), elements=labels.filter(lambda text: "\0" not in text))


@st.composite
def results(draw):
    size = draw(st.integers(0, 4))
    text = st.lists(labels, min_size=size, max_size=size)
    own = draw(st.dictionaries(names, arrays, max_size=4))
    known = {
        name: ("lesion", draw(npst.arrays(schema.QUANTITIES[name].dtype, size)))
        for name in draw(st.sets(st.sampled_from(["loss", "error", "correct", "n_deleted", "n_draws"])))
    }
    entries = {f"m{name}": (("row", "column"), values, {"comment": draw(labels)}) for name, values in own.items()}
    blocks = [make_block(index, name) for index, name in enumerate(draw(text))]
    coords = {
        **block_coords(blocks),
        "lesion": ("lesion", draw(text.filter(lambda found: len(set(found)) == len(found)))),
    }
    arguments = draw(st.dictionaries(names, plain, max_size=3))
    return datasets.build({**entries, **known}, coords=coords, attrs=make_attrs(arguments=arguments))


@examples(30)
@given(results())
def test_any_result_comes_back_identical(tmp_path_factory, result):
    folder = tmp_path_factory.mktemp("any")
    loaded = round_trip(result, folder)
    xr.testing.assert_identical(loaded, result)
    assert_same_types(loaded, result)
    tree = datasets.build_tree({"one": result, "other": result.isel(block=slice(1))})
    xr.testing.assert_identical(round_trip(tree, folder), tree)
    assert [path.name for path in folder.iterdir()] == ["result.nc"]


STUDIES = {
    "lesion": functools.partial(synthetic_studies.random_lesions, 3, draws=2),
    "lesion_without_targets": functools.partial(synthetic_studies.single_lesions, 3, targets=False),
    "reordering": functools.partial(synthetic_studies.reorderings, 6, draws=1, swaps=(1, 2)),
    "path_length": functools.partial(synthetic_studies.path_lengths, 3, max_length=2),
    "path_maps": functools.partial(synthetic_studies.path_maps, 3),
    "influence": functools.partial(synthetic_studies.influence, 3, gated=True),
    "trainings": functools.partial(synthetic_studies.trainings, 2),
    "schedule": functools.partial(synthetic_studies.schedules, 3),
}
odd_attributes = st.one_of(
    labels, st.integers(-(2**63), 2**63 - 1), st.floats(), st.floats(width=32).map(np.float32),
    st.integers(0, 2**64 - 1).map(np.uint64), st.booleans().map(str),
)  # fmt: skip


@st.composite
def odd_studies(draw, name):
    """A study with variables left out, dims cut down to nothing, numbers gone bad, other labels and attributes."""
    study = STUDIES[name]()
    study = study.drop_vars(draw(st.sets(st.sampled_from(sorted(map(str, study.data_vars))))))
    cut = draw(st.dictionaries(st.sampled_from(sorted(map(str, study.sizes))), st.integers(0, 3)))
    study = study.isel({dim: slice(size) for dim, size in cut.items()})
    for variable in draw(st.sets(st.sampled_from(sorted(map(str, study.variables))))):
        held = study[variable]
        if held.dtype.kind == "f":
            bad = np.resize([np.nan, np.inf, -np.inf, -0.0], held.shape).astype(held.dtype)
            study[variable] = (held.dims, bad, held.attrs)
        elif held.dtype.kind == "U":
            texts = draw(st.lists(labels, min_size=held.size, max_size=held.size))
            study[variable] = (held.dims, np.array(texts, "U").reshape(held.shape), held.attrs)
        note = draw(st.dictionaries(names, odd_attributes, max_size=2))
        study[variable].attrs |= {f"n{key}": value for key, value in note.items()}
    more = draw(st.dictionaries(names, odd_attributes, max_size=3))
    return study.assign_attrs({f"argument_{key}": value for key, value in more.items()})


@pytest.mark.parametrize("name", STUDIES)
@examples(6)
@given(st.data())
def test_an_odd_study_comes_back_identical(name, tmp_path_factory, data):
    study = data.draw(odd_studies(name))
    loaded = round_trip(study, tmp_path_factory.mktemp("odd"))
    xr.testing.assert_identical(loaded, study)
    assert_same_types(loaded, study)
    assert {key: type(value) for key, value in loaded.attrs.items() if isinstance(value, str)} == {
        key: str for key, value in study.attrs.items() if isinstance(value, str)
    }


@examples(6)
@given(st.data(), st.sets(st.sampled_from(sorted(STUDIES)), min_size=1, max_size=3), names, st.booleans())
def test_a_tree_of_odd_studies_comes_back_identical(tmp_path_factory, data, chosen, prefix, deep):
    found = {f"g{prefix}.{name}": data.draw(odd_studies(name)) for name in sorted(chosen)}
    tree = datasets.build_tree(found)
    if deep:
        tree = xr.DataTree.from_dict(
            {"/": xr.Dataset(attrs=tree.attrs), **{f"/a/{key}": v for key, v in found.items()}}
        )
    xr.testing.assert_identical(round_trip(tree, tmp_path_factory.mktemp("trees")), tree)


@pytest.mark.parametrize("name", ["größe b.nc", "a#mode=bytes.nc", "a?b.nc", "a[0].nc", "~.nc", "https:x.nc", "x"])
def test_any_file_name_works(name, tmp_path):
    folder = tmp_path / "s3:#?[0]"
    folder.mkdir()
    path = datasets.save(make_lesion(), folder / name)
    assert [path.name for path in folder.iterdir()] == [name]
    xr.testing.assert_identical(datasets.load(str(path)), make_lesion().assign_attrs(datasets.load(path).attrs))


def test_save_returns_the_path_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert datasets.save(make_lesion(), "result.nc") == Path("result.nc")


def test_saving_through_a_link_writes_the_file_behind_it(tmp_path):
    (tmp_path / "link.nc").symlink_to(tmp_path / "target.nc")
    datasets.save(make_lesion(), tmp_path / "link.nc")
    assert (tmp_path / "link.nc").is_symlink()
    assert (tmp_path / "target.nc").is_file()


def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    datasets.save(make_lesion(), tmp_path / "result.nc")
    assert (tmp_path / "result.nc").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- atomic writes


@pytest.mark.parametrize(
    "error", [OSError("disk full"), RuntimeError("NetCDF: HDF error"), KeyboardInterrupt(), ValueError()]
)
@pytest.mark.parametrize("moment", ["while writing", "before the disk has it"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(error, moment, tmp_path, monkeypatch):
    path = datasets.save(make_lesion(), tmp_path / "result.nc")
    before = path.read_bytes()
    complete = xr.DataTree.to_netcdf

    def half_written(tree, target, **options):
        complete(tree, target, **options)
        os.truncate(target, 1000)
        assert len([*tmp_path.iterdir()]) == 2
        raise error

    def fail(_descriptor):
        raise error

    if moment == "while writing":
        monkeypatch.setattr(xr.DataTree, "to_netcdf", half_written)
    else:
        monkeypatch.setattr(datasets.os, "fsync", fail)
    expected = FileError if isinstance(error, OSError | RuntimeError) else type(error)
    with pytest.raises(expected):
        datasets.save(make_lesion(), path)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["result.nc"]


def test_the_file_is_on_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(datasets.os, "fsync", lambda number: (events.append("fsync"), fsync(number)))
    monkeypatch.setattr(Path, "replace", lambda old, new: (events.append(old.name), replace(old, new)))
    datasets.save(make_lesion(), tmp_path / "result.nc")
    assert events == ["fsync", "content", "fsync"]  # the file, its new name, and the folder that holds the name


# --- errors


def test_saving_into_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileError, match=r"missing does not exist\. Create it"):
        datasets.save(make_lesion(), tmp_path / "missing" / "result.nc")


def test_saving_onto_a_folder(tmp_path):
    with pytest.raises(FileError, match=r"is a folder: give the name of a file in it"):
        datasets.save(make_lesion(), tmp_path)


def test_saving_into_a_folder_without_the_right_to(tmp_path, monkeypatch):
    def denied(_tree, target, **_options):
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(xr.DataTree, "to_netcdf", denied)
    with pytest.raises(FileError, match=r"cannot write .*result\.nc: Permission denied$"):
        datasets.save(make_lesion(), tmp_path / "result.nc")


def test_a_write_protected_file_is_not_replaced(tmp_path, monkeypatch):
    path = datasets.save(make_lesion(), tmp_path / "result.nc")
    monkeypatch.setattr(datasets.os, "access", lambda asked, mode: not (asked == path and mode == os.W_OK))
    with pytest.raises(FileError, match="write-protected"):
        datasets.save(make_lesion(), path)


UNSAVABLE = {
    "no result": (lambda: xr.Dataset({"mine": 1}), "schema_version"),
    "an array": (lambda: make_lesion()["loss"], "not DataArray"),
    "a tree without groups": (lambda: xr.DataTree(make_lesion()), r"save its \.to_dataset"),
    "a group's name": (lambda: datasets.build_tree({"a b": make_lesion()}), "cannot be a name"),
    "a variable's name": (lambda: make_lesion().rename(loss="a/b"), "'a/b' cannot be a name"),
    "a name that is no text": (lambda: make_lesion().rename(loss=1), "1 cannot be a name"),
    "half precision": (lambda: make_lesion().astype("f2"), r"use \.astype\('float32'\)"),
    "big-endian": (lambda: make_lesion().assign(mine=("sample", np.zeros(3, ">f4"))), "no >f4"),
    "time": (lambda: make_lesion().assign(mine=("sample", np.zeros(3, "M8[ns]"))), "no exact counterpart"),
    "several levels": (lambda: make_lesion().stack(both=("lesion", "sample")), "not all text"),
    "None": (lambda: make_lesion().assign_attrs(note=None), "store 'None' instead"),
    "a list": (
        lambda: make_lesion().assign_attrs(note=["a"]),
        r"attribute 'note' of the result would change",
    ),
    "a flag": (lambda: make_lesion().assign_attrs(note=np.True_), "store 'True' instead"),
    "NUL": (lambda: make_lesion().assign_attrs(note="a\0"), "would change"),
    "a reserved attribute": (lambda: make_lesion().assign(mine=((), 1, {"dtype": "x"})), "file format"),
    "an attribute's name": (lambda: make_lesion().assign_attrs({"a/b": 1}), "cannot be a name"),
}


@pytest.mark.parametrize("case", UNSAVABLE)
def test_what_a_file_would_change_is_not_saved(case, tmp_path):
    make, message = UNSAVABLE[case]
    with pytest.raises(InputError, match=message):
        datasets.save(make(), tmp_path / "result.nc")
    assert not any(tmp_path.iterdir())


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(FileError, match=r"nothing\.nc is missing"):
        datasets.load(tmp_path / "nothing.nc")
    with pytest.raises(FileError, match="is a folder"):
        datasets.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\n", pickle.dumps({"a": 1})])
def test_loading_a_file_that_is_no_netcdf(content, tmp_path):
    path = tmp_path / "other.nc"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"other\.nc is damaged or no netCDF file"):
        datasets.load(path)


def test_a_pickle_is_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    (tmp_path / "trap.nc").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(FileError):
        datasets.load(tmp_path / "trap.nc")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("attrs", [{}, {"schema_version": "1"}, {"schema_version": 1.5}])
def test_loading_a_netcdf_file_of_something_else(attrs, tmp_path):
    xr.Dataset({"temperature": 1.0}, attrs=attrs).to_netcdf(tmp_path / "other.nc", engine="netcdf4")
    with pytest.raises(FileError, match=r"not one made by save .*xarray\.open_dataset"):
        datasets.load(tmp_path / "other.nc")


@pytest.mark.parametrize("tree", [False, True])
def test_loading_a_newer_schema(tree, tmp_path):
    result = make_lesion().assign_attrs(schema_version=schema.SCHEMA_VERSION + 1)
    result = xr.DataTree.from_dict({"/lesion": result}) if tree else result
    path = datasets.save(result, tmp_path / "newer.nc")
    with pytest.raises(FileError, match=r"schema version 3, .* reads up to 2: upgrade"):
        datasets.load(path)


def test_a_truncated_file_is_damaged(tmp_path):
    path = datasets.save(make_lesion(), tmp_path / "result.nc")
    size = path.stat().st_size
    for kept in (100, size // 2, size - 1):
        os.truncate(path, kept)
        with pytest.raises(FileError, match="damaged"):
            datasets.load(path)
        datasets.save(make_lesion(), path)


@pytest.mark.parametrize("tree", [False, True])
def test_one_flipped_bit_in_the_values_is_noticed(tree, tmp_path):
    values = np.arange(1000, dtype=np.float32)
    result = datasets.build({"loss": ("sample", values)}, coords={}, attrs=make_attrs())
    result = datasets.build_tree({"one": result}) if tree else result
    path = datasets.save(result, tmp_path / "result.nc")
    content = bytearray(path.read_bytes())
    place = content.index(values.tobytes()) + 1234
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match="is damaged: restore it from a copy or run the study again"):
        datasets.load(path)
