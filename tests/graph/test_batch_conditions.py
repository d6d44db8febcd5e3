"""Batch sizes: those for which a captured graph holds run and equal the model; others are refused with the way out."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.execution.payload import packed, unpacked
from resnet_paths_plugin.graph.batch_conditions import BatchConditions, _Sized

Change = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """Three residual blocks and a head behind a change of the input."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change
        self.f = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.h = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.change(x)
        for f in self.f:
            x = x + torch.tanh(f(x))
        return self.h(x)


class Kept(Net):
    """Keeps the shape of the last input."""

    shape: torch.Size | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.shape != x.shape:
            self.shape, self.pos = x.shape, torch.arange(5.0)
        return super().forward(x + self.pos)


def _inputs(batch: int) -> Tensor:
    return torch.randn(batch, 5, generator=torch.Generator().manual_seed(1))


def _made(change: Change, kind: type[Net] = Net) -> Net:
    torch.manual_seed(0)
    return kind(change).eval()


DECIDES: dict[str, Change] = {
    "more than one": lambda x: x * 2 if x.shape[0] > 1 else x,
    "odd": lambda x: x * 2 if x.shape[0] % 2 else x,
    "thirds": lambda x: x * 2 if x.shape[0] % 3 == 0 else x,
    "one of all": lambda x: x - x.mean(0) if len(x.shape) and x.shape[0] != 1 else x,
    "up to five": lambda x: x * 2 if x.shape[0] <= 5 else x,
    "not six": lambda x: x * 2 if x.shape[0] != 6 else x,
}


@pytest.mark.parametrize("change", DECIDES.values(), ids=DECIDES)
def test_a_batch_of_any_size_equals_the_model_or_is_refused(change: Change) -> None:
    model = _made(change)
    net = rpp.unravel(model, _inputs(4))
    refused = 0
    for batch in range(1, 9):
        x = _inputs(batch)
        try:
            found = net(x)
        except rpp.ResnetPathsError as error:
            refused += 1
            assert f"{batch} samples" in str(error)  # noqa: PT017 - either way is right
        else:
            assert torch.equal(found, model(x))
    assert 0 < refused < 8


def test_a_batch_of_one_runs_where_the_model_does_not_ask_for_its_size() -> None:
    model = _made(torch.relu)
    net = rpp.unravel(model, _inputs(4))
    assert net.graph.conditions.shown[1]
    assert torch.equal(net(_inputs(1)), model(_inputs(1)))


def test_a_refusal_says_which_sizes_hold() -> None:
    with pytest.raises(rpp.ResnetPathsError, match=r"holds for 2, 4, 6, .*drop_last=True"):
        rpp.unravel(_made(DECIDES["odd"]), _inputs(4))(_inputs(3))


FROZEN: dict[str, Change] = {
    "len": lambda x: x.reshape(len(x), -1),
    "int": lambda x: x.view(int(x.shape[0] / 1), 5),
}


@pytest.mark.parametrize("change", FROZEN.values(), ids=FROZEN)
def test_a_strict_capture_frees_a_batch_that_python_froze(change: Change) -> None:
    model = _made(change)
    net = rpp.unravel(model, _inputs(4))
    for batch in (1, 3, 4, 7):
        assert torch.equal(net(_inputs(batch)), model(_inputs(batch)))
    assert [block.module for block in net.blocks] == [
        block.module for block in rpp.unravel(_made(torch.relu), _inputs(4)).blocks
    ]


class KeptValues(Net):
    """Keeps values in the shape of the last input."""

    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None or self.kept.shape != x.shape:
            self.kept = torch.linspace(0, 1, 5).expand(x.shape)
        return super().forward(x + self.kept)


@pytest.mark.parametrize("kind", [Kept, KeptValues])
@pytest.mark.parametrize("batch", [1, 4, 5])
def test_another_example_size_frees_a_batch_whose_shape_was_kept(kind: type[Net], batch: int) -> None:
    model = _made(torch.relu, kind)
    model(_inputs(batch))
    net = rpp.unravel(model, _inputs(batch))
    for other in (batch, 1, 2, 3, 6):
        assert torch.equal(net(_inputs(other)), model(_inputs(other)))
    net.sampling(n_active=2)(_inputs(batch)).sum().backward()


