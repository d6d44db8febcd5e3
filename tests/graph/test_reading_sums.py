"""What the detector reads: constants in skips, values written twice, skips and sums of other forms, owners, groups.

Numbers of blocks are read off the code of each small model; lesions are compared with a copy whose branch is zero.
"""

import numpy as np
import pytest
import torch
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.engine.forward import ForwardEngine
from resnet_paths_plugin.engine.program import Program
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import UnknownBlockError
from resnet_paths_plugin.graph.capture import capture


class Two(nn.Module):
    """Two blocks by functions of the source; `gone` leaves one branch out as a user would."""

    gone = -1

    def __init__(self, skip=lambda x: x, add=torch.add, sizes=(5, 5, 5)):
        super().__init__()
        self.skip, self.add = skip, add
        self.f = nn.ModuleList(map(nn.Linear, sizes, sizes[1:]))
        self.h = nn.Linear(sizes[-1], 4)

    def forward(self, x):
        for index, f in enumerate(self.f):
            branch = torch.relu(f(x))
            x = self.add(self.skip(x), branch * 0 if index == self.gone else branch)
        return self.h(x)


def padded(zeros):
    return lambda x: torch.cat([x, zeros(x)], 1)


PADDED = {
    "zeros_like": torch.zeros_like,
    "ones_like": torch.ones_like,
    "new_zeros": lambda x: x.new_zeros(x.shape),
    "new_full": lambda x: x.new_full(x.shape, 0.5),
    "full_like": lambda x: torch.full_like(x, 0.0),
    "zeros": lambda x: torch.zeros(x.shape),
    "new_empty, zeroed": lambda x: x.new_empty(x.shape).zero_(),
    "empty_like, filled": lambda x: torch.empty_like(x).fill_(0.5),
    "times zero": lambda x: x * 0,
    "zero times": lambda x: 0.0 * x,
}
WIDENING = {
    **{name: padded(zeros) for name, zeros in PADDED.items()},
    "repeat": lambda x: x.repeat(1, 2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
    "tile": lambda x: torch.tile(x, (1, 2)),
}
KEEPING = {
    "expand": lambda x: x[:, None].expand(-1, 1, -1)[:, 0],
    "masked_fill": lambda x: x.masked_fill(torch.arange(5) > 3, 0.0),
    "einsum": lambda x: torch.einsum("bc->bc", x),
    "einsum twice": lambda x: torch.einsum("cb->bc", torch.einsum("bc->cb", x)),
    "einsum with a diagonal": lambda x: torch.einsum("bc,c->bc", x, torch.full((5,), 0.5, dtype=x.dtype)),
    "einsum with dots": lambda x: torch.einsum("c,...c->...c", torch.full((5,), 0.5, dtype=x.dtype), x),
    "stack of all parts": lambda x: torch.stack(x.unbind(1), 1),
    "stack of all columns": lambda x: torch.stack([x[:, column] for column in range(5)], -1),
}
SUMS = {
    "mean of a stack": lambda s, f: torch.stack([s, f]).mean(0),
    "mean of three": lambda s, f: torch.stack([s, f, torch.full_like(s, 0.3)], 1).mean(1),
    "mean that keeps its dimension": lambda s, f: torch.stack([s, f, f], 1).mean(1, keepdim=True)[:, 0],
    "sum that keeps its dimension": lambda s, f: torch.stack([s, f], -1).sum(2, keepdim=True).squeeze(-1),
    "stack counted from the end": lambda s, f: torch.stack([s, f], -1).sum(2),
    "cat of three": lambda s, f: torch.cat([s[:, None], f[:, None], s.unsqueeze(-2)], 1).sum(-2),
    "mean of a cat": lambda s, f: torch.cat([s[:, None] * 1.5, f.view(-1, 1, 5)], 1).mean(1),
    "cat that a view splits": lambda s, f: torch.cat([s, f], 1).view(-1, 2, 5).sum(1),
    "einsum over a stack": lambda s, f: torch.einsum("nbc->bc", torch.stack([s, f])),
    "rsub": lambda s, f: torch.rsub(f, s, alpha=-0.5),
    "sum of a list": lambda s, f: sum([s, f]),
    "with a constant": lambda s, f: s + f + torch.ones_like(s),
}


def cases():
    for name, skip in WIDENING.items():
        yield pytest.param(skip, torch.add, (4, 8, 16), id=name)
    for name, skip in KEEPING.items():
        yield pytest.param(skip, torch.add, (5, 5, 5), id=name)
    for name, add in SUMS.items():
        yield pytest.param(lambda x: x, add, (5, 5, 5), id=name)


@pytest.mark.slow
@pytest.mark.parametrize(("skip", "add", "sizes"), [*cases()])
def test_both_blocks_are_found_and_run(skip, add, sizes):
    torch.manual_seed(0)
    model = Two(skip, add, sizes).double().eval()
    x = torch.randn(4, sizes[0], dtype=torch.float64)
    net = rpp.unravel(model, x)
    assert len(net.blocks) == 2
    with torch.no_grad():
        assert torch.equal(net(x), model(x))
        for index in range(2):
            model.gone = index
            wanted = model(x)
            model.gone = -1
            torch.testing.assert_close(net.lesioned([index])(x), wanted)
    found = rpp.PathLengthGradient(net).attribute(x, target=0)
    assert found.completeness_error.max() < 1e-12


def test_an_expression_that_is_written_twice_is_one_value():
    class Twice(Two):
        def forward(self, x):
            for f in self.f:
                x = x.tanh() + torch.relu(f(x.tanh()))
            return self.h(x)

    model, x = Twice().eval(), torch.randn(4, 5)
    net = rpp.unravel(model, x)
    assert [block.skip_kind for block in net.blocks] == ["identity"] * 2
    assert torch.equal(net(x), model(x))


def test_the_same_slice_taken_twice_is_one_value():
    class Sliced(Two):
        def forward(self, x):
            h = x + torch.relu(self.f[0](x))
            y = h[:, 1:] + torch.relu(self.f[1](h[:, 1:]))
            return self.h(torch.cat([h[:, :1], y], 1))

    model = Sliced(sizes=(5, 5)).eval()
    model.f.append(nn.Linear(4, 4))
    assert len(rpp.unravel(model, torch.randn(4, 5)).blocks) == 2


def test_values_that_are_drawn_twice_are_two():
    class Drawn(Two):
        def forward(self, x):
            return super().forward(x + torch.rand_like(x) - torch.rand_like(x))

    with pytest.warns(Warning, match="draws random numbers"):
        net = rpp.unravel(Drawn().eval(), torch.randn(4, 5))
    assert sum("rand" in str(node.target) for node in net.graph.graph.nodes) == 2


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bchw,c->bchw", [(3, 4, 2, 2), (4,)]),
        ("c,bchw->bhwc", [(4,), (3, 4, 2, 2)]),
        ("hc,bchw->wcbh", [(2, 4), (3, 4, 2, 5)]),
        ("...c,bc->b...c", [(2, 4), (3, 4)]),
        ("b...c,...c->b...c", [(3, 2, 4), (2, 4)]),
        ("bchw->hb", [(3, 4, 2, 5)]),
        ("...hw->w...", [(3, 4, 2, 5)]),
        ("ij->", [(3, 4)]),
        ("ii,ij->ij", [(3, 3), (3, 4)]),
        ("bij,bjk->bik", [(3, 2, 4), (3, 4, 2)]),
        ("ij,kj", [(3, 4), (2, 4)]),
    ],
)
def test_an_einsum_in_plain_form_returns_the_same_bits(equation, shapes):
    """Whichever of the operands are data."""

    class Model(nn.Module):
        def forward(self, *operands):
            return torch.einsum(equation, *operands).cos()

    torch.manual_seed(0)
    operands = [torch.randn(shape) for shape in shapes]
    graph = capture(Model().eval(), tuple(operands))
    program = Program(graph, ())
    net = ForwardEngine(program)
    inputs = dict(zip(program.inputs, operands, strict=True))
    ((_, (found,)),) = net.run([Schedule(0)], inputs, program.parameters())
    assert torch.equal(found, Model()(*operands))


