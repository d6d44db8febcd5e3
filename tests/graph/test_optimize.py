"""Networks unraveled for speed: the same results within rounding, with the model left as it is."""

import shutil

import pytest
import torch
import xarray as xr
from networks import (
    PostActivation,
    PreActivation,
    Transformer,
    assert_same_state,
    convolution,
    randomised,
    state_of,
)
from torch import nn
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin.engine.forward import ForwardEngine
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.execution.payload import packed, unpacked
from resnet_paths_plugin.execution.worker_pool import _digest
from resnet_paths_plugin.graph.operators import BATCH_NORM, CONVOLUTIONS

pytestmark = pytest.mark.slow

REWRITES = (("fold_batch_norm",), ("channels_last",), ("fold_batch_norm", "channels_last"))
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="torch.compile needs a C++ compiler, and there is none",
)


class Grouped(nn.Module):
    """Convolutions with biases, groups and strides, a norm without scale, and a linear layer with a norm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.branch = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Conv2d(8, 8, 1)
        )
        self.head = nn.Sequential(nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5))

    def forward(self, x):
        x = self.stem(x)
        x = x + self.branch(x)
        return self.head(x.mean((2, 3)))


class Volumes(nn.Module):
    """Three dimensions, and one: there are no channels-last kernels here, and norms fold all the same."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4)
        self.branch = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1, bias=False), nn.BatchNorm1d(4), nn.ReLU())
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.norm(self.stem(x.unsqueeze(2))).flatten(2)
        return self.head((x + self.branch(x)).mean(2))


class Shared(nn.Module):
    """One convolution under two norms, and one whose value is read beside its norm, which cannot fold."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        for norm in self.norms[:2]:
            x = x + functional.relu(norm(self.shared(x)))
        value = self.shared(x)
        x = x + value * self.norms[2](value).sigmoid()
        return self.head(x.mean((2, 3)))


MODELS = {
    "post-activation": PostActivation,
    "pre-activation": PreActivation,
    "grouped": Grouped,
    "volumes": Volumes,
    "shared": Shared,
    "transformer": Transformer,
}


def model_of(kind):
    torch.manual_seed(0)
    return randomised(MODELS[kind]()).double().eval()


def images(count=5):
    return torch.randn(count, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def unraveled(model, optimize=()):
    net = rpp.unravel(model, images(2), optimize=optimize)
    assert net.blocks
    return net


def count(net, operators):
    return sum(node.target in operators for node in net.graph.graph.nodes)


def assert_close(one, other):
    assert list(one.data_vars) == list(other.data_vars)
    for name in set(one.data_vars) - {"completeness_error"}:
        xr.testing.assert_allclose(one[name], other[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("optimize", REWRITES, ids=" ".join)
@pytest.mark.parametrize("kind", MODELS)
def test_outputs_lesions_and_path_gradients_are_the_same_within_rounding(kind, optimize):
    model, x, target = model_of(kind), images(), torch.arange(5)
    before = state_of(model)
    plain, fast = unraveled(model), unraveled(model, optimize)
    assert [block.name for block in fast.blocks] == [block.name for block in plain.blocks]
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-12, atol=1e-12)
    for options in ({}, {"n_deleted": 1, "draws": 3, "perturbations_per_eval": 2}):
        one, other = (rpp.BlockLesion(net).attribute(x, target, **options) for net in (fast, plain))
        assert_close(one, other)
    found = rpp.PathLengthGradient(fast).attribute(x, target, keep_maps=True)
    assert_close(found, rpp.PathLengthGradient(plain).attribute(x, target, keep_maps=True))
    assert found.completeness_error.max() < 1e-10
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize(("kind", "left"), [("post-activation", 0), ("grouped", 0), ("volumes", 0), ("shared", 1)])
def test_a_batch_norm_folds_where_it_alone_reads_the_convolution(kind, left):
    plain, fast = unraveled(model_of(kind)), unraveled(model_of(kind), ["fold_batch_norm"])
    assert count(plain, BATCH_NORM) > left
    assert count(fast, BATCH_NORM) == left
    assert count(fast, CONVOLUTIONS) == count(plain, CONVOLUTIONS)


def test_statistics_in_another_dtype_than_the_weights_do_not_fold():
    model = model_of("grouped").bfloat16()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    net = rpp.unravel(model, images(2).bfloat16(), optimize=["fold_batch_norm"])
    assert count(net, BATCH_NORM) == 2  # those of the convolutions; that of the linear layer is bfloat16 itself
    with torch.no_grad():
        torch.testing.assert_close(net(images().bfloat16()), model(images().bfloat16()), rtol=0.05, atol=0.05)


def test_later_changes_of_weights_and_statistics_show():
    model, x = model_of("post-activation"), images()
    net = unraveled(model, ["fold_batch_norm", "channels_last"])
    randomised(model, seed=7)
    with torch.no_grad():
        torch.testing.assert_close(net(x), model(x), rtol=1e-12, atol=1e-12)


def test_images_and_kernels_have_their_channels_last():
    net = rpp.unravel(model_of("shared").float(), images().float(), optimize=["channels_last"])
    kinds = [node for node in net.graph.graph.nodes if node.target is torch.ops.aten.contiguous.default]
    assert len(kinds) == 1 + count(net, CONVOLUTIONS)
    seen = []
    net.program.operators = tuple(
        (lambda p, e, run=run: seen.append(value := run(p, e)) or value) if at in net.program.dynamic else run
        for at, run in enumerate(net.program.operators)
    )
    with torch.no_grad():
        intact, parameters = rpp.Schedule.identity(net), net.program.parameters()
        assert list(ForwardEngine(net.program).run([intact], net.inputs((images().float(),)), parameters))
    four = [value for value in seen if value.ndim == 4 and value.shape[1] > 1]
    assert four
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in four)


def test_layers_of_plain_networks_fold_too():
    torch.manual_seed(0)
    layers = (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(3))
    model = randomised(nn.Sequential(*layers, nn.Flatten(), nn.Linear(108, 5))).double().eval()
    x = images()
    plain = rpp.unravel(model, x, units="layers")
    fast = rpp.unravel(model, x, units="layers", optimize=["fold_batch_norm", "channels_last"])
    assert_close(rpp.BlockLesion(fast).attribute(x, 1), rpp.BlockLesion(plain).attribute(x, 1))


def test_a_worker_gets_a_network_that_is_optimized_alike():
    net = unraveled(model_of("post-activation"), ["fold_batch_norm", "channels_last"])
    there = unpacked(packed(net))
    assert there.optimize == net.optimize == ("channels_last", "fold_batch_norm")
    with torch.no_grad():
        assert torch.equal(there(images()), net(images()))


def test_a_result_and_the_headline_say_what_was_optimized():
    model = model_of("post-activation")
    fast = unraveled(model, "fold_batch_norm")
    assert "optimized: fold_batch_norm" in repr(fast)
    assert rpp.BlockLesion(fast).attribute(images(), 0).attrs["optimize"] == "fold_batch_norm"
    assert rpp.PathLengthGradient(fast).attribute(images(), 0).attrs["optimize"] == "fold_batch_norm"
    assert "optimize" not in rpp.BlockLesion(unraveled(model)).attribute(images(), 0).attrs


def test_recalibrated_statistics_need_batch_norms_that_are_there():
    for kind in ("grouped", "shared"):  # of which one keeps none of its batch norms, and the other one
        net = unraveled(model_of(kind), ["fold_batch_norm"])
        with pytest.raises(InputError, match="unravel the model without optimize='fold_batch_norm'"):
            rpp.BlockLesion(net).attribute(images(), 0, batch_norm="recalibrated")


class Viewed(nn.Module):
    """Reads its batch size, and views a map of several positions as a vector."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.head = convolution(3, 4), convolution(4), nn.Linear(144, 5)

    def forward(self, x):
        size = x.size(0)
        x = self.stem(x)
        return self.head((x + self.branch(x)).view(size, -1))


