"""Studies written outside this package: what they get wrong is refused in words, whatever the result is kept in."""

import inspect
import itertools
import typing

import numpy as np
import pytest
import torch
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin import analyzers
from resnet_paths_plugin.analyzers import FunctionWork

N_SAMPLES = 10
PER_TASK = 3


class Block(nn.Linear):
    def forward(self, x):
        return x + super().forward(x).tanh()


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return rpp.unravel(nn.Sequential(Block(4, 4), Block(4, 4)), torch.randn(3, 4))


def first_input(network, batch):
    return {"first_input": batch.args[0][:, 0].numpy()}


def result(values, **others):
    described = {"long_name": "first input", "units": "1"}
    return rpp.StudyResult({"first_input": ("sample", values, described), **others})


class Inputs(rpp.Study):
    """The first input of each sample, which `yielded` may hand over in a wrong way."""

    def __init__(self, network, yielded, name="inputs"):
        super().__init__(network, title="Inputs", summary="The first input of each sample.")
        self.name, self._yielded = name, yielded

    def work(self, run):
        return FunctionWork(first_input)

    def results(self, chunks):
        return self._yielded(found["first_input"] for _, (found,) in chunks)


class InputAnalyzer(rpp.Analyzer):
    def attribute(self, inputs, yielded, *, name="inputs", internal_batch_size=PER_TASK, run=None):
        return self.run_study(lambda network, _: Inputs(network, yielded, name), dict(locals()) | {"yielded": "given"})


@pytest.fixture(params=["memory", "checkpoint"])
def run(request, tmp_path):
    return rpp.RunOptions(checkpoint=tmp_path / "inputs.nc") if request.param == "checkpoint" else None


def every(found):
    yield from map(result, found)


def pairs_together(found):
    while pair := list(itertools.islice(found, 2)):
        yield result(np.concatenate(pair))


def all_at_the_end(found):
    yield result(np.concatenate(list(found)))


def first_missing(found):
    next(found)
    yield from map(result, found)


def first_sample_twice(found):
    for values in found:
        yield result(np.append(values[:1], values))


def one_fewer_at_the_end(found):
    yield result(np.concatenate(list(found))[:-1])


def first_two(found):
    yield from map(result, itertools.islice(found, 2))


def nothing(found):
    list(found)
    yield from ()


def lengths_differ(found):
    for values in found:
        yield result(values, twice=("sample", np.append(values, 0.0)))


def one_dim_too_few(found):
    for values in found:
        yield result(values[:, None])


@pytest.mark.parametrize("yielded", [every, pairs_together, all_at_the_end])
def test_results_may_be_yielded_for_any_number_of_chunks(net, run, yielded):
    inputs = torch.randn(N_SAMPLES, 4)
    found = InputAnalyzer(net).attribute(inputs, yielded, run=run)
    np.testing.assert_array_equal(found["first_input"], inputs[:, 0])


@pytest.mark.parametrize(
    ("yielded", "told"),
    [
        (first_missing, "Inputs.results yields 7 samples for the 10 that it was given"),
        (first_sample_twice, "Inputs.results yields 4 samples for the 3 that it was given"),
        (one_fewer_at_the_end, "Inputs.results yields 9 samples for the 10 that it was given"),
        (first_two, "Inputs.results ends after 6 samples, and there are more"),
        (nothing, "Inputs.results yields no StudyResult"),
        (lengths_differ, "'first_input' has 3 values along dim 'sample', and 'twice' has 4"),
        (one_dim_too_few, r"variable 'first_input' has shape \(3, 1\) and dims 'sample'"),
    ],
)
def test_results_that_do_not_hold_each_sample_once_are_refused(net, run, yielded, told):
    with pytest.raises(rpp.errors.InputError, match=told):
        InputAnalyzer(net).attribute(torch.randn(N_SAMPLES, 4), yielded, run=run)


def test_a_study_need_not_yield_samples(net, run):
    def total(found):
        for values in found:
            yield rpp.StudyResult({"total": ((), values.sum())})
            return

    assert dict(InputAnalyzer(net).attribute(torch.randn(N_SAMPLES, 4), total, run=run).sizes) == {"block": 2}


