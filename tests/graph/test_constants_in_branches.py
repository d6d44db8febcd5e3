"""Constants in the form of data inside branches, and values drawn twice: neither a place nor a draw is lost."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin.engine.schedule import Schedule

FORMS = {
    "zeros_like": lambda h: torch.cat([h, torch.zeros_like(h)], 1)[:, 2:7],
    "new_ones": lambda h: h * h.new_ones(h.shape),
    "a chain": lambda h: h + torch.full_like(h[:, :1], 0.5).repeat(1, 5),
}


class Chain(nn.Module):
    """Three blocks whose branches make constants; `order` says which branch runs at each place."""

    def __init__(self, form):
        super().__init__()
        self.form, self.order = form, (0, 1, 2)
        self.f, self.h = nn.ModuleList(nn.Linear(5, 5) for _ in range(3)), nn.Linear(5, 4)

    def forward(self, x):
        for at in self.order:
            x = x + torch.tanh(self.form(self.f[at](x)))
        return self.h(x)


@pytest.mark.parametrize("form", FORMS)
def test_branches_that_make_constants_trade_places(form):
    torch.manual_seed(0)
    model = Chain(FORMS[form]).double().eval()
    x = torch.randn(3, 5, dtype=torch.float64)
    net = rpp.unravel(model, x)
    assert len(net.blocks) == 3
    assert net.program.fits.all()
    with torch.no_grad():
        for order in itertools.permutations(range(3)):
            model.order = order
            torch.testing.assert_close(net.scheduled(Schedule.order(net, order))(x), model(x))


DRAWS = {
    "attention": lambda x: functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], dropout_p=0.5)[
        :, 0
    ],
    "rrelu": lambda x: functional.rrelu(-x.abs(), training=True),
    "dropout": lambda x: functional.dropout(x, 0.5, training=True),
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.filterwarnings("ignore:.*draws random numbers")
def test_what_is_drawn_twice_stays_two_values(draw):
    class Drawn(Chain):
        def forward(self, x):
            return super().forward(x + DRAWS[draw](x) - DRAWS[draw](x))

    net = rpp.unravel(Drawn(FORMS["new_ones"]).eval(), torch.randn(3, 5), verify=False)
    names = [str(node.target) for node in net.graph.graph.nodes]
    assert sum(draw in name for name in names) == 2


def test_parts_of_a_split_that_is_written_twice_are_one_value():
    class Halves(Chain):
        def forward(self, x):
            for f in self.f:
                x = x.chunk(1, 1)[0].tanh() + torch.relu(f(x.chunk(1, 1)[0].tanh()))
            return self.h(x)

    model, x = Halves(None).eval(), torch.randn(3, 5)
    net = rpp.unravel(model, x)
    assert [block.skip_kind for block in net.blocks] == ["identity"] * 3
    assert torch.equal(net(x), model(x))