class KeptFirst(Net):
    """Adds the values of the first input that had a shape to all others of it."""

    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None or self.kept.shape != x.shape:
            self.kept = x + 1
        return super().forward(x + self.kept)


def test_another_example_size_that_does_something_else_is_not_taken() -> None:
    model = _made(torch.relu, KeptFirst)
    model(_inputs(4) * 2)
    net = rpp.unravel(model, _inputs(4))
    assert torch.equal(net(_inputs(4)), model(_inputs(4)))
    with pytest.raises(rpp.ResnetPathsError, match="drop_last"):
        net(_inputs(3))


STAYS_FROZEN: dict[str, Change] = {
    "rows one by one": lambda x: torch.cat([x[at : at + 1].tanh() for at in range(x.shape[0])]),
    "stack of rows": lambda x: torch.stack([row * 2 for row in x]),
    "square": lambda x: x.view(math.isqrt(x.shape[0]) ** 2, 5) if x.shape[0] == 4 else torch.cat(list(x.split(1))),
}


@pytest.mark.parametrize("change", STAYS_FROZEN.values(), ids=STAYS_FROZEN)
@pytest.mark.parametrize("batch", [4, 5])  # of 5, which is the width as well
def test_every_study_runs_at_a_batch_size_that_stays_frozen(change: Change, batch: int) -> None:
    model = _made(change)
    free = rpp.unravel(_made(torch.tanh), _inputs(batch))
    x, twice = _inputs(batch), _inputs(2 * batch)
    net = rpp.unravel(model, x)
    assert torch.equal(net(x), model(x))
    assert [block.source_shape for block in net.blocks] == [(5,)] * 3
    found = rpp.PathLengthGradient(net).attribute(twice, target=0, estimator=("exact", "sampled"), draws=2)
    assert found.sizes["sample"] == 2 * batch
    assert float(found.completeness_error.max()) < 1e-6
    for ablation in ("zero", "mean", "resample"):
        assert (
            rpp.BlockLesion(net).attribute(twice, 0, ablation=ablation, perturbations_per_eval=3).sizes["lesion"] == 3
        )
    assert rpp.BlockReordering(net).attribute(twice, 0).sizes["reordering"] > 0
    influence = rpp.BlockInfluence(net).attribute(twice, target=0)
    assert not influence.branch_to_source_norm.isnull().any()
    same = rpp.BlockInfluence(free).attribute(twice, target=0)
    if change is STAYS_FROZEN["rows one by one"]:  # the same model
        np.testing.assert_allclose(influence.lesion_estimate, same.lesion_estimate, rtol=1e-4, atol=1e-6)
    given = x.clone().requires_grad_()
    net.restricted(range(4))(given)[:, 0].sum().backward()
    own = x.clone().requires_grad_()
    model(own)[:, 0].sum().backward()
    torch.testing.assert_close(given.grad, own.grad)
    net.sampling(n_active=2)(x).sum().backward()
    for refused in (lambda: net(x[:3]), lambda: rpp.BlockLesion(net).attribute(_inputs(batch + 3), 0)):
        with pytest.raises(rpp.ResnetPathsError, match="drop_last"):
            refused()


def test_an_analyzer_freezes_the_batch_at_the_size_that_it_is_asked_for() -> None:
    model = _made(STAYS_FROZEN["rows one by one"])
    found = rpp.BlockLesion(model).attribute(_inputs(6), 0, internal_batch_size=3)
    np.testing.assert_allclose(found.intact_target_score, model(_inputs(6))[:, 0].detach(), rtol=1e-5)


ONE_ONLY: dict[str, Change] = {
    "refuses more": lambda x: x if x.shape[0] == 1 else torch.empty(0).view(7),
    "squeezed": lambda x: x.squeeze(0),
    "squeezed and back": lambda x: x.squeeze(0).unsqueeze(0),
    "view": lambda x: x.view(1, 5),
    "decides": lambda x: x * 2 if x.shape[0] == 1 else x,
}


