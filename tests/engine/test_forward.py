"""Schedules change a network's sums and nothing else, and what schedules share is computed once.

The oracles are copies of the model patched by hand, plain eager loops, and counts of the operators that torch runs.
"""

import copy
import math
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from captum.attr import (
    LRP,
    DeepLift,
    GuidedBackprop,
    IntegratedGradients,
    LayerActivation,
    LayerGradCam,
    NoiseTunnel,
    Saliency,
)
from known_networks import CASES, unraveled
from networks import Highway, PostActivationBlock, PreActivation, Repeated, Residual, Vectors, mlp, randomised, without
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import ScheduleError, UnsupportedMethodError

BY_HAND = [name for name, case in CASES.items() if case.blocks and name not in {"dual path", "repeated", "highway"}]
"""Networks whose branches are what one submodule returns each, so that a wrapper can zero them."""


class Counted(TorchDispatchMode):
    """Counts the operators that torch runs."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func] += 1
        return func(*args, **(kwargs or {}))


def products(run):
    """Count the matrix products with a bias (one for each linear layer) while `run` runs."""
    with Counted() as counted, torch.no_grad():
        run()
    return counted.counts[torch.ops.aten.addmm.default]


def chain(blocks, width=6):
    """Linear stem and head, and single-layer branches in between: one product for each of them."""
    branches = (nn.Sequential(nn.Tanh(), nn.Linear(width, width)) for _ in range(blocks))
    return randomised(Vectors(*(Residual(branch) for branch in branches))).eval().double()


def run_all(net, schedules, x, **options):
    results = dict(net.outputs(schedules, (x,), **options))
    return [results[place] for place in range(len(schedules))]


def assert_close(ours, theirs):
    for one, other in zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs), strict=True):
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        else:
            assert one == other


# Lesions


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_HAND)
def test_deleting_blocks_equals_zeroing_their_branches_by_hand(name):
    blocks, (net, model, inputs) = CASES[name].blocks, unraveled(name, torch.float64)
    intact = model(*inputs)
    for known in blocks:
        deleted = net.lesioned(known.name)(*inputs)
        assert_close(deleted, without(model, known.path)(*inputs))
        changes = [
            not torch.equal(one, other)
            for one, other in zip(pytree.tree_leaves(deleted), pytree.tree_leaves(intact), strict=True)
            if isinstance(one, torch.Tensor)
        ]
        assert any(changes), known.name
    every = [known.name for known in blocks]
    assert_close(net.lesioned(every)(*inputs), without(model, *(known.path for known in blocks))(*inputs))


def test_deleting_a_block_keeps_its_projection():
    case = CASES["post-activation"]
    model, (x,) = case.model().double(), case.inputs(dtype=torch.float64)
    block = model.projected
    source = model.padded(model.plain(model.stem(x)))
    lesioned = rpp.unravel(model, x).lesioned("projected")
    assert_close(lesioned(x), model.head(model.pooled(block.shortcut(source).relu()).mean((2, 3))))


def test_deleting_a_highway_layer_keeps_what_the_gate_carries():
    model = randomised(Vectors(Highway(), Highway())).eval().double()
    x = torch.randn(3, 7, dtype=torch.float64)
    first, second = model.middle
    carried = model.stem(x)
    carried = (1 - first.gate(carried)) * carried
    assert_close(rpp.unravel(model, x).lesioned("middle.0")(x), model.head(second(carried)))


def test_deleting_a_dual_path_block_keeps_its_dense_path():
    model = CASES["dual path"].model().double()
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    stem = model.stem(x)
    _, dense = model.block1(stem[:, :4], stem[:, 4:])
    residual, dense = model.block2(stem[:, :4], dense)
    expected = model.head(torch.cat([residual, dense], 1).mean((2, 3)))
    assert_close(rpp.unravel(model, x).lesioned("block1")(x), expected)


def test_one_run_of_a_repeated_module_is_deleted_alone():
    model = randomised(Repeated()).eval().double()
    x = torch.randn(3, 7, dtype=torch.float64)
    net = rpp.unravel(model, x)
    expected = model.head(model.block(model.block(model.stem(x))))
    for which in range(3):
        assert_close(net.lesioned(which)(x), expected)


def test_deleting_every_block_leaves_the_trunk():
    model = CASES["pre-activation"].model().double()
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    trunk = model.head(model.stem(x).relu().mean((2, 3)))
    assert_close(rpp.unravel(model, x).lesioned(range(3))(x), trunk)


@pytest.mark.parametrize("name", ["post-activation", "transformer", "parallel, stacked", "nested"])
def test_gradients_of_a_lesioned_network_are_those_of_a_copy_patched_by_hand(name):
    case = CASES[name]
    model, (x,) = case.model().double(), case.inputs(dtype=torch.float64)
    known = case.blocks[1]
    patched = without(model, known.path)
    x.requires_grad_()
    view = rpp.unravel(model, x.detach()).lesioned(known.name)
    found = torch.autograd.grad(view(x).square().sum(), [x, *model.parameters()], allow_unused=True)
    wanted = torch.autograd.grad(patched(x).square().sum(), [x, *patched.parameters()])
    for one, other in zip(found, wanted, strict=True):
        assert_close(torch.zeros_like(other) if one is None else one, other)


# Other schedules


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_HAND)
def test_the_identity_schedule_is_the_model_bit_for_bit(name):
    net, model, inputs = unraveled(name)
    weights = np.eye(len(net.blocks))
    for schedule in (
        rpp.Schedule.identity(net),
        rpp.Schedule.lesion(net, []),
        rpp.Schedule.order(net, range(len(net.blocks))),
        rpp.Schedule.from_weights(net, weights),
    ):
        for one, other in zip(
            pytree.tree_leaves(net.scheduled(schedule)(*inputs)),
            pytree.tree_leaves(model(*inputs)),
            strict=True,
        ):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
        np.testing.assert_array_equal(schedule.weights, weights)


@pytest.mark.parametrize("order", [(1, 0, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_reordering_equals_a_sequence_put_in_that_order_by_hand(order):
    model, x = chain(4), torch.randn(3, 7, dtype=torch.float64)
    net = rpp.unravel(model, x)
    by_hand = copy.deepcopy(model)
    by_hand.middle = nn.Sequential(*(model.middle[place] for place in order))
    schedule = rpp.Schedule.order(net, [net.blocks[place].name for place in order])
    assert_close(net.scheduled(schedule)(x), by_hand(x))
    np.testing.assert_array_equal(schedule.weights, np.eye(4)[list(order)])


def test_reordering_blocks_of_several_layers_equals_a_sequence_put_in_that_order_by_hand():
    model = CASES["transformer"].model().double()
    model.layers[1] = copy.deepcopy(model.layers[0])
    randomised(model.layers[1], seed=5)
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    net = rpp.unravel(model, x)
    first, second = model.layers
    tokens = model.patches(x).flatten(2).transpose(1, 2) + model.position
    tokens = tokens + second.mlp(second.norm2(tokens))
    tokens = tokens + second.attn(second.norm1(tokens), model.mask)
    tokens = tokens + first.attn(first.norm1(tokens), model.mask)
    tokens = tokens + first.mlp(first.norm2(tokens))
    assert_close(net.scheduled(rpp.Schedule.order(net, [3, 2, 0, 1]))(x), model.head(tokens.mean(1)))


def test_scaled_branches_equal_a_plain_loop():
    model, x = chain(3), torch.randn(3, 7, dtype=torch.float64)
    net = rpp.unravel(model, x)

    def loop(*factors):
        value = model.stem(x)
        for block, factor in zip(model.middle, factors, strict=True):
            value = value + factor * block.branch(value)
        return model.head(value)

    assert_close(net.scheduled(rpp.Schedule.scaled(net, 0.5))(x), loop(0.5, 0.5, 0.5))
    assert_close(net.scheduled(rpp.Schedule.scaled(net, -2, ["middle.1"]))(x), loop(1, -2, 1))
    assert_close(net.scheduled(rpp.Schedule.scaled(net, 0, "middle.1"))(x), loop(1, 0, 1))


@pytest.mark.parametrize("name", ["alpha", "minus", "rezero"])
def test_a_weight_multiplies_the_scale_that_the_sum_has_already(name):
    case = CASES[name]
    model, (x,) = case.model().double(), case.inputs(dtype=torch.float64)
    net = rpp.unravel(model, x)
    block = model.middle[0]
    source = model.stem(x)
    value = source + 3 * (block(source) - source)
    assert_close(net.scheduled(rpp.Schedule.scaled(net, 3.0))(x), model.head(value))


def test_any_weights_equal_a_plain_loop():
    model, x = chain(3), torch.randn(3, 7, dtype=torch.float64)
    net = rpp.unravel(model, x)
    weights = np.array([[0.5, 0.0, -1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 1.0]])
    value = model.stem(x)
    for row in weights:
        value = value + sum(w * block.branch(value) for w, block in zip(row, model.middle, strict=True))
    schedule = rpp.Schedule.from_weights(net, weights)
    assert_close(net.scheduled(schedule)(x), model.head(value))
    np.testing.assert_array_equal(schedule.weights, weights)


def test_a_constant_in_place_of_a_branch_is_an_ablation_by_hand():
    model, x = chain(3), torch.randn(4, 7, dtype=torch.float64)
    net = rpp.unravel(model, x)
    source = model.middle[0](model.stem(x))
    mean = model.middle[1].branch(source).mean(0, keepdim=True)
    schedule = rpp.Schedule.from_rows(net, {1: ()}, {1: mean})
    assert_close(net.scheduled(schedule)(x), model.head(model.middle[2](source + mean)))


def test_moving_an_outer_branch_takes_the_blocks_inside_it_along():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Sequential(Residual(mlp()), nn.Linear(6, 6))

        def forward(self, x):
            return x + self.branch(x)

    model = randomised(Vectors(Outer(), Outer())).eval().double()
    x = torch.randn(3, 7, dtype=torch.float64)
    net = rpp.unravel(model, x)
    names = [block.name for block in net.blocks]
    assert names == ["middle.0.branch.0", "middle.0", "middle.1.branch.0", "middle.1"]
    first, second = model.middle
    swapped = rpp.Schedule.order(net, [names[0], names[3], names[2], names[1]])
    value = model.stem(x)
    value = value + second.branch(value)
    value = value + first.branch(value)
    assert_close(net.scheduled(swapped)(x), model.head(value))
    without_inner = rpp.Schedule.from_rows(net, {**swapped.rows, 2: ()})
    value = model.stem(x)
    value = value + second.branch[1](value)
    value = value + first.branch(value)
    assert_close(net.scheduled(without_inner)(x), model.head(value))


def refused(net, *order):
    with pytest.raises(ScheduleError) as refusal:
        rpp.Schedule.order(net, order)
    return str(refusal.value)


def test_a_branch_that_does_not_fit_its_place_is_refused_with_names_and_shapes():
    torch.manual_seed(0)
    blocks = [PostActivationBlock(c, c, 1, nn.Identity()) for c in (4, 4, 8)]
    down = PostActivationBlock(4, 8, 2, nn.Conv2d(4, 8, 1, stride=2))
    net = rpp.unravel(nn.Sequential(blocks[0], blocks[1], down, blocks[2]), torch.randn(2, 4, 8, 8))
    assert [block.name for block in net.blocks] == ["0", "1", "2", "3"]
    rpp.Schedule.order(net, [1, 0, 2, 3])
    message = refused(net, 3, 1, 2, 0)
    for part in ("'3'", "'0'", "(8, 4, 4)", "(4, 8, 8)"):
        assert part in message
    message = refused(net, 0, 2, 1, 3)
    assert "'1'" in message
    assert "'2'" in message
    assert "projection" in message


def test_a_branch_is_not_moved_into_itself():
    model = CASES["nested"].model()
    net = rpp.unravel(model, torch.randn(2, 7))
    assert "inside the other" in refused(net, 2, 1, 0)


def test_a_branch_is_not_moved_before_what_else_it_reads():
    class Memory(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Residual(mlp()), nn.Linear(6, 6)

        def forward(self, x):
            y = self.first(x)
            memory = y.tanh()
            return y + self.second(y) * memory

    net = rpp.unravel(Vectors(Memory()), torch.randn(2, 7))
    assert len(net.blocks) == 2
    # The memory comes from the second block's own source, so it moves along.
    rpp.Schedule.order(net, [1, 0])

    class Recalling(Memory):
        def forward(self, x):
            y = self.first(x)
            z = y.tanh()
            return z + self.second(z) * y

    net = rpp.unravel(Vectors(Recalling()), torch.randn(2, 7))
    assert len(net.blocks) == 2
    assert "not computed yet" in refused(net, 1, 0)


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [0, 1, 2, 2]])
def test_an_order_names_every_block_once(order):
    net = rpp.unravel(chain(3), torch.randn(2, 7, dtype=torch.float64))
    with pytest.raises(ScheduleError, match="each of the 3 blocks once"):
        rpp.Schedule.order(net, order)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.eye(2), r"shape \(3, 3\), one row per block, not \(2, 2\)"),
        (np.diag([1, np.nan, 1]), "'middle.1' is nan, not a finite number"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    net = rpp.unravel(chain(3), torch.randn(2, 7, dtype=torch.float64))
    with pytest.raises(ScheduleError, match=message):
        rpp.Schedule.from_weights(net, weights)


def test_a_schedule_of_another_network_is_refused():
    net, other = (rpp.unravel(chain(n), torch.randn(2, 7, dtype=torch.float64)) for n in (3, 4))
    with pytest.raises(rpp.ResnetPathsError, match="made for 4 blocks, and Vectors has 3"):
        net.scheduled(rpp.Schedule.identity(other))


# What is computed


@pytest.mark.parametrize("n", [3, 8])
def test_single_lesions_share_the_blocks_before_them(n):
    net, x = (
        rpp.unravel(chain(n), torch.randn(2, 7, dtype=torch.float64)),
        torch.randn(2, 7, dtype=torch.float64),
    )
    lesions = [rpp.Schedule.lesion(net, block) for block in net.blocks]
    # The stem once, n heads. Branch j is computed once for all lesions after it, and once for each before it.
    branches = sum((j < n - 1) + j for j in range(n))
    assert products(lambda: run_all(net, lesions, x)) == 1 + branches + n
    assert branches == n * (n - 1) // 2 + n - 1


def test_deleted_branches_are_never_computed():
    net, x = (
        rpp.unravel(chain(5), torch.randn(2, 7, dtype=torch.float64), verify=False),
        torch.randn(2, 7, dtype=torch.float64),
    )
    assert products(lambda: net(x)) == 7
    assert products(lambda: net.lesioned([1, 3])(x)) == 5
    assert products(lambda: net.lesioned(range(5))(x)) == 2


def test_blocks_inside_a_deleted_branch_are_never_computed():
    case = CASES["nested"]
    model, (x,) = case.model(), case.inputs()
    net = rpp.unravel(model, x, verify=False)
    assert products(lambda: net.lesioned("middle.0")(x)) == 2


def test_a_schedule_given_twice_is_computed_once():
    net, x = (
        rpp.unravel(chain(4), torch.randn(2, 7, dtype=torch.float64)),
        torch.randn(2, 7, dtype=torch.float64),
    )
    twice = [rpp.Schedule.lesion(net, 1) for _ in range(2)]
    assert products(lambda: run_all(net, twice, x)) == 5


def test_parameters_alone_are_computed_once_for_all_schedules():
    class Normed(Residual):
        def __init__(self):
            super().__init__(nn.Linear(6, 6))
            self.weight = nn.Parameter(torch.rand(6, 6))

        def forward(self, x):
            return x + torch.nn.functional.linear(x, self.weight @ self.weight.T)

    net = rpp.unravel(Vectors(Normed(), Normed(), Normed()), torch.randn(2, 7))
    lesions = [rpp.Schedule.lesion(net, block) for block in net.blocks]
    with Counted() as counted, torch.no_grad():
        run_all(net, lesions, torch.randn(2, 7))
    assert counted.counts[torch.ops.aten.mm.default] - (3 * 2 // 2 + 2) == 3


class Alive(TorchDispatchMode):
    """Counts the values of one shape that are alive at the same time."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.alive = weakref.WeakSet()
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.shape == self.shape:
            self.alive.add(result)
            self.peak = max(self.peak, len(self.alive))
        return result


