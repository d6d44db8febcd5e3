"""A restricted view has the model's outputs and the gradient of some paths, and Captum's gradient methods run on it.

Oracles: the model itself, every path one by one (`path_enumeration`), and Captum on the model.
"""

import numpy as np
import pytest
import torch
from captum.attr import (
    LRP,
    Deconvolution,
    DeepLift,
    DeepLiftShap,
    GradientShap,
    GuidedBackprop,
    GuidedGradCam,
    InputXGradient,
    IntegratedGradients,
    LayerGradCam,
    LayerIntegratedGradients,
    NoiseTunnel,
    Saliency,
)
from captum.metrics import infidelity, sensitivity_max
from known_networks import CASES
from networks import assert_same_state, state_of
from path_enumeration import TWINS, score, squared_norms, twin
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError, NoResidualBlocksError, UnsupportedMethodError

TARGET = 2
ONE_OUTPUT = sorted(name for name, made in TWINS.items() if len(made) == 2)
_networks = {}


def network(name):
    if name not in _networks:
        _networks[name] = rpp.unravel(twin(name).model, twin(name).inputs)
    return _networks[name]


def gradient(module, inputs):
    inputs = [x.detach().requires_grad_() for x in inputs]
    found = torch.autograd.grad(module(*inputs)[:, TARGET].sum(), inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def enumerated(name, lengths, inputs=None):
    """Sum the gradients of every path of some lengths."""
    known = twin(name)
    paths = known.paths if inputs is None else known.wiring.enumerate(inputs, score)
    return [sum(path.gradients[at] for path in paths if path.length in lengths) for at in range(len(known.inputs))]


def lengths_of(name):
    return [length for length, count in enumerate(network(name).path_counts()) if count]


def assert_close(ours, theirs, scale=1.0):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12 * scale)


@pytest.fixture
def chain():
    """Three pre-activation blocks: model, network, a batch of two."""
    name = "pre-activation"
    return twin(name).model, network(name), twin(name).inputs[0].clone().requires_grad_()


# Outputs and gradients


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OUTPUT)
def test_outputs_are_the_models_bit_for_bit_whatever_the_lengths(name):
    known = twin(name)
    for lengths in ([min(lengths_of(name))], lengths_of(name)):
        view = network(name).restricted(lengths)
        assert torch.equal(view(*known.inputs), known.model(*known.inputs))
        one = [x[:1] for x in known.inputs]
        assert torch.equal(view(*one), known.model(*one))


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OUTPUT)
def test_the_gradient_is_that_of_the_enumerated_paths_of_these_lengths(name):
    known, every = twin(name), lengths_of(name)
    scale = squared_norms(gradient(known.model, known.inputs)).max().sqrt().item()
    for lengths in ([every[0]], [every[-1]], every[::2], every[:2], every):
        assert_close(gradient(network(name).restricted(lengths), known.inputs), enumerated(name, lengths), scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OUTPUT)
def test_over_all_lengths_the_gradient_is_the_models(name):
    known = twin(name)
    view = network(name).restricted(lengths_of(name))
    assert_close(gradient(view, known.inputs), gradient(known.model, known.inputs))


def test_lengths_may_be_one_number_a_range_or_repeated(chain):
    _, net, x = chain
    for lengths, same in ((1, [1]), (np.int64(2), [2]), (range(1, 3), [2, 1]), ([0, 0, 3], [3, 0])):
        assert_close(gradient(net.restricted(lengths), [x]), gradient(net.restricted(same), [x]))


def test_an_output_that_is_returned_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            y = self.model(x)
            return y, {"again": y}

    model = Twice(twin("nested").model)
    (x,) = twin("nested").inputs
    net = rpp.unravel(model, x)

    def weighted(first, others):
        return 2 * first[:, 1] + others["again"][:, 1]

    x = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(weighted(*model(x)).sum(), x)
    view = net.restricted(range(len(net.path_counts())))
    assert_close(torch.autograd.grad(weighted(*view(x)).sum(), x), [expected])
    ds = rpp.PathLengthGradient(net).attribute(x.detach(), objective=lambda outputs, _: weighted(*outputs))
    assert (ds["completeness_error"] < 1e-12).all()


