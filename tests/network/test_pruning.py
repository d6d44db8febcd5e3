"""A pruned network equals the lesioned one, holds only what it still uses, and trains, travels and stands alone.

Oracles: the model itself with branches multiplied by zero, or with blocks taken out of its module tree by hand.
"""

import copy
import io

import numpy as np
import pytest
import timm
import torch
import torchvision
from known_networks import CASES, unraveled
from networks import PreActivation, Zeroed, randomised, without
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch_state import thread_modes

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import CaptureMismatchError, InputError, UnknownBlockError, UnsupportedMethodError

pytestmark = pytest.mark.slow

RUNNING = [name for name, case in CASES.items() if case.blocks]
MODELS = ["test_vit", "test_convnext2"]
FULL = [
    "torchvision/resnet50", "torchvision/vit_b_16", "torchvision/mobilenet_v3_large", "torchvision/swin_t",
    "timm/convnext_tiny", "timm/resnetv2_50", "timm/seresnet50", "timm/vit_small_patch16_18x2_224",
    "timm/efficientnet_b0", "timm/regnety_004",
    *(f"timm/{name}" for name in timm.list_models("test_*")),
]  # fmt: skip


def inputs_of(case, dtype=torch.float64):
    return case.inputs(dtype=dtype)


def assert_equal(one, other):
    leaves = [torch.utils._pytree.tree_leaves(outputs) for outputs in (one, other)]
    for ours, theirs in zip(*leaves, strict=True):
        assert torch.equal(ours, theirs) if isinstance(theirs, torch.Tensor) else ours == theirs


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return randomised(torchvision.models.resnet18()).eval()


@pytest.fixture(scope="module")
def net(resnet):
    return rpp.unravel(resnet, torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("name", RUNNING)
def test_any_kind_of_block_is_deleted_as_in_a_lesion(name):
    net, model, inputs = unraveled(name, torch.float64)
    sets = [[], *([block] for block in net.blocks), list(net.blocks)]
    for gone in sets:
        pruned = net.pruned(gone, training=False)
        with torch.no_grad():
            assert_equal(pruned(*inputs), net.lesioned(gone)(*inputs) if gone else model(*inputs))
        assert set(pruned.deleted_blocks) >= {block.name for block in gone}
        assert {*pruned.kept_blocks, *pruned.deleted_blocks} == {block.name for block in net.blocks}


@pytest.mark.parametrize("name", ["pre-activation", "post-activation", "transformer", "rezero", "in place"])
def test_parameters_fall_by_what_the_branch_held(name):
    net, model, _ = unraveled(name)
    for block, known in zip(net.blocks, CASES[name].blocks, strict=True):
        pruned = net.pruned(block, training=False)
        gone = {f"{known.path}.{part}" for part, _ in model.get_submodule(known.path).named_parameters()}
        names = {part for part, _ in model.named_parameters()}
        assert gone
        assert names - {part for part, _ in pruned.named_parameters()} >= gone
        assert {part for part, _ in pruned.named_parameters()} <= names - gone


def test_a_deleted_block_keeps_its_projection(net):
    pruned = net.pruned("layer2.0")
    assert not any(name.startswith(("layer2.0.conv", "layer2.0.bn")) for name in pruned.state_dict())
    assert "layer2.0.downsample.0.weight" in pruned.state_dict()


@pytest.mark.parametrize("name", MODELS)
def test_models_of_timm_are_pruned(name):
    check_model(f"timm/{name}", size=64)


@pytest.mark.zoo
@pytest.mark.parametrize("name", FULL)
def test_larger_models_are_pruned(name):
    check_model(name)


def check_model(name, size=None):
    library, _, name = name.partition("/")
    if library == "timm":
        options = {"img_size": size} if size and name == "test_vit" else {}
        model = timm.create_model(name, **options)
        shape = model.pretrained_cfg["input_size"] if size is None else (3, size, size)
    else:
        model, shape = getattr(torchvision.models, name)(), (3, 224, 224)
    model = randomised(model).eval()
    images = torch.randn(2, *shape)
    net = rpp.unravel(model, images)
    if not net.blocks:
        pytest.skip(f"{name} has no residual blocks")
    gone = net.blocks[::3]
    pruned = net.pruned(gone)
    with torch.no_grad():
        assert torch.equal(pruned(images), net.lesioned(gone)(images))
    kept = sum(parameter.numel() for parameter in pruned.parameters())
    assert kept < sum(parameter.numel() for parameter in model.parameters())
    assert not model.load_state_dict(pruned.state_dict(), strict=False).unexpected_keys
    pruned.train()(images).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters() if parameter.requires_grad)


