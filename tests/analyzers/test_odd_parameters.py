"""Gradients at parameters of models that read them in odd ways: split, summed, tied, random, or as an output.

The oracle is autograd: the sum over path lengths of each part, and of all parts.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import IncompleteGradientWarning, InputError, StochasticModelWarning

WIDTH = 6


def branch(width=WIDTH):
    return nn.Sequential(nn.Linear(width, 5), nn.Tanh(), nn.Linear(5, width))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = branch()

    def forward(self, x):
        return x + self.f(x)


class Chunked(nn.Module):
    """Halves of one parameter, of different use."""

    def __init__(self):
        super().__init__()
        self.w, self.out = nn.Parameter(torch.randn(2 * WIDTH, WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        first, second = self.w.chunk(2)
        return x + self.out((x @ first).tanh() + 2 * (x @ second).sin())


class Attention(nn.Module):
    """torch's own attention with keys of another width, which chunks its bias."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, kdim=4, vdim=4, batch_first=True)
        self.down = nn.Linear(WIDTH, 4)

    def forward(self, x):
        keys = self.down(x)
        sequence = x.unsqueeze(1).expand(-1, 3, -1)
        found, _ = self.attention(sequence, keys.unsqueeze(1).expand(-1, 3, -1), keys.unsqueeze(1).expand(-1, 3, -1))
        return x + found.mean(1)


