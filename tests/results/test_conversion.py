"""Files of earlier versions of the schema load with the names of this one."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import resnet_paths_plugin as rpp
from resnet_paths_plugin import demo, plotting
from resnet_paths_plugin.results import conversion, datasets, schema

VERSION_1 = Path(__file__).parent / "version_1.nc"
"""Written by 0.1.0: `BlockLesion.attribute(x, y, n_deleted=(1, 2), draws=2)` and `PathLengthGradient.attribute(x, y)`
of a ResNet of six blocks on three images."""

MEASURED_SINCE = ["gradient_share"]
"""What version 1 did not measure."""


@pytest.fixture(scope="module")
def old():
    return rpp.load(VERSION_1)


@pytest.fixture(scope="module")
def new():
    torch.manual_seed(0)
    net = rpp.unravel(demo.DigitsResNet(blocks_per_stage=2).eval(), torch.randn(2, 1, 8, 8))
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2])
    return {
        "random_lesions": rpp.BlockLesion(net).attribute(images, labels, n_deleted=(1, 2), draws=2, seed=0),
        "path_lengths": rpp.PathLengthGradient(net).attribute(images, target=labels),
    }


@pytest.mark.parametrize("study", ["random_lesions", "path_lengths"])
def test_a_file_of_version_1_holds_what_this_version_measures(study, old, new):
    found = old[study].to_dataset()
    assert found.attrs["schema_version"] == old.attrs["schema_version"] == schema.SCHEMA_VERSION
    assert {*found.coords} == {*new[study].coords}
    expected = new[study].drop_vars(MEASURED_SINCE, errors="ignore")
    if "measure" in expected.dims:
        expected = expected.sel(measure=[name for name in expected.measure.values if name not in MEASURED_SINCE])
    assert {*found.data_vars} == {*expected.data_vars}
    for name, values in expected.variables.items():
        ours = found[name]
        assert (ours.dims, ours.dtype.kind) == (values.dims, values.dtype.kind), name
        if values.dtype.kind in "fi":
            np.testing.assert_allclose(ours, values, rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(ours, values, err_msg=name)
        if name in schema.COORDINATES:
            assert ours.attrs == values.attrs, name


def test_a_lesion_of_version_1_has_facts_of_its_block(old):
    lesions = old["random_lesions"].to_dataset()
    alone = lesions.isel(lesion=(lesions.n_deleted == 1).values)
    assert alone.sizes["lesion"] == 2
    for lesion in alone.lesion.values:
        block = lesions.sel(block=lesion)
        one = alone.sel(lesion=lesion)
        assert (one.stage, one.skip_kind) == (block.block_stage, block.block_skip_kind)
        assert one.relative_depth == pytest.approx((int(block.block_index) + 0.5) / 6)
    pairs = lesions.isel(lesion=(lesions.n_deleted == 2).values)
    assert set(pairs.stage.values.tolist()) == {-1}
    assert set(pairs.branch_type.values.tolist()) == {""}
    assert set(pairs.relative_depth.values.tolist()) == {-1}


def test_a_file_of_version_1_is_drawn_and_written_again(old, tmp_path):
    plotting.plot_random_lesions(old["random_lesions"].to_dataset())
    again = rpp.load(rpp.save(old, tmp_path / "again.nc"))
    assert again.identical(old)


OLD_ARGUMENTS = {
    "argument_lesions": ("None", "null"),
    "argument_n_deleted": ("range(1, 4)", "[1, 2, 3]"),
    "argument_orders": ("[(0, 1), [2]]", "[[0, 1], [2]]"),
    "argument_shared_paths": ("False", "false"),
    "argument_ablation": ("mean", "mean"),
    "argument_inputs": ("Tensor of shape (2, 3), dtype torch.float32", "Tensor of shape (2, 3), dtype torch.float32"),
    "argument_tap": ("[layer1", "[layer1"),
    "argument_target": ("{'a': 1}", '{"a": 1}'),
    "argument_classes": ("set()", "[]"),
    "argument_draws": (3, 3),
    "argument_note": ("1", "1"),
    "argument_json": ("true", '"true"'),
    "argument_deep": ("(" * 5000, "(" * 5000),
    "class_names": ("['zero', 'one']", '["zero", "one"]'),
    "title": ("None", "None"),
}
"""Attributes of schema 2, and what they are now."""


@pytest.mark.parametrize("name", OLD_ARGUMENTS)
def test_arguments_in_pythons_notation_become_typed(name):
    old, new = OLD_ARGUMENTS[name]
    found = conversion.converted(xr.Dataset(attrs={"schema_version": 2, name: old, "seed": 4}), 2)
    assert found.attrs == {"schema_version": schema.SCHEMA_VERSION, name: new, "seed": 4}


def test_a_study_that_drew_nothing_has_no_seed_any_more():
    assert "seed" not in conversion.converted(xr.Dataset(attrs={"schema_version": 2, "seed": "None"}), 2).attrs


def as_version_1(ds):
    """Return a result as version 1 had it: the inverse of what is tested, by hand."""
    names = ("stage", "skip_kind", "branch_type", "group", "module", "depth")
    ds = ds.drop_vars(["stage", "skip_kind", "branch_type", "relative_depth"], errors="ignore")
    ds = ds.rename({f"block_{name}": name for name in names if f"block_{name}" in ds})
    ds = ds.reset_coords([name for name in ("n_deleted", "n_deleted_units", "draw") if name in ds.coords])
    return ds.assign_attrs(schema_version=1)


@pytest.mark.parametrize(
    "chosen",
    [
        lambda ds: ds,
        lambda ds: ds.isel(lesion=0),
        lambda ds: ds.isel(block=0),
        lambda ds: ds.isel(sample=0),
        lambda ds: ds.transpose(),
        lambda ds: ds.isel(lesion=[2, 1]),
    ],
)
def test_selections_of_version_1_are_converted(new, chosen):
    lesions = new["random_lesions"]
    found = conversion.converted(as_version_1(chosen(lesions)), 1)
    expected = chosen(lesions)
    if "block" not in expected.dims:  # what is deleted of the other blocks is not known any more
        expected = expected.drop_vars(["stage", "skip_kind", "branch_type", "relative_depth"])
    assert {*found.coords} == {*expected.coords}
    for name, values in expected.variables.items():
        assert found[name].dims == values.dims, name
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_a_users_measure_keeps_its_values_under_another_name(new):
    old = as_version_1(new["random_lesions"])
    old = old.assign(relative_depth=old["loss"] + 1, block_depth=old["loss"] + 2)
    with pytest.warns(UserWarning, match="are called measure_NAME: relative_depth, block_depth"):
        found = conversion.converted(old, 1)
    np.testing.assert_array_equal(found["measure_relative_depth"], old["relative_depth"])
    np.testing.assert_array_equal(found["measure_block_depth"], old["block_depth"])
    assert found["relative_depth"].dims == ("lesion",)


def test_each_group_of_a_tree_is_of_its_own_version(new, tmp_path):
    mixed = datasets.build_tree({"one": new["random_lesions"], "two": as_version_1(new["random_lesions"])})
    found = rpp.load(rpp.save(mixed, tmp_path / "mixed.nc"))
    assert found["two"].to_dataset().coords.equals(found["one"].to_dataset().coords)
