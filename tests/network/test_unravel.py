"""An unraveled network returns what its model returns, and leaves the model as it was.

The oracle of outputs is the model itself, in eval mode; that of state is a record taken before.
"""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torchvision
from known_networks import CASES, unraveled
from networks import PreActivation, Residual, Vectors, assert_same_state, mlp, randomised, state_of, without
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils import _pytree as pytree

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import (
    CaptureError,
    InputError,
    NoResidualBlocksError,
    PluginError,
    UnknownBlockError,
    UnsupportedMethodError,
)
from resnet_paths_plugin.plugins import manager as plugins

IMAGES = (3, 6, 6)


def assert_equal_outputs(ours, theirs):
    ours, our_form = pytree.tree_flatten(ours)
    theirs, their_form = pytree.tree_flatten(theirs)
    assert our_form == their_form
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(other, torch.Tensor):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        else:
            assert one == other


# What a network returns


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_models_own_before_during_and_after(name):
    case = CASES[name]
    model, inputs = case.model(), case.inputs()
    with torch.no_grad():
        before = model(*inputs)
        during = rpp.unravel(model, inputs)(*inputs)
        after = model(*inputs)
    assert_equal_outputs(during, before)
    assert_equal_outputs(after, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_any_batch_size_runs_whatever_was_captured(name):
    net, model, _ = unraveled(name)  # from three samples
    for batch in (1, 2, 5):
        inputs = CASES[name].inputs(batch)
        assert_equal_outputs(net(*inputs), model(*inputs))


@pytest.mark.parametrize("name", ["post-activation", "transformer", "in place", "two inputs"])
def test_a_network_captured_from_one_sample_takes_more(name):
    case = CASES[name]
    model = case.model()
    net = rpp.unravel(model, case.inputs(batch=1))
    for batch in (1, 4):
        assert_equal_outputs(net(*case.inputs(batch)), model(*case.inputs(batch)))


@pytest.mark.parametrize("name", ["post-activation", "transformer", "gated", "in place"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_the_models_too(name, dtype):
    case = CASES[name]
    model, inputs = case.model().to(dtype), case.inputs(dtype=dtype)
    net = rpp.unravel(model, inputs)
    assert net.dtype == dtype
    assert_equal_outputs(net(*inputs), model(*inputs))


def test_a_model_in_train_mode_is_analysed_in_eval_mode_and_stays_in_train_mode():
    model = CASES["post-activation"].model()
    (x,) = CASES["post-activation"].inputs()
    expected = model(x)
    model.train()
    model.projected.eval()
    net = rpp.unravel(model, x)
    assert torch.equal(net(x), expected)
    assert model.training
    assert not model.projected.training
    assert model.plain.training


def test_inputs_are_not_changed_by_a_model_that_works_in_place():
    class Doubling(PreActivation):
        def forward(self, x):
            return super().forward(x.mul_(2))

    model = randomised(Doubling()).eval()
    x = torch.randn(3, *IMAGES)
    kept = x.clone()
    expected = model(x.clone())
    net = rpp.unravel(model, x)
    assert torch.equal(net(x), expected)
    assert torch.equal(x, kept)


def test_gradients_of_inputs_and_parameters_are_the_models():
    case = CASES["post-activation"]
    model, (x,) = case.model(), case.inputs()
    net = rpp.unravel(model, x)
    wanted = torch.autograd.grad(model(x.requires_grad_()).square().sum(), [x, *model.parameters()])
    found = torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_an_unraveled_network_is_returned_as_it_is():
    net = rpp.unravel(PreActivation(), torch.randn(2, *IMAGES))
    assert rpp.unravel(net) is net


def test_the_input_shape_comes_from_a_library_that_knows_it():
    with torch.device("meta"):
        model = torchvision.models.resnet18()
        net = rpp.unravel(model)
    assert net.name == "resnet18"
    assert net.graph.inputs[0].meta["val"].shape[1:] == (3, 224, 224)


# Weights are shared, never copied


def changed_in_place(model):
    with torch.no_grad():
        model.blocks[0].branch[0][2].weight.mul_(1.5)


def changed_by_a_state_dict(model):
    state = {k: v * 1.25 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state)


def changed_by_assigning_a_state_dict(model):
    state = {k: v * 1.25 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def replaced_a_parameter(model):
    model.head.weight = nn.Parameter(torch.randn_like(model.head.weight))


def replaced_a_buffer(model):
    model.blocks[0].branch[0][0].running_mean = torch.randn(4)


def replaced_a_layer(model):
    model.head = nn.Linear(4, 5)


def changed_by_an_optimizer(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, *IMAGES)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "change",
    [
        changed_in_place,
        changed_by_a_state_dict,
        changed_by_assigning_a_state_dict,
        replaced_a_parameter,
        replaced_a_buffer,
        replaced_a_layer,
        changed_by_an_optimizer,
    ],
)
def test_later_weight_changes_show(change):
    model, x = randomised(PreActivation()).eval(), torch.randn(3, *IMAGES)
    net = rpp.unravel(model, x)
    view = net.lesioned("blocks.1")
    before, lesioned_before = net(x), view(x)
    change(model)
    assert not torch.equal(model(x), before)
    assert torch.equal(net(x), model(x))
    assert not torch.equal(view(x), lesioned_before)
    assert torch.equal(view(x), without(model, "blocks.1.branch")(x))


def test_parametrized_weights_are_followed():
    model = randomised(PreActivation()).eval()
    parametrizations.weight_norm(model.blocks[0].branch[0][2])
    x = torch.randn(3, *IMAGES)
    net = rpp.unravel(model, x)
    assert len(net.blocks) == 3
    assert torch.equal(net(x), model(x))
    with torch.no_grad():
        model.blocks[0].branch[0][2].parametrizations.weight.original0.mul_(2)
    assert torch.equal(net(x), model(x))


def test_tied_parameters_stay_tied():
    model = randomised(PreActivation()).eval()
    model.blocks[1].branch[0][2].weight = model.blocks[0].branch[0][2].weight
    x = torch.randn(3, *IMAGES)
    net = rpp.unravel(model, x)
    with torch.no_grad():
        model.blocks[0].branch[0][2].weight.add_(0.1)
    assert torch.equal(net(x), model(x))


def test_the_parameters_of_a_network_are_the_models_objects():
    model = PreActivation()
    net = rpp.unravel(model, torch.randn(2, *IMAGES))
    assert [id(p) for p in net.parameters()] == [id(p) for p in model.parameters()]
    assert [id(b) for b in net.buffers()] == [id(b) for b in model.buffers()]
    assert list(net.state_dict()) == list(model.state_dict())


def test_the_digest_of_the_weights_follows_the_weights():
    model = PreActivation()
    net = rpp.unravel(model, torch.randn(2, *IMAGES))
    digest = net.weights_digest()
    assert digest == rpp.unravel(copy.deepcopy(model), torch.randn(5, *IMAGES)).weights_digest()
    with torch.no_grad():
        model.head.bias[0] += 1e-6
    assert net.weights_digest() != digest


# The model is left as it was


def model_with_a_history():
    """A model with mixed flags, frozen parameters, gradients and a hook of its user's."""
    model = randomised(PreActivation()).train()
    model.blocks[1].eval()
    model.head.weight.requires_grad_(requires_grad=False)
    model(torch.randn(2, *IMAGES)).sum().backward()
    model.head.register_forward_hook(lambda *_: None)
    return model


def test_unraveling_and_running_leave_the_model_as_it_was():
    model = model_with_a_history()
    before = state_of(model)
    net = rpp.unravel(model, torch.ones(3, *IMAGES))
    net(torch.ones(3, *IMAGES))
    net.lesioned(["blocks.0"])(torch.ones(1, *IMAGES))
    repr(net)
    net.weights_digest()
    assert_same_state(before, state_of(model))


def test_a_study_leaves_the_model_as_it_was():
    model = model_with_a_history()
    before = state_of(model)
    rpp.BlockLesion(model).attribute(torch.ones(3, *IMAGES), 1, n_deleted=[1, 2], draws=2)
    assert_same_state(before, state_of(model))


def test_a_study_with_a_bad_target_leaves_the_model_as_it_was():
    model = model_with_a_history()
    before = state_of(model)
    with pytest.raises(InputError, match="target 99 is out of range"):
        rpp.BlockLesion(model).attribute(torch.ones(3, *IMAGES), 99)
    assert_same_state(before, state_of(model))


class Raising(PreActivation):
    def forward(self, x):
        torch.rand(3)
        np.random.random()  # noqa: NPY002 - a model may draw from the global generator
        if x.shape[-1] != 6:
            raise RuntimeError("only images of 6 pixels")
        return super().forward(x)


def test_a_model_that_raises_while_captured_is_left_as_it_was():
    model = Raising().train()
    before = state_of(model)
    with pytest.raises(CaptureError, match=r"Raising cannot be captured.*\n.*RuntimeError: only images of 6 pixels"):
        rpp.unravel(model, torch.ones(3, 3, 5, 5))
    after = state_of(model)
    assert_same_state(before, after)


def test_a_model_that_draws_random_numbers_leaves_the_generators_as_they_were():
    model = Raising()
    before = state_of(model)
    rpp.unravel(model, torch.ones(3, *IMAGES))
    assert_same_state(before, state_of(model))


def test_a_model_that_depends_on_values_is_refused_with_the_reason():
    class Branching(PreActivation):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(CaptureError, match="cannot capture Branching") as refusal:
        rpp.unravel(Branching(), torch.ones(3, *IMAGES))
    assert "resnet_paths_capture" in str(refusal.value)


def test_a_users_own_train_method_is_not_called():
    class Stubborn(PreActivation):
        def train(self, mode=True):
            raise AssertionError("train was called")

    model = Stubborn()
    rpp.unravel(model, torch.ones(2, *IMAGES))
    assert model.training


# Bad input, each with its own error


def test_what_is_no_module_is_refused():
    with pytest.raises(InputError, match=r"must be a torch.nn.Module, not function"):
        rpp.unravel(lambda x: x, torch.ones(2, 3))


def test_an_unknown_input_shape_is_refused():
    with pytest.raises(InputError, match="input shape of PreActivation is not known: pass example_inputs"):
        rpp.unravel(PreActivation())


@pytest.mark.parametrize("example", [torch.ones(0, 3, 6, 6), torch.tensor(1.0), (3,), ()])
def test_examples_without_a_batch_are_refused(example):
    with pytest.raises(InputError, match="batch"):
        rpp.unravel(PreActivation(), example)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.ones(2, 3, 6, 7), r"has shape \(2, 3, 6, 7\); the network was captured for \(B, 3, 6, 6\)"),
        (torch.ones(3, 6, 6), r"has shape \(3, 6, 6\)"),
        (
            torch.ones(2, 3, 6, 6, dtype=torch.float64),
            "is torch.float64; the network was captured with torch.float32",
        ),
        (torch.ones(2, 3, 6, 6, device="meta"), "is on meta"),
        ("image", "must be a tensor, not str"),
    ],
)
def test_inputs_of_another_form_are_refused(wrong, message):
    net = rpp.unravel(PreActivation(), torch.ones(2, *IMAGES))
    with pytest.raises(InputError, match=message):
        net(wrong)


