"""Arguments of other kinds than expected: an error that says what to do, and never one of torch or Python."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError, PluginError, ResnetPathsError, ScheduleError, UnknownBlockError

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
HUGE = 2**70


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.h = nn.Linear(5, 4)

    def forward(self, x):
        for f in self.f:
            x = x + torch.tanh(f(x))
        return self.h(x)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return rpp.unravel(Net(), X)


ANALYZERS = [rpp.BlockLesion, rpp.BlockReordering, rpp.BlockInfluence, rpp.PathLengthGradient]


def nested(layout):
    return torch.nested.nested_tensor([torch.randn(2, 5), torch.randn(3, 5)], layout=layout)


@pytest.mark.parametrize("target", [HUGE, -HUGE, (HUGE,), [(HUGE,)] * 4, [HUGE] * 4])
@pytest.mark.parametrize("analyzer", ANALYZERS)
def test_a_huge_target_is_out_of_range(net, analyzer, target):
    with pytest.raises(InputError, match=r"out of range|target must be"):
        analyzer(net).attribute(X, target)


ODD_INPUTS = {
    "sparse": (X.to_sparse, r"layout sparse_coo.*to_dense\(\)"),
    "csr": (lambda: X.relu().to_sparse_csr(), r"layout sparse_csr.*to_dense\(\)"),
    "nested": (lambda: nested(torch.strided), "nested tensor.*to_padded_tensor"),
    "jagged": (lambda: nested(torch.jagged), "nested tensor.*to_padded_tensor"),
    "meta": (lambda: X.to("meta"), "meta"),
}
IGNORED = pytest.mark.filterwarnings("ignore:.*([Ss]parse|nested):UserWarning")


@IGNORED
@pytest.mark.parametrize("kind", ODD_INPUTS)
@pytest.mark.parametrize("analyzer", ANALYZERS)
def test_inputs_of_other_layouts_are_refused_by_studies(net, analyzer, kind):
    made, told = ODD_INPUTS[kind]
    with pytest.raises(InputError, match=told):
        analyzer(net).attribute(made(), 0)


@IGNORED
@pytest.mark.parametrize("kind", ODD_INPUTS)
def test_inputs_of_other_layouts_are_refused_by_views(net, kind):
    made, told = ODD_INPUTS[kind]
    for view in (net, net.lesioned([0]), net.restricted([1])):
        with pytest.raises(InputError, match=told):
            view(made())


@IGNORED
@pytest.mark.parametrize("kind", ["sparse", "csr", "nested", "jagged"])
def test_inputs_of_other_layouts_are_refused_by_a_capture(kind):
    made, told = ODD_INPUTS[kind]
    with pytest.raises(InputError, match=told):
        rpp.unravel(Net(), made())


@pytest.mark.parametrize("analyzer", ANALYZERS)
@pytest.mark.parametrize("captured", [True, False])
def test_a_model_on_the_meta_device_is_refused_by_studies(analyzer, captured):
    model = Net().to("meta")
    subject = rpp.unravel(model, X.to("meta")) if captured else model
    for inputs in (X, X.to("meta")):
        with pytest.raises(InputError, match="on the meta device"):
            analyzer(subject).attribute(inputs, 0)
    if captured:
        assert subject.lesioned([0])(X.to("meta")).shape == (4, 4)


def test_targets_of_other_layouts_are_refused(net):
    for target in (torch.tensor([0, 1, 0, 1]).to_sparse(), torch.zeros(4, dtype=torch.int64, device="meta")):
        with pytest.raises(InputError, match="target"):
            rpp.BlockLesion(net).attribute(X, target)


@pytest.mark.parametrize("lesions", [[None], [[None]], [float("nan")], [HUGE], [object()], {"a": 1}])
def test_lesions_that_are_no_blocks_are_named(net, lesions):
    with pytest.raises(UnknownBlockError):
        rpp.BlockLesion(net).attribute(X, 0, lesions=lesions)


@pytest.mark.parametrize("made", [None, 3, ["a"], [], [("a", 1, 2)], "text"])
def test_a_family_that_returns_no_mapping_is_named(net, made):
    def my_family(_):
        return made

    with pytest.raises(InputError, match=f"my_family returns {type(made).__name__}.*mapping from names to schedules"):
        rpp.BlockSchedules(net).attribute(X, 0, schedules=[my_family])


@pytest.mark.parametrize("made", [{"a": "b"}, {"a": None}, {}])
def test_a_family_of_other_things_is_named(net, made):
    with pytest.raises(InputError, match="schedule"):
        rpp.BlockSchedules(net).attribute(X, 0, schedules=[lambda _: made])


def test_a_class_name_of_400_letters_is_no_trouble(tmp_path):
    model = type("N" * 400, (Net,), {})()
    found = rpp.BlockLesion(model).attribute(X, 0)
    assert rpp.load(rpp.save(found, tmp_path / "long.nc")).identical(found)
    with pytest.raises(UnknownBlockError):
        rpp.unravel(model, X).block("x")


@pytest.mark.parametrize(
    "returned", [lambda y: y[:, 0].to_sparse(), lambda y: y[:, 0].to("meta"), lambda y: None, lambda y: y[:, 0].numpy()]
)
def test_a_measure_that_returns_something_else_is_named(net, returned):
    with pytest.raises(InputError, match="'mine'"):
        rpp.BlockLesion(net).attribute(X, 0, measures={"mine": lambda y, _: returned(y)})


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (lambda net: net.lesioned(None), UnknownBlockError),
        (lambda net: net.scheduled(None), InputError),
        (lambda net: rpp.unravel(Net(), X, optimize=None), InputError),
        (lambda net: rpp.unravel(Net(), X, optimize=[3, "a"]), InputError),
        (lambda net: rpp.unravel(Net(), X, plugin_manager=3), PluginError),
        (lambda net: rpp.BlockLesion(None).attribute(X, 0), InputError),
        (lambda net: rpp.BlockLesion(Net).attribute(X, 0), InputError),
        (lambda net: rpp.RunOptions(wait_for_workers=1), InputError),
    ],
)
def test_other_arguments_are_refused_in_words(net, wrong, kind):
    assert issubclass(kind, ResnetPathsError)
    with pytest.raises(kind):
        wrong(net)


BEYOND_FLOATS = 2**2000


def rewired(family, **options):
    return lambda net: rpp.BlockSchedules(net).attribute(X, 0, schedules=[partial(family, **options)])


def studied(analyzer, **options):
    return lambda net: analyzer(net).attribute(X, 0, **options)


LESION, REORDERING, PATHS, INFLUENCE = rpp.BlockLesion, rpp.BlockReordering, rpp.PathLengthGradient, rpp.BlockInfluence
HUGE_NUMBERS = {
    "draws of lesions": studied(LESION, n_deleted=1, draws=HUGE),
    "draws of many sizes": studied(LESION, n_deleted=[1, 2, 3], draws=400_000),
    "n_deleted": studied(LESION, n_deleted=HUGE),
    "range of n_deleted": studied(LESION, n_deleted=range(HUGE)),
    "range of lesions": studied(LESION, lesions=range(HUGE)),
    "range of blocks": studied(LESION, lesions=[range(HUGE)]),
    "draws of orders": studied(REORDERING, n_swaps=1, draws=HUGE),
    "n_swaps": studied(REORDERING, n_swaps=HUGE),
    "range of n_swaps": studied(REORDERING, n_swaps=range(HUGE), draws=1),
    "order": studied(REORDERING, orders=[range(HUGE)]),
    "draws of paths": studied(PATHS, estimator="sampled", draws=HUGE),
    "draws of signs": studied(PATHS, estimator="signs", draws=HUGE),
    "grade": studied(PATHS, grade=lambda _: HUGE),
    "grades": studied(PATHS, grade=lambda _: {"left": 2_000, "right": 2_000}),
    "vector_dim": studied(INFLUENCE, vector_dim=HUGE),
    "lengths": rewired(rpp.schedules.reversed_ranges, lengths=HUGE),
    "range of lengths": rewired(rpp.schedules.reversed_ranges, lengths=range(1, HUGE)),
    "factor": rewired(rpp.schedules.scaled_branches, factors=BEYOND_FLOATS),
    "restricted": lambda net: net.restricted(HUGE),
    "restricted to a range": lambda net: net.restricted(range(HUGE)),
    "lesioned": lambda net: net.lesioned(range(HUGE)),
    "n_active": lambda net: net.sampling(n_active=HUGE),
    "survival": lambda net: net.sampling(survival=BEYOND_FLOATS),
    "device": lambda _: rpp.RunOptions(device=HUGE),
    "blocks of a chain": lambda _: rpp.paths.counts(HUGE),
    "length in a mapping": lambda _: rpp.paths.distribution({HUGE: 1}),
    "blocks that survive": lambda _: rpp.paths.survival(HUGE, 1),
    "mean norm": lambda _: rpp.paths.log10_totals({0: 1}, [BEYOND_FLOATS]),
    "blocks to sample from": lambda _: rpp.paths.sample_path(HUGE, 3, np.random.default_rng(1)),
}


@pytest.mark.parametrize("asked", HUGE_NUMBERS)
def test_a_huge_number_is_refused_at_once_and_in_words(net, asked):
    with pytest.raises(ResnetPathsError) as caught:
        HUGE_NUMBERS[asked](net)
    assert isinstance(caught.value, InputError | UnknownBlockError | ScheduleError)
    assert not isinstance(caught.value.__cause__, MemoryError)


@pytest.mark.parametrize(
    ("analyzer", "options"),
    [
        *((analyzer, {"internal_batch_size": HUGE}) for analyzer in ANALYZERS),
        (LESION, {"perturbations_per_eval": HUGE}),
        (LESION, {"n_deleted": 1, "draws": 2, "seed": HUGE}),
        (REORDERING, {"n_swaps": 1, "draws": 2, "seed": HUGE}),
        (PATHS, {"estimator": "sampled", "draws": 2, "seed": HUGE}),
        (PATHS, {"max_length": HUGE}),
    ],
)
def test_a_huge_number_that_means_all_or_is_a_seed_is_taken(net, analyzer, options, tmp_path):
    found = analyzer(net).attribute(X, 0, **options)
    assert rpp.load(rpp.save(found, tmp_path / "x.nc")).identical(found)


def test_decades_beyond_floats_count_as_nothing():
    assert rpp.paths.effective_range([-BEYOND_FLOATS, 0, -BEYOND_FLOATS], log10=True) == (1, 1)


def generated(values):
    """Return values as a generator, sets of blocks among them likewise."""
    return (generated(one) if isinstance(one, list) else one for one in values)


@pytest.mark.parametrize(
    ("analyzer", "argument", "values"),
    [
        (rpp.BlockLesion, "lesions", [["f.0"], ["f.1", "f.2"]]),
        (rpp.BlockLesion, "n_deleted", [1, 2]),
        (rpp.BlockReordering, "orders", [["f.1", "f.0", "f.2"]]),
        (rpp.BlockReordering, "n_swaps", [1, 2]),
        (rpp.BlockSchedules, "schedules", [rpp.schedules.adjacent_swaps, rpp.schedules.skipped_ranges]),
    ],
)
def test_generators_are_read_once_where_the_model_is_captured_again(analyzer, argument, values):
    torch.manual_seed(0)
    model = Net()
    study = analyzer(model)
    study.attribute(X, 0, **{argument: values})
    with torch.no_grad():
        model.h.weight.zero_()
        model.h = nn.Linear(5, 3)  # what was captured is no longer the model
    found = study.attribute(X, 0, **{argument: generated(values)})
    listed = analyzer(model).attribute(X, 0, **{argument: values})
    for name, variable in listed.data_vars.items():
        np.testing.assert_array_equal(found[name], variable)
    assert found.attrs[f"argument_{argument}"] == listed.attrs[f"argument_{argument}"]


def test_a_generator_without_an_end_is_refused(net):
    with pytest.raises(InputError, match="n_deleted holds more than 1,000,000 values"):
        rpp.BlockLesion(net).attribute(X, 0, n_deleted=itertools.repeat(1))