def by_hand(model):
    """Take two blocks out of a ResNet-18's own module tree; a ReLU before them makes the one behind them idle."""
    patched = copy.deepcopy(model)
    patched.layer1[1] = nn.Identity()
    patched.layer3[1] = nn.Identity()
    return patched


def test_fine_tuning_equals_that_of_a_model_patched_by_hand(resnet, net):
    before = copy.deepcopy(resnet.state_dict())
    patched, pruned = by_hand(resnet).train(), net.pruned(["layer1.1", "layer3.1"]).train()
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9) for module in (patched, pruned)]
    for step in range(4):
        images, labels = torch.randn(4, 3, 64, 64), torch.arange(4) + step
        outputs = []
        for module, optimizer in zip((patched, pruned), optimizers, strict=True):
            optimizer.zero_grad()
            outputs.append(module(images))
            functional.cross_entropy(outputs[-1], labels).backward()
            optimizer.step()
        assert torch.equal(*outputs)
    theirs, ours = patched.state_dict(), pruned.state_dict()
    assert theirs.keys() == ours.keys()
    for name in theirs:
        assert torch.equal(theirs[name], ours[name]), name
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(patched.eval()(images), pruned.eval()(images))
    for name, tensor in resnet.state_dict().items():
        assert torch.equal(tensor, before[name])  # it has parameters and statistics of its own


def test_dropout_is_that_of_training():
    model = nn.Sequential(nn.Linear(4, 4), PreDropout(), PreDropout()).eval()
    pruned = rpp.unravel(model, torch.randn(2, 4)).pruned("2")
    x = torch.randn(64, 4)
    torch.manual_seed(3)
    ours = pruned.train()(x)
    torch.manual_seed(3)
    assert torch.equal(ours, model[:2].train()(x))
    assert torch.equal(pruned.eval()(x), model[:2].eval()(x))


class PreDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x):
        return x + functional.dropout(self.f(x), 0.5, self.training)


def test_parameters_are_copies_or_on_request_the_models_own(resnet, net):
    own, shared = net.pruned("layer1.0"), net.pruned("layer1.0", share_parameters=True)
    theirs = dict(resnet.named_parameters())
    assert all(parameter is theirs[name] for name, parameter in shared.named_parameters())
    assert not any(parameter is theirs[name] for name, parameter in own.named_parameters())
    assert {name: p.requires_grad for name, p in own.named_parameters()}.items() <= {
        name: p.requires_grad for name, p in theirs.items()
    }.items()


def test_it_is_copied_saved_and_loaded_as_any_module(net, tmp_path):
    images = torch.randn(2, 3, 64, 64)
    pruned = net.pruned(["layer1.1", "layer4.1"])
    expected = net.lesioned(["layer1.1", "layer4.1"])(images)
    assert torch.equal(copy.deepcopy(pruned)(images), expected)
    stream = io.BytesIO()
    torch.save(pruned.state_dict(), stream)
    stream.seek(0)
    save_file(pruned.state_dict(), tmp_path / "small.safetensors")
    fresh = rpp.unravel(torchvision.models.resnet18().eval(), images)
    for state in (torch.load(stream, weights_only=True), load_file(tmp_path / "small.safetensors")):
        other = fresh.pruned(["layer1.1", "layer4.1"], training=False)
        other.load_state_dict(state)
        assert torch.equal(other(images), expected)
    assert torch.allclose(pruned.double()(images.float().double()).float(), expected, atol=1e-4)