def test_another_number_of_inputs_is_refused():
    case = CASES["two inputs"]
    net = rpp.unravel(case.model(), case.inputs())
    with pytest.raises(InputError, match="with the arguments left, right: missing a required argument: 'right'"):
        net(case.inputs()[0])


def test_inputs_with_different_batches_are_refused():
    case = CASES["two inputs"]
    net = rpp.unravel(case.model(), case.inputs())
    left, right = case.inputs(4)
    with pytest.raises(InputError, match="input 1 has 3 samples and input 0 has 4"):
        net(left, right[:3])


def test_arguments_that_are_no_tensors_are_fixed_by_the_capture():
    class Powered(PreActivation):
        def forward(self, x, power):
            return super().forward(x**power)

    model, x = Powered().eval(), torch.rand(2, *IMAGES)
    net = rpp.unravel(model, (x, 2))
    assert torch.equal(net(x, 2), model(x, 2))
    with pytest.raises(InputError, match="input 1 was 2 when the network was captured and is 3 now"):
        net(x, 3)


def test_an_unknown_block_is_refused_with_near_names():
    net = rpp.unravel(PreActivation(), torch.ones(2, *IMAGES))
    for ask in (net.block, net.lesioned, lambda name: rpp.Schedule.scaled(net, 2.0, name)):
        with pytest.raises(UnknownBlockError, match=r"has no block 'block.1'. Did you mean 'blocks.1'"):
            ask("block.1")
    with pytest.raises(UnknownBlockError, match="has no block 3: its 3 blocks count from 0"):
        net.block(3)
    with pytest.raises(UnknownBlockError, match="by name, index or object"):
        net.block(1.5)


