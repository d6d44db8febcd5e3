"""Gradient modes and autocast wherever a model changes them: nested, beside writes to slices, in checkpoints.

The oracle is the model: its outputs, autograd through it, its branches multiplied by zero.
"""

import functools
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import PreDispatchTorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch_state import thread_modes

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import CaptureError
from resnet_paths_plugin.execution.payload import packed, unpacked
from resnet_paths_plugin.graph.export import export

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),  # torch's checkpoint
]
X = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def off(device="cpu"):
    return torch.autocast(device, enabled=False)


class Layers(nn.Module):
    once: tuple[int, ...] = (0, 2)
    """Which layers are the branch of one block each."""

    def __init__(self):
        super().__init__()
        self.gone = None
        self.f, self.h = nn.ModuleList(nn.Linear(5, 5) for _ in range(4)), nn.Linear(5, 3)

    def b(self, index, x):
        value = torch.tanh(self.f[index](x))
        return value * 0 if self.gone == index else value


class SumReadWithItsSkip(Layers):
    """The sum that has no gradient is a term beside a term of its own, which has one."""

    once = (0, 1, 2)

    def forward(self, x):
        x = x + self.b(0, x)
        with torch.no_grad():
            y = x + self.b(1, x)
        return self.h(x + y + self.b(2, x))


class Inference(Layers):
    def forward(self, x):
        x = x + self.b(0, x)
        with torch.inference_mode():
            y = x + self.b(1, x)
        return self.h(x + y.clone() + self.b(2, x))


class InferenceOfAPart(Layers):
    once = (1, 2)

    @torch.inference_mode()
    def part(self, x):
        return self.b(1, x)

    def forward(self, x):
        x = x + self.b(0, x)
        return self.h(x + self.part(x) + self.b(2, x))


class StillWithinAutocast(Layers):
    once = (0,)

    def forward(self, x):
        x = x + self.b(0, x)
        with off():
            with torch.no_grad():
                y = x + self.b(1, x)
            x = x + self.b(2, y)
        return self.h(x)


class AutocastWithinStill(Layers):
    once = (0, 2)

    def forward(self, x):
        with torch.no_grad():
            with off():
                y = x + self.b(0, x)
                with torch.enable_grad():
                    z = x + self.b(1, x)
            y = y + self.b(2, z)
        return self.h(y + z)


class WritesBeside(Layers):
    once = (0,)

    def forward(self, x):
        x = x + self.b(0, x)
        z = x.clone()
        z[:, 0] = 0
        z[:, 1:3] += self.b(3, x)[:, 1:3]
        with torch.no_grad():
            y = z + self.b(1, z)
        with off():
            y = y + self.b(2, x)
        return self.h(z + y)


class WritesWithin(Layers):
    once = (0,)

    def forward(self, x):
        x = x + self.b(0, x)
        with torch.no_grad():
            z = torch.zeros_like(x)
            z[:, 0] = 1.0
            z[:, 1:3] = self.b(3, x)[:, 1:3]
        z = z + self.b(1, x)
        z[:, 2] = x[:, 2]
        return self.h(x + z)


class AddsInPlaceToStill(Layers):
    once = (0, 1)

    def forward(self, x):
        with torch.no_grad():
            y = self.b(0, x)
        y += self.b(1, x)
        return self.h(x + y)


class CheckpointOfRegions(Layers):
    once = (0, 3)
    reentrant = True

    def part(self, x):
        with torch.no_grad():
            y = x + self.b(1, x)
        with off():
            return x + self.b(2, y) + self.b(3, x)

    def forward(self, x):
        x = x + self.b(0, x)
        x = checkpoint(self.part, x, use_reentrant=self.reentrant)
        with torch.no_grad():
            gate = self.b(1, x)
        return self.h(x * gate + self.b(2, x))


class RecomputedRegions(CheckpointOfRegions):
    reentrant = False


class CheckpointWithin(Layers):
    once = (0,)

    def forward(self, x):
        x = x + self.b(0, x)
        with torch.no_grad():
            y = checkpoint(lambda x: x + self.b(1, x), x, use_reentrant=True)
        return self.h(x + y + self.b(2, y))


class DeadBetween(Layers):
    once = ()

    def forward(self, x):
        with torch.no_grad():
            self.b(1, x)
        self.b(3, x).sum()
        with off():
            self.b(2, x).sum(-1)
            with torch.no_grad():
                weight = torch.sigmoid(self.f[0](x))
            y = weight * self.b(2, x)
        return self.h(x + y)


