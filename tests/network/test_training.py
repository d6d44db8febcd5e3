"""Training on chosen paths: what each batch runs, computes, moves and draws.

The oracles are networks that leave blocks out by hand, the models' own training mode, and closed forms.
"""

import copy
import math
import runpy
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from matplotlib.image import imread
from networks import CASES, Highway, PreActivation, Vectors, assert_same_state, randomised, state_of
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import (
    CaptureError,
    InputError,
    NoResidualBlocksError,
    ResnetPathsError,
    UnsupportedMethodError,
)

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
BY_HAND = [name for name, case in CASES.items() if case.blocks and name not in {"dual path", "repeated", "highway"}]
"""Networks whose branches are what one submodule returns each, so that a wrapper can leave them out."""


class Block(nn.Module):
    """Post-activation, with a projection where the shape changes; left out or scaled in Python."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out, momentum=0.3)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut = None
        if stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x, runs=True, scale=1.0):
        skip = x if self.shortcut is None else self.shortcut(x)
        if not runs:
            return torch.relu(skip)
        branch = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(skip + (branch if scale == 1 else scale * branch))


class Dropping(nn.Module):
    """The hand-written net: `dropped` names the blocks that are left out, `scale` has the factors of branches."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        shapes = [(4, 4, 1), (4, 4, 1), (4, 6, 2), (6, 6, 1), (6, 6, 1)]
        self.blocks = nn.ModuleList(Block(*shape) for shape in shapes)
        self.head = nn.Linear(6, 5)
        self.dropped = frozenset()
        self.scale = {}

    def forward(self, x):
        x = self.stem(x)
        for at, block in enumerate(self.blocks):
            name = f"blocks.{at}"
            x = block(x, name not in self.dropped, self.scale.get(name, 1.0))
        return self.head(x.mean((2, 3)))


PROJECTED = "blocks.2"
MOVABLE = ["blocks.0", "blocks.1", "blocks.3", "blocks.4"]


class Switch(nn.Module):
    """Runs a module, or returns zeros of the shape it would return and leaves no trace in it."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.runs = True

    def forward(self, *args, **kwargs):
        if self.runs:
            return self.module(*args, **kwargs)
        with torch.no_grad():
            shape = copy.deepcopy(self.module).eval()(*args, **kwargs)
        return (torch.zeros_like(shape[0]), *shape[1:]) if isinstance(shape, tuple) else torch.zeros_like(shape)


def images(batch=4, size=8, seed=0, dtype=torch.float64):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dropping():
    torch.manual_seed(1)
    return randomised(Dropping()).double()


def names(blocks):
    return [block.name for block in blocks]


def left_out(sampler):
    return set(names(sampler.sampled)) - set(names(sampler.active))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_same_tensors(expected, found, context):
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), (context, name)


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def loss_of(outputs):
    """A number that every output's every element changes."""
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    return sum((leaf * torch.linspace(0.5, 1.5, leaf.numel()).view_as(leaf)).sum() for leaf in leaves)


# --- what a batch computes


@pytest.mark.parametrize(
    "options",
    [
        {"n_active": 2},
        {"survival": 0.5},
        {"n_active": 2, "include_projections": True},
        {"survival": [0.2, 0.9, 0.5, 0.5, 0.1], "include_projections": True},
    ],
    ids=["m of n", "stochastic depth", "m of n, projections too", "given probabilities"],
)
def test_a_plain_loop_trains_bit_for_bit_like_a_hand_written_net_that_leaves_the_same_blocks_out(options):
    model, by_hand = dropping(), dropping()
    sampler = rpp.unravel(model, images()).sampling(**options, generator=generator(5))
    by_hand.train()
    recipe = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    ours, theirs = (torch.optim.SGD(module.parameters(), **recipe) for module in (sampler, by_hand))
    seen = set()
    for step in range(8):
        x, target = images(seed=step, batch=4 + step % 2), torch.arange(4 + step % 2)
        outputs = sampler(x)
        by_hand.dropped = frozenset(left_out(sampler))
        seen.add(by_hand.dropped)
        expected = by_hand(x)
        assert torch.equal(outputs, expected), step
        for found, optimizer in ((outputs, ours), (expected, theirs)):
            optimizer.zero_grad()
            functional.cross_entropy(found, target).backward()
        assert_same_tensors(gradients(by_hand), gradients(model), step)
        ours.step()
        theirs.step()
        assert_same_tensors(by_hand.state_dict(), model.state_dict(), step)
    assert len(seen) > 3, "the loop has hardly drawn different subsets"


