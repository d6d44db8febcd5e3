"""A copy of the user's own class without blocks: its outputs are those of models patched by hand, or it is refused."""

import copy

import pytest
import timm
import torch
import torchvision
from networks import (
    PreActivation,
    Residual,
    Transformer,
    Vectors,
    assert_same_state,
    mlp,
    randomised,
    state_of,
    without,
)
from torch import nn
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError, UnknownBlockError


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return randomised(torchvision.models.resnet18()).eval()


@pytest.fixture(scope="module")
def net(resnet):
    return rpp.unravel(resnet, torch.randn(2, 3, 64, 64))


def images(count=2):
    return torch.randn(count, 3, 64, 64)


def by_hand(model, *paths):
    patched = copy.deepcopy(model)
    for path in paths:
        patched.set_submodule(path, nn.Identity())
    return patched


def test_a_deleted_block_is_an_identity_in_the_users_own_class(resnet, net):
    before = state_of(resnet)
    small = rpp.pruned_copy(net, ["layer1.1", "layer3.1"])
    assert type(small) is type(resnet)
    patched = by_hand(resnet, "layer1.1", "layer3.1")
    assert str(small) == str(patched)
    assert_same_state(before, state_of(resnet))
    x = images()
    assert torch.equal(small(x), patched(x))
    assert small.state_dict().keys() == patched.state_dict().keys()
    theirs = {id(tensor) for tensor in resnet.state_dict(keep_vars=True).values()}
    assert not any(id(tensor) in theirs for tensor in small.state_dict(keep_vars=True).values())


def test_it_trains_as_a_model_patched_by_hand(resnet, net):
    small, patched = rpp.pruned_copy(net, "layer2.1").train(), by_hand(resnet, "layer2.1").train()
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.05) for module in (small, patched)]
    for _ in range(2):
        x = images(4)
        for module, optimizer in zip((small, patched), optimizers, strict=True):
            optimizer.zero_grad()
            functional.cross_entropy(module(x), torch.arange(4)).backward()
            optimizer.step()
    for name, tensor in patched.state_dict().items():
        assert torch.equal(tensor, small.state_dict()[name]), name


def test_a_projection_stays_with_the_activation_behind_it(resnet, net):
    small = rpp.pruned_copy(net, ["layer2.0", "layer4.0"])
    assert [name for name, _ in small.layer2[0].named_children()] == ["downsample", "relu"]
    assert set(small.state_dict()) < set(resnet.state_dict())
    resnet.load_state_dict(small.state_dict(), strict=False)
    x = images()
    assert torch.equal(small(x), without(resnet, "layer2.0.bn2", "layer4.0.bn2")(x))
    loss = functional.cross_entropy(small.train()(images(4)), torch.arange(4))
    loss.backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_vit", "test_byobnet"])
def test_models_of_timm_are_copied(name):
    check_model(timm.create_model(name, **({"img_size": 64} if name == "test_vit" else {})))


@pytest.mark.zoo
@pytest.mark.parametrize("name", [f"timm/{name}" for name in timm.list_models("test_*")] + [
    "torchvision/resnet50", "torchvision/mobilenet_v3_large", "torchvision/regnet_y_400mf", "torchvision/swin_t",
    "torchvision/vit_b_16", "torchvision/convnext_tiny",
])  # fmt: skip
def test_larger_models_are_copied(name):
    library, _, name = name.partition("/")
    model = timm.create_model(name) if library == "timm" else getattr(torchvision.models, name)()
    size = model.pretrained_cfg["input_size"][-1] if library == "timm" else 224
    check_model(model, size)


def check_model(model, size=64):
    """Each module that owns blocks is left out, or refused where the lesioned network says otherwise."""
    model = randomised(model).eval()
    x = torch.randn(2, 3, size, size)
    net = rpp.unravel(model, x)
    groups = {}
    for block in net.blocks:
        groups.setdefault(block.module, []).append(block)
    copied = 0
    for path, blocks in groups.items():
        identity = all(block.skip_kind == "identity" for block in blocks)
        try:
            small = rpp.pruned_copy(net, blocks)
        except InputError:
            assert not identity, path
            continue
        with torch.no_grad():
            torch.testing.assert_close(small(x), net.lesioned(blocks)(x), rtol=1e-5, atol=1e-6)
        copied += 1
    assert copied or not groups


class WithHooks(PreActivation):
    """It has a method and a hook of its own."""

    def features(self, x):
        return self.blocks(self.stem(x))


def doubled(_module, _args, output):
    return output * 2