@pytest.mark.parametrize("n", [4, 16])
def test_live_checkpoints_grow_with_the_logarithm_of_the_number_of_schedules(n):
    net = rpp.unravel(chain(n), torch.randn(2, 7, dtype=torch.float64))
    sets = [[block] for block in range(n)]
    # Nested sets from the end to the front make the prefix tree as lopsided as can be.
    sets += [list(range(first, n)) for first in range(n)] + [list(range(last)) for last in range(n)]
    schedules = [rpp.Schedule.lesion(net, deleted) for deleted in sets]
    with Alive((2, 6)) as values, torch.no_grad():
        for _ in net.outputs(schedules, (torch.randn(2, 7, dtype=torch.float64),)):
            pass
    # A checkpoint of this chain is one value; besides, a sum and its operands are alive.
    assert values.peak <= math.log2(len(schedules)) + 2 + 3


# Several schedules in one larger batch


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BY_HAND, "highway", "repeated", "dual path"])
def test_schedules_side_by_side_give_what_they_give_alone(name):
    net, _, inputs = unraveled(name, torch.float64)
    n = len(net.blocks)
    schedules = [rpp.Schedule.lesion(net, block) for block in net.blocks]
    schedules += [
        rpp.Schedule.identity(net),
        rpp.Schedule.lesion(net, range(n)),
        rpp.Schedule.scaled(net, 0.7),
    ]
    alone = dict(net.outputs(schedules, inputs))
    for width in (2, 5):
        together = dict(net.outputs(schedules, inputs, perturbations_per_eval=width))
        assert together.keys() == alone.keys() == set(range(len(schedules)))
        for place, output in alone.items():
            assert_close(together[place], output)


