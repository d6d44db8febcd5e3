"""Measures of the user's own see copies, and may run studies; built-in ones are what they are without any."""

import signal
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import CheckpointError, InputError

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
TARGET = torch.tensor([0, 1, 2, 3, 0, 1])
PATIENCE_S = 120


class Net(nn.Module):
    """Its output is a part of the value that all blocks work on."""

    def __init__(self):
        super().__init__()
        self.f = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))

    def forward(self, x):
        for f in self.f:
            x = x + torch.tanh(f(x))
        return x[:, :4]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return rpp.unravel(Net(), X)


def spoil(outputs, target):
    outputs.fill_(7.0)
    target.zero_()
    return outputs[:, 0]


def margin(outputs, target):
    return outputs.gather(1, target[:, None])[:, 0] - outputs.mean(1)


@pytest.mark.parametrize("names", [("spoil", "margin"), ("margin", "spoil")])
def test_a_measure_that_writes_to_what_it_sees_changes_nothing_else(net, names):
    own = {"spoil": spoil, "margin": margin}
    target = TARGET.clone()
    plain = rpp.BlockLesion(net).attribute(X, target, n_deleted=[1, 2], draws=3)
    alone = rpp.BlockLesion(net).attribute(X, target, n_deleted=[1, 2], draws=3, measures={"margin": margin})
    found = rpp.BlockLesion(net).attribute(
        X, target, n_deleted=[1, 2], draws=3, measures={name: own[name] for name in names}
    )
    assert torch.equal(target, TARGET)
    for name in plain.data_vars:
        np.testing.assert_array_equal(found[name], plain[name], err_msg=name)
    np.testing.assert_array_equal(found.margin, alone.margin)
    np.testing.assert_array_equal(found.intact_margin, alone.intact_margin)
    assert (found.spoil == 7).all()


def test_targets_in_lists_dicts_and_arrays_are_copies_too(net):
    things = [{"box": torch.ones(2) * at, "array": np.ones(2)} for at in range(6)]

    def spoil_all(outputs, target):
        found = torch.tensor([float(one["box"].sum() + one["array"].sum()) for one in target])
        for one in target:
            one["box"].zero_()
            one["array"][:] = 0
            one["more"] = 1
        return found

    found = rpp.BlockLesion(net).attribute(X, things, measures={"seen": spoil_all})
    np.testing.assert_array_equal(found.seen, np.broadcast_to(2.0 * np.arange(6) + 2, found.seen.shape))
    assert all(set(one) == {"box", "array"} and one["array"].all() for one in things)


def test_a_measure_may_return_the_same_tensor_each_time(net):
    kept = torch.zeros(6)

    def reusing(outputs, _):
        return kept.copy_(outputs[:, 0])

    found = rpp.BlockLesion(net).attribute(X, TARGET, measures={"reusing": reusing, "first": lambda y, _: y[:, 0]})
    np.testing.assert_array_equal(found.reusing, found["first"])


def test_an_objective_that_writes_to_the_target_changes_nothing_else(net):
    target = TARGET.clone()

    def objective(outputs, given):
        chosen = outputs.gather(1, given[:, None].clone())[:, 0]
        given.zero_()
        return chosen

    found = rpp.PathLengthGradient(net).attribute(X, target, objective=objective)
    plain = rpp.PathLengthGradient(net).attribute(X, target)
    assert torch.equal(target, TARGET)
    np.testing.assert_array_equal(found.gradient_norm, plain.gradient_norm)
    assert float(found.completeness_error.max()) < 1e-5


@pytest.fixture
def in_time():
    """A deadlock is an error after a while."""

    def too_late(*_):
        pytest.fail("a deadlock")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(PATIENCE_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


needs_alarm = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")


def inner(net, run=None):
    return rpp.BlockLesion(net).attribute(X[:2], TARGET[:2], run=run).target_score.values.sum()


def nested(net, run=None):
    def measure(outputs, _):
        return torch.full((len(outputs),), float(inner(net, run)), dtype=torch.float64)

    return {"inner": measure}


@needs_alarm
@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_study_inside_a_measure_is_that_outside(net, threads):
    expected = inner(net)
    pool = ThreadPoolExecutor(threads) if threads else None
    found = rpp.BlockLesion(net).attribute(X, TARGET, measures=nested(net), run=rpp.RunOptions(executor=pool))
    assert (found.inner == expected).all()
    plain = rpp.BlockLesion(net).attribute(X, TARGET)
    np.testing.assert_array_equal(found.target_score, plain.target_score)


@needs_alarm
@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("threads", [0, 1])
def test_a_study_inside_a_measure_captures_its_own_model(threads):
    torch.manual_seed(0)
    model = Net()
    expected = inner(model)
    pool = ThreadPoolExecutor(threads) if threads else None
    found = rpp.BlockLesion(model).attribute(X, TARGET, measures=nested(model), run=rpp.RunOptions(executor=pool))
    assert (found.inner == expected).all()


@needs_alarm
@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("outer", [True, False])
def test_a_study_inside_a_measure_with_an_executor_is_refused(net, outer):
    with ThreadPoolExecutor(1) as pool:
        run = rpp.RunOptions(executor=pool)
        with pytest.raises(InputError, match="cannot have an executor"):
            rpp.BlockLesion(net).attribute(X, TARGET, measures=nested(net, run), run=run if outer else None)
    assert threading.active_count() < 50


@needs_alarm
@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("executor", [True, False])
def test_a_study_inside_an_objective_works_or_is_refused(net, executor):
    with ThreadPoolExecutor(1) as pool:
        run = rpp.RunOptions(executor=pool if executor else None)

        def objective(outputs, target):
            with torch.no_grad():
                inner(net, run)
            return outputs[:, 0]

        if executor:
            with pytest.raises(InputError, match="cannot have an executor"):
                rpp.PathLengthGradient(net).attribute(X, TARGET, objective=objective)
        else:
            found = rpp.PathLengthGradient(net).attribute(X, TARGET, objective=objective)
            plain = rpp.PathLengthGradient(net).attribute(X, 0)
            np.testing.assert_array_equal(found.gradient_norm, plain.gradient_norm)


@needs_alarm
@pytest.mark.usefixtures("in_time")
def test_a_study_inside_a_measure_with_the_same_checkpoint_is_refused(net, tmp_path):
    run = rpp.RunOptions(checkpoint=tmp_path / "run.nc")
    reach = weakref.ref(net)  # a network itself has no fingerprint

    def measure(outputs, _):
        rpp.BlockLesion(reach()).attribute(X, TARGET, run=run)
        return outputs[:, 0]

    with pytest.raises(CheckpointError):
        rpp.BlockLesion(net).attribute(X, TARGET, measures={"inner": measure}, run=run)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
@pytest.mark.parametrize("threads", [0, 1])
def test_what_a_measure_raises_arrives(net, error, threads):
    def measure(outputs, target):
        raise error

    pool = ThreadPoolExecutor(threads) if threads else None
    with pytest.raises(type(error)):
        rpp.BlockLesion(net).attribute(X, TARGET, measures={"m": measure}, run=rpp.RunOptions(executor=pool))
