"""Wrong numbers that once came out without a word, each found by a reader of the code."""

import numpy as np
import pytest
import torch
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.execution.payload import packed, unpacked


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.f, self.h = nn.ModuleList(nn.Linear(5, 5) for _ in range(2)), nn.Linear(5, 3)

    def trunk(self, x):
        for f in self.f:
            x = x + torch.tanh(f(x))
        return x

    def forward(self, x):
        return self.h(self.trunk(x))


class FirstFour(Blocks):
    def forward(self, x):
        y = self.h(self.trunk(x))
        y[:4] += 5
        return y


class AtMostEight(Blocks):
    def forward(self, x):
        return self.h(self.trunk(x)[:8])


class Rows(Blocks):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 5))

    def forward(self, x):
        return self.h(self.trunk(x + self.table[: x.shape[0]]))


@pytest.mark.parametrize(("kind", "captured"), [(FirstFour, 4), (AtMostEight, 8), (Rows, 8), (Rows, 3)])
def test_a_slice_as_long_as_the_example_is_none_for_other_batches(kind, captured):
    model, x = kind().eval(), torch.randn(12, 5)
    net = rpp.unravel(model, x[:captured])
    for size in (captured, 1, 3, 5, 12):
        try:
            with torch.no_grad():
                wanted = model(x[:size])
        except RuntimeError:
            wanted = None
        try:
            found = net(x[:size])
        except rpp.ResnetPathsError:
            continue
        assert wanted is not None
        assert torch.equal(found, wanted)


def test_a_small_table_that_is_read_whole_is_not_cut():
    class Small(Blocks):
        def forward(self, x, table):
            x = self.trunk(x)
            return self.h(x + 1e-3 * torch.softmax(x @ table.T, 1) @ table)

    model, x, table = Small().eval(), torch.randn(16, 5), torch.randn(16, 5)
    with torch.no_grad():
        wanted = model(x, table)[:, 0]
    found = rpp.BlockLesion(model).attribute(x, 0, (table,), internal_batch_size=4)
    np.testing.assert_allclose(found.intact_target_score, wanted, rtol=1e-6)


def test_what_shares_the_batch_travels():
    class Two(Blocks):
        def forward(self, x, table):
            return self.h(self.trunk(x.reshape(len(x), 5)) + self.trunk(table).mean(0))

    x, table = torch.randn(4, 5), torch.randn(4, 5)
    net = rpp.unravel(Two().eval(), (x, table), n_inputs=1)
    there = unpacked(packed(net))
    assert there.graph.n_inputs == net.graph.n_inputs == 1


def test_gradients_are_compared_again_after_the_model_changed():
    model, x = Blocks().eval(), torch.randn(4, 5)
    net = rpp.unravel(model, x)
    net(x.clone().requires_grad_()).sum().backward()
    model.f[0].register_full_backward_hook(lambda _, given, __: (given[0] * 3,))
    with pytest.raises(rpp.CaptureMismatchError):
        net(x.clone().requires_grad_()).sum().backward()


def test_the_walk_of_a_view_is_compared_though_autograd_was(monkeypatch):
    model, x = Blocks().eval(), torch.randn(4, 5)
    net = rpp.unravel(model, x)
    net(x.clone().requires_grad_()).sum().backward()
    view, calls = net.restricted([0, 1]), []
    own = type(view)._along_all
    monkeypatch.setattr(type(view), "_along_all", lambda self, *args: calls.append(args) or own(self, *args))
    view(x.clone().requires_grad_()).sum().backward()
    assert calls


def test_one_sample_that_is_picked_without_its_number_shows_its_own_error():
    model, x = Blocks().eval(), torch.randn(6, 5)
    lesions = rpp.BlockLesion(model).attribute(x, torch.tensor([0, 1, 2, 0, 1, 2]))
    for sample in range(6):
        from resnet_paths_plugin.results.derived import refreshed

        shown = refreshed(lesions.isel(sample=sample, drop=True))
        np.testing.assert_array_equal(shown.error, 1.0 - lesions.correct.isel(sample=sample))