def test_reorderings_and_constants_side_by_side_give_what_they_give_alone():
    model, x = chain(4), torch.randn(3, 7, dtype=torch.float64)
    net = rpp.unravel(model, x)
    constant = torch.randn(1, 6, dtype=torch.float64)
    schedules = [rpp.Schedule.order(net, order) for order in ([1, 0, 2, 3], [3, 2, 1, 0], [0, 1, 3, 2])]
    schedules += [
        rpp.Schedule.from_rows(net, {2: ()}, {2: constant}),
        rpp.Schedule.from_rows(net, {1: ((0, 1.0), (1, 0.5))}, {0: constant}),
    ]
    for one, other in zip(
        run_all(net, schedules, x, perturbations_per_eval=5), run_all(net, schedules, x), strict=True
    ):
        assert_close(one, other)


def test_a_network_that_folds_its_batch_into_tokens_still_runs_side_by_side_schedules():
    class Folding(Residual):
        def forward(self, x):
            return (x.reshape(-1, 3) + self.branch(x.reshape(-1, 3))).reshape(-1, 6)

    model = randomised(Vectors(Folding(mlp(3)), Folding(mlp(3)))).eval().double()
    x = torch.randn(3, 7, dtype=torch.float64)
    net = rpp.unravel(model, x)
    lesions = [rpp.Schedule.lesion(net, block) for block in net.blocks]
    assert len(lesions) == 2
    for one, other in zip(run_all(net, lesions, x, perturbations_per_eval=4), run_all(net, lesions, x), strict=True):
        assert_close(one, other)