class Scores(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).view(1, 4)  # type: ignore[no-any-return]  # torch's


@pytest.mark.parametrize("change", ONE_ONLY.values(), ids=ONE_ONLY)
def test_every_study_of_a_model_for_one_sample_runs_one_by_one(change: Change) -> None:
    model = Scores(_made(change))
    x, three = _inputs(1), _inputs(3)
    net = rpp.unravel(model, x)
    assert torch.equal(net(x), model(x))
    assert net.graph.is_single
    expected = torch.cat([model(one) for one in three.split(1)])[:, 0].detach()
    for ablation in ("zero", "mean", "resample"):
        lesions = rpp.BlockLesion(net).attribute(three, 0, ablation=ablation, perturbations_per_eval=3)
        np.testing.assert_allclose(lesions.intact_target_score, expected, rtol=1e-5)
    assert rpp.BlockReordering(net).attribute(x, 0).sizes["reordering"] > 0
    paths = rpp.PathLengthGradient(net).attribute(three, target=0, keep_maps=True)
    own = three.clone().requires_grad_()
    torch.cat([model(one) for one in own.split(1)])[:, 0].sum().backward()
    np.testing.assert_allclose(paths.gradient.sum("path_length"), own.grad, rtol=1e-4, atol=1e-6)
    assert not rpp.BlockInfluence(net).attribute(three, target=0).source_sum_cosine.isnull().any()
    assert net.lesioned([0])(x).shape == (1, 4)
    net.restricted([1, 2])(x.clone().requires_grad_()).sum().backward()
    net.sampling(n_active=2)(x).sum().backward()
    with pytest.raises(rpp.ResnetPathsError, match="batches of 1 "):
        net(_inputs(2))


def test_pieces_are_of_sizes_that_hold() -> None:
    model = _made(DECIDES["odd"])
    x = _inputs(14)
    found = rpp.BlockLesion(rpp.unravel(model, x[:4])).attribute(x, 0, internal_batch_size=5)
    np.testing.assert_allclose(found.intact_target_score, model(x)[:, 0].detach(), rtol=1e-5)
    few = _made(DECIDES["up to five"])
    found = rpp.BlockLesion(rpp.unravel(few, x[:4])).attribute(x, 0)
    np.testing.assert_allclose(
        found.intact_target_score,
        few(x[:5])[:, 0].detach().tolist() + few(x[5:10])[:, 0].detach().tolist() + few(x[10:])[:, 0].detach().tolist(),
        rtol=1e-5,
    )


