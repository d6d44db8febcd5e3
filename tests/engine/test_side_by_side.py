"""Schedules side by side, of which some do not need what others do: results are those of one schedule at a time."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from searching import examples
from torch import nn

import resnet_paths_plugin as rpp

pytestmark = pytest.mark.slow


class FromTheInput(nn.Module):
    """Every sum adds the input, so that a lesion leaves out all blocks before it."""

    def __init__(self):
        super().__init__()
        self.f, self.h = nn.ModuleList(nn.Linear(5, 5) for _ in range(4)), nn.Linear(5, 4)

    def forward(self, x):
        z = x
        for f in self.f:
            z = x + torch.tanh(f(z))
        return self.h(z)


class Nested(FromTheInput):
    """Two blocks inside the branch of a third."""

    def forward(self, x):
        y = torch.tanh(self.f[0](x))
        y = y + torch.tanh(self.f[1](y))
        y = y + torch.tanh(self.f[2](y))
        z = x + y
        return self.h(z + torch.tanh(self.f[3](z)))


class TwoStreams(FromTheInput):
    """Two streams that meet at the end; a lesion of the meeting leaves one out."""

    def forward(self, x):
        a = x + torch.tanh(self.f[0](x))
        b = x + torch.tanh(self.f[1](x))
        a = a + torch.tanh(self.f[2](b))
        return self.h(a + torch.tanh(self.f[3](a * b)))


class Parallel(FromTheInput):
    def forward(self, x):
        x = x + torch.tanh(self.f[0](x)) + torch.tanh(self.f[1](x))
        y = torch.tanh(self.f[2](x))
        return self.h(x + y + torch.tanh(self.f[3](y + x)))


KINDS = (FromTheInput, Nested, TwoStreams, Parallel)
X = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def made(kind):
    torch.manual_seed(0)
    model = kind().double().eval()
    return model, rpp.unravel(model, X)


def outputs(net, schedules, width):
    with torch.no_grad():
        found = dict(net.outputs(schedules, (X,), perturbations_per_eval=width))
    return [found[place] for place in range(len(schedules))]


def schedule_of(net, row):
    """Return a schedule of a drawn row: for each block, what runs at its place."""
    rows = {}
    for place, choice in enumerate(row):
        if choice == "gone":
            rows[place] = ()
        elif choice == "half":
            rows[place] = ((place, 0.5),)
        elif choice == "other":
            other = next((b for b in range(len(row)) if b != place and net.program.fits[b, place]), place)
            rows[place] = ((other, 1.0),)
        elif choice == "both":
            other = next((b for b in range(len(row)) if b != place and net.program.fits[b, place]), place)
            rows[place] = ((place, 1.0),) if other == place else ((place, 0.5), (other, 2.0))
    return rpp.Schedule.from_rows(net, rows)


NETWORKS = {kind: made(kind)[1] for kind in KINDS}
CHOICES = st.sampled_from(["as it is", "as it is", "gone", "half", "other", "both"])


@examples(60)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.lists(st.lists(CHOICES, min_size=4, max_size=4), min_size=1, max_size=9),
    width=st.integers(2, 6),
)
def test_any_schedules_side_by_side_give_what_each_gives_alone(kind, rows, width):
    net = NETWORKS[kind]
    schedules = [schedule_of(net, row[: len(net.blocks)]) for row in rows]
    alone = outputs(net, schedules, 1)
    beside = outputs(net, schedules, width)
    for one, other in zip(alone, beside, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_lesions_of_several_blocks_side_by_side_are_those_one_by_one(kind):
    net = NETWORKS[kind]
    ask = {"n_deleted": [1, 2, 3], "draws": 6}
    one = rpp.BlockLesion(net).attribute(X, 0, **ask, perturbations_per_eval=1)
    other = rpp.BlockLesion(net).attribute(X, 0, **ask, perturbations_per_eval=4)
    torch.testing.assert_close(
        torch.from_numpy(other.target_score.values), torch.from_numpy(one.target_score.values), rtol=1e-6, atol=1e-6
    )