def test_short_paths_of_several_outputs_equal_the_enumeration():
    known, net = twin("several outputs"), network("several outputs")
    x = known.inputs[0].clone().requires_grad_()
    logits, others = net.restricted([0, 1])(x)
    assert others["stem"][1] == 3
    total = known.objective([logits, others["features"], others["stem"][0]]).sum()
    expected = sum(path.gradients[0] for path in known.paths if path.length < 2)
    assert_close(torch.autograd.grad(total, x), [expected])


def test_parameters_get_no_gradient_and_the_gradient_is_a_constant(chain):
    model, net, x = chain
    before = state_of(model)
    net.restricted([0, 1])(x).sum().backward()
    assert_same_state(before, state_of(model))
    (first,) = torch.autograd.grad(net.restricted([0, 1])(x).sum(), x, create_graph=True)
    assert not first.requires_grad


def test_without_a_gradient_asked_for_it_is_a_plain_forward_pass(chain):
    model, net, x = chain
    with torch.no_grad():
        assert torch.equal(net.restricted(1)(x), model(x))
    assert not net.restricted(1)(x.detach()).requires_grad


def test_changed_parameters_are_seen_by_outputs_and_gradients():
    case = CASES["pre-activation"]
    model, inputs = case.model().double(), case.inputs(2, torch.float64)
    net = rpp.unravel(model, inputs)
    view = net.restricted(range(4))
    with torch.no_grad():
        model.head.weight.mul_(-3)
    assert torch.equal(view(*inputs), model(*inputs))
    assert_close(gradient(view, inputs), gradient(model, inputs))


def test_float32_model_has_a_float32_gradient():
    case = CASES["pre-activation"]
    model, inputs = case.model(), case.inputs(2)
    (found,) = gradient(rpp.unravel(model, inputs).restricted(range(4)), inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, gradient(model, inputs)[0], rtol=1e-4, atol=1e-6)


# What is refused


@pytest.mark.parametrize("lengths", [[], [4], [-1], [0, 17], 9, "3", [0.5], [None], [True]])
def test_lengths_that_no_path_has_are_refused(lengths, chain):
    _, net, _ = chain
    with pytest.raises(InputError, match=r"length"):
        net.restricted(lengths)


def test_a_network_without_blocks_is_refused():
    case = CASES["plain"]
    with pytest.raises(NoResidualBlocksError, match="no residual blocks"):
        rpp.unravel(case.model(), case.inputs()).restricted(0)


@pytest.mark.filterwarnings("ignore:Setting (forward, )?backward hooks:UserWarning")
@pytest.mark.parametrize("method", [DeepLift, DeepLiftShap, GuidedBackprop, Deconvolution, LRP])
def test_methods_that_walk_submodules_are_refused(method, chain):
    model, net, x = chain
    before = state_of(model)
    options = {"baselines": torch.zeros_like(x)} if method is DeepLiftShap else {}
    with pytest.raises(UnsupportedMethodError, match=r"DeepLift, GuidedBackprop, LRP"):
        method(net.restricted(1)).attribute(x, target=TARGET, **options)
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("method", [LayerGradCam, LayerIntegratedGradients, GuidedGradCam])
def test_layer_methods_are_refused(method, chain):
    _, net, x = chain
    view = net.restricted(1)
    with pytest.raises(UnsupportedMethodError, match="layer methods"):
        method(view, view).attribute(x, target=TARGET)


def test_hooks_walks_training_and_new_parameters_are_refused(chain):
    view = chain[1].restricted(1)
    for refused in (
        lambda: view.register_forward_hook(print),
        lambda: view.register_forward_pre_hook(print),
        lambda: view.register_full_backward_hook(print),
        lambda: view.register_full_backward_pre_hook(print),
        view.train,
        lambda: view.to(torch.float32),
        lambda: view.load_state_dict({}),
        lambda: view.apply(print),
        lambda: list(view.children()),
        lambda: list(view.named_children()),
    ):
        with pytest.raises(UnsupportedMethodError):
            refused()


# Captum (an input that does not require a gradient yet makes it warn)


