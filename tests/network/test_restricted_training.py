"""Training along paths of some lengths: what parameters get, what moves and draws in training mode, what is refused.

Oracles: every path one by one (`path_enumeration`); autograd through branches that are scaled by a number `t` without a
change of their values, whose gradient is a polynomial in `t` with one coefficient for each length; the model itself.
"""

import copy
import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from known_networks import CASES
from networks import assert_same_state, randomised, state_of
from path_enumeration import TWINS, parameter_gradients_by_length, squared_norms, twin
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import resnet_paths_plugin as rpp
from resnet_paths_plugin.engine.linearised_pass import LinearisedPass
from resnet_paths_plugin.errors import (
    CaptureError,
    CaptureMismatchError,
    InputError,
    NoResidualBlocksError,
    UnsupportedMethodError,
)

pytestmark = pytest.mark.slow

KEPT = "resnet_paths_plugin.engine.linearised_pass.KEPT_BYTES"
BANK = "resnet_paths_plugin.engine.backward.BANK_BYTES"
_networks = {}


def network(name):
    if name not in _networks:
        _networks[name] = rpp.unravel(twin(name).model, twin(name).inputs)
    return _networks[name]


class Block(nn.Module):
    """Post-activation with batch norms; its branch counts `t` times for gradients, and once for values."""

    def __init__(self, channels, out, stride, drop):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1)
        self.norm1 = nn.BatchNorm2d(out, momentum=0.3)
        self.drop = nn.Dropout(drop) if drop else nn.Identity()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut = None
        if stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x, t=1.0):
        skip = x if self.shortcut is None else self.shortcut(x)
        branch = self.norm2(self.conv2(self.drop(torch.relu(self.norm1(self.conv1(x))))))
        return torch.relu(skip + (branch if t == 1 else t * branch + (1 - t) * branch.detach()))


class Net(nn.Module):
    def __init__(self, drop=0.0, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm(4), nn.ReLU())
        self.blocks = nn.ModuleList(Block(*shape, drop) for shape in [(4, 4, 1), (4, 6, 2), (6, 6, 1), (6, 6, 1)])
        self.head = nn.Linear(6, 5)
        self.t = 1.0

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, self.t)
        return self.head(x.mean((2, 3)))


def net_of(dtype=torch.float64, **options):
    torch.manual_seed(1)
    return randomised(Net(**options)).to(dtype).train()


def images(batch=4, size=8, seed=0, dtype=torch.float64):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


LABELS = torch.tensor([0, 3, 1, 4])


def gradients(module, x, seed=0):
    """Return the gradients of a loss, by parameter and of the input, for what the module draws with a seed."""
    module.zero_grad()
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    functional.cross_entropy(module(x), LABELS[: len(x)], reduction="sum").backward()
    found = {name: one.grad for name, one in module.named_parameters() if one.grad is not None}
    return {**found, "input": x.grad}


def by_length(model, x, seed=0):
    """Return the gradients along the paths of each length, 0 to 4, from the polynomial in `t`."""
    nodes = np.cos(np.pi * (np.arange(5) + 0.5) / 5) + 1.5
    samples = []
    for t in nodes:
        own = copy.deepcopy(model)
        own.t = t
        samples.append(gradients(own, x, seed))
    inverse = torch.from_numpy(np.linalg.inv(np.vander(nodes, increasing=True)))
    return [
        {name: sum(w * sample[name] for w, sample in zip(row.tolist(), samples, strict=True)) for name in samples[0]}
        for row in inverse
    ]


def assert_along(lengths, found, expected):
    scale = max(float(one.abs().max()) for each in expected for one in each.values())
    for name, gradient in found.items():
        want = sum(expected[length][name] for length in lengths)
        torch.testing.assert_close(gradient, want, rtol=1e-9, atol=1e-11 * scale, msg=f"{name} {lengths}")