def test_blocks_are_given_by_name_index_or_object():
    net = rpp.unravel(PreActivation(), torch.ones(2, *IMAGES))
    block = net.blocks[1]
    assert net.block("blocks.1") is net.block(1) is net.block(np.int64(1)) is net.block(-2) is net.block(block) is block
    assert net.select(["blocks.2", 0, net.blocks[2]]) == (net.blocks[0], net.blocks[2])
    assert net.select("blocks.1") == net.select(1) == net.select(block) == net.select(np.int64(1)) == (block,)


@pytest.mark.parametrize("name", ["plain", "dense"])
def test_a_model_without_blocks_unravels_to_an_empty_network_that_studies_refuse(name):
    case = CASES[name]
    model, inputs = case.model(), case.inputs()
    net = rpp.unravel(model, inputs)
    assert net.blocks == ()
    for given in (model, net):
        with pytest.raises(NoResidualBlocksError, match=f"{type(model).__name__} has no residual blocks"):
            rpp.BlockLesion(given).attribute(inputs, 0)


# Views are for calling and differentiating only


@pytest.mark.parametrize("lesioned", [False, True])
def test_hooks_on_a_view_are_refused(lesioned):
    net = rpp.unravel(PreActivation(), torch.ones(2, *IMAGES))
    view = net.lesioned(0) if lesioned else net
    for method in (
        view.register_forward_hook,
        view.register_forward_pre_hook,
        view.register_full_backward_hook,
        view.register_full_backward_pre_hook,
        view.apply,
    ):
        with pytest.raises(UnsupportedMethodError, match="no submodules to hook"):
            method(lambda *_: None)