class SeveralValues(Layers):
    once = (2,)

    def forward(self, x):
        with torch.no_grad():
            one, two = self.b(0, x).split([2, 3], 1)
            most, _ = self.b(1, x).max(1, keepdim=True)
        return self.h(x + torch.cat([two, one], 1) * most + self.b(2, x))


class StillParameter(Layers):
    once = (0,)

    def forward(self, x):
        with torch.no_grad():
            weight = self.f[1].weight / self.f[1].weight.norm()
        return self.h(x + x @ weight + self.b(0, x))


class SetAndSetBack(Layers):
    once = (0, 1)

    def forward(self, x):
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        y = self.b(1, x)
        torch.set_grad_enabled(before)
        return self.h(x + y + self.b(0, x))


class Mapped(Layers):
    once = (0, 1, 2)

    def forward(self, x):
        x = x + self.b(0, x)
        with torch.no_grad():
            y = torch.vmap(lambda row: self.b(1, row))(x)
        return self.h(x + y + self.b(2, x))


class Chosen(Layers):
    def forward(self, x):
        x = x + self.b(0, x)
        with torch.no_grad():
            y = torch.cond(x.sum() > 0, lambda x: x + self.f[1](x), lambda x: x - self.f[3](x), (x,))
        return self.h(x + y + self.b(2, x))


FORMS = [
    SumReadWithItsSkip,
    Inference,
    InferenceOfAPart,
    StillWithinAutocast,
    AutocastWithinStill,
    WritesBeside,
    WritesWithin,
    AddsInPlaceToStill,
    CheckpointOfRegions,
    RecomputedRegions,
    CheckpointWithin,
    DeadBetween,
    SeveralValues,
    StillParameter,
    SetAndSetBack,
    Mapped,
    pytest.param(Chosen, marks=pytest.mark.filterwarnings("ignore:The .grad attribute")),  # torch asks for it
]


def made(cls):
    torch.manual_seed(0)
    return cls().double().eval()


@functools.cache
def unraveled(cls):
    """Return a model with its network, which tests leave as they find them."""
    model = made(cls)
    return model, rpp.unravel(model, X)


def gradient(model, x):
    x = x.detach().clone().requires_grad_()
    model(x)[:, 0].sum().backward()
    model.zero_grad()
    return x.grad


@pytest.mark.parametrize("cls", FORMS)
def test_outputs_gradients_and_lesions_are_the_models(cls):
    model, net = unraveled(cls)
    for size in (4, 1, 3):
        assert torch.equal(net(X[:size]), model(X[:size]))
    found = rpp.PathLengthGradient(net).attribute(X, target=0, keep_maps=True)
    np.testing.assert_allclose(found.gradient.values.sum(0), gradient(model, X), rtol=1e-5, atol=1e-6)
    assert found.completeness_error.max() < 1e-12
    assert net.blocks
    for layer in cls.once:
        without = net.lesioned([f"f.{layer}"])(X)
        model.gone = layer
        torch.testing.assert_close(without, model(X))
        model.gone = None


@pytest.mark.parametrize("cls", FORMS)
def test_training_gives_the_models_parameter_gradients(cls):
    model, net = unraveled(cls)
    net.sampling(n_active=len(net.blocks))(X).square().sum().backward()
    ours = [None if one.grad is None else one.grad.clone() for one in model.parameters()]
    model.zero_grad()
    model(X).square().sum().backward()
    for one, parameter in zip(ours, model.parameters(), strict=True):
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(torch.zeros_like(parameter) if one is None else one, wanted)
    model.zero_grad()


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_sums_in_branches_of_cond_are_reported():
    sums = rpp.unravel(made(Chosen), X).other_sums()
    assert sums["reason"].tolist() == ["inside cond, which runs graphs of its own"]


@pytest.mark.parametrize("cls", [SumReadWithItsSkip, SetAndSetBack, WritesWithin])
def test_a_program_exported_elsewhere_has_its_modes_read(cls):
    model = made(cls)
    program = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim.AUTO},))

    class Exported:
        @rpp.hookimpl
        def resnet_paths_capture(self, model, example_inputs):
            return program

    plugins = rpp.create_plugin_manager()
    plugins.register(Exported())
    net = rpp.unravel(model, X, plugin_manager=plugins)
    assert torch.equal(net(X), model(X))
    found = rpp.PathLengthGradient(net).attribute(X, target=0, keep_maps=True)
    np.testing.assert_allclose(found.gradient.values.sum(0), gradient(model, X), rtol=1e-5, atol=1e-6)


