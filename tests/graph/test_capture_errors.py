"""A model that cannot be captured is told with operation, place and way out, and is left as it was.

Each model here fails in one known way; the place of the fault is where a comment in this file marks it.
"""

import inspect
import random

import numpy as np
import pytest
import torch
from networks import assert_same_state, state_of
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import CaptureError, InputError

IMAGES = (3, 3, 8, 8)


class Block(nn.Module):
    """A residual block; subclasses put a fault into it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + torch.relu(self.conv(x))


class Network(nn.Module):
    """A trunk of two good blocks, then the block with the fault."""

    def __init__(self, block):
        super().__init__()
        self.trunk = nn.Sequential(Block(), Block())
        self.stages = nn.ModuleList([nn.Sequential(nn.Identity(), block)])

    def forward(self, x):
        return self.stages[0](self.trunk(x))


class TruthOfATensor(Block):
    def forward(self, x):
        if x.sum() > 0:  # the fault
            return super().forward(x)
        return x


class WhileLoop(Block):
    def forward(self, x):
        while x.norm() > 1:  # the fault
            x = x / 2
        return super().forward(x)


class NumberOfATensor(Block):
    def forward(self, x):
        count = x.abs().sum().item()
        if count > 3:  # the fault
            x = x * 2
        return super().forward(x)


class IntOfATensor(Block):
    def forward(self, x):
        return super().forward(x) * range(int(x.abs().max()) + 1)[-1]  # the fault


class ToList(Block):
    def forward(self, x):
        return super().forward(x) * max(x.sum((0, 2, 3)).tolist())  # the fault


class NumberOfHits(Block):
    def forward(self, x):
        hits = (x > 0).nonzero()
        if len(hits) > 2:  # the fault
            x = x * 2
        return super().forward(x)


class ToNumpy(Block):
    def forward(self, x):
        return super().forward(x) + torch.from_numpy(np.tanh(x.detach().numpy()))  # the fault


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x / (2 if x.sum() > 0 else 3)  # the fault

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2


class OwnGradient(Block):
    def forward(self, x):
        return super().forward(Halved.apply(x))


def largest(x):
    return x * 2 if x.max() > 1 else x  # the fault


class InAFunction(Block):
    def forward(self, x):
        return super().forward(largest(x))


FOLLOWED_BY_NO_EXPORT = {
    TruthOfATensor: ("operation: torch.Tensor.__bool__, the truth of a tensor's value", "torch.where"),
    WhileLoop: ("operation: torch.Tensor.__bool__", "torch.where"),
    NumberOfATensor: ("operation: a decision of Python", "torch.where"),
    IntOfATensor: ("operation: torch.Tensor.__int__, int() of a tensor's value", "torch.where"),
    ToList: ("depends on the values of a tensor", "torch.where"),
    NumberOfHits: ("operation: a decision of Python", "torch.where"),
    ToNumpy: ("operation: torch.Tensor.numpy", "compute this with torch"),
    OwnGradient: ("operation: custom autograd function Halved: torch.Tensor.__bool__", "the forward of the function"),
    InAFunction: ("operation: torch.Tensor.__bool__", "torch.where"),
}
HOLDS_THE_FAULT = {OwnGradient: Halved, InAFunction: largest}


def line_of_the_fault(held):
    lines, first = inspect.getsourcelines(held)
    (line,) = [first + at for at, text in enumerate(lines) if text.rstrip().endswith("# the fault")]
    return line


def refusal(model, inputs):
    with pytest.raises(CaptureError) as caught:
        rpp.unravel(model, inputs)
    assert caught.value.__cause__ is not None
    return str(caught.value)


@pytest.mark.parametrize("block", FOLLOWED_BY_NO_EXPORT, ids=lambda block: block.__name__)
def test_what_export_does_not_follow_is_told_with_operation_module_line_and_advice(block, capfd, caplog):
    operation, advice = FOLLOWED_BY_NO_EXPORT[block]
    told = refusal(Network(block()), torch.rand(IMAGES) + 1)
    line = line_of_the_fault(HOLDS_THE_FAULT.get(block, block))
    assert told.startswith("torch.export cannot capture Network: ")
    assert operation in told
    assert f"where: stages.0.1 ({block.__name__}), {__file__}:{line} in " in told
    assert advice in told
    assert "'resnet_paths_capture' hook" in told
    # The trunk holds 2 of 3 equal blocks.
    assert "'trunk' (Sequential, 67% of the parameters) can be captured" in told
    assert len(told.splitlines()) <= 6
    assert max(map(len, told.splitlines())) < 240
    assert "".join(capfd.readouterr()) == ""  # torch would print the graph so far
    assert not [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]


def test_the_part_that_is_named_can_be_unraveled():
    model = Network(TruthOfATensor())
    assert "model.get_submodule('trunk')" in refusal(model, torch.rand(IMAGES))
    assert len(rpp.unravel(model.get_submodule("trunk"), torch.rand(IMAGES)).blocks) == 2


def test_a_part_that_fails_as_well_is_not_named():
    model = Network(TruthOfATensor())
    model.trunk = nn.Sequential(Block(), WhileLoop())
    told = refusal(model, torch.rand(IMAGES))
    assert "trunk.1 (WhileLoop)" in told
    assert "'trunk'" not in told
    assert "'trunk.0' (Block, 33% of the parameters) can be captured" in told


class Raising(Block):
    def forward(self, x):
        if x.shape[-1] != 6:
            raise ValueError("only images of 6 pixels")  # the fault
        return super().forward(x)


def test_a_forward_that_raises_is_told_apart_from_what_export_does_not_follow():
    told = refusal(Network(Raising()), torch.rand(IMAGES))
    assert told.startswith("Network cannot be captured, as its own forward fails on the example inputs\n")
    assert "error: ValueError: only images of 6 pixels" in told
    assert f"where: stages.0.1 (Raising), {__file__}:{line_of_the_fault(Raising)} in forward: raise" in told
    assert "inputs: (3, 3, 8, 8) float32 on cpu" in told
    assert "pass example_inputs on which the model runs" in told
    assert "hook" not in told


def test_a_wrong_number_of_channels_is_told_with_the_layer_that_minds():
    told = refusal(Network(Block()), torch.rand(3, 5, 8, 8))
    assert (
        "expected input[3, 5, 8, 8] to have 3 channels, but got 5 channels" in told
    )  # torch's own words, run as usual
    assert "where: trunk.0.conv (Conv2d), " in told
    assert "inputs: (3, 5, 8, 8) float32 on cpu" in told


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.rand(IMAGES).double(), "inputs: (3, 3, 8, 8) float64 on cpu"),
        (
            ([torch.rand(3, 8, 8), torch.rand(3, 9, 9)],),
            "inputs: list of 2: (3, 8, 8) float32 on cpu; (3, 9, 9) float32",
        ),
    ],
    ids=["dtype", "list of images"],
)
def test_inputs_of_another_kind_are_described(inputs, message):
    assert message in refusal(Network(Block()), inputs)


def test_a_missing_argument_is_named():
    class Pair(nn.Module):
        def forward(self, first, second, scale=1.0):
            return first + scale * second

    told = refusal(Pair(), torch.rand(IMAGES))
    assert "error: missing a required argument: 'second'" in told
    assert "forward: Pair.forward(first, second, scale=1.0)" in told
    assert "pass example_inputs=(first, second), in this order" in told


def test_of_a_model_that_takes_keywords_only_their_names_are_told():
    class Keywords(nn.Module):
        def forward(self, x, *, mask):
            return x * mask

    told = refusal(Keywords(), (torch.rand(IMAGES), torch.rand(IMAGES)))
    assert "pass example_inputs as a dict of arguments by name: 'x', 'mask'" in told


def test_an_output_that_is_no_structure_of_tensors_is_told():
    class Answer:
        def __init__(self, scores):
            self.scores = scores

    class Answering(Block):
        def forward(self, x):
            return Answer(super().forward(x))

    told = refusal(Network(Answering()), torch.rand(IMAGES))
    assert "it returns something else than tensors" in told
    assert "wrap the model in a module that returns the tensors" in told


class Drawing(Block):
    """Draws, counts and stores, then fails: what a failing model could leave behind."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def forward(self, x):
        self.last = x + torch.rand(1) + np.random.random() + random.random()  # noqa: NPY002, S311 - a model may
        x = super().forward(x)
        x += 1
        return self.fault(x)


