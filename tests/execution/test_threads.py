"""Captures in several threads, beside inference in another one, and Ctrl-C inside them: all is as with one thread."""

import io
import logging
import os
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import assert_same_state, state_of
from PIL import Image
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin import report
from resnet_paths_plugin.cli.images import ImageFolder
from resnet_paths_plugin.graph import export
from resnet_paths_plugin.graph.bystanders import others_wait
from resnet_paths_plugin.graph.process_state import kept_generators, set_aside
from resnet_paths_plugin.process_lock import ENTERING, alone, is_alone, uninterrupted

pytestmark = pytest.mark.slow

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
N_THREADS = 4
PATIENCE_S = 120


class Net(nn.Module):
    """Residual blocks that share their norm, and a head; the root reads a parameter of its own between two parts."""

    def __init__(self, blocks=3):
        super().__init__()
        self.f = nn.ModuleList(nn.Linear(5, 5) for _ in range(blocks))
        self.norm = nn.BatchNorm1d(5)
        self.again = self.norm
        self.scale = nn.Parameter(torch.rand(5))
        self.h = nn.Linear(5, 4)

    def forward(self, x):
        for f in self.f:
            x = x + torch.tanh(self.again(f(x))) * self.scale
        return self.h(x)


def made(seed, blocks=3):
    torch.manual_seed(seed)
    return Net(blocks).eval()


def process_state():
    """What a capture changes of the process."""
    hooks = nn.modules.module
    return (
        sys.stderr,
        sys.stdout,
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_grad_enabled(),
        nn.Module.__call__,
        nn.Module.__getattr__,
        dict(hooks._global_forward_pre_hooks),
        dict(hooks._global_forward_hooks),
        torch.random.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002 - the one that models draw from
        signal.getsignal(signal.SIGINT),
        len(logging.getLogger("torch.fx.experimental.symbolic_shapes").filters),
    )


@contextmanager
def inference(model, expected):
    """Call a model in a thread of its own all the while; it always gives what it gave before."""
    over, wrong, calls = threading.Event(), [], [0]

    def call():
        while not over.is_set():
            with torch.no_grad():
                found = model(X)
            calls[0] += 1
            if type(found) is not torch.Tensor or not torch.equal(found, expected):
                wrong.append(found)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(PATIENCE_S)
    assert calls[0]
    assert not wrong


@pytest.mark.parametrize("rounds", [2, pytest.param(30, marks=pytest.mark.zoo)])
def test_threads_capture_a_shared_model_and_their_own_beside_inference(rounds):
    for seed in range(rounds):
        shared, other = made(seed), made(seed + 1000, blocks=2)
        own = [made(seed + thread, blocks=thread + 1) for thread in range(N_THREADS)]
        models = [shared, other, *own]
        with torch.no_grad():
            wanted = [model(X) for model in models]
        states, process = [state_of(model) for model in models], process_state()

        def captured(thread, shared=shared, own=own):
            return rpp.unravel(shared, X), rpp.unravel(own[thread], X)

        with (
            inference(shared, wanted[0]),
            inference(other, wanted[1]),
            ThreadPoolExecutor(N_THREADS) as pool,
        ):
            nets = list(pool.map(captured, range(N_THREADS)))
        assert process_state() == process
        for model, state in zip(models, states, strict=True):
            assert_same_state(state, state_of(model))
        for thread, (net, of_own) in enumerate(nets):
            assert len(net.blocks) == 3
            assert net.path_counts() == [1, 3, 3, 1]
            assert len(of_own.blocks) == thread + 1
            with torch.no_grad():
                assert torch.equal(net(X), wanted[0])
                assert torch.equal(of_own(X), wanted[thread + 2])


def test_a_thread_that_waits_for_the_lock_inside_a_model_is_not_waited_for():
    class Locking(Net):
        def forward(self, x):
            with alone():
                return super().forward(x)

    model = Locking().eval()
    thread = threading.Thread(target=model, args=(X,))
    with alone():
        thread.start()
        while not any(frame.f_code is ENTERING for frame in frames_of(thread)):
            time.sleep(0.01)
        begun = time.perf_counter()
        with others_wait(model):
            took = time.perf_counter() - begun
    thread.join(PATIENCE_S)
    assert took < 5


def frames_of(thread):
    frame = sys._current_frames()[thread.ident]
    while frame is not None:
        yield frame
        frame = frame.f_back


def test_studies_of_threads_are_those_of_one_thread():
    model = made(0)
    state, process = state_of(model), process_state()
    alone_found = rpp.BlockLesion(model).attribute(X, 0)

    def study(_):
        return rpp.BlockLesion(model).attribute(X, 0), rpp.PathLengthGradient(model).attribute(X, 0)

    with ThreadPoolExecutor(N_THREADS) as pool:
        for lesions, lengths in pool.map(study, range(N_THREADS)):
            np.testing.assert_array_equal(lesions.target_score, alone_found.target_score)
            assert float(lengths.completeness_error.max()) < 1e-5
    assert process_state() == process
    assert_same_state(state, state_of(model))


