"""Files of earlier versions of the schema load with the names of this one."""

from pathlib import Path

import numpy as np
import pytest
import torch

import resnet_paths_plugin as rpp
from resnet_paths_plugin import demo, plotting
from resnet_paths_plugin.results import schema

VERSION_1 = Path(__file__).parent / "version_1.nc"
"""Written by 0.1.0: `BlockLesion.attribute(x, y, n_deleted=(1, 2), draws=2)` and `PathLengthGradient.attribute(x, y)`
of a ResNet of six blocks on three images."""


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
    assert {*found.data_vars} == {*new[study].data_vars}
    for name, values in new[study].variables.items():
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