class Standardised(nn.Module):
    """A weight that is standardised by the statistics of two outputs of one operator."""

    def __init__(self):
        super().__init__()
        self.w, self.out = nn.Parameter(torch.randn(WIDTH, WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        variance, mean = torch.var_mean(self.w, dim=1, keepdim=True)
        return x + self.out(torch.tanh(x @ ((self.w - mean) / (variance + 1e-3).sqrt())))


class Biased(nn.Module):
    """A parameter as a term of the sum."""

    def __init__(self, order):
        super().__init__()
        self.f, self.bias, self.order = branch(), nn.Parameter(torch.randn(WIDTH)), order

    def forward(self, x):
        if self.order == "with branch":
            return x + (self.f(x) + self.bias)
        return (x + self.bias) + self.f(x)


def chain(*middle):
    return nn.Sequential(nn.Linear(3, WIDTH), *middle, nn.Linear(WIDTH, 4)).double()


MIDDLES = {
    "chunked": Chunked,
    "attention": Attention,
    "standardised": Standardised,
    "bias with branch": lambda: Biased("with branch"),
    "bias with skip": lambda: Biased("with skip"),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_odd_uses_of_parameters_add_up_and_are_measured(name):
    torch.manual_seed(0)
    model, x = chain(MIDDLES[name](), Block()), torch.randn(4, 3, dtype=torch.float64)
    ds = rpp.PathLengthGradient(model).attribute(x, 1, tap="parameters")
    assert (ds.completeness_error < 1e-12).all(), ds.completeness_error
    assert int(ds.n_parameters.sum()) == sum(p.numel() for p in model.parameters())
    # All paths of the first block's parameters: autograd's own norm.
    part = ds.block.values[0]
    first = model[1]
    total = model(x)[:, 1].sum()
    gradients = torch.autograd.grad(total, [*first.parameters()])
    if name in {"chunked", "standardised"}:
        one = rpp.PathLengthGradient(model).attribute(x, 1, tap="parameters", grade=lambda _: 0)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        np.testing.assert_allclose(one.parameter_gradient_norm.sel(block=part).values, [norm], rtol=1e-10)


def test_a_transformer_decoder_is_complete():
    torch.manual_seed(0)

    class Decoding(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerDecoderLayer(WIDTH, 2, 8, 0.0, batch_first=True, norm_first=True)
            self.decoder, self.head = nn.TransformerDecoder(layer, 2), nn.Linear(WIDTH, 3)

        def forward(self, x, memory):
            return self.head(self.decoder(x, memory)[:, 0])

    model = Decoding().double().eval()
    inputs = torch.randn(2, 3, WIDTH, dtype=torch.float64), torch.randn(2, 4, WIDTH, dtype=torch.float64)
    ds = rpp.PathLengthGradient(model).attribute(inputs, 1, tap="parameters")
    assert (ds.completeness_error < 1e-12).all()


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.a, self.b = Block(), nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.block(x)
        return self.a(x), self.b(x)


def of_one_head(outputs, target):
    return outputs[int(target[0])][:, 0]


def test_batches_that_reach_other_parameters_add_up():
    torch.manual_seed(0)
    model, x = TwoHeads().double(), torch.randn(3, WIDTH, dtype=torch.float64)
    batches = [(x, torch.zeros(3, dtype=torch.long)), (x + 1, torch.ones(3, dtype=torch.long))]
    ds = rpp.PathLengthGradient(model).attribute(batches, tap="parameters", objective=of_one_head)
    total = model(x)[0][:, 0].sum() + model(x + 1)[1][:, 0].sum()
    heads = torch.autograd.grad(total, [*model.a.parameters(), *model.b.parameters()])
    norm = torch.cat([g.flatten() for g in heads]).norm()
    head = ds.sel(block="head")
    np.testing.assert_allclose(head.parameter_gradient_norm[0], norm, rtol=1e-12)
    assert int(head.n_parameters) == 42
    assert (ds.completeness_error < 1e-12).all()


def test_parts_of_the_trunk_are_told_from_blocks_of_their_names():
    torch.manual_seed(0)

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.stem, self.head, self.leave = nn.Linear(3, WIDTH), Block(), Block(), nn.Linear(WIDTH, 4)

        def forward(self, x):
            return self.leave(self.head(self.stem(self.enter(x))))

    model = Named().double()
    ds = rpp.PathLengthGradient(model).attribute(torch.randn(4, 3, dtype=torch.float64), 1, tap="parameters")
    assert ds.block.values.tolist() == ["stem", "head", "(stem)", "(head)"]
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.stem, model.head, model.enter, model.leave)]
    assert ds.n_parameters.values.tolist() == sizes
    assert ds.parameter_gradient_norm.sel(block="stem", path_length=0) == 0


def test_parameters_among_the_outputs_complex_ones_and_constants():
    torch.manual_seed(0)

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.p = Block(), nn.Parameter(torch.randn(WIDTH))
            self.spectrum = nn.Parameter(torch.randn(WIDTH // 2 + 1, dtype=torch.complex64))

        def forward(self, x):
            x = self.block(x)
            x = x + self.block.f(torch.fft.irfft(torch.fft.rfft(x) * self.spectrum, n=WIDTH))
            return {"y": x, "p": self.p, "more": (x * 2, 3)}

    model, x = Odd().double(), torch.randn(4, WIDTH, dtype=torch.float64)
    model.spectrum = nn.Parameter(model.spectrum.detach().to(torch.complex128))

    def objective(outputs, _):
        return (outputs["y"] * outputs["p"]).sum(1) * outputs["more"][1]

    ds = rpp.PathLengthGradient(model).attribute(x, tap="parameters", objective=objective)
    assert (ds.completeness_error < 1e-12).all(), ds.completeness_error
    assert int(ds.n_parameters.sel(block="head")) == WIDTH
    assert int(ds.n_parameters.sum()) == 2 * sum(p.numel() for p in model.block.parameters()) + WIDTH + 2 * (
        WIDTH // 2 + 1
    )


def test_a_model_that_draws_at_random_is_complete_for_what_it_drew():
    torch.manual_seed(0)

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g = branch(), branch()

        def forward(self, x):
            x = x + functional.dropout(self.f(x), 0.5, training=True)
            return x + self.g(x)

    model, x = chain(Noisy()), torch.randn(4, 3, dtype=torch.float64)
    with pytest.warns(StochasticModelWarning):
        ds = rpp.PathLengthGradient(model).attribute(x, 1, tap="parameters", run=rpp.RunOptions(verify=False))
    assert (ds.completeness_error < 1e-12).all()


class Steep(nn.Module):
    """Token ids; a slope that is infinite at 0, where a rectifier lets nothing pass."""

    def __init__(self):
        super().__init__()
        self.embedding, self.block, self.norm = nn.Embedding(9, WIDTH), Block(), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, tokens):
        x = self.norm(self.block(self.embedding(tokens)).mean(1))
        return self.head(torch.relu(torch.sqrt(torch.relu(x))))


def test_slopes_of_zero_times_infinity_are_left_to_autograd_for_token_ids_too():
    torch.manual_seed(0)
    model, tokens = Steep().double(), torch.randint(0, 9, (4, 3))
    ds = rpp.PathLengthGradient(model).attribute(tokens, 1, tap="parameters")
    gradients = torch.autograd.grad(model(tokens)[:, 1].sum(), [*model.block.parameters()])
    assert all(g.isfinite().all() for g in gradients)
    assert (ds.completeness_error < 1e-12).all()


def test_what_does_not_add_up_is_warned_of(monkeypatch):
    from resnet_paths_plugin.engine.parameter_rules import RULES

    linear = torch.ops.aten.linear.default
    right = RULES[linear]
    monkeypatch.setitem(RULES, linear, lambda call: {at: lambda b, f=f: 1.1 * f(b) for at, f in right(call).items()})
    torch.manual_seed(0)
    with pytest.warns(IncompleteGradientWarning, match="add up to autograd's only within"):
        ds = rpp.PathLengthGradient(chain(Block())).attribute(torch.randn(3, 3).double(), 1, tap="parameters")
    assert (ds.completeness_error > 0.05).all()  # autograd takes no part in the walk


def test_blocks_without_parameters_have_no_mean_length():
    torch.manual_seed(0)

    class Pooled(nn.Module):
        def forward(self, x):
            return x + functional.avg_pool2d(x, 3, 1, 1)

    model = nn.Sequential(nn.Conv2d(1, 3, 3), Pooled(), nn.Conv2d(3, 2, 1)).double()
    net = rpp.unravel(model, torch.randn(2, 1, 6, 6, dtype=torch.float64))
    assert len(net.blocks) == 1
    ds = rpp.PathLengthGradient(net).attribute(torch.randn(2, 1, 6, 6).double(), (1, 2, 2), tap="parameters")
    assert ds.mean_path_length.isnull().values.tolist() == [True, False, False]
    ax = ds.resnet_paths.plot()
    assert ax is not None


def test_single_samples_of_a_network_with_a_fixed_batch_are_refused_by_name():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.head = Block(), nn.Linear(WIDTH, 3)

        def forward(self, x):
            return self.head(self.block(x.reshape(4, WIDTH)))

    x = torch.randn(4, WIDTH)
    with pytest.raises(InputError, match="per_sample walks one sample at a time"):
        rpp.PathLengthGradient(Fixed()).attribute(x, 1, tap="parameters", per_sample=True)