def test_a_sum_that_goes_on_with_gradients_has_the_blocks_that_it_has_without_regions():
    for cls in (SumReadWithItsSkip, AutocastWithinStill):
        net = rpp.unravel(made(cls), X)
        assert [block.name for block in net.blocks] == ["f.0", "f.1", "f.2"]


def test_networks_that_differ_in_modes_alone_have_graphs_of_their_own():
    class Under(Layers):
        inside = nullcontext

        def forward(self, x):
            with self.inside():
                return self.h(x + self.b(0, x))

    digests = set()
    for inside in (nullcontext, off, lambda: torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad):
        model = made(Under)
        model.inside = inside
        digests.add(rpp.unravel(model, X, verify=False).graph_digest())
    assert len(digests) == 4


def test_the_models_autocast_holds_within_the_callers():
    class Exact(Layers):
        def forward(self, x):
            with off():
                x = x + self.b(0, x)
            return self.h(x + self.b(1, x))

    model, x = made(Exact).float(), X.float()
    net = rpp.unravel(model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert torch.equal(net(x), model(x))


def test_a_capture_within_the_callers_autocast_is_one_without_it():
    model, x = made(Inference).float(), X.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = rpp.unravel(model, x)
    outside = rpp.unravel(model, x)
    assert inside.graph_digest() == outside.graph_digest()
    for net in (inside, outside):
        assert torch.equal(net(x), model(x))
        assert not net.graph.has_short_floats


def test_what_reads_the_number_of_samples_may_have_regions():
    class Frozen(Layers):
        def forward(self, x):
            x = x.reshape(len(x), 5)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = self.b(0, x)
            with torch.no_grad():
                z = self.b(1, x)
            return self.h(x + y + z)

    model, x = made(Frozen).float(), X.float()
    net = rpp.unravel(model, x)
    for size in (4, 3, 1):
        assert torch.equal(net(x[:size]), model(x[:size]))


def test_nothing_of_torch_is_left_changed():
    names = [
        (PreDispatchTorchFunctionMode, "__torch_function__"),
        (torch.fx.proxy.TracerBase, "create_node"),
        (torch.fx.Interpreter, "run_node"),
        (torch.inference_mode, "__enter__"),
        (torch.inference_mode, "__exit__"),
        (torch.utils.checkpoint.CheckpointFunction, "apply"),
    ]
    before = [vars(owner).get(name) for owner, name in names]

    class Failing(Layers):
        def forward(self, x):
            with torch.inference_mode(), off():
                if x.sum() > 0:
                    return self.h(x + self.b(0, x))
                return self.h(x)

    for cls in (Inference, CheckpointOfRegions, Failing):
        try:
            rpp.unravel(made(cls), X)
        except CaptureError:
            assert cls is Failing
    assert [vars(owner).get(name) for owner, name in names] == before
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("cls", FORMS)
def test_modes_travel_to_workers(cls):
    _, net = unraveled(cls)
    there = unpacked(packed(net))
    assert there.graph_digest() == net.graph_digest()
    assert torch.equal(there.intact(X), net.intact(X))
    found = rpp.PathLengthGradient(there).attribute(X, target=0)
    wanted = rpp.PathLengthGradient(net).attribute(X, target=0)
    np.testing.assert_array_equal(found.gradient_norm, wanted.gradient_norm)


def test_autocast_travels_to_workers():
    class Short(Layers):
        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                one, two = self.b(0, x).split([2, 3], 1)
            return self.h(x + torch.cat([two, one], 1) + self.b(1, x))

    net = rpp.unravel(made(Short).float(), X.float())
    there = unpacked(packed(net))
    assert torch.equal(there.intact(X.float()), net.intact(X.float()))


class FailingInAutocast(nn.Module):
    """It fails within autocast where it is traced."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return x + torch.ones(len(x) + 1, 3) @ x.T


@pytest.mark.parametrize("strict", [False, True])
def test_a_capture_that_fails_within_autocast_leaves_it(strict):
    before = thread_modes()
    with pytest.raises(Exception, match=r"shape|size|broadcast"):
        export(FailingInAutocast(), (torch.ones(2, 3),), strict=strict)
    assert thread_modes() == before
