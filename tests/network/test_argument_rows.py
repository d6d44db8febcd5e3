"""Additional arguments that have as many rows as there are samples: cut where the model pairs them with the samples.

The oracle is the model itself, on all samples at once.
"""

import numpy as np
import pytest
import torch
from torch import nn

import resnet_paths_plugin as rpp


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))
        self.head = nn.Linear(5, 4)

    def scores(self, x):
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(x)


class Prototypes(Blocks):
    def forward(self, x, prototypes):
        return self.scores(x) @ prototypes.T


class Averaged(Blocks):
    def forward(self, x, table):
        return self.scores(x) + table.mean(0)


class Conditioned(Blocks):
    def forward(self, x, shift):
        return self.scores(x + shift)


class Steps(Blocks):
    def forward(self, x, table, step):
        return self.scores(x * step[:, None]) @ table


SAMPLES = 300


def arguments(model):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, 5, generator=generator)
    if isinstance(model, Steps):
        return x, (torch.randn(4, 4, generator=generator), torch.rand(SAMPLES, generator=generator))
    return x, (torch.randn(SAMPLES, 5 if isinstance(model, Conditioned) else 4, generator=generator),)


@pytest.mark.parametrize("kind", [Prototypes, Averaged, Conditioned, Steps])
def test_each_sample_gets_what_the_model_gives_it_among_all(kind):
    model = kind().eval()
    x, extra = arguments(model)
    found = rpp.BlockLesion(model).attribute(x, 0, extra, internal_batch_size=64)
    with torch.no_grad():
        wanted = model(x, *extra)[:, 0]
    np.testing.assert_allclose(found.intact_target_score, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Prototypes, Averaged, Conditioned])
def test_path_gradients_of_each_sample_are_those_among_all(kind):
    model = kind().double().eval()
    x, extra = arguments(model)
    x, extra = x.double(), tuple(one.double() for one in extra)
    found = rpp.PathLengthGradient(model).attribute(x, 0, extra, keep_maps=True, internal_batch_size=64)
    x.requires_grad_()
    (wanted,) = torch.autograd.grad(model(x, *extra)[:, 0].sum(), x)
    np.testing.assert_allclose(found.gradient.values.sum(0), wanted, rtol=1e-5, atol=1e-7)


def test_a_network_that_took_them_for_samples_is_refused():
    model = Prototypes().eval()
    x, extra = arguments(model)
    net = rpp.unravel(model, (x, *extra))
    with pytest.raises(rpp.ResnetPathsError, match="n_inputs=1"):
        rpp.BlockLesion(net).attribute(x, 0, extra)


def test_a_network_that_was_told_gives_the_models_numbers():
    model = Prototypes().eval()
    x, extra = arguments(model)
    net = rpp.unravel(model, (x, *extra), n_inputs=1)
    found = rpp.BlockLesion(net).attribute(x, 0, extra)
    with torch.no_grad():
        np.testing.assert_allclose(found.intact_target_score, model(x, *extra)[:, 0], rtol=1e-5, atol=1e-6)


def test_a_network_whose_model_pairs_them_needs_no_word():
    model = Conditioned().eval()
    x, extra = arguments(model)
    found = rpp.BlockLesion(rpp.unravel(model, (x, *extra))).attribute(x, 0, extra, internal_batch_size=50)
    with torch.no_grad():
        np.testing.assert_allclose(found.intact_target_score, model(x, *extra)[:, 0], rtol=1e-5, atol=1e-6)


class Indexed(Blocks):
    """Rows are paired with the samples by computed indices, of which the trace shows nothing."""

    def forward(self, x, shift):
        return self.scores(x) + shift[torch.arange(x.shape[0])]


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_only_the_models_outputs_tell_of_are_cut(tied):
    model = Indexed().eval()
    x, extra = arguments(model)
    analyzer = rpp.BlockLesion(rpp.unravel(model, (x, *extra)) if tied else model)
    found = analyzer.attribute(x, 0, extra, internal_batch_size=50)
    with torch.no_grad():
        np.testing.assert_allclose(found.intact_target_score, model(x, *extra)[:, 0], rtol=1e-5, atol=1e-6)


def test_what_neither_trace_nor_outputs_tell_of_is_refused():
    class OfTheBatch(Blocks):
        def forward(self, x, table):
            return self.scores(x - x.mean(0)) + table.mean(0)

    model = OfTheBatch().eval()
    x, extra = arguments(Averaged())
    with pytest.raises(rpp.ResnetPathsError, match="do not tell whether they belong"):
        rpp.BlockLesion(model).attribute(x, 0, extra)


def test_several_inputs_share_the_batch_whatever_the_model_does():
    class Siamese(Blocks):
        def forward(self, x, y):
            return {"logits": self.scores(x), "other": self.scores(y).mean(1)}

    model = Siamese().eval()
    x, (y,) = torch.randn(40, 5), (torch.randn(40, 5),)
    found = rpp.BlockLesion(model).attribute((x, y), 0, internal_batch_size=16)
    with torch.no_grad():
        np.testing.assert_allclose(found.intact_target_score, model(x, y)["logits"][:, 0], rtol=1e-5, atol=1e-6)


class Basis(Blocks):
    """Reads a square table, which has as many rows as there are samples and features."""

    def forward(self, x, table):
        return self.scores(x @ table)


class OneByOne(Blocks):
    """Freezes the batch, and all samples read all rows."""

    def forward(self, x, prototypes):
        return self.scores(torch.stack([row * 1 for row in x])) @ prototypes.T


@pytest.mark.parametrize(("kind", "sizes"), [(Basis, (None, 1, 2, 3)), (OneByOne, (None,))])
def test_rows_by_chance_of_a_few_samples(kind, sizes):
    model = kind().double().eval()
    rows = 5
    x, table = torch.randn(rows, 5, dtype=torch.float64), torch.randn(rows, 5 if kind is Basis else 4).double()
    with torch.no_grad():
        wanted = model(x, table)[:, 0]
    given = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(given, table)[:, 0].sum(), given)
    for size in sizes:
        found = rpp.BlockLesion(model).attribute(x, 0, (table,), internal_batch_size=size)
        np.testing.assert_allclose(found.intact_target_score, wanted, rtol=1e-6)
        paths = rpp.PathLengthGradient(model).attribute(x, 0, (table,), keep_maps=True, internal_batch_size=size)
        np.testing.assert_allclose(paths.gradient.values.sum(0), gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [Conditioned, Prototypes, Averaged])
def test_rows_beside_a_single_sample(kind):
    model = kind().eval()
    x, table = torch.randn(1, 5), torch.randn(1, 5 if kind is Conditioned else 4)
    found = rpp.BlockLesion(model).attribute(x, 0, (table,))
    with torch.no_grad():
        np.testing.assert_allclose(found.intact_target_score, model(x, table)[:, 0], rtol=1e-5)