def raising(x):
    raise RuntimeError("no")


@pytest.mark.parametrize("fault", [raising, largest, lambda x: x.numpy()], ids=["raises", "decides", "numpy"])
def test_model_inputs_and_generators_are_as_before_after_a_failure(fault):
    model, x = Network(Drawing(fault)).train(), torch.rand(IMAGES)
    before, kept, python = state_of(model), x.clone(), random.getstate()
    refusal(model, x)
    assert_same_state(before, state_of(model))
    assert torch.equal(x, kept)
    assert random.getstate() == python
    model(x.clone()) if fault is largest else None  # and it still runs


def test_what_the_model_itself_prints_is_not_kept_back(capsys):
    class Talking(Block):
        def forward(self, x):
            import sys

            sys.stderr.write("hello\n")
            return super().forward(x)

    rpp.unravel(Talking(), torch.rand(IMAGES))
    assert capsys.readouterr().err == "hello\n"


# --- models that are captured, and hold for some batch sizes only


class OneBatch(Block):
    def forward(self, x):
        return super().forward(x).view(3, -1)  # the fault


class OneBatchByChoice(Block):
    def forward(self, x):
        if x.shape[0] == 3:  # the fault
            return super().forward(x) * 2
        return super().forward(x)


class LargeBatches(Block):
    def forward(self, x):
        if x.shape[0] > 2:  # the fault
            return super().forward(x) * 2
        return super().forward(x)