@pytest.mark.parametrize("name", BY_HAND)
def test_any_form_of_block_is_left_out_without_a_trace(name):
    case = CASES[name]
    model = case.model().double().train()
    inputs = case.inputs(dtype=torch.float64)
    net = rpp.unravel(model, inputs)
    sampler = net.sampling(math.ceil(len(net.blocks) / 2), include_projections=True, generator=generator())
    switched = copy.deepcopy(model)
    switches = {}
    # Outer branches first: a wrapped one is then found inside its wrapper.
    for block in sorted(case.blocks, key=lambda known: known.path.count(".")):
        path = block.path
        for outer in switches:
            if path.startswith(f"{outer}."):
                path = f"{outer}.module{path.removeprefix(outer)}"
        switches[path] = Switch(switched.get_submodule(path))
        switched.set_submodule(path, switches[path])
        switches[path].known = block.name
    for _ in range(4):
        outputs = sampler(*inputs)
        for switch in switches.values():
            switch.runs = switch.known not in left_out(sampler)
        expected = switched(*inputs)
        if name != "in place":  # which torch itself refuses to differentiate
            loss_of(outputs).backward()
            loss_of(expected).backward()
        torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    theirs = {
        name.replace(".module.", "."): parameter.grad
        for name, parameter in switched.named_parameters()
        if parameter.grad is not None
    }
    ours = gradients(model)
    for path, gradient in theirs.items():
        found = ours.get(path, torch.zeros_like(gradient))
        torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-10, msg=path)
    states = zip(model.state_dict().items(), switched.state_dict().values(), strict=True)
    for (path, ours_now), theirs_now in states:
        torch.testing.assert_close(ours_now, theirs_now, rtol=1e-12, atol=1e-12, msg=path)


def test_a_highway_layer_that_is_left_out_carries_its_input_through_its_gate():
    model = randomised(Vectors(Highway(), Highway())).double()
    x = torch.randn(3, 7, dtype=torch.float64)
    sampler = rpp.unravel(model, x).sampling(1, generator=generator())
    outputs = sampler(x)
    y = model.stem(x)
    for at, layer in enumerate(model.middle):
        gate = layer.gate(y)
        carried = (1 - gate) * y
        runs = f"middle.{at}" in names(sampler.active)
        y = gate * layer.transform(y) + carried if runs else carried
    torch.testing.assert_close(outputs, model.head(y), rtol=1e-12, atol=1e-12)