@pytest.mark.parametrize("move", [lambda v: v.double(), lambda v: v.to("meta"), lambda v: v.half(), lambda v: v.cuda()])
def test_a_view_is_not_converted_or_moved(move):
    model = PreActivation()
    net = rpp.unravel(model, torch.ones(2, *IMAGES))
    for view in (net, net.lesioned(0)):
        with pytest.raises(UnsupportedMethodError, match="change the model and unravel it again"):
            move(view)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_view_stays_in_eval_mode():
    net = rpp.unravel(PreActivation(), torch.ones(2, *IMAGES))
    assert net.eval() is net
    assert not net.training
    with pytest.raises(UnsupportedMethodError, match="always runs in eval mode"):
        net.train()


# What plugins may say


class Reviewer:
    """Renames the first block, drops the second, offers an analyzer."""

    class Depths:
        def __init__(self, model):
            self.model = model

        def attribute(self, inputs, target=None):
            raise NotImplementedError

    @rpp.hookimpl
    def resnet_paths_review_blocks(self, model, blocks):
        if not isinstance(model, PreActivation):
            return None
        first, _, *rest = blocks
        return (dataclasses.replace(first, name="the first"), *rest)

    @rpp.hookimpl
    def resnet_paths_analyzers(self):
        return {"depths": self.Depths}