def test_methods_hooks_and_flags_stay():
    model = randomised(WithHooks()).train()
    model.blocks[0].branch.eval()
    model.stem.register_forward_hook(doubled)
    model.head.weight.requires_grad_(requires_grad=False)
    x = torch.randn(2, 3, 6, 6)
    small = rpp.pruned_copy(model, "blocks.1", x)
    patched = by_hand(model, "blocks.1")
    assert len(small.stem._forward_hooks) == 1
    assert torch.equal(small.eval()(x), patched.eval()(x))
    assert torch.equal(small.features(x), patched.features(x))
    flags = {name: module.training for name, module in rpp.pruned_copy(model, "blocks.1", x).named_modules()}
    assert flags == {name: module.training for name, module in by_hand(model, "blocks.1").train().named_modules()} | {
        name: False for name in flags if name.startswith("blocks.0.branch")
    }
    assert not small.head.weight.requires_grad


class Activated(nn.Module):
    """What follows the sum is no identity on what comes in."""

    def __init__(self, functional_form):
        super().__init__()
        self.branch, self.functional_form = nn.Conv2d(3, 3, 3, padding=1), functional_form
        self.act = nn.LeakyReLU(0.5, inplace=True)

    def forward(self, x):
        y = x + self.branch(x)
        return y.relu() if self.functional_form else self.act(y)


@pytest.mark.parametrize("functional_form", [False, True])
def test_an_activation_behind_the_sum_stays_where_it_does_something(functional_form):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Activated(functional_form), nn.Flatten(), nn.Linear(108, 2)).eval()
    x = torch.randn(4, 3, 6, 6)
    small = rpp.pruned_copy(model, "1", x)
    between = functional.relu if functional_form else functional.leaky_relu
    expected = between(model[0](x)) if functional_form else between(model[0](x), 0.5)
    assert torch.equal(small(x), model[3](expected.flatten(1)))
    assert not isinstance(small[1], nn.Identity)