@pytest.mark.parametrize("name", ["../out", "a/b", "", "-x", " ", "a\n", "x" * 101, None, 3])
def test_a_studys_name_that_cannot_begin_a_files_name_is_refused(net, run, tmp_path, name):
    with pytest.raises(rpp.errors.InputError, match="cannot name a study"):
        InputAnalyzer(net).attribute(torch.randn(N_SAMPLES, 4), every, name=name, run=run)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".task", ".nc"))]


def test_a_studys_name_may_have_spaces_and_letters_of_any_script(net, run):
    found = InputAnalyzer(net).attribute(torch.randn(N_SAMPLES, 4), every, name="größte Eingabe-1", run=run)
    assert found.sizes["sample"] == N_SAMPLES


class MeanLesions(analyzers.ScheduleStudy):
    """Lesions under a name that the pass before them has."""

    def __init__(self, network, batches, name):
        lesions = [rpp.Schedule.lesion(network, [block]) for block in network.blocks]
        named = analyzers.NamedSchedules(name, [block.name for block in network.blocks], lesions)
        conditions = analyzers.Conditions(network, batches, ablation="mean")
        super().__init__(network, batches, named, title="Lesions", summary="Means.", conditions=conditions)


class LesionAnalyzer(rpp.Analyzer):
    def attribute(self, inputs, name, *, run=None):
        return self.run_study(lambda network, batches: MeanLesions(network, batches, name), dict(locals()))


def test_a_study_named_as_the_pass_before_it_is_refused(net, run):
    inputs = torch.randn(N_SAMPLES, 4)
    with pytest.raises(rpp.errors.InputError, match="'branch_means' names two stages of one study"):
        LesionAnalyzer(net).attribute(inputs, "branch_means", run=run)
    assert LesionAnalyzer(net).attribute(inputs, "own_lesion").sizes["own_lesion"] == 2


class ImageAnalyzer(rpp.Analyzer):
    def attribute(self, images):
        return self.run_study(lambda network, _: Inputs(network, every), dict(locals()))


def test_an_analyzer_without_an_argument_inputs_is_told_so(net):
    with pytest.raises(
        rpp.errors.InputError, match=r"ImageAnalyzer.attribute must have an argument 'inputs', .*'images'"
    ):
        ImageAnalyzer(net).attribute(torch.randn(N_SAMPLES, 4))


def named_classes(hint):
    """Return the classes of this package in a type hint."""
    parts = typing.get_args(hint)
    own = {hint.__name__} if getattr(hint, "__module__", "").startswith("resnet_paths_plugin") else set()
    return own.union(*(named_classes(part) for part in parts if not isinstance(part, list | str)))


@pytest.mark.parametrize(
    "owner",
    [rpp.Study, rpp.Analyzer, analyzers.OwnPass, analyzers.Found, analyzers.Compared, analyzers.Work, analyzers.Stage],
)
def test_every_class_that_a_studys_methods_name_is_public(owner):
    members = [member.fget if isinstance(member, property) else member for member in vars(owner).values()]
    hints = [typing.get_type_hints(member) for member in members if inspect.isfunction(member)]
    named = set().union(
        *(named_classes(hint) for one in [typing.get_type_hints(owner), *hints] for hint in one.values())
    )
    assert named <= {*rpp.__all__, *analyzers.__all__}


class Slopes(Inputs):
    """Has gradients compared with the model's before anything runs."""

    def own_pass(self, chunk):
        return analyzers.ThroughAutograd(self.network.intact, chunk.args, self.network.name)


class SlopeAnalyzer(rpp.Analyzer):
    def attribute(self, inputs):
        return self.run_study(lambda network, _: Slopes(network, every), dict(locals()))


def test_a_study_outside_this_package_has_its_gradients_compared_with_the_models():
    torch.manual_seed(0)
    model = nn.Sequential(Block(4, 4), Block(4, 4))
    found = SlopeAnalyzer(rpp.unravel(model, torch.randn(3, 4))).attribute(torch.randn(N_SAMPLES, 4))
    assert found.attrs["verified"] == "outputs and gradients"
