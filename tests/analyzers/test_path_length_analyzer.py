"""PathLengthGradient: exact norms, grades, taps and objectives, against every path one by one (`path_enumeration`)."""

from collections import Counter

import captum.attr
import numpy as np
import pytest
import torch
import xarray as xr
from path_enumeration import TWINS, summed, twin
from path_length_studies import TARGET, assert_norms, attribute, enumerated, network, norms_of, ordinary
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import IncompleteGradientWarning

pytestmark = pytest.mark.slow
ONE_OUTPUT = sorted(name for name, made in TWINS.items() if len(made) == 2)


# Exact


@pytest.mark.parametrize("name", ONE_OUTPUT)
def test_norms_and_counts_equal_the_enumeration_and_are_complete(name):
    ds = attribute(name)
    assert_norms(ds["gradient_norm"], enumerated(name))
    assert ds["gradient_norm"].dims == ("path_length", "sample")
    assert ds["gradient_norm"].dtype == np.float64
    assert (ds["completeness_error"] < 1e-12).all()
    assert ds["path_count"].values.tolist() == twin(name).counts
    np.testing.assert_allclose(ds["log10_path_count"], np.log10(twin(name).counts), rtol=1e-14)
    assert "tail_gradient_norm" not in ds
    assert list(ds["block"].values) == [block.name for block in network(name).blocks]


def test_the_completeness_error_is_measured_against_the_model_itself(monkeypatch):
    """If it compared the walk with itself, a wrong walk would look complete."""
    known = twin("pre-activation")
    net = rpp.unravel(known.model, known.inputs)

    def another(x):
        return type(known.model).forward(known.model, x) + x.sum((1, 2, 3))[:, None]

    monkeypatch.setattr(net.model, "forward", another)
    with pytest.warns(IncompleteGradientWarning, match="add up to its own gradient only within"):
        ds = rpp.PathLengthGradient(net).attribute(known.inputs[0], TARGET, run=rpp.RunOptions(verify=False))
    assert (ds["completeness_error"] > 0.1).all()


def test_where_both_gradients_vanish_nothing_is_missing():
    ds = attribute("pre-activation", target=None, objective=lambda outputs, _: outputs.sum(1) * 0)
    assert (ds["gradient_norm"] == 0).all()
    assert (ds["completeness_error"] == 0).all()
    assert np.isnan(ds["effective_length_low"]).all()


def test_the_effective_range_is_the_shortest_interval_with_95_percent():
    ds = attribute("transformer", estimator=["exact", "sampled"], draws=5)
    assert list(ds["measure"].values) == ["gradient_norm", "gradient_share", "total_path_gradient"]
    for name in ds["measure"].values:
        mean = ds[name].mean("sample").values if "sample" in ds[name].dims else ds[name].values
        intervals = [
            (high - low, -mean[low : high + 1].sum(), low)
            for low in range(len(mean))
            for high in range(low, len(mean))
            if mean[low : high + 1].sum() >= 0.95 * mean.sum()
        ]
        width, _, low = min(intervals)
        assert ds["effective_length_low"].sel(measure=name) == low
        assert ds["effective_length_high"].sel(measure=name) == low + width


@pytest.mark.parametrize("limit", [0, 1, 2])
@pytest.mark.parametrize("name", ["pre-activation", "nested", "class attention"])
def test_with_max_length_the_tail_is_the_rest(name, limit):
    ds = attribute(name, max_length=limit, keep_maps=True)
    expected = enumerated(name)
    assert_norms(ds["gradient_norm"], {k: g for k, g in expected.items() if k <= limit})
    (rest,) = enumerated(name, lambda path: path.length > limit)[True]
    np.testing.assert_allclose(ds["tail_gradient_norm"], norms_of([rest]), rtol=1e-11)
    assert (ds["completeness_error"] < 1e-12).all()
    # What is kept and the rest make up the ordinary gradient.
    kept = torch.from_numpy(ds["gradient"].sum("path_length").values)
    whole = ordinary(twin(name).model, twin(name).inputs[0], lambda y: y[:, TARGET])
    torch.testing.assert_close(kept.double() + rest, whole, rtol=0, atol=1e-6 * whole.norm().item())


def test_a_max_length_that_cuts_nothing_changes_nothing():
    whole, same = attribute("pre-activation"), attribute("pre-activation", max_length=99)
    assert "tail_gradient_norm" not in same
    xr.testing.assert_equal(whole, same)