@pytest.mark.parametrize(
    ("block", "sizes", "other"),
    [(OneBatch, "3 only", 6), (OneBatchByChoice, "3 only", 2), (LargeBatches, "3 or more only", 2)],
)
def test_a_batch_for_which_the_model_does_something_else_is_refused_with_the_line(block, sizes, other):
    model, x = Network(block()), torch.rand(IMAGES)
    net = rpp.unravel(model, x)
    assert torch.equal(net(x), model(x))
    with pytest.raises(InputError) as caught:
        net(torch.rand(other, *IMAGES[1:]))
    told = str(caught.value)
    assert f"input 0 has {other} samples, and what was captured holds for {sizes}" in told
    assert f"(stages.0.1 ({block.__name__}), {__file__}:{line_of_the_fault(block)} in forward: " in told


def test_a_study_of_such_a_model_runs_in_batches_that_fit():
    model, x = Network(OneBatchByChoice()), torch.rand(6, *IMAGES[1:])
    net = rpp.unravel(model, x[:3])
    measures = {"total": lambda outputs, _: outputs.flatten(1).sum(1)}
    found = rpp.BlockLesion(net).attribute(x, measures=measures, internal_batch_size=3)
    expected = torch.cat([model(x[:3]), model(x[3:])]).flatten(1).sum(1)
    np.testing.assert_allclose(found.intact_total, expected.detach(), rtol=1e-5)
    np.testing.assert_array_equal(rpp.BlockLesion(net).attribute(x, measures=measures).intact_total, found.intact_total)
    with pytest.raises(InputError, match="holds for 3 only"):
        rpp.BlockLesion(net).attribute(x[:5], measures=measures)


def test_lesions_side_by_side_do_not_make_a_batch_of_another_size():
    class UpToThree(Block):
        def forward(self, x):
            return super().forward(x) * (2 if x.shape[0] < 4 else torch.linspace(0, 1, x.shape[0])[:, None, None, None])

    x = torch.rand(IMAGES)
    net = rpp.unravel(Network(UpToThree()), x)
    options = {"measures": {"total": lambda outputs, _: outputs.flatten(1).sum(1)}}
    alone = rpp.BlockLesion(net).attribute(x, **options)
    together = rpp.BlockLesion(net).attribute(x, perturbations_per_eval=3, **options)
    np.testing.assert_allclose(together.total, alone.total, rtol=1e-6)


def test_data_that_decide_are_told_on_the_meta_device_too():
    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            y = self.layer(x)
            return y if y.sum() > 0 else -y

    with torch.device("meta"):
        model, x = Decides(), torch.empty(3, 4)
    with pytest.raises(CaptureError) as told:
        rpp.unravel(model, x)
    assert "its own forward fails" not in str(told.value)
    assert "y.sum() > 0" in str(told.value)


def test_a_model_with_lazy_parameters_gets_an_explanation():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.LazyLinear(4))

        def forward(self, x):
            return self.inner(x) if x.sum().item() > 0 else x

    with pytest.raises(CaptureError, match="Lazy"):
        rpp.unravel(Lazy(), torch.randn(3, 4))