class Lambda(nn.Module):
    """A projection that is no module."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Conv2d(3, 6, 3, stride=2, padding=1)

    def forward(self, x):
        return self.branch(x) + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 3))


class PostNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch, self.norm = mlp(), nn.LayerNorm(6)

    def forward(self, x):
        return self.norm(x + self.branch(x))


def test_a_norm_behind_the_sum_stays():
    model = randomised(Vectors(PostNorm())).eval()
    x = torch.randn(3, 7)
    small = rpp.pruned_copy(model, "middle.0", x)
    assert torch.equal(small(x), model.head(model.middle[0].norm(model.stem(x))))
    assert set(small.state_dict()) < set(model.state_dict())


class PostTanh(nn.Module):
    """What follows the sum is neither a part nor a ReLU."""

    def __init__(self):
        super().__init__()
        self.branch = mlp()

    def forward(self, x):
        return torch.tanh(x + self.branch(x))


class Paired(nn.Module):
    """It returns a tuple."""

    def __init__(self):
        super().__init__()
        self.branch = mlp()

    def forward(self, x):
        return x + self.branch(x), None


class First(nn.Module):
    def __init__(self):
        super().__init__()
        self.paired = Paired()

    def forward(self, x):
        return self.paired(x)[0]


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = mlp()

    def forward(self, x):
        return x + self.branch(x)


SHARED = Residual(mlp())
REFUSED = {
    "two sums": (Transformer, "layers.0.mlp", (3, 6, 6), "computes the sums of 'layers.0.attn'"),
    "two arguments": (Transformer, ["layers.0.attn", "layers.0.mlp"], (3, 6, 6), r"called with \(Tensor"),
    "a projection": (lambda: nn.Sequential(Lambda()), "0", (3, 6, 6), "applies aten.pad"),
    "a function": (lambda: Vectors(PostTanh()), "middle.0", (7,), "applies aten.tanh"),
    "a tuple": (lambda: Vectors(First()), "middle.0.paired", (7,), "returns a tuple"),
    "own forward": (Own, 0, (6,), "own forward"),
    "a shared module": (lambda: Vectors(SHARED, nn.Tanh(), SHARED), None, (7,), "one module stands at"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_left_out_is_refused_with_the_reason(case):
    make, blocks, shape, reason = REFUSED[case]
    torch.manual_seed(0)
    model = make().eval()
    net = rpp.unravel(model, torch.randn(2, *shape))
    with pytest.raises(InputError, match=reason) as refusal:
        rpp.pruned_copy(net, net.blocks if blocks is None else blocks)
    assert "net.pruned" in str(refusal.value)


def test_all_runs_of_a_module_are_left_out_together():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Residual(mlp())

        def forward(self, x):
            return self.block(self.block(x))

    model = Vectors(Twice()).eval()
    x = torch.randn(3, 7)
    net = rpp.unravel(model, x)
    with pytest.raises(InputError, match="delete all of them"):
        rpp.pruned_copy(net, net.blocks[0])
    assert torch.equal(rpp.pruned_copy(net, net.blocks)(x), model.head(model.stem(x)))


def test_a_module_inside_a_deleted_one_goes_with_it():
    model = Vectors(Residual(nn.Sequential(Residual(mlp()), mlp()))).eval()
    x = torch.randn(3, 7)
    small = rpp.pruned_copy(model, ["middle.0", "middle.0.branch.0"], x)
    assert torch.equal(small(x), model.head(model.stem(x)))


class Then(nn.Module):
    """A branch, and something that follows the sum: a part, or code of its own."""

    def __init__(self, after, function=None):
        super().__init__()
        self.branch, self.after, self.function = mlp(), after, function
        self.gain = nn.Parameter(torch.ones(6))

    def forward(self, x):
        y = self.after(x + self.branch(x))
        return y if self.function is None else self.function(y, self)


FOLLOWING = {
    "dropout": lambda: nn.Dropout(0.5),
    "a clamp that random data do not reach": lambda: nn.Hardtanh(-50, 50),
    "a fresh norm": lambda: nn.BatchNorm1d(6, eps=1e-9),
    "an activation of what is positive on random data": nn.ReLU,
}


@pytest.mark.parametrize("after", FOLLOWING)
def test_a_part_behind_the_sum_stays_though_random_data_show_nothing_of_it(after):
    torch.manual_seed(0)
    model = Vectors(Then(FOLLOWING[after]())).eval()
    nn.init.constant_(model.stem.bias, 9.0)
    x = torch.randn(3, 7)
    small = rpp.pruned_copy(model, "middle.0", x)
    part = model.middle[0].after
    with torch.no_grad():
        assert torch.equal(small(100 * x), model.head(part(model.stem(100 * x))))
    assert [type(one) for one in small.middle[0]] == [type(part)]
    model.train()
    small.train()
    torch.manual_seed(1)
    found = small(x)
    torch.manual_seed(1)
    assert torch.equal(found, model.head(part(model.stem(x))))


@pytest.mark.parametrize("name", ["relu", "hardtanh"])
@pytest.mark.parametrize("before", [True, False])
def test_a_repeated_activation_goes_and_any_other_stays(name, before):
    make = {"relu": nn.ReLU, "hardtanh": lambda: nn.Hardtanh(-50, 50)}[name]
    model = Vectors(nn.Sequential(make() if before else nn.Tanh(), Then(make()))).eval()
    small = rpp.pruned_copy(model, "middle.0.1", torch.randn(3, 7))
    assert isinstance(small.middle[0][1], nn.Identity) == before


class DropPath(nn.Module):
    """In eval mode it returns what it is given; a graph shows nothing of it."""

    def forward(self, x):
        return x * torch.bernoulli(torch.full((len(x), 1), 0.5)) if self.training else x


LOST = {
    "a gain of one": (lambda: Then(nn.Identity(), lambda y, own: own.gain * y), "aten.mul"),
    "a stop of gradients": (lambda: Then(nn.Identity(), lambda y, _: y.detach()), "aten.detach"),
    "a dropout that is no part": (lambda: Then(nn.ReLU(), lambda y, own: functional.dropout(y, 0.5, own.training)),
                                  "aten.dropout"),
    "a drop path": (lambda: Then(DropPath()), "'after'.*does nothing in eval mode"),
    "a view": (lambda: Then(nn.Identity(), lambda y, _: y.view(-1, 2, 3).transpose(1, 2).reshape(-1, 6)), "lays out"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOST)
def test_what_would_be_lost_is_refused_behind_a_head_of_zeros(case):
    make, reason = LOST[case]
    model = Vectors(make()).eval()
    nn.init.zeros_(model.head.weight)
    with pytest.raises(InputError, match=reason):
        rpp.pruned_copy(model, "middle.0", torch.randn(3, 7))


def test_a_drop_path_of_the_branch_goes_with_it():
    model = Vectors(Residual(nn.Sequential(mlp(), DropPath()))).eval()
    assert isinstance(rpp.pruned_copy(model, "middle.0", torch.randn(3, 7)).middle[0], nn.Identity)


def drop_path(x, training):
    """Keep each sample or not, as stochastic depth does; a function that is no part of any module."""
    return x * torch.bernoulli(torch.full((len(x), 1), 0.5)) / 0.5 if training else x


class Dropping(nn.Module):
    """Its own code drops paths somewhere."""

    def __init__(self, where):
        super().__init__()
        self.branch, self.where = mlp(), where

    def forward(self, x):
        branch = self.branch(x)
        if self.where == "branch":
            return x + drop_path(branch, self.training)
        if self.where == "skip":
            return drop_path(x, self.training) + branch
        return drop_path(x + branch, self.training)


class DroppedBlock(nn.Module):
    """The module around a block drops its path."""

    def __init__(self):
        super().__init__()
        self.block = Residual(mlp())

    def forward(self, x):
        return drop_path(self.block(x), self.training)


@pytest.mark.parametrize(
    ("make", "block"), [(lambda: Dropping("branch"), "middle.0"), (DroppedBlock, "middle.0.block")],
    ids=["of the branch", "around the block's module"],
)  # fmt: skip
def test_a_functional_drop_path_is_right_in_training_mode(make, block):
    torch.manual_seed(0)
    model = Vectors(make()).eval()
    small, patched = rpp.pruned_copy(model, block, torch.randn(3, 7)), by_hand(model, block)
    x = torch.randn(8, 7)
    outputs = []
    for one in (small, patched):
        torch.manual_seed(1)
        outputs += [one.eval()(x), one.train()(x)]
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    assert torch.equal(outputs[0], outputs[1]) == (block == "middle.0")  # a path is dropped where one is left


@pytest.mark.parametrize(("where", "reason"), [("sum", "in training mode .*aten"), ("skip", "other residual blocks")])
def test_a_functional_drop_path_that_would_be_lost_is_refused(where, reason):
    torch.manual_seed(0)
    model, x = Vectors(Dropping(where)).eval(), torch.randn(3, 7)
    with pytest.raises(InputError, match=f"{reason}.*training=False"):
        rpp.pruned_copy(model, "middle.0", x)
    small, patched = rpp.pruned_copy(model, "middle.0", x, training=False), by_hand(model, "middle.0")
    assert torch.equal(small(x), patched(x))


class Swapped(nn.Module):
    """It stands at a place, and computes another thing than the graph does there."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def __deepcopy__(self, memo):
        return Swapped(nn.LayerNorm(6, eps=1.0))

    def forward(self, x):
        return self.part(x)