def assert_same_buffers(one, other):
    for (name, ours), theirs in zip(one.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


# Which gradients arrive


@pytest.mark.parametrize("name", sorted(TWINS))
def test_in_eval_mode_parameters_get_the_gradient_of_the_enumerated_paths(name):
    known, net = twin(name), network(name)
    expected = parameter_gradients_by_length(known)
    scale = max(float(g.abs().max()) for each in expected.values() for g in each.values())
    longest = len(net.path_counts()) - 1
    for lengths in ([0], [longest], range(2), range(longest, 0, -1), range(longest + 1)):
        view = net.restricted(lengths, parameters=True).eval()
        view.zero_grad()
        outputs = [leaf for leaf in torch.utils._pytree.tree_leaves(view(*known.inputs)) if torch.is_tensor(leaf)]
        known.objective(outputs).sum().backward()
        for path, parameter in known.model.named_parameters():
            want = sum((expected[path][k] for k in lengths), torch.zeros_like(parameter))
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(found, want, rtol=0, atol=1e-12 * scale, msg=f"{path} {lengths}")
    known.model.zero_grad()


@pytest.mark.parametrize("name", ["pre-activation", "two streams", "nested"])
def test_inputs_get_the_gradient_that_the_view_of_inputs_gives(name):
    known, net = twin(name), network(name)
    found = []
    for view in (net.restricted([0, 2], parameters=True).eval(), net.restricted([0, 2])):
        inputs = [x.clone().requires_grad_() for x in known.inputs]
        found.append(torch.autograd.grad(known.objective([view(*inputs)]).sum(), inputs))
    scale = float(squared_norms(found[1]).max().sqrt())
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12 * scale)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "computed again"])
@pytest.mark.parametrize("drop", [0.0, 0.4], ids=["plain", "dropout"])
def test_in_training_mode_gradients_are_the_coefficients_of_scaled_branches(drop, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(KEPT, -1)
        monkeypatch.setattr(BANK, 1)
    model, x = net_of(drop=drop), images()
    expected, net = by_length(model, x, seed=3), rpp.unravel(model, images())
    for lengths in ([0], [1], [4], [0, 1], [1, 3], [2, 3, 4], [0, 2, 3, 4], range(5)):
        own = copy.deepcopy(model)
        view = net.restricted(lengths, parameters=True)
        view(x)  # the first call is compared with the model, outside of what is counted here
        model.load_state_dict(own.state_dict())
        found = gradients(view, x, seed=3)
        drawn = torch.get_rng_state()
        gradients(own, x, seed=3)
        assert torch.equal(drawn, torch.get_rng_state()), "dropout draws once, as in the model"
        assert_same_buffers(model, own)
        assert_along(lengths, found, expected)


def test_the_gradients_of_single_lengths_add_up_to_the_models():
    model, x = net_of(), images()
    net, total = rpp.unravel(model, x), {}
    for length in range(5):
        for name, gradient in gradients(net.restricted(length, parameters=True), x).items():
            total[name] = total.get(name, 0) + gradient
    for name, gradient in gradients(copy.deepcopy(model), x).items():
        torch.testing.assert_close(total[name], gradient, rtol=1e-9, atol=1e-10)


def test_norms_without_a_rule_move_their_statistics_once(monkeypatch):
    monkeypatch.setattr(KEPT, -1)
    model = net_of(norm=lambda channels: nn.InstanceNorm2d(channels, affine=True, track_running_stats=True))
    own, x = copy.deepcopy(model), images()
    view = rpp.unravel(model, x, verify=False).restricted([0, 1], parameters=True)
    expected = by_length(own, x)
    assert_along([0, 1], gradients(view, x), expected)
    gradients(own, x)
    assert_same_buffers(model, own)


# Training


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_over_all_lengths_five_steps_are_those_of_ordinary_training_bit_for_bit(dtype):
    model = net_of(dtype, drop=0.2)
    own = copy.deepcopy(model)
    view = rpp.unravel(model, images(dtype=dtype)).restricted(range(5), parameters=True)
    recipe = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    ours, theirs = (torch.optim.SGD(module.parameters(), **recipe) for module in (view, own))
    for step in range(5):
        x = images(seed=step, dtype=dtype)
        for module, optimizer in ((view, ours), (own, theirs)):
            gradients(module, x, seed=step)
            optimizer.step()
        for (name, one), other in zip(model.state_dict().items(), own.state_dict().values(), strict=True):
            assert torch.equal(one, other), (step, name)


def test_an_optimizer_of_the_model_trains_along_short_paths():
    model, x = net_of(torch.float32), images(dtype=torch.float32)
    view = rpp.unravel(model, x).restricted(range(2), parameters=True)
    assert [id(one) for one in view.parameters()] == [id(one) for one in model.parameters()]
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.02), []
    for _ in range(12):
        optimizer.zero_grad()
        loss = functional.cross_entropy(view(x), LABELS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert int(model.blocks[0].norm1.num_batches_tracked) == 12


def test_each_operator_with_parameters_takes_one_product_whatever_the_rows(monkeypatch):
    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution_backward.default:
                self.count += bool(args[-1][1])
            self.count += func is torch.ops.aten.baddbmm_.default  # on a CPU
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(BANK, 1)
    model, x = net_of(), images()
    loss = rpp.unravel(model, x, verify=False).restricted(range(4), parameters=True)(x).sum()
    with Products() as seen:
        loss.backward()
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert seen.count == convolutions


def test_without_gradients_a_call_is_that_of_the_model():
    model, x = net_of(drop=0.3), images()
    own, view = copy.deepcopy(model), rpp.unravel(model, x).restricted([1], parameters=True)
    with torch.no_grad():
        for module in (view, own):
            torch.manual_seed(0)
            outputs = module(x)
        assert torch.equal(outputs, own.eval()(x)) is False
    assert_same_buffers(model, own)


def test_modes_are_the_views_own_and_it_starts_in_the_models():
    for training in (True, False):
        model = net_of().train(training)
        before = state_of(model)
        view = rpp.unravel(model, images()).restricted([1], parameters=True)
        assert view.training is training
        view.train(not training)
        assert view.eval() is view
        assert torch.equal(view(images()), copy.deepcopy(model).eval()(images()))
        assert_same_state(before, state_of(model))
    with pytest.raises(ValueError, match="boolean"):
        view.train("yes")


def test_a_step_leaves_nothing_behind():
    model, x = net_of(), images()
    view = rpp.unravel(model, x).restricted([0, 1], parameters=True)
    view(x).sum().backward()
    passes = []
    made = LinearisedPass.__init__

    def watched(self, *args, **options):
        made(self, *args, **options)
        passes.append(weakref.ref(self))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LinearisedPass, "__init__", watched)
        gc.disable()
        try:
            loss = view(x).sum()
            assert passes[0]() is not None
            loss.backward()
            assert passes[0]() is None, "as soon as the backward pass is over"
            view(x)
            assert passes[1]() is None, "where none is taken"
        finally:
            gc.enable()