def test_maps_are_the_enumerated_gradients_and_sum_to_the_ordinary_one():
    ds = attribute("pre-activation", keep_maps=True)
    maps = ds["gradient"]
    assert maps.dims == ("path_length", "sample", "channel", "height", "width")
    assert maps.dtype == np.float32
    for length, (gradient,) in enumerated("pre-activation").items():
        np.testing.assert_allclose(maps.sel(path_length=length), gradient, rtol=1e-6, atol=1e-7)
    x = twin("pre-activation").inputs[0].clone().requires_grad_()
    saliency = captum.attr.Saliency(twin("pre-activation").model).attribute(x, TARGET, abs=False)
    np.testing.assert_allclose(maps.sum("path_length"), saliency, rtol=1e-5, atol=1e-6)


def test_maps_of_vectors_have_dimensions_of_their_own():
    ds = attribute("nested", keep_maps=True)
    assert ds["gradient"].dims == ("path_length", "sample", "input_dim_1")


# Grades


def lengths_by(name, grade):
    """Return the key of a path for a function of a block that gives the length on each axis."""
    net = network(name)
    grades = {block.name: np.atleast_1d(grade(block)) for block in net.blocks}
    axes = len(next(iter(grades.values())))
    return lambda path: tuple(int(k) for k in sum((grades[b] for b in path.blocks), np.zeros(axes, int)))


def assert_graded(ds, name, key, axes):
    expected = enumerated(name, key)
    counts = Counter(map(key, twin(name).paths))
    assert ds["gradient_norm"].dims == (*axes, "sample")
    assert ds["path_count"].sum() == len(twin(name).paths)
    for index in np.ndindex(*ds["path_count"].shape):
        place = dict(zip(axes, index, strict=True))
        assert ds["path_count"].isel(place) == counts[index]
        theirs = norms_of(expected[index]) if index in expected else np.zeros(2)
        np.testing.assert_allclose(ds["gradient_norm"].isel(place), theirs, rtol=1e-11, atol=1e-13)
    assert (ds["completeness_error"] < 1e-12).all()


def test_grade_layers_counts_the_weighted_layers_of_each_branch():
    assert {block.depth for block in network("post-activation").blocks} == {2}
    ds = attribute("post-activation", grade="layers")
    assert_graded(ds, "post-activation", lengths_by("post-activation", lambda _: 2), ("path_length",))
    assert ds["path_count"].values.tolist() == [1, 0, 4, 0, 6, 0, 4, 0, 1]
    assert ds["log10_path_count"].values[1] == -np.inf


def test_grade_branch_type_tells_attention_from_mlp():
    axes = ("path_length_attention", "path_length_mlp")
    ds = attribute("transformer", grade="branch_type")
    key = lengths_by("transformer", lambda block: [block.branch_type == "attention", block.branch_type == "mlp"])
    assert_graded(ds, "transformer", key, axes)
    assert "effective_length_low" not in ds


def test_stages_summed_over_their_axes_give_the_blocks_result():
    name = "post-activation"
    blocks, stages = (attribute(name, grade=grade, keep_maps=True) for grade in ("blocks", "stages"))
    axes = tuple(f"path_length_stage_{stage}" for stage in sorted({b.stage for b in network(name).blocks}))
    assert len(axes) > 1
    assert stages["gradient"].dims[: len(axes)] == axes
    summed_up = np.zeros(blocks["gradient"].shape)
    for index in np.ndindex(*(stages.sizes[axis] for axis in axes)):
        summed_up[sum(index)] += stages["gradient"].values[index]
    np.testing.assert_allclose(summed_up, blocks["gradient"], rtol=1e-5, atol=1e-7)


def test_grade_may_be_a_function_of_a_block():
    number = attribute("nested", grade=lambda block: block.index)
    assert_graded(number, "nested", lengths_by("nested", lambda block: block.index), ("path_length",))
    named = attribute("nested", grade=lambda block: {"even": 1} if block.index % 2 == 0 else {"odd": 2})
    key = lengths_by("nested", lambda block: [block.index % 2 == 0, 2 * (block.index % 2)])
    assert_graded(named, "nested", key, ("even", "odd"))


def test_max_length_cuts_every_axis_of_a_graded_study():
    ds = attribute("transformer", grade="branch_type", max_length=1)
    assert ds["gradient_norm"].shape == (2, 2, 2)
    key = lengths_by("transformer", lambda block: [block.branch_type == "attention", block.branch_type == "mlp"])
    rest = enumerated("transformer", lambda path: max(key(path)) > 1)[True]
    np.testing.assert_allclose(ds["tail_gradient_norm"], norms_of(rest), rtol=1e-11)
    assert (ds["completeness_error"] < 1e-12).all()


