"""Provenance says what was studied, when and with what, in attributes that netCDF keeps."""

import functools
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from made_results import make_attrs, make_block, plain_values

import resnet_paths_plugin.plotting.accessor  # noqa: F401 - registers it
from resnet_paths_plugin.results import provenance, schema
from resnet_paths_plugin.results.arguments import read_argument


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
    assert (attrs["argument_lesions"], attrs["argument_n_deleted"]) == ("null", str([*range(1, 21)]))


def test_provenance_of_an_unknown_model_leaves_its_identity_out():
    attrs = make_attrs(description=None, plugins=[], seed=None)
    assert not any(name.startswith(("model_library", "model_architecture")) for name in attrs)
    assert attrs["plugins"] == "none"
    assert "seed" not in attrs


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
    "none": (None, "null"),
    "true": (True, "true"),
    "numpy flag": (np.bool_(False), "false"),
    "tuple": ((1, 2), "[1, 2]"),
    "single tuple": ((1,), "[1]"),
    "list of one": (["a"], '["a"]'),
    "list of two": (["a", "b"], '["a", "b"]'),
    "lists": ([["a"], ["b", "c"]], '[["a"], ["b", "c"]]'),
    "empty": ([], "[]"),
    "empty tuple": ((), "[]"),
    "mapping": ({"a": [1, None]}, '{"a": [1, null]}'),
    "set": ({"b", "a", "c"}, '["a", "b", "c"]'),
    "set of numbers": ({10, 9, 2.5}, "[2.5, 9, 10]"),
    "mapping by numbers": ({1: True}, '{"1": true}'),
    "empty set": (set(), "[]"),
    "range": (range(1, 8), "[1, 2, 3, 4, 5, 6, 7]"),
    "long range": (range(10**9), "range(0, 1000000000)"),
    "huge": (2**63, "9223372036854775808"),
    "bytes": (b"x", "b'x'"),
    "complex": (1 + 2j, "(1+2j)"),
    "path": (Path("a/b.nc"), "a/b.nc"),
    "date": (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
    "array": (np.zeros((2, 3), np.float32), "ndarray of shape (2, 3), dtype float32"),
    "tensor": (torch.zeros(2), "Tensor of shape (2,), dtype torch.float32"),
    "list of tensors": ([torch.zeros(2)], '["Tensor of shape (2,), dtype torch.float32"]'),
    "function": (measure, f"{HERE}.measure"),
    "built-in": (len, "len"),
    "class of arrays": (np.float32, "numpy.float32"),
    "method": (Options.__eq__, f"{HERE}.Options.__eq__"),
    "partial": (functools.partial(measure, 1, _target="a"), f"partial({HERE}.measure, 1, _target='a')"),
    "options": (Options("cpu", (1,)), "Options(device='cpu', lesions=(1,))"),
    "blocks": ([make_block(0, "layer1.0")], '["layer1.0"]'),
    "loader": (Loader(), f"{HERE}.Loader"),
    "model": (torch.nn.Sequential(torch.nn.ReLU()), "torch.nn.modules.container.Sequential"),
    "device": (torch.device("cpu"), "device(type='cpu')"),
    "dtype": (torch.bfloat16, "torch.bfloat16"),
    "numbers of numpy in a list": ([np.float64(1.5), np.int32(2)], "[1.5, 2]"),
    "long double": (np.longdouble(2), "2.0"),
    "time of numpy": (np.datetime64("2020-01-01T00:00:00", "ns"), "2020-01-01T00:00:00.000000000"),
    "text with an address": (["meet at 0x7f"], '["meet at 0x7f"]'),
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


def as_lists(value):
    """Return plain data as JSON has it."""
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return [as_lists(item) for item in value] if isinstance(value, list | tuple) else value


@given(plain_values)
def test_arguments_are_given_back(value):
    given_back = read_argument(provenance.argument_attribute(value))
    if isinstance(value, str):
        value = provenance.netcdf_safe(value)
    assert type(given_back) is type(as_lists(value))
    assert given_back == as_lists(value) or value != value  # noqa: PLR0124 - NaN


@pytest.mark.parametrize("text", ["null", "[1]", '"a"', "true", "1", "NaN", "99999999999999999999", "", "[" * 9000])
def test_a_text_that_reads_as_data_stays_a_text(text):
    assert read_argument(provenance.argument_attribute(text)) == text


def test_a_study_gives_its_arguments_back():
    attrs = make_attrs(
        arguments={"n_deleted": range(1, 4), "ablation": "mean", "ridge": None, "draws": 3, "seeds": {2}}
    )
    found = xr.Dataset(attrs=attrs).resnet_paths.arguments
    assert found == {"n_deleted": [1, 2, 3], "ablation": "mean", "ridge": None, "draws": 3, "seeds": [2]}