def test_it_is_exported_and_compiled_with_a_free_batch(net):
    images = torch.randn(2, 3, 64, 64)
    pruned = net.pruned(["layer1.1"])
    program = torch.export.export(pruned, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    more = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(program.module()(more), pruned(more))
        compiled = torch.compile(pruned, backend="aot_eager", fullgraph=True)
        assert torch.allclose(compiled(more), pruned(more), atol=1e-5)


def test_onnx_gives_the_same_outputs(tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    model = randomised(PreActivation()).eval()
    images = torch.randn(2, 3, 6, 6)
    pruned = rpp.unravel(model, images).pruned("blocks.1")
    exported = torch.onnx.export(
        pruned, (images,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
    )
    exported.save(tmp_path / "small.onnx")
    session = runtime.InferenceSession(tmp_path / "small.onnx")
    more = torch.randn(5, 3, 6, 6)
    (found,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    np.testing.assert_allclose(found, pruned(more).detach().numpy(), rtol=1e-4, atol=1e-4)


def test_any_schedule_becomes_a_module():
    model = randomised(PreActivation()).double().eval()
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    net = rpp.unravel(model, images)
    schedules = {
        "order": rpp.Schedule.order(net, [2, 0, 1]),
        "scaled": rpp.Schedule.scaled(net, 0.5),
        "parallel": rpp.Schedule.parallel(net, [0, 1]),
        "repeated": rpp.Schedule.repeated(net, 0, [1, 2]),
        "constant": rpp.Schedule.lesion(net, 1).substituted({1: torch.randn(1, 4, 6, 6).double()}),
    }
    for name, schedule in schedules.items():
        view = net.scheduled(schedule)
        pruned = view.to_module()
        assert torch.equal(pruned(images), view(images)), name
        assert pruned.train()(images).shape == view(images).shape


def test_a_constant_is_saved_with_the_parameters():
    model = randomised(PreActivation()).eval()
    net = rpp.unravel(model, torch.randn(2, 3, 6, 6))
    constant = torch.randn(1, 4, 6, 6)
    pruned = net.scheduled(rpp.Schedule.lesion(net, 1).substituted({1: constant})).to_module()
    assert torch.equal(pruned.state_dict()["stand_in_1"], constant)


class Tied(nn.Module):
    """An embedding whose weight is the output's too, a buffer that is not saved, and autocast around a branch."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.full((4,), 0.5), persistent=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = x + self.first(x) * self.scale
        with torch.autocast("cpu", torch.bfloat16):
            x = x + self.second(x)
        return self.head(x)


def test_tied_weights_stay_tied_and_autocast_stays_where_it_was():
    model, tokens = Tied().eval(), torch.arange(6).reshape(2, 3)
    net = rpp.unravel(model, tokens)
    for gone in ([], ["first"], ["second"]):
        pruned = net.pruned(gone)
        assert pruned.head.weight is pruned.embedding.weight
        assert "scale" not in pruned.state_dict()
        assert torch.equal(pruned(tokens), net.lesioned(gone)(tokens) if gone else model(tokens))
        exported = torch.export.export(pruned, (tokens,)).module()
        assert torch.equal(exported(tokens), pruned(tokens))


def test_what_it_cannot_be_given_is_refused(net):
    pruned = net.pruned("layer1.0", training=False)
    with pytest.raises(InputError, match=r"a tensor of shape \(B, 3, 64, 64\)"):
        pruned(torch.randn(2, 3, 32, 32))
    with pytest.raises(InputError, match=r"torch\.float32"):
        pruned(torch.randn(2, 3, 64, 64).double())
    with pytest.raises(InputError, match="with the arguments x: too many positional arguments"):
        pruned(torch.randn(2, 3, 64, 64), torch.randn(2))
    with pytest.raises(UnsupportedMethodError, match="training=True"):
        pruned.train()
    with pytest.raises(UnknownBlockError):
        net.pruned("layer9")
    assert pruned.eval() is pruned


class Squares(nn.Module):
    """Its Python turns the batch size into a number."""

    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x):
        return x + torch.stack([self.f(row) for row in x])


def test_a_frozen_batch_stays_frozen():
    net = rpp.unravel(Squares().eval(), torch.randn(3, 4))
    pruned = net.pruned([])
    x = torch.randn(3, 4)
    assert torch.equal(pruned(x), net(x))
    with pytest.raises(InputError, match="3"):
        pruned(torch.randn(4, 4))


def test_a_model_that_was_changed_is_not_pruned_by_an_old_graph():
    model = randomised(PreActivation()).eval()
    net = rpp.unravel(model, torch.randn(2, 3, 6, 6))
    model.blocks[1] = Zeroed(model.blocks[1])
    with pytest.raises(CaptureMismatchError):
        net.pruned("blocks.0")


def test_a_model_that_already_lacks_a_branch_is_pruned_alike():
    case = CASES["post-activation"]
    model = case.model().double()
    (images,) = inputs_of(case)
    net = rpp.unravel(model, images)
    for block, known in zip(net.blocks, case.blocks, strict=True):
        torch.testing.assert_close(net.pruned(block)(images), without(model, known.path)(images))


class Two(nn.Module):
    """Two blocks and a head."""

    def __init__(self, names=("f", "g")):
        super().__init__()
        self.names = names
        for name in names:
            setattr(self, name, nn.Linear(4, 4))
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        for name in self.names:
            x = x + getattr(self, name)(x)
        return self.fc(x)


def pruned_two(*args, **options):
    model = Two(*args).double().eval()
    x = torch.randn(6, 4, dtype=torch.float64)
    return rpp.unravel(model, x).pruned(model.names[1], **options), model, x


def test_parts_are_neither_replaced_nor_hooked_without_a_word():
    pruned, _, x = pruned_two()
    with pytest.raises(UnsupportedMethodError, match="never run"):
        pruned.get_submodule("f").register_forward_hook(print)
    pruned.fc = nn.Linear(4, 7).double()
    with pytest.raises(UnsupportedMethodError, match="'fc' of this pruned Two was replaced"):
        pruned(x)


def test_a_parametrization_of_a_part_counts():
    pruned, model, x = pruned_two()
    torch.nn.utils.parametrizations.weight_norm(pruned.get_submodule("f"))
    pruned.get_submodule("f").parametrizations.weight.original0.data *= 2
    model.f.weight.data *= 2
    torch.testing.assert_close(pruned(x), model.fc(x + model.f(x)))


class Even(Two):
    """In training mode it does something else with batches of even size."""

    def forward(self, x):
        return super().forward(x * 10 if self.training and x.shape[0] % 2 == 0 else x)


def test_each_mode_has_the_batch_sizes_that_it_holds_for():
    model = Even().double().eval()
    pruned = rpp.unravel(model, torch.randn(4, 4, dtype=torch.float64)).pruned("g")
    odd = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(pruned(odd), model.fc(odd + model.f(odd)))
    with pytest.raises(InputError, match="a batch of 5 was given"):
        pruned.train()(odd)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Own(Two):
    """Its gradient is its own, in one of the modes."""

    def __init__(self, mode):
        super().__init__()
        self.stem, self.mode = nn.Linear(4, 4), mode

    def forward(self, x):
        x = self.stem(x)
        return super().forward(Reversed.apply(x) if self.training == self.mode else x)


@pytest.mark.parametrize("mode", [False, True])
def test_a_gradient_that_is_not_the_models_is_refused(mode):
    net = rpp.unravel(Own(mode).double().eval(), torch.randn(4, 4, dtype=torch.float64))
    with pytest.raises(CaptureMismatchError, match="gradients"):
        net.pruned("g")
    assert rpp.unravel(Own(mode).double().eval(), torch.randn(4, 4).double(), verify=False).pruned("g") is not None


SCALE = {"of f": 1.0}


class Embedded(nn.Module):
    """Made-up integers cannot show that its code has changed."""

    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(5, 4, padding_idx=0)
        self.f, self.g = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, tokens):
        x = self.e(tokens)
        x = x + self.f(x) * SCALE["of f"]
        return x + self.g(x)


def test_what_is_called_later_is_compared_all_the_same(monkeypatch):
    tokens = torch.tensor([[1, 2], [3, 4]])
    net = rpp.unravel(Embedded().double().eval(), tokens)
    monkeypatch.setitem(SCALE, "of f", 3.0)
    net.pruned("g", training=False)
    with pytest.raises(CaptureMismatchError):
        net(tokens)


def test_it_is_not_pickled():
    pruned, *_ = pruned_two()
    with pytest.raises(UnsupportedMethodError, match="state_dict"):
        torch.save(pruned, io.BytesIO())


def test_autocast_is_as_before_after_an_error():
    pruned = rpp.unravel(Tied().eval(), torch.zeros(2, 3, dtype=torch.long)).pruned("first", training=False)
    pruned(torch.zeros(2, 3, dtype=torch.long))
    before = thread_modes()
    for _ in range(2):
        with pytest.raises(IndexError):
            pruned(torch.full((2, 3), 9))
        assert thread_modes() == before


class Failing(Tied):
    """It looks its tokens up within autocast."""

    def forward(self, tokens):
        with torch.autocast("cpu", torch.bfloat16):
            x = self.embedding(tokens)
            x = x + self.first(x)
        return self.head(x + self.second(x))


def test_autocast_is_left_after_an_error_within():
    pruned = rpp.unravel(Failing().eval(), torch.zeros(2, 3, dtype=torch.long)).pruned("second", training=False)
    with pytest.raises(IndexError):
        pruned(torch.full((2, 3), 9))
    assert not torch.is_autocast_enabled("cpu")
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_shared_parameters_are_converted_in_the_model_only():
    pruned, model, _ = pruned_two(share_parameters=True)
    with pytest.raises(UnsupportedMethodError, match="shares the model's parameters"):
        pruned.float()
    assert model.f.weight.dtype == torch.float64
    copied = copy.deepcopy(pruned).float()
    assert copied.get_submodule("f").weight.dtype == torch.float32
    assert model.f.weight.dtype == torch.float64


@pytest.mark.parametrize("name", ["eval_graph", "training_graph", "kept_blocks"])
def test_names_that_are_taken_are_refused(name):
    model = Two((name, "g")).eval()
    with pytest.raises(InputError, match=f"'{name}', a name that is taken"):
        rpp.unravel(model, torch.randn(2, 4)).pruned("g")


def test_blocks_inside_a_deleted_branch_are_gone_with_it():
    case = CASES["nested"]
    net = rpp.unravel(case.model(), case.inputs())
    pruned = net.pruned("middle.0", training=False)
    assert pruned.kept_blocks == ()
    assert len(pruned.deleted_blocks) == 3


def test_layers_are_deleted_too():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(3, 4)
    pruned = rpp.unravel(model, x, units="layers").pruned(0)
    assert torch.equal(pruned(x), model[2:](x))
    assert torch.equal(pruned.train()(x), model[2:](x))


def test_inputs_of_unequal_batches_are_refused():
    case = CASES["two inputs"]
    one, other = case.inputs(batch=3)
    pruned = rpp.unravel(case.model(), (one, other)).pruned([], training=False)
    with pytest.raises(InputError, match="input 1 must be"):
        pruned(one, other[:1])


def test_a_state_loads_into_a_network_for_eval_mode(resnet):
    net = rpp.unravel(resnet, torch.randn(2, 3, 64, 64))
    tuned = net.pruned("layer1.1")
    tuned.train()(torch.randn(4, 3, 64, 64))
    small = net.pruned("layer1.1", training=False)
    small.load_state_dict(tuned.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(small(images), tuned.eval()(images))


def test_a_measure_may_hold_one_and_be_checkpointed():
    from resnet_paths_plugin.execution.fingerprints import fingerprint

    pruned, *_ = pruned_two()
    other = copy.deepcopy(pruned)
    assert fingerprint(pruned) == fingerprint(other)
    other.get_submodule("f").weight.data[0, 0] += 1
    assert fingerprint(pruned) != fingerprint(other)


def test_it_is_made_under_inference_mode_as_well():
    model = Two().eval()
    net = rpp.unravel(model, torch.randn(3, 4))
    with torch.inference_mode():
        pruned = net.pruned("g")
    pruned.train()(torch.randn(3, 4)).sum().backward()
    assert pruned.get_submodule("f").weight.grad is not None
