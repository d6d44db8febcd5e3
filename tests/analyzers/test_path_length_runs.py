"""PathLengthGradient in batches, files and dtypes; the model stays as it was, and bad input is refused."""

import numpy as np
import pytest
import torch
import xarray as xr
from known_networks import CASES
from networks import Residual, assert_same_state, mlp, randomised, state_of
from path_enumeration import twin
from path_length_studies import TARGET, assert_norms, attribute, enumerated, network, norms_of, ordinary
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError, NoResidualBlocksError, UnknownBlockError

pytestmark = pytest.mark.slow


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