FUSED = {
    "addmm": lambda x, f: torch.addmm(x, x, f.weight.T),
    "addcmul": lambda x, f: torch.addcmul(x, f(x), x),
    "lerp": lambda x, f: x.lerp(f(x), 0.3),
    "index_add": lambda x, f: x.index_add(1, torch.arange(5), f(x)),
    "index_put": lambda x, f: x.index_put((torch.arange(4)[:, None], torch.arange(5)), f(x), accumulate=True),
    "scatter_add": lambda x, f: x.scatter_add(1, torch.arange(5).expand(x.shape), f(x)),
    "scatter_reduce": lambda x, f: x.scatter_reduce(1, torch.arange(5).expand(x.shape), f(x), "sum"),
    "scatter": lambda x, f: x.scatter(1, torch.arange(5).expand(x.shape), f(x), reduce="add"),
}


@pytest.mark.parametrize("form", FUSED)
def test_a_sum_inside_one_operator_is_reported(form):
    class Fused(Two):
        def forward(self, x):
            for f in self.f:
                x = FUSED[form](x, f)
            return self.h(x)

    net = rpp.unravel(Fused().eval(), torch.randn(4, 5))
    assert net.other_sums()["reason"].tolist() == [f"{form} adds inside one operator"] * 2


WEIGHTS = torch.tensor([1.0, 2.0])
STACKED = {
    "einsum": lambda s, f: torch.einsum("nbc,n->bc", torch.stack([s, f]), WEIGHTS),
    "matmul": lambda s, f: torch.stack([s, f], -1) @ torch.ones(2),
    "matmul from the left": lambda s, f: (torch.ones(1, 2) @ torch.stack([s, f], 1))[:, 0],
    "tensordot": lambda s, f: torch.tensordot(WEIGHTS, torch.stack([s, f]), 1),
    "sum of a product": lambda s, f: (torch.stack([s, f], -1) * WEIGHTS).sum(-1),
    "sum of a permutation": lambda s, f: torch.stack([s, f]).permute(1, 2, 0).sum(-1),
    "sum in an einsum that permutes": lambda s, f: torch.einsum("bnc->cb", torch.stack([s, f], 1)).mT,
    "sum of a transposition": lambda s, f: torch.stack([s, f], 1).mT.sum(-1),
    "sum of a reshaped cat": lambda s, f: (torch.cat([s, f], 1).reshape(-1, 2, 5) * 2).sum(1),
    "sum over two dimensions": lambda s, f: torch.stack([s, f])[:, None].sum((0, 1)),
    "nansum": lambda s, f: torch.stack([s, f]).nansum(0),
}