# Parameters that get none


def test_frozen_parameters_stay_without_a_gradient_until_they_are_trained():
    model, x = net_of(), images()
    expected = by_length(model, x)
    model.stem.requires_grad_(False)
    model.blocks[1].conv1.weight.requires_grad_(False)
    view = rpp.unravel(model, x).restricted([1, 2], parameters=True)
    found = gradients(view, x)
    frozen = {"stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias", "blocks.1.conv1.weight"}
    assert expected[0].keys() - found.keys() == frozen
    assert_along([1, 2], found, expected)
    model.requires_grad_()
    found = gradients(view, x)
    assert expected[0].keys() == found.keys()
    assert_along([1, 2], found, expected)


def test_parameters_of_other_lengths_get_zeros_and_those_that_nothing_reads_get_none():
    model = net_of()
    model.forgotten = nn.Parameter(torch.ones(3))
    found = gradients(rpp.unravel(model, images()).restricted(0, parameters=True), images())
    assert found.keys() == {name for name, _ in model.named_parameters()} - {"forgotten"} | {"input"}
    for name, gradient in found.items():
        own = name.startswith("blocks") and "shortcut" not in name
        assert bool(gradient.any()) is not own, name


def test_parameters_that_are_tied_or_computed_from_others_get_the_whole_gradient():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(6, 4)
            self.blocks = nn.ModuleList(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)) for _ in range(2))

        def forward(self, tokens):
            x = self.embed(tokens)
            for block in self.blocks:
                x = x + block(x).tanh()
            return x.mean(1) @ self.embed.weight.T

    torch.manual_seed(0)
    model, tokens = Tied().double(), torch.tensor([[1, 2, 3], [5, 1, 0]])
    net = rpp.unravel(model, tokens)
    total = {}
    for lengths in ([0], [1], [2]):
        view = net.restricted(lengths, parameters=True)
        view.zero_grad()
        functional.cross_entropy(view(tokens), LABELS[:2]).backward()
        for name, one in model.named_parameters():
            total[name] = total.get(name, 0) + one.grad
            assert lengths != [1] or one.grad.any(), name
    model.zero_grad()
    functional.cross_entropy(model(tokens), LABELS[:2]).backward()
    for name, one in model.named_parameters():
        torch.testing.assert_close(total[name], one.grad, rtol=1e-11, atol=1e-13)