def test_saliency_over_all_lengths_is_the_models(chain):
    model, net, x = chain
    ours, theirs = (Saliency(m).attribute(x, target=TARGET) for m in (net.restricted(range(4)), model))
    assert_close([ours], [theirs])


def test_saliency_of_short_paths_is_that_of_the_enumerated_ones(chain):
    _, net, x = chain
    ours = Saliency(net.restricted([0, 1])).attribute(x, target=TARGET, abs=False)
    assert_close([ours], enumerated("pre-activation", [0, 1]))
    assert not torch.allclose(ours, Saliency(net).attribute(x, target=TARGET, abs=False), rtol=0.1)


def test_input_x_gradient_of_short_paths_is_that_of_the_enumerated_ones(chain):
    _, net, x = chain
    ours = InputXGradient(net.restricted([1])).attribute(x, target=TARGET)
    assert_close([ours], [x * enumerated("pre-activation", [1])[0]])


@pytest.mark.parametrize("name", ["pre-activation", "two streams"])
def test_integrated_gradients_of_single_lengths_sum_to_plain_ones(name):
    known, net = twin(name), network(name)
    options = {"target": TARGET, "n_steps": 6, "internal_batch_size": 5}
    plain = IntegratedGradients(known.model).attribute(known.inputs, **options)
    parts = [IntegratedGradients(net.restricted(k)).attribute(known.inputs, **options) for k in lengths_of(name)]
    assert_close([sum(part[at] for part in parts) for at in range(len(plain))], plain)
    assert all(part[0].abs().max() > 0 for part in parts)


def test_integrated_gradients_of_short_paths_equal_enumeration_along_the_way(chain):
    _, net, x = chain
    steps = 4
    ours = IntegratedGradients(net.restricted([0, 1])).attribute(x, target=TARGET, n_steps=steps, method="riemann_left")
    along = [enumerated("pre-activation", [0, 1], [x * step / steps])[0] for step in range(steps)]
    assert_close([ours], [x * sum(along) / steps])


@pytest.mark.parametrize("base", [Saliency, IntegratedGradients, InputXGradient])
def test_noise_tunnel_runs_and_over_all_lengths_is_the_models(base, chain):
    model, net, x = chain
    options = {"nt_samples": 3, "nt_type": "smoothgrad_sq", "stdevs": 0.2, "target": TARGET}
    found = []
    for m in (net.restricted(range(4)), model, net.restricted(1)):
        torch.manual_seed(0)
        found.append(NoiseTunnel(base(m)).attribute(x, **options))
    assert_close([found[0]], [found[1]])
    assert not torch.allclose(found[2], found[1], rtol=0.1)


def test_gradient_shap_runs_and_over_all_lengths_is_the_models(chain):
    model, net, x = chain
    found = []
    for m in (net.restricted(range(4)), model, net.restricted(1)):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - GradientShap draws from the global generator
        found.append(GradientShap(m).attribute(x, torch.zeros_like(x), n_samples=3, target=TARGET))
    assert_close([found[0]], [found[1]])
    assert not torch.allclose(found[2], found[1], rtol=0.1)


def test_infidelity_and_sensitivity_run(chain):
    model, net, x = chain

    def perturbed(inputs, baselines=None):
        noise = torch.full_like(inputs, 0.01)
        return noise, inputs - noise

    def explain(inputs, **options):
        # Captum calls this without gradients, and passes a tuple even for one tensor.
        with torch.enable_grad():
            return Saliency(view).attribute(tuple(x.detach().requires_grad_() for x in inputs), **options)

    found = {}
    for name, view in (("all", net.restricted(range(4))), ("model", model), ("short", net.restricted([0, 1]))):
        torch.manual_seed(0)
        attributions = Saliency(view).attribute(x, target=TARGET, abs=False)
        found[name] = infidelity(view, perturbed, x, attributions, target=TARGET)
        sensitivity = sensitivity_max(explain, x, target=TARGET, n_perturb_samples=2)
        assert sensitivity.shape == (2,)
        assert torch.isfinite(sensitivity).all()
    assert_close([found["all"]], [found["model"]])
    assert (found["short"] > found["all"]).all()