@pytest.fixture(autouse=True)
def obeyed():
    """Let Ctrl-C raise KeyboardInterrupt, which a process of pytest-xdist ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted_after(seconds, work):
    """Run some work with Ctrl-C after some time; return whether it was interrupted."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        work()
        timer.join(PATIENCE_S)
        time.sleep(0.01)  # where the signal arrives after the work
    except KeyboardInterrupt:
        return True
    finally:
        timer.join(PATIENCE_S)
    return False


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
@pytest.mark.parametrize("rounds", [10, pytest.param(100, marks=pytest.mark.endurance)])
def test_an_interruption_inside_a_capture_leaves_all_as_it_was(rounds):
    model = made(0).train()
    rpp.unravel(model, X)
    begun = time.perf_counter()
    rpp.unravel(model, X)
    usual = time.perf_counter() - begun
    state, process = state_of(model), process_state()
    lost = 0
    for moment in np.random.default_rng(0).uniform(0, usual, rounds):
        lost += not interrupted_after(moment, lambda: rpp.unravel(model, X))
        assert process_state() == process
        assert_same_state(state, state_of(model))
        assert not is_alone()
    assert lost <= rounds // 50  # Python drops one that comes while an object is finalised
    assert len(rpp.unravel(model, X).blocks) == 3


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
@pytest.mark.parametrize("place", range(0, 12, 4))
def test_an_interruption_while_all_is_put_back_waits(monkeypatch, place):
    model = made(0).train()
    state, process = state_of(model), process_state()
    calls, put_back = [], export._put_back

    def interrupting(held, before):
        calls.append(held)
        if len(calls) == place + 1:
            signal.raise_signal(signal.SIGINT)
        put_back(held, before)

    monkeypatch.setattr(export, "_put_back", interrupting)
    with pytest.raises(KeyboardInterrupt):
        rpp.unravel(model, X)
    assert process_state() == process
    assert_same_state(state, state_of(model))


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
def test_a_capture_is_left_at_the_next_part_of_the_model():
    class Slow(nn.Module):
        calls = 0

        def forward(self, x):
            Slow.calls += 1
            time.sleep(0.05)
            return torch.tanh(x)

    model = nn.Sequential(*(Slow() for _ in range(100)))
    assert interrupted_after(0.5, lambda: rpp.unravel(model, X))
    assert Slow.calls < 100


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
def test_a_second_interruption_is_obeyed_at_once():
    def work():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # the same press
            time.sleep(1.1)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("goes on")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
def test_waiting_for_another_thread_is_interrupted_at_once():
    held, over = threading.Event(), threading.Event()

    def hold():
        with alone():
            held.set()
            over.wait(PATIENCE_S)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(PATIENCE_S)

    def work():
        with alone():
            pytest.fail("the other thread holds it")

    try:
        assert interrupted_after(0.2, work)
    finally:
        over.set()
        thread.join(PATIENCE_S)
    with alone():
        assert is_alone()


def test_generators_are_as_before_the_first_of_several_threads():
    before = process_state()
    inside, first_left = threading.Barrier(2), threading.Event()

    def draw(leaves_first):
        inside.wait(PATIENCE_S)
        with kept_generators():
            inside.wait(PATIENCE_S)
            torch.rand(3), np.random.rand(3)  # noqa: NPY002
            inside.wait(PATIENCE_S)
            if not leaves_first:
                first_left.wait(PATIENCE_S)
        first_left.set()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(draw, [True, False]))
    assert process_state() == before


def test_what_other_threads_print_is_shown_at_once(capsys):
    with alone(), set_aside("stderr") as own:
        print("own", file=sys.stderr)  # noqa: T201
        with ThreadPoolExecutor(1) as pool:
            pool.submit(print, "of others", file=sys.stderr).result()
        kept = sys.stderr
        assert capsys.readouterr().err == "of others\n"
    assert own.getvalue() == "own\n"
    print("later", file=kept)
    assert capsys.readouterr().err == "later\n"


class Full(io.TextIOBase):
    def write(self, _):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stream", [None, "closed", Full()])
def test_a_capture_needs_no_standard_error(monkeypatch, stream):
    class Printing(Net):
        def forward(self, x):
            sys.stderr.write("here\n")
            return super().forward(x)

    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    assert len(rpp.unravel(Printing().eval(), X).blocks) == 3
    assert sys.stderr is stream


@contextmanager
def switching_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Unforgiving(Net):
    """Fails in a trace, so that its own forward is tried."""

    def forward(self, x):
        return super().forward(x) + float(x.sum())


@pytest.mark.parametrize("often", [False, pytest.param(True, marks=pytest.mark.endurance)])
def test_filters_of_warnings_are_changed_by_one_thread_at_a_time(tmp_path, monkeypatch, often):
    result = rpp.BlockLesion(made(1)).attribute(X, 0)
    path = rpp.save(result, tmp_path / "x.nc")
    (figure, *_) = report.figures(result)
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / "x.png")
    images = ImageFolder.__new__(ImageFolder)
    images.files, images._here = [Path("x.png")], tmp_path

    def failing():
        with pytest.raises(rpp.ResnetPathsError):
            rpp.unravel(Unforgiving(), X)

    calls = {
        "load": lambda: rpp.load(path).close(),
        "figure": lambda: figure.png(20),
        "image": lambda: images.image(0),
        "capture": lambda: rpp.unravel(made(1), X),
        "failing capture": failing,
    }
    entered = dict.fromkeys(calls, 0)
    enter = warnings.catch_warnings.__enter__

    def watched(self):
        if "resnet_paths_plugin" in sys._getframe(1).f_code.co_filename:
            assert is_alone()
            entered[told.call] += 1
        return enter(self)

    told = threading.local()
    with monkeypatch.context() as patch:
        patch.setattr(warnings.catch_warnings, "__enter__", watched)
        for told.call, call in calls.items():
            call()
    assert all(entered.values()), entered
    if not often:
        return

    before, shown = list(warnings.filters), warnings.showwarning
    with switching_often(), ThreadPoolExecutor(N_THREADS) as pool:
        for done in [pool.submit(call) for _ in range(8) for call in (*calls.values(), calls["load"], calls["image"])]:
            done.result(PATIENCE_S)
    assert warnings.filters == before
    assert warnings.showwarning is shown
