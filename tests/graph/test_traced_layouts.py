"""Views of values whose layout differs from the traced one: without a branch, or with gradients.

The oracle is the model itself, and a copy of it with the branch multiplied by zero.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional

import resnet_paths_plugin as rpp


class Permuted(nn.Module):
    """The sum of two layouts, of which one is left when a branch is gone; then a view of its permutation."""

    gone = False

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.a(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        h = h * 0 if self.gone else h
        z = (h + x).permute(0, 2, 3, 1).contiguous()
        return self.b(z.view(-1, 16, 16).view(x.shape[0], -1, 4)).mean(1)


class Transposed(Permuted):
    def forward(self, x):
        h = self.a(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        h = h * 0 if self.gone else h
        y = h + x.flatten(2)
        return self.b(y.transpose(1, 2).contiguous().view(x.shape[0], -1, 4)).mean(1)


class Strided(Permuted):
    """A branch whose value is laid out as channels last, under a view of two dimensions."""

    def forward(self, x):
        h = self.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        h = h * 0 if self.gone else h
        y = (x + h).contiguous()
        return self.b(y.view(x.shape[0], 4, -1).transpose(1, 2)).mean(1)


@pytest.mark.parametrize("kind", [Permuted, Transposed, Strided])
def test_every_lesion_runs_whatever_the_layout_it_leaves(kind):
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(2, 4, 8, 8)
    net = rpp.unravel(model, x)
    assert len(net.blocks) == 1
    with torch.no_grad():
        assert torch.equal(net(x), model(x))
        found = net.lesioned([0])(x)
        model.gone = True
        torch.testing.assert_close(found, model(x))
        model.gone = False
    assert rpp.BlockLesion(net).attribute(x, target=0).sizes["lesion"] == 1


class WritesIntoAConstant(nn.Module):
    """Attention whose kernel, and so whose layout, is another with gradients; a write into part of a constant."""

    def __init__(self):
        super().__init__()
        self.q, self.out = nn.Linear(16, 16), nn.Linear(16, 16)
        self.bias = nn.Parameter(0.1 * torch.randn(1, 1, 5, 5))

    def forward(self, x):
        batch, n, width = x.shape
        table = torch.zeros(n, n, dtype=x.dtype)
        table[1:, 1:] = 1
        table[0, 0] = 2
        q = self.q(x + table.sum()).view(batch, n, 2, 8).transpose(1, 2)
        y = functional.scaled_dot_product_attention(q, q, q, attn_mask=self.bias + x.new_zeros(batch, 1, n, n))
        return x + self.out(y.transpose(1, 2).contiguous().reshape(batch, n, width))


def test_attention_behind_a_write_into_a_constant_runs_with_and_without_gradients():
    model, x = WritesIntoAConstant().double().eval(), torch.randn(3, 5, 16, dtype=torch.float64)
    net = rpp.unravel(model, x)
    assert torch.equal(net(x), model(x))
    with torch.no_grad():
        assert torch.equal(net(x), model(x))
    found = rpp.PathLengthGradient(model).attribute(x, objective=lambda y, _: y.flatten(1).square().mean(1))
    assert found.completeness_error.max() < 1e-12