def test_what_is_left_out_is_not_computed():
    class Convolutions(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten.convolution.default
            return func(*args, **(kwargs or {}))

    sampler = rpp.unravel(dropping(), images()).sampling(1)
    sampler(images())  # the first batch is run by the model too, to hold the captured graph against it
    with Convolutions() as seen:
        sampler(images())
    stem, projection, projected, drawn = 1, 1, 2, 2
    assert seen.count == stem + projection + projected + drawn


# --- the model's own training mode


def assert_trains_as_the_model_itself(model, x, steps=2):
    own = copy.deepcopy(model).train()
    net = rpp.unravel(model, x)
    sampler = net.sampling(len(net.blocks), include_projections=True)
    assert len(sampler.sampled) > 1
    for step in range(steps):
        found = []
        for module in (own, sampler):
            torch.manual_seed(step)
            module.zero_grad()
            outputs = module(x)
            loss_of(outputs).backward()
            found.append(outputs)
        assert torch.equal(*found)
        assert_same_tensors(gradients(own), gradients(model), step)
        assert_same_tensors(own.state_dict(), model.state_dict(), step)
        for module in (own, model):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.sub_(0.01 * parameter.grad if parameter.grad is not None else 0)


def test_all_blocks_of_resnet18_train_bit_for_bit_as_the_model_itself():
    assert_trains_as_the_model_itself(
        torchvision.models.resnet18(num_classes=7).eval(), images(size=32, dtype=torch.float32)
    )


def test_a_vision_transformer_with_dropout_draws_and_trains_as_the_model_itself():
    model = torchvision.models.VisionTransformer(32, 16, 2, 2, 8, 16, dropout=0.2, attention_dropout=0.1, num_classes=5)
    assert_trains_as_the_model_itself(model, images(size=32, dtype=torch.float32))


def test_stochastic_depth_and_batch_norms_of_the_models_own_work_as_in_the_model():
    model = timm.create_model("test_resnet", drop_path_rate=0.5, drop_rate=0.2, num_classes=5)
    assert_trains_as_the_model_itself(model, images(size=64, dtype=torch.float32))


def test_layers_in_eval_mode_stay_frozen_where_the_model_is_in_training_mode():
    model = dropping().train()
    model.stem.eval()
    by_hand = copy.deepcopy(model)
    sampler = rpp.unravel(model, images()).sampling(4)
    assert torch.equal(sampler(images()), by_hand(images()))
    assert_same_tensors(by_hand.state_dict(), model.state_dict(), "frozen")
    assert model.stem[1].num_batches_tracked == 0
    assert model.blocks[0].norm1.num_batches_tracked == 1


def test_a_model_in_eval_mode_is_captured_as_its_own_train_would_set_it():
    class PartlyFrozen(Dropping):
        def train(self, mode=True):
            super().train(mode)
            self.stem.eval()
            for parameter in self.stem.parameters():
                parameter.requires_grad_(False)
            return self

    torch.manual_seed(1)
    model = randomised(PartlyFrozen()).double()
    for parameter in model.requires_grad_().modules():
        parameter.training = False
    before = state_of(model)
    sampler = rpp.unravel(model, images()).sampling(2)
    assert_same_state(before, state_of(model))
    sampler(images())
    assert model.stem[1].num_batches_tracked == 0
    assert model.blocks[2].norm1.num_batches_tracked == 1


# --- what is drawn


def test_each_batch_runs_exactly_m_blocks_each_equally_often_and_projections_always():
    model, batches, m = dropping(), 400, 3
    sampler = rpp.unravel(model, images()).sampling(m, generator=generator(3))
    assert names(sampler.sampled) == MOVABLE
    assert sampler.survival == (m / 4,) * 4
    assert sampler.active == ()
    drawn = []
    with torch.no_grad():
        for _ in range(batches):
            sampler(images(batch=2))
            drawn.append(tuple(names(sampler.active)))
    assert {len(set(each)) for each in drawn} == {m}
    assert all(sorted(each) == list(each) for each in drawn), "in execution order"
    assert len(set(drawn)) == math.comb(4, m)
    for subset in set(drawn):
        expected = batches / math.comb(4, m)
        assert abs(drawn.count(subset) - expected) < 4 * math.sqrt(expected)
    counted = [int(block.norm1.num_batches_tracked) for block in model.blocks]
    assert counted == [
        batches if name == PROJECTED else sum(name in each for each in drawn)
        for name in (f"blocks.{at}" for at in range(5))
    ]


def test_stochastic_depth_decays_linearly_and_draws_each_block_on_its_own():
    sampler = rpp.unravel(dropping(), images()).sampling(survival=0.2, generator=generator(4))
    expected = [1 - place / 4 * 0.8 for place in (1, 2, 3, 4)]
    assert sampler.survival == pytest.approx([0.8, 0.6, 0.4, 0.2])
    batches = 600
    runs = torch.zeros(batches, 4)
    with torch.no_grad():
        for batch in range(batches):
            sampler(images(batch=2))
            runs[batch] = torch.tensor([float(block in sampler.active) for block in sampler.sampled])
    for place, probability in enumerate(expected):
        sigma = math.sqrt(probability * (1 - probability) / batches)
        assert abs(runs[:, place].mean() - probability) < 4 * sigma
    correlation = torch.corrcoef(runs.T) - torch.eye(4)
    assert correlation.abs().max() < 4 / math.sqrt(batches)


def test_given_probabilities_are_those_of_the_sampled_blocks_in_order():
    sampler = rpp.unravel(dropping(), images()).sampling(survival=[1, 0.5, 0.25, 1.0])
    assert sampler.survival == (1, 0.5, 0.25, 1)
    with torch.no_grad():
        for _ in range(20):
            sampler(images(batch=2))
            assert {"blocks.0", "blocks.4"} <= set(names(sampler.active))


def test_one_generator_draws_the_same_subsets_again_and_none_draws_from_torchs_own():
    net = rpp.unravel(dropping(), images())

    def drawn(source, seed):
        if source is None:
            torch.manual_seed(seed)
        sampler = net.sampling(2, generator=source)
        subsets = []
        with torch.no_grad():
            for _ in range(12):
                sampler(images(batch=2))
                subsets.append(tuple(names(sampler.active)))
        return subsets

    before = torch.get_rng_state()
    assert drawn(generator(1), 1) == drawn(generator(1), 2) != drawn(generator(2), 1)
    assert torch.equal(before, torch.get_rng_state())
    assert drawn(None, 1) == drawn(None, 1) != drawn(None, 2)


# --- eval mode


@pytest.mark.parametrize("options", [{"n_active": 3}, {"survival": 0.5}], ids=["m of n", "stochastic depth"])
def test_eval_mode_runs_all_blocks_scaled_by_how_often_they_ran(options):
    model = dropping()
    probabilities = [0.75] * 4 if "n_active" in options else [0.875, 0.75, 0.625, 0.5]
    source = generator()
    sampler = rpp.unravel(model, images()).sampling(**options, generator=source).eval()
    by_hand = copy.deepcopy(model).eval()
    by_hand.scale = dict(zip(MOVABLE, probabilities, strict=True))
    before, drawn = state_of(model), source.get_state()
    torch.testing.assert_close(sampler(images()), by_hand(images()), rtol=1e-12, atol=1e-12)
    assert_same_state(before, state_of(model))
    assert torch.equal(drawn, source.get_state())
    assert sampler.active == ()


def test_eval_mode_without_scaling_is_the_model_itself():
    model = dropping()
    sampler = rpp.unravel(model, images()).sampling(survival=0.5, scale_in_eval=False).eval()
    assert torch.equal(sampler(images()), copy.deepcopy(model).eval()(images()))


# --- nothing else is touched


def test_building_leaves_the_model_as_it_was():
    model = dropping().train()
    model.blocks[1].eval()
    model.head.weight.requires_grad_(False)
    model.head.register_forward_hook(lambda *_: None)
    net = rpp.unravel(model, images())
    before = state_of(model)
    net.sampling(2)
    assert_same_state(before, state_of(model))


def test_switching_and_running_leave_the_models_flags_and_gradient_mode_alone():
    model = dropping().eval()
    sampler = rpp.unravel(model, images()).sampling(2, generator=generator())
    assert sampler.training
    before = {name: module.training for name, module in model.named_modules()}
    sampler(images())
    assert sampler.eval() is sampler
    assert not sampler.training
    assert sampler.train() is sampler
    assert sampler.training
    assert before == {name: module.training for name, module in model.named_modules()}
    with pytest.raises(ValueError, match="boolean"):
        sampler.train("yes")


def test_parameters_buffers_and_state_are_the_models_own():
    model = dropping()
    sampler = rpp.unravel(model, images()).sampling(2)
    assert [id(p) for p in sampler.parameters()] == [id(p) for p in model.parameters()]
    assert [id(b) for b in sampler.buffers()] == [id(b) for b in model.buffers()]
    assert_same_tensors(model.state_dict(), sampler.state_dict(), "state")
    with pytest.raises(UnsupportedMethodError):
        sampler.register_forward_hook(lambda *_: None)


def test_weights_changed_by_others_are_used_at_the_next_batch():
    model = dropping()
    sampler = rpp.unravel(model, images()).sampling(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    by_hand = copy.deepcopy(model).train()
    assert torch.equal(sampler(images()), by_hand(images()))


def test_wrong_inputs_are_refused_before_anything_is_drawn_or_moved():
    model, source = dropping(), generator()
    sampler = rpp.unravel(model, images()).sampling(2, generator=source)
    before, drawn = state_of(model), source.get_state()
    for wrong in (images(size=9), images().float()):
        with pytest.raises(InputError):
            sampler(wrong)
    assert_same_state(before, state_of(model))
    assert torch.equal(drawn, source.get_state())
    assert sampler.active == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either"),
        ({"n_active": 2, "survival": 0.5}, "give either"),
        ({"n_active": 0}, "from 1 to 4"),
        ({"n_active": 5}, "from 1 to 4"),
        ({"n_active": 2.0}, "from 1 to 4"),
        ({"n_active": True}, "from 1 to 4"),
        ({"survival": 0}, "above 0 and at most 1"),
        ({"survival": 1.1}, "above 0 and at most 1"),
        ({"survival": float("nan")}, "above 0 and at most 1"),
        ({"survival": "half"}, "a number or a sequence"),
        ({"survival": 0.5j}, "a number or a sequence"),
        ({"survival": [0.5, 0.5]}, "2 probabilities, and 4 blocks"),
        ({"survival": [0.5, 0.5, "a", 1]}, "above 0 and at most 1"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, message):
    net = rpp.unravel(dropping(), images())
    with pytest.raises(InputError, match=message):
        net.sampling(**options)


def test_networks_without_blocks_to_sample_are_refused():
    plain = CASES["plain"]
    with pytest.raises(NoResidualBlocksError):
        rpp.unravel(plain.model(), plain.inputs()).sampling(1)
    with pytest.raises(NoResidualBlocksError, match="layers"):
        rpp.unravel(dropping(), images(), units="layers").sampling(1)

    class OnlyProjected(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block(3, 4, 2)

        def forward(self, x):
            return self.block(x)

    net = rpp.unravel(OnlyProjected().double(), images())
    with pytest.raises(InputError, match="include_projections"):
        net.sampling(1)
    assert names(net.sampling(1, include_projections=True).sampled) == ["block"]


# --- models that training mode cannot capture


class Averaging(nn.Module):
    """Keeps a moving average on itself while training."""

    def __init__(self, assign):
        super().__init__()
        self.linear = nn.Linear(7, 7)
        self.register_buffer("average", torch.zeros(7))
        self.assign = assign

    def forward(self, x):
        y = self.linear(x)
        if self.training:
            if self.assign:
                self.average = 0.9 * self.average + 0.1 * y.detach().mean(0)
            else:
                self.average.mul_(0.9).add_(y.detach().mean(0), alpha=0.1)
        return x + y - self.average


def spectral():
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(7, 7))

    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear

        def forward(self, x):
            return x + self.linear(x)

    return Spectral()


def cumulative():
    model = PreActivation()
    model.blocks[1].branch[0][0].momentum = None
    return model


def forgotten():
    class Forgotten(PreActivation):
        """Runs a batch norm whose value nobody reads."""

        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            self.norm(x)
            return super().forward(x)

    return Forgotten()


def through_a_view():
    class ThroughAView(PreActivation):
        def forward(self, x):
            x = x.clone()
            x[:, 0] += 1
            x[:, 1] += x[:, 0]
            return super().forward(x)

    return ThroughAView()


@pytest.mark.parametrize(
    ("build", "x", "message"),
    [
        (lambda: Averaging(assign=True), torch.randn(3, 7), "average"),
        (lambda: Averaging(assign=False), torch.randn(3, 7), "average"),
        (spectral, torch.randn(3, 7), r"weight\.0\._u"),
        (cumulative, torch.randn(3, 3, 6, 6), "momentum=None"),
        (forgotten, torch.randn(3, 3, 6, 6), "norm.num_batches_tracked"),
        (through_a_view, torch.randn(3, 3, 6, 6), "through views"),
    ],
    ids=[
        "assigned buffer",
        "buffer changed in place",
        "spectral norm",
        "cumulative average",
        "unread batch norm",
        "views",
    ],
)
def test_what_a_graph_cannot_repeat_in_training_mode_is_refused_and_leaves_the_model_alone(build, x, message):
    model = build()
    net = rpp.unravel(model, x)
    before = state_of(model)
    with pytest.raises(CaptureError, match=message):
        net.sampling(1)
    assert_same_state(before, state_of(model))


def test_other_blocks_in_training_mode_are_refused():
    class Auxiliary(PreActivation):
        def forward(self, x):
            y = super().forward(x)
            return y + self.head(y @ self.head.weight) if self.training else y

    net = rpp.unravel(Auxiliary(), images(dtype=torch.float32))
    with pytest.raises(ResnetPathsError, match="other residual blocks in training mode"):
        net.sampling(1)


def test_a_batch_norm_that_runs_twice_counts_twice():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(7)
            self.first, self.second = nn.Linear(7, 7), nn.Linear(7, 7)

        def forward(self, x):
            x = x + self.first(self.norm(x))
            return x + self.second(self.norm(x))

    model = Shared()
    x = torch.randn(3, 7)
    own = copy.deepcopy(model)
    net = rpp.unravel(model, x)
    net.sampling(2)(x)
    own(x)
    assert_same_tensors(own.state_dict(), model.state_dict(), "both")
    net.sampling(1)(x)
    assert model.norm.num_batches_tracked == 3


def test_a_batch_norm_of_parameters_counts_once_in_each_batch():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.prompts = nn.Parameter(torch.randn(4, 7))
            self.norm = nn.BatchNorm1d(7)
            self.blocks = nn.ModuleList(nn.Linear(7, 7) for _ in range(2))

        def forward(self, x):
            x = x + self.norm(self.prompts).mean(0)
            for block in self.blocks:
                x = x + block(x)
            return x

    model = Normed()
    own = copy.deepcopy(model)
    sampler = rpp.unravel(model, torch.randn(3, 7)).sampling(1)
    for batch in range(2):
        sampler(torch.randn(3 + batch, 7))
        own(torch.randn(3, 7))
    assert_same_tensors(own.state_dict(), model.state_dict(), "statistics")


def test_blocks_are_those_that_plugins_name():
    class Renamed:
        @rpp.hookimpl
        def resnet_paths_review_blocks(self, model, blocks):
            from dataclasses import replace

            return [replace(block, name=f"unit{block.index}") for block in blocks]

    manager = rpp.create_plugin_manager()
    manager.register(Renamed())
    sampler = rpp.unravel(dropping(), images(), plugin_manager=manager).sampling(4)
    sampler(images())
    assert names(sampler.active) == ["unit0", "unit1", "unit3", "unit4"]


def test_repr_tells_the_rule():
    net = rpp.unravel(dropping(), images())
    assert repr(net.sampling(2)) == "SamplingNetwork(Dropping, 2 of 4 blocks per batch)"
    assert "survival 0.875 to 0.5" in repr(net.sampling(survival=0.5))


# --- the example


def test_the_example_trains_three_ways_and_tabulates_the_errors(monkeypatch, capsys, tmp_path):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn, extra 'demo'")
    output = tmp_path / "trained.nc"
    script = EXAMPLES / "train_on_paths.py"
    monkeypatch.syspath_prepend(EXAMPLES)
    options = ["--seeds", "2", "--epochs", "1", "--blocks-per-stage", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    runpy.run_path(str(script), run_name="__main__")

    ds = rpp.load(output)
    assert ds.error.dims == ("training", "seed", "lesion")
    assert ds.error.shape == (3, 2, 6)
    assert ds.training.values.tolist() == ["all blocks", "m of n", "stochastic depth"]
    assert (ds.attrs["n_active"], ds.attrs["n_sampled"]) == (2, 4)
    assert bool(((ds.error >= 0) & (ds.error <= 1)).all())
    assert float(ds.intact_error.std()) > 0
    lines = capsys.readouterr().out.splitlines()
    for training, line in zip(ds.training.values, lines[2:5], strict=True):
        assert line.startswith(str(training))
        assert f"{100 * float(ds.intact_error.sel(training=training).mean()):.2f} (" in line
    assert imread(output.with_suffix(".png")).std() > 0