def test_a_parameter_that_is_expanded_to_the_batch_gets_the_whole_gradient():
    class WithToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, 4))
            self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(2))

        def forward(self, x):
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
            for block in self.blocks:
                x = x + block(x).tanh()
            return x.mean(1)

    torch.manual_seed(0)
    model, x = WithToken().double(), torch.randn(3, 2, 4, dtype=torch.float64)
    net, labels = rpp.unravel(model, x[:2]), LABELS[:3]  # other numbers of samples
    total = 0
    for length in range(3):
        model.zero_grad()
        functional.cross_entropy(net.restricted(length, parameters=True)(x), labels).backward()
        total = total + model.token.grad
    model.zero_grad()
    functional.cross_entropy(model(x), labels).backward()
    torch.testing.assert_close(total, model.token.grad, rtol=1e-11, atol=1e-13)


# What is refused


def test_a_second_derivative_is_refused_but_over_all_lengths():
    x, net = images().requires_grad_(), rpp.unravel(net_of(), images())
    view = net.restricted([0, 1], parameters=True)
    with pytest.raises(UnsupportedMethodError, match="differentiated again"):
        torch.autograd.grad(view(x).square().sum(), x, create_graph=True)
    (first,) = torch.autograd.grad(net.restricted(range(5), parameters=True)(x).square().sum(), x, create_graph=True)
    first.square().sum().backward()
    assert x.grad.any()


