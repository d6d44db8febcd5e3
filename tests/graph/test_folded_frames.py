"""Frames folded into the batch, as temporal shifts and windows do: the batch is no dimension of some values.

The oracle is the model with a branch multiplied by 0.
"""

import numpy as np
import pytest
import torch
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import ResnetPathsError

X = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Shifted(nn.Module):
    """Pairs of samples are frames of one clip, and a branch reads the other frame."""

    gone: tuple[int, ...] = ()

    def __init__(self):
        super().__init__()
        self.f, self.h = nn.ModuleList(nn.Linear(5, 5) for _ in range(3)), nn.Linear(5, 4)

    def of(self, which, value):
        return value * 0 if which in self.gone else value

    def forward(self, x):
        for which, f in enumerate(self.f):
            x = x + self.of(which, torch.tanh(f(x.view(-1, 2, 5).flip(1).reshape(-1, 5))))
        return self.h(x)


class Clips(Shifted):
    """The sums themselves are of clips."""

    def forward(self, x):
        z = x.reshape(-1, 2, 5)
        for which, f in enumerate(self.f):
            z = z + self.of(which, torch.tanh(f(z.flip(1))))
        return self.h(z.reshape(-1, 5))


class Between(Shifted):
    """A value of clips, outside all blocks, is read across sums of samples."""

    def forward(self, x):
        clips = x.reshape(-1, 2, 5).mean(1, keepdim=True)
        x = x.tanh()
        for which, f in enumerate(self.f):
            x = x + self.of(which, torch.tanh(f((x.view(-1, 2, 5).flip(1) * clips).reshape(-1, 5))))
        return self.h(x)


KINDS = (Shifted, Clips, Between)


def made(kind):
    torch.manual_seed(0)
    model = kind().double().eval()
    return model, rpp.unravel(model, X)


def by_hand(model, lesions, x=X):
    found = []
    with torch.no_grad():
        for model.gone in lesions:
            found.append(model(x)[:, 1])
    model.gone = ()
    return torch.stack(found).numpy()


LESIONS = [(0,), (1,), (2,), (0, 2), (0, 1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_lesions_side_by_side_are_those_by_hand(kind, width):
    model, net = made(kind)
    assert len(net.blocks) == 3
    found = rpp.BlockLesion(net).attribute(X, 1, lesions=[list(one) for one in LESIONS], perturbations_per_eval=width)
    np.testing.assert_allclose(found.target_score.values, by_hand(model, LESIONS), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
def test_a_chunk_keeps_frames_together_or_is_refused(kind, size):
    model, net = made(kind)
    ask = {"lesions": [list(one) for one in LESIONS], "internal_batch_size": size, "perturbations_per_eval": 2}
    try:
        found = rpp.BlockLesion(net).attribute(X, 1, **ask)
    except ResnetPathsError as error:
        assert size != 4  # others cut a clip in two, or leave a batch of another size
        assert "pass batches of such siz" in str(error)  # noqa: PT017 - likewise
    else:
        np.testing.assert_allclose(found.target_score.values, by_hand(model, LESIONS), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [4, 8])
def test_paths_of_folded_frames_are_complete(kind, size):
    model, net = made(kind)
    found = rpp.PathLengthGradient(net).attribute(X, target=1, internal_batch_size=size, keep_maps=True)
    given = X.clone().requires_grad_()
    (own,) = torch.autograd.grad(model(given)[:, 1].sum(), given)
    np.testing.assert_allclose(found.gradient.sum("path_length"), own, rtol=1e-5, atol=1e-7)
    assert found.completeness_error.max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_reorderings_of_folded_frames_are_those_by_hand(kind):
    model, net = made(kind)
    other = kind().double().eval()
    other.load_state_dict(model.state_dict())
    other.f = nn.ModuleList([other.f[2], other.f[0], other.f[1]])
    with torch.no_grad():
        found = net.scheduled(rpp.Schedule.order(net, [2, 0, 1]))(X)
        torch.testing.assert_close(found, other(X), rtol=1e-12, atol=1e-12)