def _shifted(x: Tensor, frames: int) -> Tensor:
    """Take some features from the next frame and some from the one before, as temporal shift modules do."""
    clips = x.view(x.shape[0] // frames, frames, 5)
    out = torch.zeros_like(clips)
    out[:, :-1, :2] = clips[:, 1:, :2]
    out[:, 1:, 2:4] = clips[:, :-1, 2:4]
    out[:, :, 4:] = clips[:, :, 4:]
    return out.view(x.shape[0], 5)


@pytest.mark.parametrize("frames", [2, 3])
@pytest.mark.parametrize("clips", [1, 2])
def test_shifted_frames_run_for_any_number_of_clips(frames: int, clips: int) -> None:
    model = _made(lambda x: _shifted(x, frames))
    net = rpp.unravel(model, _inputs(clips * frames))
    for size in range(1, 4 * frames + 1):
        if size % frames:
            with pytest.raises(rpp.ResnetPathsError, match=f"{size} samples"):
                net(_inputs(size))
        else:
            assert torch.equal(net(_inputs(size)), model(_inputs(size)))
    assert rpp.BlockLesion(net).attribute(_inputs(6 * frames), 0, internal_batch_size=frames + 1).sizes["lesion"] == 3


@pytest.mark.parametrize("frames", [2, 4])
@pytest.mark.parametrize("clips", [1, 2, 3])
def test_frames_folded_into_the_batch_run(frames: int, clips: int) -> None:
    model = _made(lambda x: x.view(x.shape[0] // frames, frames, 5).flip(1).cumsum(1).view(x.shape[0], 5))
    size = clips * frames
    net = rpp.unravel(model, _inputs(size))
    found = rpp.BlockLesion(net).attribute(_inputs(6 * frames), 0, perturbations_per_eval=3)
    np.testing.assert_allclose(found.intact_target_score, model(_inputs(6 * frames))[:, 0].detach(), rtol=1e-5)
    assert float(rpp.PathLengthGradient(net).attribute(_inputs(size), target=0).completeness_error.max()) < 1e-6
    for batch in (frames, 2 * frames, 3 * frames):
        assert torch.equal(net(_inputs(batch)), model(_inputs(batch)))
    with pytest.raises(rpp.ResnetPathsError, match="samples"):
        net(_inputs(frames + 1))


def test_a_guard_that_cannot_be_read_holds_for_the_captured_size_alone() -> None:
    read = BatchConditions(guards=("L['x'].size()[0] < 9",), inputs={"x": _Sized((4,))}, example=4)
    assert all(read.holds(size) for size in (1, 3, 4, 7))
    for guard in ("L['y'].size()[0] < 9", "unheard_of(3)", "L['x'].stride()[0] == 1", "1 +"):
        unread = BatchConditions(guards=(guard,), inputs={"x": _Sized((4,))}, example=4)
        assert [size for size in range(1, 9) if unread.holds(size)] == [4]
        assert unread.described() == "4"


class Star(nn.Module):
    """Takes its arguments by a star, and decides by the batch of the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _made(torch.relu)

    def forward(self, *given: Tensor) -> Tensor:
        x, shift = given
        return self.net(x * 2 if shift.shape[0] % 2 else x + shift)  # type: ignore[no-any-return]  # torch's


def test_guards_of_arguments_behind_a_star_are_read() -> None:
    model = Star()
    net = rpp.unravel(model, (_inputs(4), _inputs(4) + 1))
    for size in range(1, 8):
        args = _inputs(size), _inputs(size) + 1
        if size % 2:
            with pytest.raises(rpp.ResnetPathsError, match=f"{size} samples"):
                net(*args)
        else:
            assert torch.equal(net(*args), model(*args))


class ByTable(Net):
    """Decides by the rows of a table that all samples read."""

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        x = x + table.mean(0)
        return super().forward(x * 2 if table.shape[0] > 5 else x * 3 if table.shape[0] == x.shape[0] else x)


def test_guards_of_a_table_hold_for_its_own_rows() -> None:
    model = _made(torch.relu, ByTable)
    net = rpp.unravel(model, (_inputs(4), _inputs(4)[[0, 1, 2, 3]]), n_inputs=1)
    refused = []
    for rows in range(1, 8):
        for batch in (2, 4, 6):
            args = _inputs(batch), _inputs(rows)
            try:
                found = net(*args)
            except rpp.ResnetPathsError:
                refused.append((batch, rows))
            else:
                assert torch.equal(found, model(*args))
    assert (4, 4) not in refused
    assert (2, 3) in refused


SENT: dict[str, tuple[Change, type[Net], int]] = {
    "kept shape": (torch.relu, KeptValues, 4),
    "frozen": (STAYS_FROZEN["rows one by one"], Net, 4),
    "one sample": (ONE_ONLY["view"], Net, 1),
    "odd": (DECIDES["odd"], Net, 4),
}


@pytest.mark.parametrize("name", SENT)
def test_a_network_that_travels_keeps_its_conditions(name: str) -> None:
    change, kind, batch = SENT[name]
    model = _made(change, kind)
    model(_inputs(batch))
    net = rpp.unravel(model, _inputs(batch))
    there = unpacked(packed(net))
    for size in range(1, 9):
        try:
            expected = net(_inputs(size))
        except rpp.ResnetPathsError:
            with pytest.raises(rpp.ResnetPathsError):
                there(_inputs(size))
        else:
            assert torch.equal(there(_inputs(size)), expected)