def test_an_infinite_branch_that_another_schedule_deletes_does_not_spread():
    model = chain(2)
    with torch.no_grad():
        model.middle[1].branch[1].weight.fill_(float("inf"))
    x = torch.randn(3, 7, dtype=torch.float64)
    net = rpp.unravel(model, x)
    schedules = [rpp.Schedule.lesion(net, 0), rpp.Schedule.lesion(net, 1), rpp.Schedule.lesion(net, [0, 1])]
    _, deleted, both = run_all(net, schedules, x, perturbations_per_eval=3)
    assert torch.isfinite(deleted).all()
    assert torch.isfinite(both).all()


# Views under Captum


@pytest.fixture
def lesioned():
    model = randomised(PreActivation()).eval().double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    return rpp.unravel(model, x.detach()).lesioned("blocks.1"), without(model, "blocks.1.branch"), x


def test_saliency_of_a_view_is_that_of_the_copy_patched_by_hand(lesioned):
    view, patched, x = lesioned
    assert_close(Saliency(view).attribute(x, 2), Saliency(patched).attribute(x, 2))


def test_integrated_gradients_of_a_view_are_those_of_the_copy_patched_by_hand(lesioned):
    view, patched, x = lesioned
    ours, theirs = (IntegratedGradients(m).attribute(x, target=2, n_steps=7) for m in (view, patched))
    assert_close(ours, theirs)


