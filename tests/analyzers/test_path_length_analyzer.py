"""PathLengthGradient: its numbers, options, labels and refusals.

Oracles: every path one by one (`path_enumeration`), the model's ordinary gradient, Captum, and published weights.
"""

import math
from collections import Counter
from functools import cache

import captum.attr
import cifar
import numpy as np
import pytest
import timm
import torch
import torchvision
import xarray as xr
from networks import CASES, Residual, assert_same_state, mlp, randomised, state_of
from path_enumeration import TWINS, squared_norms, summed, twin
from test_zoo_sample import WITHOUT_BLOCKS
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import IncompleteGradientWarning, InputError, NoResidualBlocksError, UnknownBlockError

pytestmark = pytest.mark.slow

TARGET = 2
ONE_OUTPUT = sorted(name for name, made in TWINS.items() if len(made) == 2)


@cache
def network(name):
    return rpp.unravel(twin(name).model, twin(name).inputs)


def attribute(name, *, target=TARGET, **options):
    known = twin(name)
    inputs = known.inputs if len(known.inputs) > 1 else known.inputs[0]
    return rpp.PathLengthGradient(network(name)).attribute(inputs, target, **options)


def enumerated(name, key=lambda path: path.length, objective=None):
    """Return the summed gradients of the paths with equal keys."""
    known = twin(name)
    paths = known.paths if objective is None else known.wiring.enumerate(known.inputs, objective)
    return summed(paths, key)


def norms_of(gradients):
    return squared_norms(gradients).sqrt().numpy()


def assert_norms(found, expected):
    """Compare norms `(path_length, sample)` with those of enumerated gradients by length."""
    assert found.sizes["path_length"] == max(expected) + 1
    for length, gradients in expected.items():
        ours = found.sel(path_length=length).values
        np.testing.assert_allclose(ours, norms_of(gradients), rtol=1e-11, atol=1e-13)


def ordinary(model, x, objective):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(objective(model(x)).sum(), x)[0]


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
    assert list(ds["measure"].values) == ["gradient_norm", "total_path_gradient"]
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


# Sampled paths


def path_norms(name, length):
    return np.stack([path.squared_norms().sqrt() for path in twin(name).paths if path.length == length])


@pytest.mark.parametrize("shared", [True, False], ids=["shared paths", "own paths"])
@pytest.mark.parametrize("name", ["pre-activation", "nested", "two streams"])
def test_sampled_norms_are_the_mean_over_paths_within_their_standard_error(name, shared):
    draws = 500
    ds = attribute(name, estimator="sampled", draws=draws, shared_paths=shared)
    for length, count in enumerate(twin(name).counts):
        each = path_norms(name, length)
        norms = each.mean(1)
        found = ds.sel(path_length=length)
        variance = norms.var() if shared else each.var(0).sum() / each.shape[1] ** 2
        spread = math.sqrt(variance / draws)
        assert abs(found["path_gradient_norm"] - norms.mean()) <= 4.5 * spread + 1e-12
        np.testing.assert_allclose(found["path_gradient_norm_stderr"], spread, rtol=0.25, atol=1e-14)
        np.testing.assert_allclose(found["total_path_gradient"], count * found["path_gradient_norm"], rtol=1e-12)
        np.testing.assert_allclose(
            found["log10_total_path_gradient"], np.log10(found["total_path_gradient"]), rtol=1e-12
        )
    assert ds["n_draws"] == draws
    assert "gradient_norm" not in ds
    assert "completeness_error" not in ds


@pytest.mark.parametrize("shared", [True, False], ids=["shared paths", "own paths"])
def test_the_standard_error_is_that_of_the_drawn_paths(shared):
    """Two draws tell it exactly: half their difference."""
    each = path_norms("pre-activation", 1)
    known = each.mean(1) if shared else [(a + b) / 2 for a in each[:, 0] for b in each[:, 1]]
    pairs = {(round((a + b) / 2, 9), round(abs(a - b) / 2, 9)) for a in known for b in known}
    for seed in range(4):
        ds = attribute("pre-activation", estimator="sampled", draws=2, seed=seed, shared_paths=shared)
        ds = ds.sel(path_length=1)
        found = (round(ds["path_gradient_norm"].item(), 9), round(ds["path_gradient_norm_stderr"].item(), 9))
        assert found in pairs


def test_one_draw_has_no_standard_error():
    ds = attribute("pre-activation", estimator="sampled", draws=1)
    assert np.isnan(ds["path_gradient_norm_stderr"]).all()
    assert np.isfinite(ds["path_gradient_norm"]).all()