def test_views_of_images_with_channels_last_and_batch_sizes_are_read_as_before():
    model = Viewed().eval()
    plain = rpp.unravel(model, images().float())
    fast = rpp.unravel(model, images().float(), optimize=["channels_last"])
    with torch.no_grad():
        torch.testing.assert_close(fast(images().float()), model(images().float()), rtol=1e-5, atol=1e-5)
    assert plain._engine.stackable
    assert fast._engine.stackable


def test_optimizations_may_come_from_an_iterator_and_tell_networks_that_are_sent_apart():
    model = model_of("grouped")
    fast = unraveled(model, iter(["fold_batch_norm"]))
    assert fast.optimize == ("fold_batch_norm",)
    assert len({_digest(unraveled(model, optimize)) for optimize in ((), ["compile"], ["fold_batch_norm"])}) == 3


def test_unknown_optimizations_and_changes_of_mind_are_refused():
    model = model_of("grouped")
    with pytest.raises(InputError, match="optimize takes 'fold_batch_norm', 'channels_last', 'compile', not 'fast'"):
        unraveled(model, ["fast"])
    net = unraveled(model)
    assert rpp.unravel(net) is net
    with pytest.raises(InputError, match=r"unravel the model itself again with optimize=\('channels_last',\)"):
        rpp.unravel(net, optimize=["channels_last"])


@needs_compiler
def test_compiled_segments_give_the_same_lesions_and_serve_segments_that_are_alike():
    torch.manual_seed(0)
    branches = [nn.Sequential(convolution(4), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(4)]
    model = randomised(Chain(branches)).double().eval()
    plain, fast = unraveled(model), unraveled(model, ["compile"])
    lesions = rpp.BlockLesion(fast).attribute(images(), 1)
    assert_close(lesions, rpp.BlockLesion(plain).attribute(images(), 1))
    assert_close(rpp.BlockReordering(fast).attribute(images(3), 1), rpp.BlockReordering(plain).attribute(images(3), 1))
    # The stem with the first branch, any other branch, and the head.
    assert len(fast._engine._compile._compiled) == 3


class Chain(nn.Module):
    def __init__(self, branches):
        super().__init__()
        self.stem, self.branches, self.head = convolution(3, 4), nn.ModuleList(branches), nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x.mean((2, 3)))


def test_a_compiler_that_fails_is_told_with_the_way_out(monkeypatch):
    def failing(_):
        def run(*_):
            raise torch._dynamo.exc.TorchDynamoException("No working C++ compiler found")

        return run

    monkeypatch.setattr(torch, "compile", failing)
    net = unraveled(model_of("grouped"), ["compile"])
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler on a CPU, .* leave 'compile' out of optimize"):
        net(images())
