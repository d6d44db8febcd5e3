"""Training on chosen paths: what each batch runs, computes and moves.

The oracles are networks that leave blocks out by hand.
"""

import copy
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch
from dropping_networks import assert_same_tensors, dropping, generator, gradients, images, loss_of, names
from known_networks import CASES
from matplotlib.image import imread
from networks import Highway, Vectors, assert_same_state, randomised, state_of
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import UnsupportedMethodError

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
BY_HAND = [name for name, case in CASES.items() if case.blocks and name not in {"dual path", "repeated", "highway"}]
"""Networks whose branches are what one submodule returns each, so that a wrapper can leave them out."""


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


def left_out(sampler):
    return set(names(sampler.sampled)) - set(names(sampler.active))


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