def test_totals_of_single_paths_bound_the_exact_norms():
    ds = attribute("transformer", estimator=["exact", "sampled"], draws=300)
    exact = ds["gradient_norm"].mean("sample")
    assert (ds["total_path_gradient"] >= exact * 0.9).all()
    assert ds["total_path_gradient"].sum() > 1.1 * exact.sum()


# Random signs


@pytest.mark.parametrize("name", ["pre-activation", "two streams", "nested"])
def test_signs_estimate_the_root_mean_square_norm_of_single_paths(name):
    ds = attribute(name, estimator="signs", draws=400)
    for length in range(len(twin(name).counts)):
        expected = np.sqrt((path_norms(name, length) ** 2).mean(0))
        found = ds["path_gradient_rms"].sel(path_length=length)
        tolerance = 1e-11 if twin(name).counts[length] == 1 else 0.15
        np.testing.assert_allclose(found, expected, rtol=tolerance)
    assert ds["path_gradient_rms"].dims == ("path_length", "sample")


# Several estimators, seeds, batches


def test_estimators_together_are_what_each_is_alone():
    together = attribute("two streams", estimator=["exact", "sampled", "signs"], draws=7, seed=3)
    for estimator, names in (
        ("exact", ["gradient_norm", "completeness_error"]),
        ("sampled", ["path_gradient_norm", "path_gradient_norm_stderr", "total_path_gradient", "n_draws"]),
        ("signs", ["path_gradient_rms"]),
    ):
        alone = attribute("two streams", estimator=estimator, draws=7, seed=3)
        for name in names:
            xr.testing.assert_equal(together[name], alone[name])


def test_equal_seeds_give_equal_results_and_others_do_not():
    one, same, other = (
        attribute("transformer", estimator=["sampled", "signs"], draws=4, seed=seed) for seed in (1, 1, 2)
    )
    xr.testing.assert_equal(one, same)
    for name in ("path_gradient_norm", "path_gradient_rms"):
        assert (one[name] != other[name]).any()


@pytest.fixture(scope="module")
def images():
    return CASES["pre-activation"].inputs(7, torch.float64)[0], torch.tensor([0, 1, 2, 3, 4, 0, 1])


EVERY = {"estimator": ["exact", "sampled", "signs"], "draws": 6, "keep_maps": True, "max_length": 2}


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_results_do_not_depend_on_internal_batch_size(size, images):
    analyzer = rpp.PathLengthGradient(network("pre-activation"))
    whole = analyzer.attribute(*images, **EVERY)
    parts = analyzer.attribute(*images, **EVERY, internal_batch_size=size)
    xr.testing.assert_allclose(whole.drop_vars("completeness_error"), parts.drop_vars("completeness_error"), rtol=1e-11)


def test_a_data_loader_equals_one_batch(images):
    analyzer = rpp.PathLengthGradient(network("pre-activation"))
    whole = analyzer.attribute(*images, **EVERY)
    loader = analyzer.attribute(DataLoader(TensorDataset(*images), batch_size=3), **EVERY)
    assert loader["sample"].values.tolist() == list(range(7))
    xr.testing.assert_allclose(
        whole.drop_vars("completeness_error"), loader.drop_vars("completeness_error"), rtol=1e-11
    )


def test_a_batch_of_one_and_a_model_that_was_not_unraveled():
    known = twin("pre-activation")
    ds = rpp.PathLengthGradient(known.model).attribute(known.inputs[0][:1], TARGET)
    assert ds.sizes["sample"] == 1
    expected = norms_of(enumerated("pre-activation")[1])[:1]
    np.testing.assert_allclose(ds["gradient_norm"].sel(path_length=1), expected, rtol=1e-11)


def test_several_inputs_are_measured_together():
    ds = attribute("two inputs", estimator=["exact", "sampled", "signs"], draws=3)
    assert_norms(ds["gradient_norm"], enumerated("two inputs"))
    assert (ds["completeness_error"] < 1e-12).all()