def test_a_plugin_renames_a_block_drops_one_and_adds_an_analyzer():
    manager = rpp.create_plugin_manager()
    manager.register(Reviewer(), name="reviewer")
    model, x = randomised(PreActivation()).eval(), torch.randn(3, *IMAGES)
    net = rpp.unravel(model, x, plugin_manager=manager)
    assert [(block.index, block.name) for block in net.blocks] == [(0, "the first"), (1, "blocks.2")]
    assert torch.equal(net(x), model(x))
    plain = rpp.unravel(model, x)
    assert torch.equal(net.lesioned("the first")(x), plain.lesioned("blocks.0")(x))
    assert torch.equal(net.lesioned(1)(x), plain.lesioned("blocks.2")(x))
    assert plugins.analyzers(manager)["depths"] is Reviewer.Depths
    assert any("reviewer" in name for name in net.plugin_names)


def test_a_study_names_the_plugins_that_were_asked():
    manager = rpp.create_plugin_manager()
    manager.register(Reviewer(), name="reviewer")
    x = torch.randn(3, *IMAGES)
    net = rpp.unravel(PreActivation(), x, plugin_manager=manager)
    result = rpp.BlockLesion(net).attribute(x, 0)
    assert "reviewer" in result.attrs["plugins"]
    assert list(result["block"].values) == ["the first", "blocks.2"]


def test_a_plugin_describes_a_model_and_places_its_blocks():
    class Describer:
        @rpp.hookimpl
        def resnet_paths_describe_model(self, model):
            return rpp.ModelDescription(
                library="ours",
                library_version="1",
                architecture="tiny",
                input_shape=IMAGES,
                stages={"blocks.0": 0, "blocks.1": 1, "blocks.2": 1},
            )

    manager = rpp.create_plugin_manager(entry_points=False)
    manager.register(Describer())
    net = rpp.unravel(PreActivation(), plugin_manager=manager)
    assert net.name == "tiny"
    assert [block.stage for block in net.blocks] == [0, 1, 1]


def test_a_plugin_finds_blocks_in_another_way():
    class Blind:
        @rpp.hookimpl
        def resnet_paths_detect_blocks(self, model, graph):
            return []

    manager = rpp.create_plugin_manager(entry_points=False)
    manager.register(Blind())
    assert rpp.unravel(PreActivation(), torch.ones(2, *IMAGES), plugin_manager=manager).blocks == ()


def test_a_plugin_captures_a_model_that_export_does_not_take():
    class Branching(PreActivation):
        def forward(self, x):
            return super().forward(x) if x.sum() > -1e9 else x

    class Capturer:
        @rpp.hookimpl
        def resnet_paths_capture(self, model, example_inputs):
            assert not model.training
            batch = {0: torch.export.Dim.AUTO}
            direct = copy.copy(model)
            direct.__class__ = PreActivation
            return torch.export.export(direct, example_inputs, dynamic_shapes=((batch,)), strict=False)

    manager = rpp.create_plugin_manager(entry_points=False)
    manager.register(Capturer())
    model, x = randomised(Branching()), torch.randn(3, *IMAGES)
    net = rpp.unravel(model, x, plugin_manager=manager)
    assert model.training
    assert len(net.blocks) == 3
    assert torch.equal(net(x), model.eval()(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"branch": "nowhere"}, "names values that the graph does not have"),
        ({"branch": "x"}, "is no term of the sum"),
    ],
)
def test_a_block_that_the_graph_does_not_hold_is_the_plugins_error(change, message):
    class Wrong:
        @rpp.hookimpl
        def resnet_paths_review_blocks(self, model, blocks):
            return [dataclasses.replace(block, **change) for block in blocks]

    manager = rpp.create_plugin_manager(entry_points=False)
    manager.register(Wrong())
    with pytest.raises(PluginError, match=message):
        rpp.unravel(Vectors(Residual(mlp())), torch.ones(2, 7), plugin_manager=manager)
