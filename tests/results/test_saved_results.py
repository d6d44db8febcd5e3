"""What is saved comes back identical.

The oracles are the netCDF4 library, reading the file itself, and xarray's own `assert_identical`.
"""

import functools
import os
import string
from pathlib import Path

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import netCDF4
import numpy as np
import pytest
import synthetic_studies
import xarray as xr
from hypothesis import given
from made_results import make_attrs, make_block, make_lesion, plain_values
from searching import examples

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.results import datasets, schema
from resnet_paths_plugin.results.block_coords import block_coords


def round_trip(result, folder):
    return datasets.load(datasets.save(result, folder / "result.nc"))


def assert_same_types(one, other):
    for name, variable in one.variables.items():
        kinds = variable.dtype.kind, other.variables[name].dtype.kind
        assert kinds == ("U", "U") or variable.dtype == other.variables[name].dtype, name


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
    arguments = draw(st.dictionaries(names, plain_values, max_size=3))
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