class Flagged(nn.Module):
    """Takes a number besides its input."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(7, 6)
        self.block = Residual(mlp())

    def forward(self, x, scale):
        return self.block(self.stem(x) * scale)


def test_additional_arguments_are_passed_on_and_get_no_gradient():
    model, x = randomised(Flagged()).eval().double(), torch.randn(2, 7, dtype=torch.float64)
    ds = rpp.PathLengthGradient(model).attribute(x, TARGET, additional_forward_args=0.5, keep_maps=True)
    whole = ordinary(lambda x: model(x, 0.5), x, lambda y: y[:, TARGET])
    np.testing.assert_allclose(ds["gradient"].sum("path_length"), whole, rtol=1e-5, atol=1e-6)


# Dtypes


def test_a_bfloat16_model_has_a_float32_bank():
    case = CASES["pre-activation"]
    model = case.model().bfloat16()
    (x,) = case.inputs(2)
    ds = rpp.PathLengthGradient(model).attribute(x.bfloat16(), TARGET, keep_maps=True)
    exact = rpp.PathLengthGradient(model.float()).attribute(x.bfloat16().float(), TARGET)
    np.testing.assert_allclose(ds["gradient_norm"], exact["gradient_norm"], rtol=0.05)
    assert (ds["completeness_error"] < 0.05).all()
    assert ds["gradient"].dtype == np.float32


class Rounded(nn.Module):
    """Quantises in its branch: no gradient passes there, whatever the operators around do."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(7, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        coarse = (x * 4).to(torch.int32).clamp(-3, 3).to(x.dtype) / 4
        return self.head(x + self.inner(x.sin() + coarse))


def test_no_gradient_passes_a_conversion_to_integers():
    model, x = Rounded().eval().double(), torch.randn(2, 7, dtype=torch.float64)
    assert (rpp.PathLengthGradient(model).attribute(x, TARGET)["completeness_error"] < 1e-12).all()


# Files and state


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": ["exact", "sampled", "signs"], "draws": 3, "max_length": 2, "keep_maps": True},
        {"grade": "branch_type", "tap": "stem"},
        {"objective": lambda outputs, _: outputs.sum(1), "grade": lambda block: block.index, "target": None},
    ],
)
def test_a_result_is_loaded_as_it_was_saved(options, tmp_path):
    ds = attribute("transformer", **options)
    assert rpp.load(rpp.save(ds, tmp_path / "paths.nc")).identical(ds)
    for variable in ds.data_vars.values():
        assert variable.attrs["long_name"]
        assert variable.attrs["units"]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_before_also_after_an_error(training):
    case = CASES["post-activation"]
    model, (x,) = case.model().double().train(training), case.inputs(2, torch.float64)
    model.head.bias.requires_grad_(False)
    before = state_of(model)
    analyzer = rpp.PathLengthGradient(model)
    analyzer.attribute(x, TARGET, estimator=["exact", "sampled", "signs"], draws=3)
    assert_same_state(before, state_of(model))
    with pytest.raises(InputError):
        analyzer.attribute(x, 99)
    with pytest.raises(RuntimeError, match="on purpose"):
        analyzer.attribute(x, TARGET, objective=fails)
    with torch.no_grad():
        analyzer.attribute(x, TARGET)
    assert_same_state(before, state_of(model))
    assert x.grad is None
    assert not x.requires_grad


def fails(outputs, target):
    raise RuntimeError("on purpose")


def test_inference_mode_and_inputs_that_require_gradients_change_nothing():
    x = twin("pre-activation").inputs[0].clone().requires_grad_()
    plain = attribute("pre-activation")
    same = rpp.PathLengthGradient(network("pre-activation")).attribute(x, TARGET)
    xr.testing.assert_equal(plain, same)
    assert x.grad is None


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "guess"}, "estimator must be"),
        ({"estimator": []}, "estimator must be"),
        ({"estimator": ["exact", "guess"]}, "estimator must be"),
        ({"estimator": None}, "estimator must be"),
        ({"objective": "loss"}, "objective must be"),
        ({"objective": lambda outputs, _: outputs}, "one per sample"),
        ({"objective": lambda outputs, _: outputs.detach().sum(1)}, "does not depend"),
        ({"objective": "cross_entropy", "target": None}, "label"),
        ({"grade": "steps"}, "grade must be"),
        ({"grade": 3}, "grade must be"),
        ({"grade": lambda _: -1}, "whole number"),
        ({"grade": lambda _: 0.5}, "whole number"),
        ({"grade": lambda _: {"sample": 1}}, "'sample'"),
        ({"grade": lambda _: {"gradient_norm": 1}}, "'gradient_norm'"),
        ({"grade": lambda _: {"width": 1}}, "'width'"),
        ({"grade": lambda _: {"a/b": 1}}, "'a/b'"),
        ({"grade": lambda _: {2: 1}}, "named 2"),
        ({"objective": lambda outputs, _: outputs.new_zeros(2).requires_grad_()}, "does not depend"),
        ({"max_length": -1}, "max_length"),
        ({"max_length": 1.5}, "max_length"),
        ({"max_length": "all"}, "max_length"),
        ({"max_length": True}, "max_length"),
        ({"draws": 0}, "draws"),
        ({"draws": 2.5}, "draws"),
        ({"internal_batch_size": 0}, "internal_batch_size"),
        ({"target": 5}, "out of range"),
        ({"target": -1}, "out of range"),
        ({"target": None}, "needs a target"),
        ({"target": torch.tensor([0, 1, 2])}, "one target per sample"),
        ({"target": torch.tensor([0.5, 1.0])}, "integers"),
        ({"seed": -1}, "seed"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        attribute("pre-activation", **{"estimator": ["exact", "sampled"]} | options)


def test_a_tap_that_is_no_block_is_refused():
    with pytest.raises(UnknownBlockError, match="no block"):
        attribute("pre-activation", tap="layer9")


def test_a_model_without_blocks_is_refused():
    case = CASES["plain"]
    with pytest.raises(NoResidualBlocksError, match="no residual blocks"):
        rpp.PathLengthGradient(case.model()).attribute(*case.inputs(), 0)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.block = Residual(mlp())
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.block(self.embed(x)).mean(1))