@pytest.mark.parametrize("form", STACKED)
def test_a_sum_of_what_was_stacked_is_reported_where_its_terms_are_no_values(form):
    operator = form.partition(" ")[0]
    net = rpp.unravel(Two(add=STACKED[form]).eval(), torch.randn(4, 5))
    assert net.other_sums()["reason"].tolist() == [f"{operator} adds stacked values inside one operator"] * 2


def test_what_adds_along_other_dimensions_is_no_sum_of_terms():
    def forward(s, f):
        both = torch.stack([s, f], 1)
        tokens = torch.cat([both, both[:, :1]], 1)  # of unequal sizes
        attention = (tokens @ tokens.mT).softmax(-1)
        return (attention @ tokens)[:, 0] * both.mean(2).sum(1, keepdim=True).detach() ** 0 * tokens.sum(1)[:, :1] ** 0

    net = rpp.unravel(Two(add=forward).eval(), torch.randn(4, 5))
    assert not any("stacked" in reason for reason in net.other_sums()["reason"])


def test_a_bias_is_no_skip():
    net = rpp.unravel(Two(add=lambda s, f: s * torch.addmm(torch.ones(5), f, torch.eye(5))).eval(), torch.randn(4, 5))
    assert net.other_sums()["reason"].tolist() == ["adds a parameter or constant"] * 2


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.mlp = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x):
        x = x + self.attn(x).relu()
        return x + self.mlp(x).relu()


class Encoder(nn.Module):
    def __init__(self, after):
        super().__init__()
        self.layers, self.after, self.h = nn.ModuleList(Layer() for _ in range(3)), after, nn.Linear(5, 4)
        self.pos = nn.ParameterList(nn.Parameter(torch.randn(5)) for _ in range(3))

    def forward(self, x):
        for layer, pos in zip(self.layers, self.pos, strict=True):
            x = self.after(layer(x), pos)
        return self.h(x)


AFTER = {
    "nothing": lambda x, _pos: x,
    "a parameter": lambda x, pos: x + pos,
    "before": lambda x, pos: pos + x,
    "two": lambda x, pos: x + pos + 1.0 * pos,
    "a difference": lambda x, pos: x - pos,
}


@pytest.mark.parametrize("after", AFTER)
def test_a_block_belongs_to_the_module_that_adds_its_branch(after):
    net = rpp.unravel(Encoder(AFTER[after]).eval(), torch.randn(4, 5))
    groups = [f"layers.{layer}" for layer in range(3) for _ in range(2)]
    assert [block.group for block in net.blocks] == groups
    names = [f"layers.{layer}.{part}" for layer in range(3) for part in ("attn", "mlp")]
    assert [block.name for block in net.blocks] == names


def test_a_block_inside_a_module_is_told_apart_from_its_parents_block_of_that_name():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj, self.d = nn.Linear(5, 5), nn.Parameter(torch.rand(5))

        def forward(self, x):
            return torch.tanh(self.proj(x)) + x * self.d

    class Mamba(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.mixer = nn.LayerNorm(5), Mixer()

        def forward(self, x):
            return x + self.mixer(self.norm(x))

    model = nn.Sequential(Mamba(), Mamba(), nn.Linear(5, 4)).eval()
    names = [block.name for block in rpp.unravel(model, torch.randn(4, 5)).blocks]
    assert len(names) == 4
    assert not any(":" in name for name in names)


class TestGroups:
    net = rpp.unravel(Encoder(AFTER["a parameter"]).eval(), torch.randn(4, 5))
    x = torch.randn(4, 5)

    def test_a_group_stands_for_its_blocks(self):
        both = self.net.lesioned(["layers.1.attn", "layers.1.mlp"])(self.x)
        assert torch.equal(self.net.lesioned("layers.1")(self.x), both)
        assert torch.equal(self.net.lesioned("layers.1.attn+layers.1.mlp")(self.x), both)

    def test_labels_of_a_study_of_groups_name_blocks(self):
        study = rpp.BlockLesion(self.net).attribute(self.x, 0, level="group")
        for label in study.lesion.values:
            found = self.net.lesioned(str(label))(self.x)[:, 0].detach()
            np.testing.assert_allclose(study.target_score.sel(lesion=label), found, rtol=1e-6)
        sets = rpp.BlockLesion(self.net).attribute(self.x, 0, lesions=[["layers.0", "layers.2.mlp"]])
        assert sets.n_deleted.item() == 3

    def test_what_is_neither_is_refused_with_the_nearest_names(self):
        with pytest.raises(UnknownBlockError, match=r"layers\.9"):
            self.net.lesioned("layers.9")