def test_parameters_changed_before_the_backward_pass_and_a_graph_used_twice_are_refused():
    model, x = net_of(), images()
    view = rpp.unravel(model, x).restricted([0, 1], parameters=True)
    loss = view(x).sum()
    loss.backward(retain_graph=True)
    first = model.blocks[1].conv1.weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(model.blocks[1].conv1.weight.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    loss = view(x).sum()
    with torch.no_grad():
        model.head.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("lengths", [[], [5], [-1], "3", [0.5], [True]])
def test_lengths_that_no_path_has_are_refused(lengths):
    with pytest.raises(InputError, match="length"):
        rpp.unravel(net_of(), images()).restricted(lengths, parameters=True)


def test_networks_without_blocks_are_refused():
    plain = CASES["plain"]
    with pytest.raises(NoResidualBlocksError):
        rpp.unravel(plain.model(), plain.inputs()).restricted(0, parameters=True)


def test_wrong_inputs_are_refused_before_anything_is_moved():
    model = net_of(drop=0.5)
    view = rpp.unravel(model, images()).restricted([1], parameters=True)
    before = state_of(model)
    for wrong in (images(size=9), images().float()):
        with pytest.raises(InputError):
            view(wrong)
    assert_same_state(before, state_of(model))


def test_a_model_that_training_mode_cannot_capture_is_refused_in_that_mode_only():
    model = net_of()
    model.stem[1].momentum = None
    net = rpp.unravel(model, images())
    with pytest.raises(CaptureError, match="momentum=None"):
        net.restricted([1], parameters=True)
    view = net.model.eval() and net.restricted([1], parameters=True)
    view(images()).sum().backward()
    with pytest.raises(CaptureError, match="momentum=None"):
        view.train()
    assert not view.training


@pytest.mark.parametrize("training", [True, False])
def test_a_model_with_a_backward_of_its_own_is_refused(training):
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient / 2

    class Own(Net):
        def forward(self, x):
            return Halved.apply(super().forward(x))

    torch.manual_seed(0)
    model = Own().double().train(training)
    view = rpp.unravel(model, images()).restricted([1], parameters=True)
    with pytest.raises(CaptureMismatchError, match="gradients"):
        view(images())


# Threads


def test_threads_share_a_view_in_eval_mode():
    model, x = net_of().eval(), images()
    view = rpp.unravel(model, x).restricted([0, 1], parameters=True)
    parameters = list(model.parameters())

    def gradient(seed):
        return torch.autograd.grad(view(images(seed=seed)).square().sum(), parameters)

    expected, found = [gradient(seed) for seed in range(4)], [None] * 4

    def run(seed):
        found[seed] = gradient(seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other)


class Read(nn.Module):
    """A convolution whose value a norm reads beside the sum: some of its rows come with a slope of channels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.branches = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(4, 5)
        for norm in self.norms:
            nn.init.uniform_(norm.weight, 0.5, 2)
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = self.stem(x)
        for norm, branch in zip(self.norms, self.branches, strict=True):
            x = x + branch(norm(x).relu())
        return self.head(x.mean((2, 3)))


def test_rows_that_pass_in_parts_have_the_gradients_of_those_that_pass_at_once(monkeypatch):
    torch.manual_seed(0)
    model, x = Read().double().eval(), torch.randn(4, 3, 6, 6, dtype=torch.float64)
    view = rpp.unravel(model, x).restricted([1, 3], parameters=True)

    def gradients():
        model.zero_grad()
        view(x)[:, 1].sum().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    whole = gradients()
    monkeypatch.setattr(BANK, 1)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-10, atol=1e-12, msg=name)


class WithMask(nn.Module):
    """Token ids and numbers: an embedding that no number reaches."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)) for _ in range(3))

    def forward(self, tokens, mask):
        x = self.embedding(tokens)
        for branch in self.branches:
            x = x + branch(x)
        return self.head((x * mask[:, :, None]).mean(1))


def test_parameters_that_only_integers_lead_to_are_trained_too():
    torch.manual_seed(0)
    model = WithMask().double()
    args = torch.randint(0, 9, (4, 6)), torch.rand(4, 6, dtype=torch.float64)
    net = rpp.unravel(model, args)
    ordinary = torch.autograd.grad(model(*args)[:, 1].sum(), model.embedding.weight)[0]
    parts = []
    for lengths in ([0], [1], [2], [3]):
        model.zero_grad()
        net.restricted(lengths, parameters=True)(*args)[:, 1].sum().backward()
        parts.append(model.embedding.weight.grad.clone())
    assert all(float(part.norm()) > 0 for part in parts)
    torch.testing.assert_close(sum(parts), ordinary, rtol=1e-10, atol=1e-12)
    with pytest.raises(rpp.errors.InputError, match="length 0 to 3"):
        net.restricted([4], parameters=True)


def test_what_the_backward_pass_reads_may_not_change_before_it():
    torch.manual_seed(0)
    model, x = Read().double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    model.branches[1].weight.requires_grad_(False)
    view = rpp.unravel(model, x).restricted([1], parameters=True)
    for tensor in (model.branches[1].weight, model.norms[0].running_mean):
        loss = view(x).sum()
        with torch.no_grad():
            tensor.add_(1)
        with pytest.raises(RuntimeError, match="changed in place between the forward pass and its backward pass"):
            loss.backward()