def test_integer_inputs_are_refused_with_advice_that_works():
    model, tokens = Tokens().eval().double(), torch.randint(0, 11, (2, 4))
    analyzer = rpp.PathLengthGradient(model)
    with pytest.raises(InputError, match="tap='stem'"):
        analyzer.attribute(tokens, TARGET)
    ds = analyzer.attribute(tokens, TARGET, tap="stem", estimator=["exact", "sampled", "signs"], draws=2)
    assert (ds["completeness_error"] < 1e-12).all()
    assert ds["path_count"].values.tolist() == [1, 1]


def test_maps_of_several_inputs_are_refused():
    with pytest.raises(InputError, match="keep_maps"):
        attribute("two inputs", keep_maps=True)


# Completeness on architectures of others

SLOW = {"test_maxvit", "test_coatnet", "test_vit_relpos"}
TEST_MODELS = [name for name in timm.list_models("test_*") if name not in WITHOUT_BLOCKS]


def complete(model, size):
    """Return the largest completeness error in float32 and in float64."""
    torch.manual_seed(0)
    randomised(model).eval()
    x = torch.randn(2, *size)
    errors = []
    for dtype in (torch.float32, torch.float64):
        ds = rpp.PathLengthGradient(model.to(dtype)).attribute(x.to(dtype), 1)
        assert ds["gradient_norm"].sum() > 0
        assert ds.sizes["block"] > 0
        assert ds["path_count"].sum() >= ds.sizes["block"]
        errors.append(ds["completeness_error"].max().item())
    return errors


def test_the_zoo_is_not_empty():
    assert len(TEST_MODELS) >= 14
    assert set(TEST_MODELS) > SLOW


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.zoo) if name in SLOW else name for name in TEST_MODELS]
)
def test_completeness_on_timms_test_models(name):
    model = timm.create_model(name)
    size = model.default_cfg["input_size"]
    if not model.default_cfg.get("fixed_input_size"):
        size = (size[0], 96, 96)
    short, long = complete(model, size)
    assert short < 1e-5
    assert long < 1e-12


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 64),
        *(
            pytest.param(name, size, marks=pytest.mark.zoo)
            for name, size in {
                "resnet50": 64, "vit_b_16": 64, "swin_t": 64, "convnext_tiny": 64, "efficientnet_b0": 64,
                "regnet_y_400mf": 64,
            }.items()
        ),
    ],
)  # fmt: skip
def test_completeness_on_torchvision(name, size):
    options = {"image_size": size} if name.startswith("vit") else {}
    short, long = complete(torchvision.models.get_model(name, **options), (3, size, size))
    assert short < 1e-5
    assert long < 1e-12


# Networks trained by others

PUBLISHED = {
    20: "0.0411 0.5968 1.5132 3.3496 6.2183 8.8464 8.9667 6.1191 2.6232 0.6898",
    56: "0.0582 0.4047 0.9780 1.9061 3.1571 4.4971 5.1416 4.8315 3.7899 2.5294 1.4271 0.6968 0.3032 0.1196",
}


@cifar.needs_cifar
@pytest.mark.parametrize("depth", [20, pytest.param(56, marks=pytest.mark.zoo)])
def test_gradients_of_trained_networks_have_the_known_norms(depth):
    images, labels = cifar.images_and_labels()
    expected = [float(norm) for norm in PUBLISHED[depth].split()]
    ds = rpp.PathLengthGradient(cifar.trained(depth).double()).attribute(
        images[:8].double(), labels[:8], max_length=len(expected) - 1
    )
    np.testing.assert_allclose(ds["gradient_norm"].mean("sample"), expected, rtol=0, atol=6e-5)
    assert (ds["completeness_error"] < 1e-12).all()
    assert ("tail_gradient_norm" in ds) == (depth == 56)