# Taps


def test_at_the_stem_gradients_are_those_of_the_rest_of_the_network():
    model, (x,) = twin("pre-activation").model, twin("pre-activation").inputs
    ds = attribute("pre-activation", tap="stem", keep_maps=True)
    source = model.stem(x).detach()
    whole = ordinary(lambda s: model.head(model.blocks(s).relu().mean((2, 3))), source, lambda y: y[:, TARGET])
    np.testing.assert_allclose(ds["gradient"].sum("path_length"), whole, rtol=1e-5, atol=1e-7)
    zero = ordinary(lambda s: model.head(head_input(model, s)), source, lambda y: y[:, TARGET])
    np.testing.assert_allclose(ds["gradient_norm"].sel(path_length=0), norms_of([zero]), rtol=1e-11)
    assert ds["path_count"].values.tolist() == [1, 3, 3, 1]
    assert (ds["completeness_error"] < 1e-12).all()


def head_input(model, source):
    """Every branch's value is there, its gradient is not: what paths of length 0 pass through."""
    y = source
    for block in model.blocks:
        y = y + block.branch(y).detach()
    return y.relu().mean((2, 3))


@pytest.mark.parametrize("tap", ["blocks.1", 1])
def test_at_a_block_gradients_are_those_of_its_source(tap):
    name = "pre-activation"
    ds = attribute(name, tap=tap)
    known = twin(name).at("y0")
    assert_norms(ds["gradient_norm"], summed(known.paths))
    assert ds["path_count"].values.tolist() == [1, 2, 1]
    assert (ds["completeness_error"] < 1e-12).all()


def test_at_a_block_of_a_stream_gradients_equal_the_enumeration():
    ds = attribute("class attention", tap="class_blocks.1", estimator=["exact", "sampled", "signs"], draws=3)
    assert_norms(ds["gradient_norm"], summed(twin("class attention").at("c1").paths))
    assert (ds["completeness_error"] < 1e-12).all()


# Objectives


def test_cross_entropy_of_labels():
    labels = torch.tensor([3, 1])

    def loss(outputs):
        return functional.cross_entropy(outputs[0], labels, reduction="none")

    ds = attribute("pre-activation", target=labels, objective="cross_entropy")
    assert_norms(ds["gradient_norm"], enumerated("pre-activation", objective=loss))
    assert (ds["completeness_error"] < 1e-12).all()


def test_objective_may_be_a_function_of_outputs_and_target():
    def margin(outputs, target):
        return outputs[:, target] - outputs.logsumexp(1)

    ds = attribute("post-activation", objective=margin)
    expected = enumerated("post-activation", objective=lambda outputs: margin(outputs[0], TARGET))
    assert_norms(ds["gradient_norm"], expected)


def test_targets_of_each_sample_are_their_own_scores():
    ds = attribute("pre-activation", target=torch.tensor([4, 0]))
    expected = enumerated("pre-activation", objective=lambda outputs: outputs[0][[0, 1], [4, 0]])
    assert_norms(ds["gradient_norm"], expected)


@pytest.mark.parametrize("name", ["feature pyramid", "several outputs"])
def test_objective_of_several_outputs(name):
    known = twin(name)
    ds = attribute(name, target=None, objective=lambda outputs, _: known.objective(flat(outputs)))
    assert_norms(ds["gradient_norm"], enumerated(name))
    assert ds["path_count"].values.tolist() == known.counts


def flat(outputs):
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def test_paths_from_outputs_that_the_objective_leaves_out_have_no_gradient():
    known = twin("several outputs")
    paths = known.wiring.enumerate(known.inputs, lambda outputs: outputs[0][:, 1])
    norms = sorted(norms_of(path.gradients).mean() for path in paths if path.length == 0)
    assert [norm == 0 for norm in norms] == [True, True, False]

    def drawn(seed):
        ds = attribute(
            "several outputs",
            target=None,
            objective=lambda outputs, _: outputs[0][:, 1],
            estimator="sampled",
            draws=1,
            max_length=0,
            seed=seed,
            shared_paths=True,
        )
        return round(ds["path_gradient_norm"].item(), 9)

    assert {drawn(seed) for seed in range(12)} == {0, round(norms[-1], 9)}