def test_a_part_is_compared_with_the_graph_behind_a_head_of_zeros():
    model = Vectors(Then(Swapped(nn.LayerNorm(6)))).eval()
    nn.init.zeros_(model.head.weight)
    with pytest.raises(InputError, match="'after' in its place gives other values"):
        rpp.pruned_copy(model, "middle.0", torch.randn(3, 7))


class Layer(nn.Module):
    """Its first block is in a module of its own, and feeds the second one's skip."""

    def __init__(self):
        super().__init__()
        self.attn, self.branch = Residual(mlp()), mlp()

    def forward(self, x):
        x = self.attn(x)
        return x + self.branch(x)


def test_a_deleted_module_in_the_skip_of_another_one_goes_too():
    torch.manual_seed(0)
    model = randomised(Vectors(Layer(), Layer())).eval()
    x = torch.randn(3, 7)
    both = rpp.pruned_copy(model, ["middle.1.attn", "middle.1"], x)
    assert torch.equal(both(x), without(model, "middle.1.attn.branch", "middle.1.branch")(x))
    assert isinstance(both.middle[1], nn.Identity)
    outer = rpp.pruned_copy(model, "middle.1", x)
    assert torch.equal(outer(x), without(model, "middle.1.branch")(x))
    assert set(outer.state_dict()) == {name for name in model.state_dict() if "middle.1.branch" not in name}


@pytest.mark.parametrize("optimize", ["fold_batch_norm", "channels_last"])
def test_an_optimized_network_is_refused_by_what_it_is(resnet, optimize):
    net = rpp.unravel(resnet, images(), optimize=[optimize])
    with pytest.raises(InputError, match="without optimize"):
        rpp.pruned_copy(net, "layer1.1")


def test_bad_input_is_refused(net):
    with pytest.raises(UnknownBlockError):
        rpp.pruned_copy(net, "layer9")
    with pytest.raises(InputError, match="units='blocks'"):
        rpp.pruned_copy(rpp.unravel(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4), units="layers"), 0)
    with pytest.raises(InputError, match="input shape"):
        rpp.pruned_copy(PreActivation(), 0)

    class Held(PreActivation):
        def __deepcopy__(self, memo):
            raise RuntimeError("held elsewhere")

    with pytest.raises(InputError, match="cannot be copied"):
        rpp.pruned_copy(Held(), 0, torch.randn(2, 3, 6, 6))
    assert torch.equal(rpp.pruned_copy(net, [])(x := images()), net.model(x))