def test_noise_tunnel_runs_on_a_view(lesioned):
    view, _, x = lesioned
    assert NoiseTunnel(Saliency(view)).attribute(x, nt_samples=3, target=1).shape == x.shape


@pytest.mark.filterwarnings("ignore:Setting (forward, )?backward hooks:UserWarning")
@pytest.mark.parametrize("method", [DeepLift, GuidedBackprop, LRP])
@pytest.mark.parametrize("intact", [True, False])
def test_methods_that_walk_submodules_are_refused_and_leave_the_model_alone(method, intact, lesioned):
    view, _, x = lesioned
    view = view._network[0] if intact else view
    hooks = [len(module._forward_hooks) for module in view.model.modules()]
    with pytest.raises(UnsupportedMethodError, match=r"DeepLift, GuidedBackprop, LRP"):
        method(view).attribute(x, target=1)
    assert [len(module._forward_hooks) for module in view.model.modules()] == hooks


@pytest.mark.parametrize(("method", "options"), [(LayerActivation, {}), (LayerGradCam, {"target": 1})])
def test_layer_methods_on_a_view_are_refused(method, options, lesioned):
    view, _, x = lesioned
    with pytest.raises(UnsupportedMethodError, match="layer methods"):
        method(view, view).attribute(x, **options)
